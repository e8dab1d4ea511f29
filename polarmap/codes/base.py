"""Base classes of all codes and of all erasure decoders.

A code turns k data blocks into n coded blocks, such that some of the n results can be missing. It is defined
by matrices. If u stands for the unknown blocks, then

    results = G u,    targets = T u                        (`CodeMatrices`)
    weights @ G[arrived] = T[missing]                      decodes the missing targets
    checks @ G[arrived] = 0                                verifies the arrived results

The targets are the results that the caller wants. An `ErasureDecoder` handles one erasure pattern, which is
the set of results that have arrived. Its weights and checks depend on this set only, never on the values.
`linear_code` adds the encoder. `real_decoders` and `modular_decoders` implement the decoders.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import NamedTuple

import numpy as np

from polarmap.dtypes import Array, DType, Floats, Indices, Mask, UInt64Array, is_integer_dtype

ReceivedBlocks = Mapping[int, Array]  # Maps the index of a coded block to its flat result.

# Coefficients of smaller magnitude are treated as zero.
COEFFICIENT_TOL = 1e-12
# Evaluate at most this many parity checks to verify results. More would take time without detecting more
# errors.
MAX_CHECKS = 8
# Evaluate at most this many parity checks modulo 2^64. More are needed here, because an even coefficient can
# hide an error: 2 * 2^63 is zero. One result in 2^16 has even coefficients in all 16 checks.
MAX_MODULAR_CHECKS = 16


class CodeMatrices(ABC):
    """Base class of codes, which are defined by three matrices E, G and T.

        coded blocks = E @ blocks,   results = G @ u,   targets = T @ u

    Here `blocks` are the input of the encoder, u stands for the unknown blocks that decoding solves for, and
    the targets are the results that the caller wants.

    Attributes
    ----------
    n, k : int
        Number of coded blocks and of data blocks.
    rms_gain : float
        Largest ratio of the root mean square of a coded block to that of the data blocks.
    """

    n: int
    k: int
    rms_gain = 1.0

    @property
    @abstractmethod
    def encoding_matrix(self) -> Array:
        """The encoding matrix E, which computes all coded blocks except those that equal a data block.

        Its shape is (n - len(systematic_indices), input blocks).
        """

    @property
    def generator_matrix(self) -> Array:
        """The generator matrix G, which maps the unknown blocks to the n results.

        Its shape is (n, unknowns). By default, G is E. This holds if f, the function that the workers
        evaluate, commutes with linear combinations.
        """
        return self.encoding_matrix

    @property
    def target_matrix(self) -> Array:
        """The target matrix T, which maps the unknown blocks to the targets (the results to return).

        Its shape is (n_targets, unknowns). By default, T is [I, 0]: the targets are the first unknowns.
        """
        return np.eye(self.n_targets, self.encoding_matrix.shape[1], dtype=self.encoding_matrix.dtype)

    @property
    def recovery_threshold(self) -> int:
        """The smallest number of results from which decoding is possible: the number of unknown blocks."""
        return int(self.generator_matrix.shape[1])

    def compute_encoding_matrix_columns(self, block_indices: Indices) -> Array:
        """Return the columns of the encoding matrix E that belong to the input blocks `block_indices`."""
        return self.encoding_matrix[:, block_indices]

    def left_multiply_encoding_matrix(self, weights: Floats) -> Floats:
        """Return weights @ E, where E is the encoding matrix.

        This expresses linear combinations of coded blocks in terms of the input blocks.

        Parameters
        ----------
        weights : array (combinations, n - len(systematic_indices))
            One linear combination of coded blocks per row.

        Returns
        -------
        array (combinations, input blocks)
        """
        return np.asarray(weights @ self.encoding_matrix)

    @property
    @abstractmethod
    def n_targets(self) -> int:
        """The number of targets, which are the results that the caller wants."""

    @property
    @abstractmethod
    def systematic_indices(self) -> Indices:
        """The indices of the coded blocks that are unchanged data blocks."""


class MatrixBlock(NamedTuple):
    """A block of a block-diagonal matrix. All other entries in its rows and columns are zero.

    Attributes
    ----------
    rows, columns : index array or slice
        The rows and columns of the matrix that the block occupies.
    entries : array (rows, columns)
        The entries of the block.
    """

    rows: Indices | slice
    columns: Indices | slice
    entries: Array


class WeightMasks(NamedTuple):
    """Boolean masks of the arrived results that each missing result is decoded from.

    Attributes
    ----------
    used_arrivals_mask : boolean array (arrived,)
        True for each arrived result that at least one missing result is decoded from.
    recombined_results_mask : boolean array (missing,)
        True for each missing result that is decoded from two or more arrived results.
    invertible_weight_blocks : tuple of MatrixBlock
        The blocks of a boolean matrix (missing, arrived). An entry is True for each weight that never
        multiplies an error to zero: every nonzero real weight, and every odd weight modulo 2^64.
    """

    used_arrivals_mask: Mask
    recombined_results_mask: Mask
    invertible_weight_blocks: tuple[MatrixBlock, ...]

    def count_invertible_weights(self, arrived_mask: Mask) -> Indices:
        """Return how many results selected by `arrived_mask` each missing result depends on, (missing,)."""
        counts = np.zeros(len(self.recombined_results_mask), np.intp)
        for rows, columns, entries in self.invertible_weight_blocks:
            counts[rows] = entries[:, arrived_mask[columns]].sum(axis=1)
        return counts

    def compute_influential_arrivals(self, missing_mask: Mask) -> Mask:
        """Return a mask of the arrived results whose errors change a result selected by `missing_mask`."""
        detectable_mask = np.zeros(len(self.used_arrivals_mask), bool)
        for rows, columns, entries in self.invertible_weight_blocks:
            detectable_mask[columns] = entries[missing_mask[rows]].any(axis=0)
        return detectable_mask


def compute_nonzero_mask(coefficients: Floats | UInt64Array) -> Mask:
    """Return a mask of the nonzero coefficients.

    Real coefficients below `COEFFICIENT_TOL` count as zero, because they may be due to rounding.
    """
    min_magnitude = 0 if is_integer_dtype(coefficients.dtype) else COEFFICIENT_TOL
    return np.asarray((coefficients > min_magnitude) | (coefficients < -min_magnitude))


def compute_invertible_mask(coefficients: Floats | UInt64Array) -> Mask:
    """Return a mask of the coefficients that have an inverse: nonzero real numbers, or odd integers mod 2^64.

    The product of an invertible coefficient and an error is never zero. A parity check therefore detects
    every error in a block whose coefficient is invertible.
    """
    if is_integer_dtype(coefficients.dtype):
        return np.asarray(coefficients % 2 == 1)
    return compute_nonzero_mask(coefficients)


class ErasureDecoder(ABC):
    """Computes the missing results of a code from the results that have arrived.

    A decoder handles a single erasure pattern, that is, one set of arrived results. It recovers the missing
    targets, the results that the caller wants. `RealDecoder` decodes real numbers and `ModularDecoder`
    integers modulo 2^64. In both cases, decoding is a matrix product: recovered = weights @ received.

    Attributes
    ----------
    arrived_mask : boolean array (n,)
        True for each result that has arrived.
    arrived_indices : index array
        Indices of the arrived results, in ascending order.
    arrived_data_indices : index array
        Indices of the arrived results that are targets themselves and need no decoding.
    missing_indices : index array
        Indices of the targets that have not arrived, in ascending order.
    modular : bool
        Whether integers are decoded modulo 2^64 instead of as real numbers.
    """

    modular = False

    def __init__(self, code: CodeMatrices, arrived_mask: Mask) -> None:
        n_systematic = len(code.systematic_indices)
        missing_mask = np.ones(code.n_targets, bool)
        missing_mask[:n_systematic] = ~arrived_mask[:n_systematic]
        self.code, self.arrived_mask = code, arrived_mask
        self.arrived_indices = np.flatnonzero(arrived_mask)
        self.arrived_data_indices: Indices = np.flatnonzero(arrived_mask[:n_systematic])
        self.missing_indices: Indices = np.flatnonzero(missing_mask)

    def over(self, dtype: DType) -> ErasureDecoder:
        """Return the decoder to use for results of `dtype`, for the same set of arrived results.

        Integers are decoded modulo 2^64 if the code supports it, and all other data as real numbers. By
        default, a decoder supports one of the two and returns itself.
        """
        return self

    def reuse_computations_of(self, previous: ErasureDecoder) -> None:
        """Reuse intermediate results of a previous decoder, built when fewer results had arrived.

        Parameters
        ----------
        previous : ErasureDecoder
            Decoder of the same code for a subset of the arrivals. It remains usable, but may have to
            recompute its weights.
        """
        return  # Most decoders compute nothing that is worth reusing.

    @property
    @abstractmethod
    def rank_deficit(self) -> int:
        """The minimum number of additional results needed to decode, or 0 if decoding is already possible."""

    @property
    @abstractmethod
    def n_redundant_checks(self) -> int:
        """The number of parity checks available to verify the results; negative if too few have arrived."""

    @property
    def weights(self) -> Floats | UInt64Array:
        """The decoding weights, shape (missing, arrived): missing results = weights @ arrived results."""
        raise NotImplementedError(
            f"{type(self).__name__} has no decoding weights. Use weight_magnitudes instead."
        )

    @property
    def approximate_weights(self) -> Floats:
        """The decoding weights as real numbers, with one row per missing result.

        For integers, they are valid unless a value wraps around modulo 2^64.
        """
        return np.asarray(self.over(np.dtype(np.float64)).weights, np.float64)

    @property
    @abstractmethod
    def check_matrix(self) -> Floats | UInt64Array:
        """The parity-check matrix of the arrived results: check_matrix @ correct_results is zero."""

    @property
    def check_blocks(self) -> tuple[MatrixBlock, ...]:
        """The nonzero blocks of the block-diagonal `check_matrix`; by default, the whole matrix."""
        return (as_single_block(self.check_matrix),)

    @cached_property
    def checked_arrivals_mask(self) -> Mask:
        """A mask (arrived,) of the results whose errors the redundant parity checks always detect."""
        checked_mask = np.zeros(len(self.arrived_indices), bool)
        for _, columns, checks in self.check_blocks:
            checked_mask[columns] = compute_invertible_mask(checks).any(axis=0)
        return checked_mask

    @property
    @abstractmethod
    def weight_magnitudes(self) -> Floats:
        """The sensitivity of each missing result (row) to an error of 1 in each arrived result (column)."""

    def get_weight_magnitudes_of_target(self, missing_position: int) -> Floats:
        """Return the sensitivity of one missing result to each arrived result, shape (arrived,).

        This is the row `missing_position` of `weight_magnitudes`.
        """
        return np.asarray(self.weight_magnitudes[missing_position])

    @property
    def max_weight_sum(self) -> float:
        """The largest possible change of a missing result if all arrived results have an error of 1."""
        return float(self.weight_magnitudes.sum(axis=1).max(initial=0.0))

    @property
    def max_weight_magnitudes(self) -> Floats:
        """The largest change that an error of 1 in each arrived result causes in any missing result."""
        return np.asarray(self.weight_magnitudes.max(axis=0, initial=0))

    @cached_property
    def weight_masks(self) -> WeightMasks:
        """Masks of the arrived results that each missing result is decoded from."""
        if not len(self.missing_indices):
            return compute_weight_masks(np.empty((0, len(self.arrived_indices))))
        return self._compute_weight_masks()

    def _compute_weight_masks(self) -> WeightMasks:
        """Compute `weight_masks`. This method is only called if at least one result is missing."""
        return compute_weight_masks(self.weights)

    @property
    @abstractmethod
    def amplification(self) -> float:
        """The largest factor by which decoding multiplies errors in the results.

        The factor is 0 if nothing is missing or decoding is exact, and inf if decoding is impossible.
        """

    @property
    @abstractmethod
    def decodes_integers_by_rounding(self) -> bool:
        """True if integers are decoded as real numbers and rounded at the end."""

    @abstractmethod
    def decode(self, received: ReceivedBlocks, dtype: DType) -> Array:
        """Compute the missing results from the arrived results.

        Parameters
        ----------
        received : mapping from block index to array (b,)
            Flat results, one for each index in `arrived_indices`.
        dtype : dtype
            Data type of the results. It also selects the arithmetic, as in `over`.

        Returns
        -------
        array (missing, b), of `dtype`
            The missing results, in the order of `missing_indices`.
        """

    def get_weight_masks(self, dtype: DType) -> WeightMasks:
        """Return masks of the arrived results that are used to decode results of `dtype`."""
        return self.over(dtype).weight_masks

    def transform_for_parity_checks(self, received: ReceivedBlocks) -> ReceivedBlocks:
        """Return the blocks that `check_matrix` multiplies: by default, the received results themselves."""
        return received


class SystematicEquations(ErasureDecoder):
    """The linear equations for the missing data blocks of a systematic code: G = [I; P], T = I.

    Each parity block that has arrived gives one equation, and the missing data blocks are the unknowns.
    Decoders over the reals and modulo 2^64 derive from this class and solve the equations.

    Attributes
    ----------
    arrived_parity_indices : index array
        Rows of P whose parity blocks have arrived, in ascending order.
    """

    def __init__(self, code: CodeMatrices, arrived_mask: Mask) -> None:
        super().__init__(code, arrived_mask)
        self.arrived_parity_indices = np.flatnonzero(arrived_mask[code.k :])

    @cached_property
    def system_matrix(self) -> Array:
        """The rows of arrived parity blocks and columns of missing data blocks of the parity matrix P."""
        return self.code.encoding_matrix[np.ix_(self.arrived_parity_indices, self.missing_indices)]


def compute_weight_masks(weights: Floats | UInt64Array) -> WeightMasks:
    """Compute masks of the arrived results that the decoding weights use.

    Parameters
    ----------
    weights : array (missing, arrived)
        Decoding weights. Weights of an integer dtype are taken modulo 2^64.
    """
    nonzero_mask = compute_nonzero_mask(weights)
    unit_mask = compute_invertible_mask(weights) if is_integer_dtype(weights.dtype) else nonzero_mask
    return WeightMasks(
        np.asarray(nonzero_mask.any(axis=0)), nonzero_mask.sum(axis=1) > 1, (as_single_block(unit_mask),)
    )


def as_single_block(matrix: Array) -> MatrixBlock:
    """Return a whole matrix as a single `MatrixBlock`."""
    return MatrixBlock(slice(None), slice(None), matrix)
