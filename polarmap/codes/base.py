"""The algebra of every code: results = G u and wanted = T u, for unknown blocks u.

A code is `CodeMatrices` that say G and T; it makes the coded blocks, too (`linear_code`). A `ErasureDecoder`
is what one pattern of arrivals makes of them: weights with weights @ G[arrived] = T[missing], which recover
what is missing, and equations with equations @ G[arrived] = 0, which tell whether the results fit together.
Both depend on which results arrived, never on what is in them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import NamedTuple

import numpy as np

from polarmap.dtypes import Array, DType, Floats, Indices, Mask, UInt64Array, is_integer_dtype

ReceivedBlocks = Mapping[int, Array]  # flat results by position

COEFFICIENT_TOL = 1e-12  # coefficients below are rounding
MAX_CHECKS = 8  # left-over equations evaluated; more would cost time and tell nothing new
# Of integers one result in 2^16 has an even coefficient in all of these, which hides what wraps modulo 2^64.
MAX_MODULAR_CHECKS = 16


class CodeMatrices(ABC):
    """What a code is by its matrices: coded blocks = E blocks, results = G u, wanted = T u.

    n, k : coded blocks and data blocks.
    rms_gain : by how much the results that arrive may exceed those wanted.
    """

    n: int
    k: int
    rms_gain = 1.0

    @property
    @abstractmethod
    def encoding_matrix(self) -> Array:
        """E, shape (n - len(systematic), number of blocks that are mixed)."""

    @property
    def generator_matrix(self) -> Array:
        """G, shape (n, number of unknowns): E, where f commutes with the mixtures that are sent."""
        return self.encoding_matrix

    @property
    def target_matrix(self) -> Array:
        """T, shape (wanted, number of unknowns): [I, 0], where the first of these are wanted."""
        return np.eye(self.n_targets, self.encoding_matrix.shape[1], dtype=self.encoding_matrix.dtype)

    @property
    def recovery_threshold(self) -> int:
        """The fewest results that can determine those wanted: one for each unknown."""
        return int(self.generator_matrix.shape[1])

    def compute_encoding_matrix_columns(self, block_indices: Indices) -> Array:
        """The columns of E of some blocks."""
        return self.encoding_matrix[:, block_indices]

    def left_multiply_encoding_matrix(self, weights: Floats) -> Floats:
        """Combinations (rows) of the coded blocks as they are made of blocks: combinations @ E."""
        return np.asarray(weights @ self.encoding_matrix)

    @property
    @abstractmethod
    def n_targets(self) -> int:
        """How many results are wanted."""

    @property
    @abstractmethod
    def systematic_indices(self) -> Indices:
        """The coded blocks that are data blocks untouched."""


class WeightMasks(NamedTuple):
    """What missing results are made of.

    used_arrivals_mask : which of the results that arrived any of them is made of, (arrived,).
    recombined_results_mask : which are no copy of a result, (missing,).
    invertible_weights_mask : which of those that arrived show in each whatever they deviate by, (missing,
        arrived).
    """

    used_arrivals_mask: Mask
    recombined_results_mask: Mask
    invertible_weights_mask: Mask


def compute_nonzero_mask(coefficients: Floats | UInt64Array) -> Mask:
    """Which are not zero, or no more than rounding of it."""
    min_magnitude = 0 if is_integer_dtype(coefficients.dtype) else COEFFICIENT_TOL
    return np.asarray((coefficients > min_magnitude) | (coefficients < -min_magnitude))


def compute_invertible_mask(coefficients: Floats | UInt64Array) -> Mask:
    """Which multiply no deviation to zero: modulo 2^64 the odd ones, an even one wraps some to nothing."""
    if is_integer_dtype(coefficients.dtype):
        return np.asarray(coefficients % 2 == 1)
    return compute_nonzero_mask(coefficients)


class ErasureDecoder(ABC):
    """How to recover the missing results of a code when those of the mask `arrived_mask` are there.

    arrived_mask : the results that are there, ascending.
    arrived_data_indices : those of them that are wanted as they are.
    missing_indices : those of the wanted results that are not among them, ascending.
    modular : whether integers are recovered modulo 2^64, not as real numbers.
    """

    modular = False

    def __init__(self, code: CodeMatrices, arrived_mask: Mask) -> None:
        n_systematic = len(code.systematic_indices)
        missing_mask = np.ones(code.n_targets, bool)
        missing_mask[:n_systematic] = ~arrived_mask[:n_systematic]
        self.code = code
        self.arrived_indices = np.flatnonzero(arrived_mask)
        self.arrived_data_indices: Indices = np.flatnonzero(arrived_mask[:n_systematic])
        self.missing_indices: Indices = np.flatnonzero(missing_mask)

    def reuse_computations_of(self, previous: ErasureDecoder) -> None:
        """Take over what `previous` has computed, of the same code when fewer results had arrived."""
        return  # nothing, but of recoveries that say what

    @property
    @abstractmethod
    def rank_deficit(self) -> int:
        """How many more results it takes at the least; 0 once the missing ones are determined."""

    @property
    @abstractmethod
    def n_redundant_checks(self) -> int:
        """How many equations the arrived results must satisfy; below 0 while they are too few."""

    @property
    @abstractmethod
    def weights(self) -> Floats:
        """Recovered = weights @ received, (missing, arrived)."""

    @abstractmethod
    def compute_parity_check_matrix(self, max_checks: int) -> Floats:
        """Up to `max_checks` equations on the arrived results, (s, arrived)."""

    @abstractmethod
    def decode(self, received: ReceivedBlocks, dtype: DType) -> Array:
        """The missing results, (len(missing), b), from those that arrived."""

    @property
    def rounds_integers(self) -> bool:
        """Whether integers are recovered as real numbers and rounded."""
        return not self.modular

    @cached_property
    def amplification(self) -> float:
        """By how much errors of results may grow; 0 if none is missing or exact, inf if undetermined.

        The largest 2-norm of a row of `weights`.
        """
        if self.modular or not len(self.missing_indices):
            return 0.0
        if self.rank_deficit:
            return np.inf
        norms = np.sqrt(np.einsum("ij,ij->i", self.weights, self.weights))
        return float(norms.max()) if np.isfinite(norms).all() else np.inf

    def get_weight_masks(self, dtype: DType) -> WeightMasks:
        """What the missing results of `dtype` are made of."""
        is_integer = is_integer_dtype(dtype)
        if is_integer not in self._weight_masks_by_is_integer:
            self._weight_masks_by_is_integer[is_integer] = self._compute_weight_masks(dtype)
        return self._weight_masks_by_is_integer[is_integer]

    @cached_property
    def _weight_masks_by_is_integer(self) -> dict[bool, WeightMasks]:
        """Of integers and of floats: they are asked for again and again, and the weights are large."""
        return {}

    def _compute_weight_masks(self, dtype: DType) -> WeightMasks:
        weights: Floats | UInt64Array = np.empty((0, len(self.arrived_indices)))
        if len(self.missing_indices):
            modular_weights = self.compute_modular_weights() if is_integer_dtype(dtype) else None
            weights = self.weights if modular_weights is None else modular_weights
        nonzero_mask = compute_nonzero_mask(weights)
        unit_mask = compute_invertible_mask(weights) if is_integer_dtype(weights.dtype) else nonzero_mask
        return WeightMasks(np.asarray(nonzero_mask.any(axis=0)), nonzero_mask.sum(axis=1) > 1, unit_mask)

    @cached_property
    def verification_checks(self) -> Floats:
        """The equations that are evaluated to verify results."""
        return self.compute_parity_check_matrix(MAX_CHECKS)

    def compute_modular_weights(self) -> UInt64Array | None:
        """The weights of integers modulo 2^64; None unless `modular`."""
        return None

    def compute_modular_check_matrix(self) -> UInt64Array | None:
        """Independent checks of integers modulo 2^64, at most MAX_MODULAR_CHECKS; None unless `modular`."""
        return None

    def get_parity_check_matrix(self, dtype: DType) -> Floats | UInt64Array:
        """The equations that results of `dtype` are to satisfy."""
        modular_checks = self.compute_modular_check_matrix() if is_integer_dtype(dtype) else None
        return self.verification_checks if modular_checks is None else modular_checks

    def transform_for_parity_checks(self, received: ReceivedBlocks) -> ReceivedBlocks:
        """What satisfies the equations, made of the results that arrived: these themselves."""
        return received
