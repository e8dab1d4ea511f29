"""Grids of coded blocks, whose rows and columns decode each other, in turns, until nothing more is gained."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from polarmap.code import modular, tiled
from polarmap.code.algebra import Recovery, Results
from polarmap.code.dtypes import Array, DType, Indices, is_exact, working_dtype
from polarmap.code.linear import SystematicCode
from polarmap.code.polar import PolarCode

Places = set[int]


class Grid(SystematicCode):
    """n_A n_B blocks on a grid: every column a codeword of `left`, every row of `right`; data comes first."""

    def __init__(self, left: PolarCode, right: PolarCode) -> None:
        self.left, self.right = left, right
        self.n, self.k = left.n * right.n, left.k * right.k

    @cached_property
    def cells(self) -> Indices:
        """Row and column of every block on the grid, (n, 2)."""
        rows, columns = np.divmod(np.arange(self.n), self.right.n)
        is_parity = (rows >= self.left.k) | (columns >= self.right.k)
        order = np.argsort(is_parity, kind="stable")
        return np.stack([rows[order], columns[order]], axis=1)

    @cached_property
    def places(self) -> Indices:
        """The number of the block in every cell, (n_A, n_B); the inverse of `cells`."""
        numbers = np.empty((self.left.n, self.right.n), np.intp)
        numbers[self.cells[:, 0], self.cells[:, 1]] = np.arange(self.n)
        return numbers

    @cached_property
    def coefficients(self) -> Array:
        """P, shape (n - k, k): parity blocks from data blocks."""
        rows, columns = self.cells[self.k :].T
        product = np.einsum("pa,pb->pab", self.left.generator[rows], self.right.generator[columns])
        return np.asarray(product.reshape(len(rows), -1))


class LineStep(NamedTuple):
    """One line of the grid decoded: from the cells of it that `recovery` has as arrived, all of them.

    places : the numbers of the blocks along the line.
    code : of which the line is a codeword.
    """

    places: Indices
    code: PolarCode
    recovery: Recovery

    @property
    def fresh(self) -> Indices:
        """The cells of the line that this makes known."""
        return np.setdiff1d(np.arange(len(self.places)), self.recovery.arrived)


class RowColumnDecoder:
    """Which cells of a grid are determined by lines that decode, one after another.

    Attributes
    ----------
    known : boolean array (n_A, n_B)
        Cells that arrived or follow.
    steps : list of LineStep
        In an order in which each finds its cells known.
    """

    def __init__(self, code: Grid, exact: bool) -> None:
        self._code, self._exact = code, exact
        self.known = np.zeros((code.left.n, code.right.n), bool)
        self.steps: list[LineStep] = []

    @property
    def is_complete(self) -> bool:
        """Whether all data cells are known."""
        return bool(self.known[: self._code.left.k, : self._code.right.k].all())

    def add(self, blocks: Sequence[int] | Indices) -> None:
        """Note the arrival of blocks, and what follows from it: columns first, then rows, in turns."""
        rows, columns = self._code.cells[blocks].T
        self.known[rows, columns] = True
        changed = [set(columns.tolist()), set(rows.tolist())]  # columns and rows to look at
        axis = 0
        while changed[0] or changed[1]:
            for line in sorted(changed[axis]):
                changed[1 - axis].update(self._decode(axis, line))
            changed[axis] = set()
            axis = 1 - axis

    def _decode(self, axis: int, line: int) -> list[int]:
        """Decode column (axis 0) or row `line` if it can be; the cells of it that were not known."""
        known = self.known[:, line] if axis == 0 else self.known[line]
        code = self._code.right if axis else self._code.left
        if known.all() or known.sum() < code.k:
            return []
        recovery = code.recovery(known.copy(), self._exact)
        if recovery.deficit:
            return []
        places = self._code.places[:, line] if axis == 0 else self._code.places[line]
        step = LineStep(places, code, recovery)
        self.steps.append(step)
        known[:] = True
        return [int(cell) for cell in step.fresh]


def steps_towards(steps: Sequence[LineStep], missing: Places) -> list[tuple[LineStep, Places]]:
    """The steps on the way to the `missing` blocks, each with the blocks that are wanted of it."""
    wanted, chosen = set(missing), []
    for step in reversed(steps):
        found = wanted & set(step.places[step.fresh].tolist())
        if found:
            chosen.append((step, found))
            wanted |= set(step.places[step.recovery.arrived].tolist())
    return chosen[::-1]


def replay(steps: Sequence[tuple[LineStep, Places]], rows: Results, dtype: DType) -> dict[int, Array]:
    """All flat blocks, the ones given and those that `steps` recover; sums as `dtype` demands."""
    working = working_dtype(dtype)
    values = dict(rows)
    for step, wanted in steps:
        line = {int(cell): values[int(step.places[cell])] for cell in step.recovery.arrived}
        line |= dict(zip(step.recovery.missing.tolist(), step.recovery.recover(line, working)))
        parity = [cell for cell in step.fresh.tolist() if cell >= step.code.k]
        parity = [cell for cell in parity if int(step.places[cell]) in wanted]
        line |= dict(zip(parity, _parity(step.code, parity, line, working)))
        values |= {int(step.places[cell]): line[cell] for cell in step.fresh.tolist() if cell in line}
    return values


def _parity(code: PolarCode, cells: Sequence[int], line: Results, dtype: DType) -> Array:
    """The parity blocks `cells` of a line whose data is known."""
    coefficients = code.coefficients[[cell - code.k for cell in cells]]
    data = [line[cell] for cell in range(code.k)]
    out = np.empty((len(cells), data[0].size), dtype)
    if not cells:
        return out
    if not is_exact(dtype):
        tiled.product(coefficients.astype(np.float64), data, out)
        return out
    for columns in tiled.tiles(out.shape[1], len(data) + len(out), 8):
        tile = tiled.gather(data, columns, np.int64)
        out[:, columns] = modular.matmul(coefficients, tile).astype(dtype)
    return out
