"""Local product codes (Gupta et al. 2020, arXiv 2001.07490).

Data blocks are arranged in grids. A parity block is added to each row and each column of a grid, and one to
the parities. Grids are decoded independently, by peeling: the missing block of a row or column is the
difference of its parity and the sum of its other blocks.
"""

from __future__ import annotations

from itertools import product

import numpy as np

from benchmarks.rivals.sparse import EquationGraph, GraphDecoder, SparseCode, mean_arrivals

GRID_SIZES = range(2, 15)
MAX_RELATIVE_TASKS = 1.1  # Multiple of the other codes' tasks: no grid of 24 blocks fits into 32 tasks.


class LocalProductCode(SparseCode):
    """k data blocks in as many (n_rows, n_columns) grids as needed; the last is filled up with zeros."""

    def __init__(self, k: int, n_rows: int, n_columns: int) -> None:
        self.k = k
        self.name = f"local product ({n_rows} x {n_columns} and parity)"
        self.data_indices = np.arange(k)
        equations: list[list[int]] = []
        next_block = k  # The next parity block.
        for first_block in range(0, k, n_rows * n_columns):
            grid = np.full((n_rows + 1, n_columns + 1), -1)  # -1 marks a zero, which is not sent.
            grid_blocks = np.arange(first_block, min(k, first_block + n_rows * n_columns))
            grid[:-1, :-1].flat[: len(grid_blocks)] = grid_blocks
            # Numbers of rows and columns with data.
            n_full_rows, n_full_columns = (
                -(-len(grid_blocks) // n_columns),
                min(n_columns, len(grid_blocks)),
            )
            for position in [
                *product(range(n_full_rows), [n_columns]),
                *product([n_rows], [*range(n_full_columns), n_columns]),
            ]:
                grid[position] = next_block
                next_block += 1
            equations += [line[line >= 0].tolist() for line in (*grid[:n_full_rows], grid[n_rows], *grid.T)]
        self.n = next_block
        self.coded_indices = np.arange(next_block)
        members = [np.array(line) for line in equations if len(line) > 1]
        signs = [np.append(np.ones(len(line) - 1), -1.0) for line in members]
        self.decoder = GraphDecoder(EquationGraph.from_equations(members, signs, next_block), k)


def tune_local_product(n: int, k: int, n_trials: int) -> tuple[int, int, int]:
    """Return the arguments of the code that awaits the smallest share of its tasks.

    It has at most MAX_RELATIVE_TASKS times n tasks, or the fewest of all grids.
    """
    codes = {
        (rows, columns): LocalProductCode(k, rows, columns) for rows in GRID_SIZES for columns in GRID_SIZES
    }
    max_tasks = max(MAX_RELATIVE_TASKS * n, min(code.n for code in codes.values()))
    grids = [grid for grid, code in codes.items() if code.n <= max_tasks and grid[0] <= grid[1]]
    return k, *min(grids, key=lambda grid: mean_arrivals(codes[grid], n_trials) / codes[grid].n)
