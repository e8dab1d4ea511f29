"""Local product codes (Gupta et al. 2020, arXiv 2001.07490).

Data blocks lie in grids; a parity block closes each row and each column of a grid, and one the
parities. Grids are decoded by themselves, by peeling: the missing block of a row or a column is the
difference of its parity and the others.
"""

from __future__ import annotations

from itertools import product

import numpy as np

from benchmarks.rivals.sparse import Decoder, Graph, SparseCode, awaited

SIDES = range(2, 15)
MORE = 1.1  # tasks, of as many as the other codes have: no grid of 24 fits into 32


class LocalProduct(SparseCode):
    """k data blocks in as many grids (rows, columns) as they take; the last may be filled up with zeros."""

    def __init__(self, k: int, rows: int, columns: int) -> None:
        self.k = k
        self.name = f"local product ({rows} x {columns} and parity)"
        self.data = np.arange(k)
        equations: list[list[int]] = []
        block = k  # the next that is parity
        for first in range(0, k, rows * columns):
            grid = np.full((rows + 1, columns + 1), -1)  # -1: a zero that nobody sends
            some = np.arange(first, min(k, first + rows * columns))
            grid[:-1, :-1].flat[: len(some)] = some
            full, wide = -(-len(some) // columns), min(columns, len(some))  # rows and columns with data
            for place in [*product(range(full), [columns]), *product([rows], [*range(wide), columns])]:
                grid[place] = block
                block += 1
            equations += [line[line >= 0].tolist() for line in (*grid[:full], grid[rows], *grid.T)]
        self.n = block
        self.coded = np.arange(block)
        members = [np.array(line) for line in equations if len(line) > 1]
        signs = [np.append(np.ones(len(line) - 1), -1.0) for line in members]
        self.decoder = Decoder(Graph.of(members, signs, block), k)


def tuned(n: int, k: int, trials: int) -> tuple[int, int, int]:
    """Arguments of the grids that await the smallest share of their tasks, at most MORE n or the fewest."""
    codes = {(rows, columns): LocalProduct(k, rows, columns) for rows in SIDES for columns in SIDES}
    most = max(MORE * n, min(code.n for code in codes.values()))
    grids = [grid for grid, code in codes.items() if code.n <= most and grid[0] <= grid[1]]
    return k, *min(grids, key=lambda grid: awaited(codes[grid], trials) / codes[grid].n)
