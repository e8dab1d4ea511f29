"""Base classes of all codes and of all erasure decoders.

A code turns k data blocks into n coded blocks. Workers evaluate a function f of each coded block. The results
that the caller wants, usually f of the data blocks, can be decoded even if some of the n results are missing.
A code is defined by matrices. If u stands for the unknown blocks, which the decoder solves for, then

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

ReceivedBlocks = Mapping[int, Array]  # Maps the index of a coded block to its result, a 1-D array.

# Coefficients of smaller magnitude are treated as zero, because they may be due to rounding.
COEFFICIENT_TOL = 1e-12
# Verify real results with at most this many parity checks. More checks would take time without detecting more
# errors.
MAX_CHECKS = 8
# Verify integer results with at most this many parity checks modulo 2^64. More are needed than for real
# numbers, because an even coefficient can hide an error: 2 * 2^63 is zero modulo 2^64. With 16 checks, only
# one result in 2^16 has an even coefficient in all of them.
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
        """The encoding matrix E, with which the encoder computes coded blocks = E @ input blocks.

        Its shape is (n - len(systematic_indices), input blocks). Coded blocks that are unchanged data blocks
        (`systematic_indices`) are not computed and have no row.
        """

    @property
    def generator_matrix(self) -> Array:
        """The generator matrix G, which maps the unknown blocks u to the n results: results = G u.

        Its shape is (n, unknowns). By default, G is the encoding matrix. This is correct if the function that
        the workers evaluate is linear, because encoding its values then gives the results.
        """
        return self.encoding_matrix

    @property
    def target_matrix(self) -> Array:
        """The target matrix T, which maps the unknown blocks u to the results that the caller wants: T u.

        These results are called targets. The shape of T is (n_targets, unknowns). By default, T is [I, 0], so
        the targets are the first unknowns.
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
    """Boolean masks that tell which arrived results each missing result is decoded from.

    Attributes
    ----------
    used_arrivals_mask : boolean array (arrived,)
        True for each arrived result that at least one missing result is decoded from.
    recombined_results_mask : boolean array (missing,)
        True for each missing result that is a combination of two or more arrived results.
    invertible_weight_blocks : tuple of MatrixBlock
        The blocks of a boolean matrix (missing, arrived). An entry is True if the decoding weight is
        invertible, so that its product with an error is never zero. This holds for every nonzero real weight,
        and for every odd weight modulo 2^64.
    """

    used_arrivals_mask: Mask
    recombined_results_mask: Mask
    invertible_weight_blocks: tuple[MatrixBlock, ...]

    def count_invertible_weights(self, arrived_mask: Mask) -> Indices:
        """Count, for each missing result, the results in `arrived_mask` that have an invertible weight.

        An error in an arrived result always changes the missing results for which its decoding weight is
        invertible. `arrived_mask` has shape (arrived,), and the counts have shape (missing,).
        """
        counts = np.zeros(len(self.recombined_results_mask), np.intp)
        for rows, columns, entries in self.invertible_weight_blocks:
            counts[rows] = entries[:, arrived_mask[columns]].sum(axis=1)
        return counts

    def compute_influential_arrivals(self, missing_mask: Mask) -> Mask:
        """Return a mask of the arrived results whose errors always change a result in `missing_mask`.

        Both masks are boolean, of shape (arrived,) and (missing,).
        """
        detectable_mask = np.zeros(len(self.used_arrivals_mask), bool)
        for rows, columns, entries in self.invertible_weight_blocks:
            detectable_mask[columns] = entries[missing_mask[rows]].any(axis=0)
        return detectable_mask


def compute_nonzero_mask(coefficients: Floats | UInt64Array) -> Mask:
    """Return a mask of the nonzero coefficients.

    Real coefficients with a magnitude of at most `COEFFICIENT_TOL` count as zero, because they may be due to
    rounding.
    """
    min_magnitude = 0 if is_integer_dtype(coefficients.dtype) else COEFFICIENT_TOL
    return np.asarray((coefficients > min_magnitude) | (coefficients < -min_magnitude))


def compute_invertible_mask(coefficients: Floats | UInt64Array) -> Mask:
    """Return a mask of the invertible coefficients: nonzero real numbers, or odd integers modulo 2^64.

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
        default, a decoder supports only one kind of arithmetic and returns itself.
        """
        return self

    def reuse_computations_of(self, previous: ErasureDecoder) -> None:
        """Reuse intermediate results of a previous decoder, which was built when fewer results had arrived.

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
        """The number of redundant parity checks, which decoding does not need and which can verify results.

        It is negative if too few results have arrived to decode.
        """

    @property
    def weights(self) -> Floats | UInt64Array:
        """The decoding weights, shape (missing, arrived): missing results = weights @ arrived results."""
        raise NotImplementedError(
            f"{type(self).__name__} has no decoding weights. Use weight_magnitudes instead."
        )

    @property
    def approximate_weights(self) -> Floats:
        """The decoding weights as real numbers, shape (missing, arrived).

        For integers that are decoded modulo 2^64, these weights give the same result unless a value wraps
        around.
        """
        return np.asarray(self.over(np.dtype(np.float64)).weights, np.float64)

    @property
    @abstractmethod
    def check_matrix(self) -> Floats | UInt64Array:
        """The parity-check matrix of the arrived results: check_matrix @ correct_results is zero."""

    @property
    def check_blocks(self) -> tuple[MatrixBlock, ...]:
        """The blocks of `check_matrix`, if it is block-diagonal, otherwise the whole matrix as one block.

        Working on the blocks saves the multiplications by zero.
        """
        return (as_single_block(self.check_matrix),)

    @cached_property
    def checked_arrivals_mask(self) -> Mask:
        """A mask of the arrived results in which parity checks detect every error, shape (arrived,)."""
        checked_mask = np.zeros(len(self.arrived_indices), bool)
        for _, columns, checks in self.check_blocks:
            checked_mask[columns] = compute_invertible_mask(checks).any(axis=0)
        return checked_mask

    @property
    @abstractmethod
    def weight_magnitudes(self) -> Floats:
        """How much an error in an arrived result changes a missing result: absolute decoding weights.

        Each row belongs to a missing result and each column to an arrived result. An entry is the absolute
        change of the missing result if the arrived result has an error of 1.
        """

    def get_weight_magnitudes_of_target(self, missing_position: int) -> Floats:
        """Return how much an error of 1 in each arrived result changes one missing result.

        The returned array of shape (arrived,) is the row `missing_position` of `weight_magnitudes`.
        """
        return np.asarray(self.weight_magnitudes[missing_position])

    @property
    def max_weight_sum(self) -> float:
        """The largest possible change of a missing result if all arrived results have an error of 1."""
        return float(self.weight_magnitudes.sum(axis=1).max(initial=0.0))

    @property
    def max_weight_magnitudes(self) -> Floats:
        """The largest change of a missing result per unit error in each arrived result, shape (arrived,)."""
        return np.asarray(self.weight_magnitudes.max(axis=0, initial=0))

    @cached_property
    def weight_masks(self) -> WeightMasks:
        """Boolean masks that tell from which arrived results the missing results are decoded."""
        if not len(self.missing_indices):
            return compute_weight_masks(np.empty((0, len(self.arrived_indices))))
        return self._compute_weight_masks()

    def _compute_weight_masks(self) -> WeightMasks:
        """Compute `weight_masks`. This method is only called if at least one result is missing."""
        return compute_weight_masks(self.weights)

    @property
    @abstractmethod
    def amplification(self) -> float:
        """The largest factor by which decoding can multiply errors (such as rounding) of the arrived results.

        The factor is 0 if nothing is missing or decoding is exact, and inf if decoding is impossible.
        """

    @property
    @abstractmethod
    def decodes_integers_by_rounding(self) -> bool:
        """True if integers are decoded as real numbers and rounded at the end."""

    @abstractmethod
    def decode(self, received: ReceivedBlocks, dtype: DType) -> Array:
        """Decode the missing results from the arrived results.

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
        """Return masks that tell which arrived results are used to decode missing results of `dtype`."""
        return self.over(dtype).weight_masks

    def transform_for_parity_checks(self, received: ReceivedBlocks) -> ReceivedBlocks:
        """Return the blocks to multiply by `check_matrix` in order to verify the received results.

        By default, these are the received results themselves. A subclass can transform them first.
        """
        return received


class SystematicEquations(ErasureDecoder):
    """The linear equations for the missing data blocks of a systematic code.

    The coded blocks of a systematic code are the data blocks, followed by the parity blocks P @ data blocks.
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
        """The coefficients of the missing data blocks in the arrived parity blocks.

        This is a part of the parity matrix P, with one row per equation and one column per unknown.
        """
        return self.code.encoding_matrix[np.ix_(self.arrived_parity_indices, self.missing_indices)]


def compute_weight_masks(weights: Floats | UInt64Array) -> WeightMasks:
    """Compute masks that tell which arrived results have nonzero decoding weights.

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
    """Return a `MatrixBlock` that consists of all rows and columns of a matrix."""
    return MatrixBlock(slice(None), slice(None), matrix)
