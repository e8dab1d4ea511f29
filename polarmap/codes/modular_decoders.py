"""Recover integers modulo 2^64, where exactly the odd numbers divide."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from polarmap.codes.base import MAX_MODULAR_CHECKS, CodeMatrices, ErasureDecoder, ReceivedBlocks
from polarmap.codes.compute import tiling
from polarmap.codes.modular_linalg import find_independent_rows_gf2, invert_mod64, matmul_mod64
from polarmap.codes.real_decoders import SystematicDecoder
from polarmap.dtypes import Array, DType, Floats, Indices, Mask, UInt64Array, is_integer_dtype
from polarmap.errors import CodeError

FLOAT_RESULT_ERROR = (
    "integers are masked modulo 2^64, which results of floats do not undo: let f return integers, or mask "
    "data.astype(float), of which colluders learn a little (see SecretSharing)"
)


class ModularDecoder(ErasureDecoder):
    """system @ unknowns = results modulo 2^64: what both recoveries of integers have in common."""

    modular = True
    system_matrix: Array  # the coefficients of the unknowns in the results that determine them

    def _expand_checks_to_arrived_blocks(self, system_checks: UInt64Array) -> UInt64Array:
        """Equations on the results of `system_matrix`, rewritten as equations on all that arrived."""
        return system_checks

    @cached_property
    def pivot_row_indices(self) -> Indices:
        """Rows of `system_matrix` that determine the unknowns; fewer than those if too few do."""
        return np.array(find_independent_rows_gf2(self.system_matrix), dtype=np.intp)

    @cached_property
    def rank_deficit(self) -> int:
        """How many more results it takes at the least; 0 when the unknowns are determined."""
        n_unknowns = int(self.system_matrix.shape[1])
        return n_unknowns - len(self.pivot_row_indices) if n_unknowns else 0

    @property
    def n_redundant_checks(self) -> int:
        """Equations left over; below 0 while results are too few."""
        return int(self.system_matrix.shape[0] - self.system_matrix.shape[1])

    def compute_modular_check_matrix(self) -> UInt64Array:
        """Up to MAX_MODULAR_CHECKS checks modulo 2^64, (s, arrived): mixtures of rows that are no pivots."""
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


class ModularSystematicDecoder(ModularDecoder, SystematicDecoder):
    """For G = [I; P] of integers, T = I: as many parity rows as are missing solve for them exactly.

    What integers determine modulo 2^64 they determine over the reals too, so that results of a
    floating dtype are recovered by least squares as ever.
    """

    def compute_modular_weights(self) -> UInt64Array:
        """Recovered = weights @ received modulo 2^64, (missing, arrived)."""
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
        """Syndrome, then the inverse of the pivot rows, both modulo 2^64; floats by least squares."""
        if not is_integer_dtype(out.dtype):
            super().decode_into(received, out)
            return
        pivot_parity = self.arrived_parity_indices[self.pivot_row_indices]
        known_matrix = self.code.encoding_matrix[np.ix_(pivot_parity, self.arrived_data_indices)]
        known_blocks = [received[int(block_index)] for block_index in self.arrived_data_indices]
        parity_blocks = [received[int(block_index) + self.code.k] for block_index in pivot_parity]
        for columns in tiling.iter_column_tiles(out.shape[1], len(self.arrived_indices), 8):
            syndrome = tiling.gather_columns(parity_blocks, columns, np.int64).view(np.uint64)
            if known_blocks:
                syndrome -= matmul_mod64(known_matrix, tiling.gather_columns(known_blocks, columns, np.int64))
            out[:, columns] = matmul_mod64(self._pivot_inverse, syndrome).astype(out.dtype)


class ModularLinearDecoder(ModularDecoder):
    """For any G of integers and T: as many rows of G as there are unknowns solve for them modulo 2^64."""

    def __init__(self, code: CodeMatrices, arrived_mask: Mask) -> None:
        super().__init__(code, arrived_mask)
        self.system_matrix = code.generator_matrix[self.arrived_indices]

    @property
    def weights(self) -> Floats:
        """The weights modulo 2^64, as numbers nearest to zero."""
        return self.compute_modular_weights().view(np.int64).astype(np.float64)

    def compute_parity_check_matrix(self, max_checks: int) -> Floats:
        """Up to `max_checks` equations modulo 2^64, (s, arrived), as numbers nearest to zero."""
        return self.compute_modular_check_matrix()[:max_checks].view(np.int64).astype(np.float64)

    def compute_modular_weights(self) -> UInt64Array:
        """Recovered = weights @ received modulo 2^64, (wanted, arrived)."""
        weights = np.zeros((len(self.missing_indices), len(self.arrived_indices)), np.uint64)
        weights[:, self.pivot_row_indices] = self._weights_of_pivot_rows
        return weights

    def decode(self, received: ReceivedBlocks, dtype: DType) -> Array:
        """The wanted results (wanted, b) modulo 2^bits; CodeError for floats, which cannot be."""
        if not is_integer_dtype(dtype):
            raise CodeError(FLOAT_RESULT_ERROR)
        pivot_blocks = [received[int(self.arrived_indices[pivot])] for pivot in self.pivot_row_indices]
        out = np.empty((len(self.missing_indices), pivot_blocks[0].size), dtype)
        for columns in tiling.iter_column_tiles(out.shape[1], len(pivot_blocks), 8):
            tile = tiling.gather_columns(pivot_blocks, columns, np.int64)
            out[:, columns] = matmul_mod64(self._weights_of_pivot_rows, tile).astype(dtype)
        return out

    @cached_property
    def _weights_of_pivot_rows(self) -> UInt64Array:
        """Wanted = solver @ results of the pivots."""
        return matmul_mod64(self.code.target_matrix, self._pivot_inverse)


def make_check_combination_matrix(n_checks: int) -> UInt64Array:
    """Sums of `n_checks` equations, at most MAX_MODULAR_CHECKS of them, that involve each.

    >>> make_check_combination_matrix(2).tolist(), make_check_combination_matrix(100).shape
    ([[1, 0], [0, 1]], (16, 100))
    """
    if n_checks <= MAX_MODULAR_CHECKS:
        return np.eye(n_checks, dtype=np.uint64)
    products = np.outer(np.arange(1, MAX_MODULAR_CHECKS + 1), np.arange(1, n_checks + 1)).astype(np.uint64)
    combinations = products * products * np.uint64(37) % np.uint64(509)
    combinations[0] = 1
    return combinations
