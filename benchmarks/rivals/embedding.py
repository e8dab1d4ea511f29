"""Rotation matrix embeddings: real MDS codes from points on the unit circle.

Ramamoorthy and Tang, Numerically stable coded matrix computations via circulant and rotation matrix
embeddings (arXiv 1910.06515): the two halves of every block are rotated by multiples of 2 pi / q for an odd q
>= n, which is the Fourier transform of length q of one half plus i times the other. Any k blocks decode, and
no coded block is a data block.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.rivals import Array, RivalCode
from polarmap.codes.compute.tiling import iter_column_tiles, parallel_for

MAX_CONDITION = 1e6  # The largest condition number of a check matrix that is inverted.


class EmbeddingCode(RivalCode):
    """Values of a polynomial at n of q points on the unit circle; its coefficients are data of even width."""

    name = "rotation matrix embedding"

    def __init__(self, n: int, k: int) -> None:
        self.n, self.k, self.q = n, k, n + 1 - n % 2
        self.norms = np.full(n, np.sqrt(k))
        # A complex transform takes 5 q log2 q real operations, for two numbers of every block.
        self.encode_operations = 2.5 * self.q * float(np.log2(self.q))

    def encode(self, data: Array) -> Array:
        coded_blocks = np.empty((self.n, data.shape[1]))
        apply_to_halves(data, coded_blocks, lambda halves: np.fft.fft(halves, self.q, axis=0)[: self.n])
        return coded_blocks

    def make_plan(self, arrived_indices: Array) -> EmbeddingPlan:
        return EmbeddingPlan(self, arrived_indices[: self.k])


class EmbeddingPlan:
    """A plan for the missing values, which follow since the last q - k coefficients are zero."""

    def __init__(self, code: EmbeddingCode, arrived_indices: Array) -> None:
        self._code, self._arrived_indices = code, arrived_indices
        self._missing_indices = np.setdiff1d(np.arange(code.q), arrived_indices)
        zero_indices = np.arange(code.k, code.q)
        check_matrix = np.exp(2j * np.pi / code.q * (np.outer(zero_indices, self._missing_indices) % code.q))
        self._check_matrix = check_matrix / code.q
        # An inverse is faster, but loses two or three digits more if the check matrix is ill-conditioned.
        self._check_inverse = (
            np.linalg.inv(self._check_matrix) if np.linalg.cond(check_matrix) < MAX_CONDITION else None
        )
        self.operations = 2 * code.encode_operations + 4.0 * check_matrix.size

    def decode(self, blocks: Array) -> Array:
        code, data = self._code, np.empty((self._code.k, blocks.shape[1]))

        def decode_halves(halves: Array) -> Array:
            values = np.zeros((code.q, halves.shape[1]), complex)
            values[self._arrived_indices] = halves
            values[self._missing_indices] = self._solve(-np.fft.ifft(values, axis=0)[code.k :])
            return np.asarray(np.fft.ifft(values, axis=0)[: code.k])

        apply_to_halves(blocks[self._arrived_indices], data, decode_halves)
        return data

    def _solve(self, syndrome: Array) -> Array:
        """Return the missing values whose last coefficients are `syndrome`."""
        if self._check_inverse is not None:
            return np.asarray(self._check_inverse @ syndrome)
        return np.linalg.solve(self._check_matrix, syndrome)


def apply_to_halves(rows: Array, out: Array, transform: Callable[[Array], Array]) -> None:
    """Apply `transform` to one half of every row plus i times the other half.

    Rows have an even number of columns.
    """
    half_width = rows.shape[1] // 2

    def process_columns(columns: slice) -> None:
        upper_columns = slice(half_width + columns.start, half_width + columns.stop)
        transformed = transform(rows[:, columns] + 1j * rows[:, upper_columns])
        out[:, columns], out[:, upper_columns] = transformed.real, transformed.imag

    parallel_for(process_columns, list(iter_column_tiles(half_width, 8 * len(rows), 8)))
