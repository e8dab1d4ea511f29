"""Rotation matrix embeddings: real MDS codes from points on the unit circle.

Ramamoorthy and Tang, Numerically stable coded matrix computations via circulant and rotation matrix
embeddings (arXiv 1910.06515): the two halves of every block are turned by multiples of 2 pi / q for an
odd q >= n, which is the Fourier transform of length q of one half plus i times the other. Any k blocks
decode; none is a data block.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.rivals import Array, Rival
from polarmap.codes.tiling import iter_column_tiles, parallel_for

LARGEST_CONDITION = 1e6  # of a check that is inverted


class Embedding(Rival):
    """Values at n of q points on the circle of the polynomial whose coefficients are data of even width."""

    name = "rotation matrix embedding"

    def __init__(self, n: int, k: int) -> None:
        self.n, self.k, self.q = n, k, n + 1 - n % 2
        self.norms = np.full(n, np.sqrt(k))
        # Of a complex transform: 5 q log2 q real operations, for two numbers of every block.
        self.encode_operations = 2.5 * self.q * float(np.log2(self.q))

    def encode(self, data: Array) -> Array:
        coded = np.empty((self.n, data.shape[1]))
        over_halves(data, coded, lambda some: np.fft.fft(some, self.q, axis=0)[: self.n])
        return coded

    def plan(self, arrived: Array) -> Interpolated:
        return Interpolated(self, arrived[: self.k])


class Interpolated:
    """The missing values from those that arrived: the last q - k coefficients are zero."""

    def __init__(self, code: Embedding, arrived: Array) -> None:
        self._code, self._arrived = code, arrived
        self._missing = np.setdiff1d(np.arange(code.q), arrived)
        zeros = np.arange(code.k, code.q)
        check = np.exp(2j * np.pi / code.q * (np.outer(zeros, self._missing) % code.q))
        self._check = check / code.q
        # An inverse is quicker, but loses two or three digits more where the check is ill-conditioned.
        self._inverse = np.linalg.inv(self._check) if np.linalg.cond(check) < LARGEST_CONDITION else None
        self.operations = 2 * code.encode_operations + 4.0 * check.size

    def decode(self, blocks: Array) -> Array:
        code, data = self._code, np.empty((self._code.k, blocks.shape[1]))

        def work(some: Array) -> Array:
            values = np.zeros((code.q, some.shape[1]), complex)
            values[self._arrived] = some
            values[self._missing] = self._solved(-np.fft.ifft(values, axis=0)[code.k :])
            return np.asarray(np.fft.ifft(values, axis=0)[: code.k])

        over_halves(blocks[self._arrived], data, work)
        return data

    def _solved(self, syndrome: Array) -> Array:
        """Return the missing values whose last coefficients are `syndrome`."""
        if self._inverse is not None:
            return np.asarray(self._inverse @ syndrome)
        return np.linalg.solve(self._check, syndrome)


def over_halves(rows: Array, out: Array, work: Callable[[Array], Array]) -> None:
    """Apply `work` to one half of every row, of an even number of columns, plus i times the other half."""
    half = rows.shape[1] // 2

    def on(columns: slice) -> None:
        upper = slice(half + columns.start, half + columns.stop)
        done = work(rows[:, columns] + 1j * rows[:, upper])
        out[:, columns], out[:, upper] = done.real, done.imag

    parallel_for(on, list(iter_column_tiles(half, 8 * len(rows), 8)))
