"""Decode integers exactly, by computing modulo 2^64 like 64-bit integer arithmetic.

On overflow, integers wrap around in the decoder just as they do in f, so that decoding is exact. A number is
invertible modulo 2^64 if and only if it is odd. `ModularSystematicDecoder` decodes systematic codes, and
`ModularLinearDecoder` all other codes. If f returns floats, both use the decoder of `real_decoders` for the
same code, if there is one.
"""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property

import numpy as np

from polarmap.codes.base import (
    MAX_MODULAR_CHECKS,
    ErasureDecoder,
    ReceivedBlocks,
    SystematicEquations,
)
from polarmap.codes.compute import tiling
from polarmap.codes.modular_linalg import find_independent_rows_gf2, invert_mod64, matmul_mod64
from polarmap.codes.real_decoders import SystematicDecoder
from polarmap.dtypes import Array, DType, Floats, Indices, UInt64Array, is_integer_dtype
from polarmap.errors import CodeError

FLOAT_RESULT_ERROR = (
    "f returned floats, but the noise added to integer data can be removed from integer results only. Let f "
    "return integers, or pass data.astype(float), of which colluders learn a little (see SecretSharing)."
)


class ModularDecoder(ErasureDecoder):
    """Base class of decoders for integer results, which compute modulo 2^64.

    Missing results are linear combinations of received results: recovered = weights @ received. If f returns
    floats, `real_decoder` decodes them instead. Any set of results that can be decoded modulo 2^64 can also
    be decoded over the reals.
    """

    modular = True
    decodes_integers_by_rounding = False
    amplification = 0.0

    @cached_property
    def real_decoder(self) -> ErasureDecoder:
        """The decoder to use if the tasks return floats instead of integers.

        Raises CodeError if the code cannot decode floats.
        """
        return self._make_real_decoder()

    @abstractmethod
    def _make_real_decoder(self) -> ErasureDecoder:
        """Build the decoder for float results. Raise CodeError if the code cannot decode floats."""

    def over(self, dtype: DType) -> ErasureDecoder:
        """Return this decoder if `dtype` is an integer type, and `real_decoder` for floats."""
        return self if is_integer_dtype(dtype) else self.real_decoder

    @property
    @abstractmethod
    def weights(self) -> UInt64Array:
        """The decoding weights: missing results = weights @ arrived results, modulo 2^64."""

    @property
    def weight_magnitudes(self) -> Floats:
        """The absolute values of the decoding weights, as floats.

        Weights are numbers modulo 2^64. Here they are interpreted as signed 64-bit integers.
        """
        return np.abs(self.weights.view(np.int64).astype(np.float64))

    def decode(self, received: ReceivedBlocks, dtype: DType) -> Array:
        """Compute the missing results, one per row. Integers wrap around on overflow, as in `dtype`."""
        if not is_integer_dtype(dtype):
            return self.real_decoder.decode(received, dtype)
        out = np.empty((len(self.missing_indices), next(iter(received.values())).size), dtype)
        if out.size:
            self.decode_into(received, out)
        return out

    @abstractmethod
    def decode_into(self, received: ReceivedBlocks, out: Array) -> None:
        """Decode the missing results from the received results and write them to `out`, one per row."""


class EliminationDecoder(ModularDecoder):
    """Base class of decoders that solve a linear system modulo 2^64 by Gaussian elimination.

    The system is system_matrix @ unknowns = results. As many linearly independent equations are solved as
    there are unknowns. The remaining equations can be used to verify the results (parity checks).
    """

    @property
    @abstractmethod
    def system_matrix(self) -> Array:
        """The integer matrix of the linear system, shape (equations, unknowns)."""

    def _expand_checks_to_arrived_blocks(self, system_checks: UInt64Array) -> UInt64Array:
        """Convert parity checks on the equations of the system to parity checks on the arrived results.

        The input has one column per equation, and the output has one column per arrived result.
        """
        return system_checks

    @cached_property
    def pivot_row_indices(self) -> Indices:
        """The indices of the equations that are solved.

        They are a maximal set of linearly independent rows of `system_matrix`.
        """
        return np.array(find_independent_rows_gf2(self.system_matrix), dtype=np.intp)

    @cached_property
    def rank_deficit(self) -> int:
        """The minimum number of additional results needed to decode, or 0 if decoding is already possible."""
        n_unknowns = int(self.system_matrix.shape[1])
        return n_unknowns - len(self.pivot_row_indices) if n_unknowns else 0

    @property
    def n_redundant_checks(self) -> int:
        """The number of parity checks that can verify the results.

        It is negative if too few results have arrived to decode.
        """
        return int(self.system_matrix.shape[0] - self.system_matrix.shape[1])

    @cached_property
    def check_matrix(self) -> UInt64Array:
        """A matrix of parity checks that verify the results, with one column per arrived result.

        Its product with correct results is zero modulo 2^64. It has at most MAX_MODULAR_CHECKS rows.
        """
        other_rows = np.setdiff1d(np.arange(len(self.system_matrix)), self.pivot_row_indices)
        combinations = make_check_combination_matrix(len(other_rows))
        system_checks = np.zeros((len(combinations), len(self.system_matrix)), np.uint64)
        system_checks[:, other_rows] = combinations
        if self.system_matrix.shape[1]:
            combined_rows = matmul_mod64(combinations, self.system_matrix[other_rows])
            system_checks[:, self.pivot_row_indices] -= matmul_mod64(combined_rows, self._pivot_inverse)
        return self._expand_checks_to_arrived_blocks(system_checks)

    @cached_property
    def _pivot_inverse(self) -> UInt64Array:
        return invert_mod64(self.system_matrix[self.pivot_row_indices])


class ModularSystematicDecoder(SystematicEquations, EliminationDecoder):
    """An exact decoder of integers for systematic codes, whose coded blocks include the data blocks.

    The parity blocks must be linear combinations of data blocks with integer coefficients. The decoder uses
    all data blocks that have arrived, and one parity block for each missing data block.
    """

    def _make_real_decoder(self) -> ErasureDecoder:
        return SystematicDecoder(self.code, self.arrived_mask)

    @property
    def weights(self) -> UInt64Array:
        """The decoding weights: missing results = weights @ arrived results, modulo 2^64."""
        n_data = len(self.arrived_data_indices)
        pivot_parity = self.arrived_parity_indices[self.pivot_row_indices]
        known_matrix = self.code.encoding_matrix[np.ix_(pivot_parity, self.arrived_data_indices)]
        weights = np.zeros((len(self.missing_indices), len(self.arrived_indices)), np.uint64)
        weights[:, :n_data] = np.uint64(0) - matmul_mod64(self._pivot_inverse, known_matrix)
        weights[:, n_data + self.pivot_row_indices] = self._pivot_inverse
        return weights

    def _expand_checks_to_arrived_blocks(self, system_checks: UInt64Array) -> UInt64Array:
        arrived = np.ix_(self.arrived_parity_indices, self.arrived_data_indices)
        data_checks = np.uint64(0) - matmul_mod64(system_checks, self.code.encoding_matrix[arrived])
        return np.concatenate([data_checks, system_checks], axis=1)

    def decode_into(self, received: ReceivedBlocks, out: Array) -> None:
        """Decode the missing data blocks from the received results and write them to `out`, one per row."""
        pivot_parity = self.arrived_parity_indices[self.pivot_row_indices]
        known_matrix = self.code.encoding_matrix[np.ix_(pivot_parity, self.arrived_data_indices)]
        known_blocks = [received[int(block_index)] for block_index in self.arrived_data_indices]
        parity_blocks = [received[int(block_index) + self.code.k] for block_index in pivot_parity]
        for columns in tiling.iter_column_tiles(out.shape[1], len(self.arrived_indices), 8):
            syndrome = tiling.gather_columns(parity_blocks, columns, np.int64).view(np.uint64)
            if known_blocks:
                syndrome -= matmul_mod64(known_matrix, tiling.gather_columns(known_blocks, columns, np.int64))
            out[:, columns] = matmul_mod64(self._pivot_inverse, syndrome).astype(out.dtype)


class ModularLinearDecoder(EliminationDecoder):
    """An exact decoder of integers for any code whose matrices G and T consist of integers.

    It solves for all unknowns of the code modulo 2^64, and computes the missing results from them.
    """

    @cached_property
    def system_matrix(self) -> Array:
        """The rows of the generator matrix G that belong to the arrived results."""
        return self.code.generator_matrix[self.arrived_indices]

    def _make_real_decoder(self) -> ErasureDecoder:
        raise CodeError(FLOAT_RESULT_ERROR)

    @property
    def approximate_weights(self) -> Floats:
        """The decoding weights as floats.

        The weights, which are numbers modulo 2^64, are interpreted as signed integers. Data that is hidden by
        uniform noise (secret sharing) has no better approximation.
        """
        return self.weights.view(np.int64).astype(np.float64)

    @property
    def weights(self) -> UInt64Array:
        """The decoding weights: missing results = weights @ arrived results, modulo 2^64."""
        weights = np.zeros((len(self.missing_indices), len(self.arrived_indices)), np.uint64)
        weights[:, self.pivot_row_indices] = self._weights_of_pivot_rows
        return weights

    def decode_into(self, received: ReceivedBlocks, out: Array) -> None:
        """Decode the missing results that the caller wants (targets) and write them to `out`, one per row."""
        pivot_blocks = [received[int(self.arrived_indices[pivot])] for pivot in self.pivot_row_indices]
        for columns in tiling.iter_column_tiles(out.shape[1], len(pivot_blocks), 8):
            tile = tiling.gather_columns(pivot_blocks, columns, np.int64)
            out[:, columns] = matmul_mod64(self._weights_of_pivot_rows, tile).astype(out.dtype)

    @cached_property
    def _weights_of_pivot_rows(self) -> UInt64Array:
        """The columns of `weights` that may be nonzero, shape (targets, solved equations).

        They belong to the results that are used for decoding. All other results have weight 0.
        """
        return matmul_mod64(self.code.target_matrix, self._pivot_inverse)


def make_check_combination_matrix(n_checks: int) -> UInt64Array:
    """Build a matrix that combines `n_checks` parity checks into at most MAX_MODULAR_CHECKS checks.

    Each row contains the coefficients of one combined check. If there are at most MAX_MODULAR_CHECKS checks,
    the matrix is the identity. Otherwise, its first row, which is all ones, gives the sum of all checks.

    >>> make_check_combination_matrix(2).tolist(), make_check_combination_matrix(100).shape
    ([[1, 0], [0, 1]], (16, 100))
    """
    if n_checks <= MAX_MODULAR_CHECKS:
        return np.eye(n_checks, dtype=np.uint64)
    products = np.outer(np.arange(1, MAX_MODULAR_CHECKS + 1), np.arange(1, n_checks + 1)).astype(np.uint64)
    combinations = products * products * np.uint64(37) % np.uint64(509)
    combinations[0] = 1
    return combinations
