"""The algebra of every code: results = G u and wanted = T u, for unknown blocks u.

A code is `CodeMatrices` that say G and T; it makes the coded blocks, too (`linear_code`). An `ErasureDecoder`
belongs to one pattern of arrivals. Weights with weights @ G[arrived] = T[missing] recover what is missing.
Equations with equations @ G[arrived] = 0 tell whether the results fit together. Both depend on which results
arrived, never on what is in them.
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
MAX_CHECKS = 8  # left-over equations to evaluate; more of them cost time and detect no more errors
# One integer result in 2^16 has even coefficients in all of these checks, which hide an error of 2^63.
MAX_MODULAR_CHECKS = 16


class CodeMatrices(ABC):
    """The matrices that define a code: coded blocks = E blocks, results = G u, wanted = T u.

    Attributes
    ----------
    n, k : int
        The numbers of coded blocks and of data blocks.
    rms_gain : float
        The largest root mean square of a coded block, in that of the data.
    """

    n: int
    k: int
    rms_gain = 1.0

    @property
    @abstractmethod
    def encoding_matrix(self) -> Array:
        """E, shape (n - len(systematic_indices), number of blocks that are mixed)."""

    @property
    def generator_matrix(self) -> Array:
        """G, shape (n, number of unknowns). It is E where f commutes with the mixtures that are sent."""
        return self.encoding_matrix

    @property
    def target_matrix(self) -> Array:
        """T, shape (n_targets, number of unknowns). It is [I, 0] where the first unknowns are wanted."""
        return np.eye(self.n_targets, self.encoding_matrix.shape[1], dtype=self.encoding_matrix.dtype)

    @property
    def recovery_threshold(self) -> int:
        """The least number of results that can determine the wanted ones: one for each unknown."""
        return int(self.generator_matrix.shape[1])

    def compute_encoding_matrix_columns(self, block_indices: Indices) -> Array:
        """Return the columns of E of the blocks `block_indices`."""
        return self.encoding_matrix[:, block_indices]

    def left_multiply_encoding_matrix(self, weights: Floats) -> Floats:
        """Return weights @ E: combinations (rows) of coded blocks as combinations of the mixed blocks."""
        return np.asarray(weights @ self.encoding_matrix)

    @property
    @abstractmethod
    def n_targets(self) -> int:
        """The number of wanted results."""

    @property
    @abstractmethod
    def systematic_indices(self) -> Indices:
        """The indices of the coded blocks that are data blocks, unchanged."""


class WeightMasks(NamedTuple):
    """Which arrived results the missing ones are made of.

    Attributes
    ----------
    used_arrivals_mask : boolean array (arrived,)
        Arrived results with a nonzero weight in any missing result.
    recombined_results_mask : boolean array (missing,)
        Missing results that are not a copy of an arrived one.
    invertible_weights_mask : boolean array (missing, arrived)
        Weights that multiply no error to zero: nonzero ones, modulo 2^64 odd ones.
    """

    used_arrivals_mask: Mask
    recombined_results_mask: Mask
    invertible_weights_mask: Mask


def compute_nonzero_mask(coefficients: Floats | UInt64Array) -> Mask:
    """Return which coefficients are not zero, nor a rounding error of zero."""
    min_magnitude = 0 if is_integer_dtype(coefficients.dtype) else COEFFICIENT_TOL
    return np.asarray((coefficients > min_magnitude) | (coefficients < -min_magnitude))


def compute_invertible_mask(coefficients: Floats | UInt64Array) -> Mask:
    """Return which coefficients multiply no deviation to zero: modulo 2^64 the odd ones."""
    if is_integer_dtype(coefficients.dtype):
        return np.asarray(coefficients % 2 == 1)
    return compute_nonzero_mask(coefficients)


class ErasureDecoder(ABC):
    """Recovers the missing results of a code from those of the mask `arrived_mask`, in one arithmetic.

    Decoders over the reals are `RealDecoder`s, those modulo 2^64 `ModularDecoder`s. Where recovered results
    are linear in those that arrived, `weights` are the coefficients: recovered = weights @ received.

    Attributes
    ----------
    arrived_mask : boolean array (n,)
    arrived_indices : index array
        The results that have arrived, ascending.
    arrived_data_indices : index array
        Those among them that are wanted as they are.
    missing_indices : index array
        The wanted results that have not arrived, ascending.
    modular : bool
        Whether integers are recovered modulo 2^64, not as real numbers.
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
        """Return the decoder of the same arrivals in the arithmetic of `dtype`: this one by default."""
        return self

    def reuse_computations_of(self, previous: ErasureDecoder) -> None:
        """Take over what `previous` has computed for the same code when fewer results had arrived.

        `previous` stays valid, but it may have to compute its weights again.
        """
        return  # Most decoders compute everything anew.

    @property
    @abstractmethod
    def rank_deficit(self) -> int:
        """The least number of further results that are needed; 0 once the missing ones are determined."""

    @property
    @abstractmethod
    def n_redundant_checks(self) -> int:
        """The number of equations that the arrived results must satisfy; negative while they are too few."""

    @property
    def weights(self) -> Floats | UInt64Array:
        """Recovered = weights @ received, (missing, arrived), for decoders of which that is true."""
        raise NotImplementedError(f"{type(self).__name__} has magnitudes of weights only")

    @property
    def approximate_weights(self) -> Floats:
        """Real weights that recover numbers which do not wrap, up to rounding, (missing, arrived)."""
        return np.asarray(self.over(np.dtype(np.float64)).weights, np.float64)

    @property
    @abstractmethod
    def check_matrix(self) -> Floats | UInt64Array:
        """The equations that are evaluated to verify results: check_matrix @ received = 0."""

    @property
    @abstractmethod
    def weight_magnitudes(self) -> Floats:
        """How much an error of each arrived result moves each recovered one at most, (missing, arrived)."""

    @property
    def max_weight_magnitudes(self) -> Floats:
        """The largest of `weight_magnitudes` for each arrived result, (arrived,)."""
        return np.asarray(self.weight_magnitudes.max(axis=0, initial=0))

    @cached_property
    def weight_masks(self) -> WeightMasks:
        """Which results the recovered ones are made of."""
        if not len(self.missing_indices):
            return compute_weight_masks(np.empty((0, len(self.arrived_indices))))
        return self._compute_weight_masks()

    def _compute_weight_masks(self) -> WeightMasks:
        """Return `weight_masks` where results are missing."""
        return compute_weight_masks(self.weights)

    @property
    @abstractmethod
    def amplification(self) -> float:
        """The factor by which errors of results grow at most; 0 if exact, inf if undetermined."""

    @property
    @abstractmethod
    def rounds_integers(self) -> bool:
        """Whether integers are recovered as real numbers and rounded."""

    @abstractmethod
    def decode(self, received: ReceivedBlocks, dtype: DType) -> Array:
        """Return the missing results from those that arrived, in the arithmetic of `over(dtype)`.

        Parameters
        ----------
        received : mapping from position to array (b,)
            Flat results; every arrived position must be there.
        dtype : dtype
            Of the results.

        Returns
        -------
        array (missing, b), of `dtype`
        """

    def get_weight_masks(self, dtype: DType) -> WeightMasks:
        """Return which results the recovered ones of `dtype` are made of."""
        return self.over(dtype).weight_masks

    def transform_for_parity_checks(self, received: ReceivedBlocks) -> ReceivedBlocks:
        """Return what satisfies the equations, made of the results that arrived: these themselves."""
        return received


def compute_weight_masks(weights: Floats | UInt64Array) -> WeightMasks:
    """Return the masks of such weights: over the reals, or modulo 2^64 where these are integers."""
    nonzero_mask = compute_nonzero_mask(weights)
    unit_mask = compute_invertible_mask(weights) if is_integer_dtype(weights.dtype) else nonzero_mask
    return WeightMasks(np.asarray(nonzero_mask.any(axis=0)), nonzero_mask.sum(axis=1) > 1, unit_mask)
