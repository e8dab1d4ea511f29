"""Base classes of all codes and of all erasure decoders.

A code consists of matrices. For unknown blocks u,

    results = G u,    targets = T u                        (`CodeMatrices`)
    weights @ G[arrived] = T[missing]                      decodes the missing targets
    checks @ G[arrived] = 0                                verifies the arrived results

An `ErasureDecoder` serves one erasure pattern: its weights and checks depend on which results arrived, never
on their values. `linear_code` adds the encoder, and `real_decoders` and `modular_decoders` implement
decoding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import NamedTuple

import numpy as np

from polarmap.dtypes import Array, DType, Floats, Indices, Mask, UInt64Array, is_integer_dtype

ReceivedBlocks = Mapping[int, Array]  # Maps the index of a coded block to its flat result.

COEFFICIENT_TOL = 1e-12  # Coefficients of smaller magnitude are treated as zero.
# The number of redundant parity checks to evaluate. More checks cost time and detect no more errors.
MAX_CHECKS = 8
# The number of parity checks to evaluate modulo 2^64. One result in 2^16 has an even coefficient in all of
# these checks, so that an error of 2^63 in it remains undetected.
MAX_MODULAR_CHECKS = 16


class CodeMatrices(ABC):
    """The matrices that define a code: coded blocks = E blocks, results = G u, targets = T u.

    Attributes
    ----------
    n, k : int
        Number of coded blocks and of data blocks.
    rms_gain : float
        Largest root mean square of a coded block, relative to the root mean square of the data.
    """

    n: int
    k: int
    rms_gain = 1.0

    @property
    @abstractmethod
    def encoding_matrix(self) -> Array:
        """The encoding matrix E, shape (n - len(systematic_indices), input blocks)."""

    @property
    def generator_matrix(self) -> Array:
        """The generator matrix G, shape (n, unknowns); E if f commutes with linear combinations."""
        return self.encoding_matrix

    @property
    def target_matrix(self) -> Array:
        """The target matrix T, shape (n_targets, unknowns); [I, 0] if the targets are the first unknowns."""
        return np.eye(self.n_targets, self.encoding_matrix.shape[1], dtype=self.encoding_matrix.dtype)

    @property
    def recovery_threshold(self) -> int:
        """The smallest number of results that can determine the targets: the number of unknowns."""
        return int(self.generator_matrix.shape[1])

    def compute_encoding_matrix_columns(self, block_indices: Indices) -> Array:
        """Return the columns of E that belong to the input blocks `block_indices`."""
        return self.encoding_matrix[:, block_indices]

    def left_multiply_encoding_matrix(self, weights: Floats) -> Floats:
        """Return weights @ E, which rewrites combinations of coded blocks as combinations of input blocks.

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
        """The number of targets, which are the results that a decoder must return."""

    @property
    @abstractmethod
    def systematic_indices(self) -> Indices:
        """The indices of the coded blocks that are unchanged data blocks."""


class MatrixBlock(NamedTuple):
    """A block of a block-diagonal matrix, whose other entries in these rows and columns are zero.

    Attributes
    ----------
    rows, columns : index array or slice
        The rows and the columns of the matrix in which the block lies.
    entries : array (rows, columns)
        The entries of the block.
    """

    rows: Indices | slice
    columns: Indices | slice
    entries: Array


class WeightMasks(NamedTuple):
    """Boolean masks that describe how missing results depend on arrived results.

    Attributes
    ----------
    used_arrivals_mask : boolean array (arrived,)
        Arrived results with a nonzero weight in at least one missing result.
    recombined_results_mask : boolean array (missing,)
        Missing results that combine two or more arrived results.
    invertible_weight_blocks : tuple of MatrixBlock
        The blocks of a boolean matrix (missing, arrived). It marks the weights that never multiply an error
        to zero: all nonzero weights over the reals, odd weights modulo 2^64.
    """

    used_arrivals_mask: Mask
    recombined_results_mask: Mask
    invertible_weight_blocks: tuple[MatrixBlock, ...]

    def count_invertible_weights(self, arrived_mask: Mask) -> Indices:
        """Return how many of the results in `arrived_mask` each missing result depends on, (missing,)."""
        counts = np.zeros(len(self.recombined_results_mask), np.intp)
        for rows, columns, entries in self.invertible_weight_blocks:
            counts[rows] = entries[:, arrived_mask[columns]].sum(axis=1)
        return counts

    def find_detectable_arrivals(self, missing_mask: Mask) -> Mask:
        """Return a mask of the arrived results whose errors show in a missing result of `missing_mask`."""
        detectable_mask = np.zeros(len(self.used_arrivals_mask), bool)
        for rows, columns, entries in self.invertible_weight_blocks:
            detectable_mask[columns] = entries[missing_mask[rows]].any(axis=0)
        return detectable_mask


def compute_nonzero_mask(coefficients: Floats | UInt64Array) -> Mask:
    """Return a mask of the coefficients that exceed rounding; for integers, of the nonzero coefficients."""
    min_magnitude = 0 if is_integer_dtype(coefficients.dtype) else COEFFICIENT_TOL
    return np.asarray((coefficients > min_magnitude) | (coefficients < -min_magnitude))


def compute_invertible_mask(coefficients: Floats | UInt64Array) -> Mask:
    """Return a mask of the invertible coefficients: odd integers modulo 2^64, nonzero real numbers.

    An invertible coefficient times a nonzero deviation is nonzero, so that a check with this coefficient
    detects every error of the block.
    """
    if is_integer_dtype(coefficients.dtype):
        return np.asarray(coefficients % 2 == 1)
    return compute_nonzero_mask(coefficients)


class ErasureDecoder(ABC):
    """A decoder of the missing targets of a code for one erasure pattern, over the reals or modulo 2^64.

    `RealDecoder` decodes real numbers and `ModularDecoder` integers modulo 2^64. The recovered targets are
    linear in the results that arrived: recovered = weights @ received.

    Attributes
    ----------
    arrived_mask : boolean array (n,)
        True for each result that has arrived.
    arrived_indices : index array
        Indices of the arrived results, ascending.
    arrived_data_indices : index array
        Indices of the arrived results that are targets themselves.
    missing_indices : index array
        Indices of the targets that have not arrived, ascending.
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
        """Return the decoder for the same arrivals in the arithmetic of `dtype`.

        The arithmetic is modulo 2^64 for integers if the code supports it, and otherwise real. This base
        class has one arithmetic and returns itself.
        """
        return self

    def reuse_computations_of(self, previous: ErasureDecoder) -> None:
        """Reuse intermediate results of a decoder that was built before the latest arrivals.

        Parameters
        ----------
        previous : ErasureDecoder
            Decoder of the same code for a subset of the arrivals. It stays valid, but may have to compute
            its weights again.
        """
        return  # Most decoders have nothing to reuse.

    @property
    @abstractmethod
    def rank_deficit(self) -> int:
        """A lower bound on the number of further results needed; 0 if the targets are decodable."""

    @property
    @abstractmethod
    def n_redundant_checks(self) -> int:
        """The number of redundant parity checks; negative while too few results have arrived."""

    @property
    def weights(self) -> Floats | UInt64Array:
        """The decoding weights, shape (missing, arrived): recovered = weights @ received."""
        raise NotImplementedError(
            f"{type(self).__name__} has no decoding weights. Use weight_magnitudes instead."
        )

    @property
    def approximate_weights(self) -> Floats:
        """The decoding weights over the reals, shape (missing, arrived), valid if no integer wraps."""
        return np.asarray(self.over(np.dtype(np.float64)).weights, np.float64)

    @property
    @abstractmethod
    def check_matrix(self) -> Floats | UInt64Array:
        """The redundant parity checks that verify the results: check_matrix @ received = 0."""

    @property
    def check_blocks(self) -> tuple[MatrixBlock, ...]:
        """The blocks of `check_matrix`; by default, the whole matrix."""
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
        """The largest effect of a unit error in each result on each target, shape (missing, arrived)."""

    def get_weight_magnitudes_of_target(self, missing_position: int) -> Floats:
        """Return the row `missing_position` of `weight_magnitudes`, shape (arrived,)."""
        return np.asarray(self.weight_magnitudes[missing_position])

    @property
    def max_weight_sum(self) -> float:
        """The largest sum of `weight_magnitudes` over the arrived results."""
        return float(self.weight_magnitudes.sum(axis=1).max(initial=0.0))

    @property
    def max_weight_magnitudes(self) -> Floats:
        """The maximum of `weight_magnitudes` over the targets, for each arrived result, shape (arrived,)."""
        return np.asarray(self.weight_magnitudes.max(axis=0, initial=0))

    @cached_property
    def weight_masks(self) -> WeightMasks:
        """The masks that describe which arrived results each recovered target uses."""
        if not len(self.missing_indices):
            return compute_weight_masks(np.empty((0, len(self.arrived_indices))))
        return self._compute_weight_masks()

    def _compute_weight_masks(self) -> WeightMasks:
        """Compute `weight_masks` if at least one target is missing."""
        return compute_weight_masks(self.weights)

    @property
    @abstractmethod
    def amplification(self) -> float:
        """The factor by which decoding multiplies errors at most; 0 if exact, inf if not decodable."""

    @property
    @abstractmethod
    def rounds_integers(self) -> bool:
        """Whether integers are decoded as real numbers and then rounded."""

    @abstractmethod
    def decode(self, received: ReceivedBlocks, dtype: DType) -> Array:
        """Compute the missing targets from the arrived results, in the arithmetic of `over(dtype)`.

        Parameters
        ----------
        received : mapping from block index to array (b,)
            Flat results, one for each index in `arrived_indices`.
        dtype : dtype
            Data type of the results.

        Returns
        -------
        array (missing, b), of `dtype`
            The missing targets, in the order of `missing_indices`.
        """

    def get_weight_masks(self, dtype: DType) -> WeightMasks:
        """Return `weight_masks` of the decoder for results of `dtype`."""
        return self.over(dtype).weight_masks

    def transform_for_parity_checks(self, received: ReceivedBlocks) -> ReceivedBlocks:
        """Return the blocks to which `check_matrix` applies; by default, `received` unchanged."""
        return received


class SystematicEquations(ErasureDecoder):
    """The equations of a code with G = [I; P] and T = I: each arrived parity block is one of them.

    Their unknowns are the missing data blocks. Decoders over the reals and modulo 2^64 solve them.

    Attributes
    ----------
    arrived_parity_indices : index array
        Rows of P whose parity blocks have arrived, ascending.
    """

    def __init__(self, code: CodeMatrices, arrived_mask: Mask) -> None:
        super().__init__(code, arrived_mask)
        self.arrived_parity_indices = np.flatnonzero(arrived_mask[code.k :])

    @cached_property
    def system_matrix(self) -> Array:
        """The submatrix of P for arrived parity blocks (rows) and missing data blocks (columns)."""
        return self.code.encoding_matrix[np.ix_(self.arrived_parity_indices, self.missing_indices)]


def compute_weight_masks(weights: Floats | UInt64Array) -> WeightMasks:
    """Compute the masks that describe which arrived results the decoding weights use.

    Parameters
    ----------
    weights : array (missing, arrived)
        Decoding weights; an integer dtype stands for weights modulo 2^64.
    """
    nonzero_mask = compute_nonzero_mask(weights)
    unit_mask = compute_invertible_mask(weights) if is_integer_dtype(weights.dtype) else nonzero_mask
    return WeightMasks(
        np.asarray(nonzero_mask.any(axis=0)), nonzero_mask.sum(axis=1) > 1, (as_single_block(unit_mask),)
    )


def as_single_block(matrix: Array) -> MatrixBlock:
    """Return the block that covers a whole matrix."""
    return MatrixBlock(slice(None), slice(None), matrix)
