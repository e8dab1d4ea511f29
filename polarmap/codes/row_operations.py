"""Sums of blocks as operations on the rows of a table, of integers modulo 2^bits of the sums.

The coefficients of an Arikan code are few and mostly 1 or -1, so that adding rows takes less time than a
product would, and native integers wrap as they should.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from polarmap.codes import tiled
from polarmap.codes.dtypes import Array, DType, Indices, is_exact, working_dtype

PIECE_BYTES = 1 << 13  # of a row in a tile: of less, numpy takes longer to begin a sum than to add it up
WIDE = 1 << 10  # columns from which on rows are added one by one
COMPILED_FROM_BYTES = 1 << 28  # numba takes 0.6 s to load, and saves 0.3 s for each GB


class Step(NamedTuple):
    """rows[target] = rows[first] + factor * rows[second], a copy of rows[first] where `factor` is 0.

    No operation of a step reads the target of another. `factor` is one for all, or one for each.
    """

    target: Indices
    first: Indices
    second: Indices
    factor: int | npt.NDArray[np.int64]


class RowProgram:
    """Steps on a table of which some rows are given and some are wanted; others are zero at first.

    >>> step = Step(np.array([2]), np.array([0]), np.array([1]), -1)
    >>> difference, out = RowProgram([step], 4, np.arange(2), np.array([2])), np.empty((1, 1), int)
    >>> difference.run(np.array([[7], [5]]), out)
    >>> out.tolist(), difference.operations.tolist()
    ([[2]], [[2, 0, 1, -1]])
    """

    def __init__(self, steps: Sequence[Step], height: int, given: Indices, wanted: Indices) -> None:
        self._steps, self.height, self.given, self.wanted = steps, height, given, wanted

    @property
    def operations(self) -> npt.NDArray[np.int64]:
        """Target, first, second and factor of each operation that is of use, (count, 4)."""
        return self._compact[0]

    @cached_property
    def _compact(self) -> tuple[npt.NDArray[np.int64], int]:
        """The same on a table of the rows in use, the given ones first, the wanted ones last; its height."""
        listed = [np.stack(np.broadcast_arrays(*step), axis=1) for step in self.steps]
        operations = np.concatenate([np.empty((0, 4), np.int64), *listed], dtype=np.int64)
        is_other = np.zeros(self.height, bool)
        is_other[operations[:, :3]] = True
        is_other[self.given] = is_other[self.wanted] = False
        order = np.concatenate([self.given, np.flatnonzero(is_other), self.wanted])
        place = np.zeros(self.height, np.int64)
        place[order] = np.arange(len(order))
        operations[:, :3] = place[operations[:, :3]]
        return operations, len(order)

    @cached_property
    def steps(self) -> list[Step]:
        """What of the steps the wanted rows depend on."""
        is_used = np.zeros(self.height, bool)
        is_used[self.wanted] = True
        kept = []
        for target, first, second, factor in reversed(self._steps):
            where = is_used[target]
            if not where.any():
                continue
            target, first, second = target[where], first[where], second[where]
            factor = factor[where] if isinstance(factor, np.ndarray) else factor
            is_used[target] = False
            is_used[first] = True
            is_used[second] |= np.not_equal(factor, 0)
            kept.append(Step(target, first, second, factor))
        return kept[::-1]

    def run(self, rows: tiled.Rows, out: Array) -> None:
        """Put what is wanted of `rows`, which are given, into `out`."""
        if out.shape[1] < WIDE:
            self._run_at_once(rows, out)
        else:
            self._run_by_row(rows, out)

    def _run_at_once(self, rows: tiled.Rows, out: Array) -> None:
        working = sums_dtype(out.dtype)

        def work(columns: slice) -> None:
            table = np.zeros((self.height, columns.stop - columns.start), working)
            table[self.given] = tiled.gather(rows, columns, working)
            replay(self.steps, table)
            out[:, columns] = table[self.wanted]

        tiled.over_cores(work, list(tiled.tiles(out.shape[1], self.height, working.itemsize)))

    def _run_by_row(self, rows: tiled.Rows, out: Array) -> None:
        working, (operations, height) = sums_dtype(out.dtype), self._compact
        step = max(tiled.TILE_BYTES // height, PIECE_BYTES) // working.itemsize // 64 * 64
        fast = tiled.loops_from(COMPILED_FROM_BYTES, rows)
        add = fast.add_rows if fast else add_rows

        def work(columns: slice) -> None:
            table = np.zeros((height, min(step, columns.stop - columns.start)), working)
            for start in range(columns.start, columns.stop, step):
                part = slice(start, min(columns.stop, start + step))
                tile = table[:, : part.stop - start]
                tiled.gather(rows, part, working, tile[: len(rows)])
                add(tile, operations)
                np.copyto(out[:, part], tile[height - len(out) :], casting="unsafe")

        tiled.over_cores(work, tiled.shares(out, step))


def sums_dtype(dtype: DType) -> DType:
    """The dtype in which sums of `dtype` are added up: of integers the signed one, which wraps alike.

    >>> sums_dtype(np.dtype("u2")), sums_dtype(np.dtype("f4"))
    (dtype('int16'), dtype('float64'))
    """
    return np.dtype(f"i{dtype.itemsize}") if is_exact(dtype) else working_dtype(dtype)


def replay(steps: Sequence[Step], rows: Array) -> None:
    """Do `steps` on `rows`, in place, each at once."""
    for target, first, second, factor in steps:
        if isinstance(factor, np.ndarray):
            rows[target] = rows[first] + factor.astype(rows.dtype)[:, None] * rows[second]
        elif factor == 1:
            rows[target] = rows[first] + rows[second]
        elif factor == -1:
            rows[target] = rows[first] - rows[second]
        else:
            rows[target] = rows[first]


def replay_transposed(steps: Sequence[Step], rows: Array) -> None:
    """The transpose of `replay`, in place: what each wanted row is made of, the last step first.

    Of rows that many operations of a step read, as a row of zeros may be, nothing is told. Unsigned numbers
    are sets of bits, each of which is added up modulo 2.
    """
    are_bits = rows.dtype.kind == "u"
    add, times = (np.bitwise_xor, np.bitwise_and) if are_bits else (np.add, np.multiply)
    for target, first, second, factor in reversed(steps):
        came = rows[target]
        rows[target] = 0
        rows[first] = add(rows[first], came)
        if np.any(factor):
            factors = np.reshape(-(factor & 1) if are_bits else factor, (-1, 1)).astype(rows.dtype)
            rows[second] = add(rows[second], times(factors, came))


def add_rows(table: Array, operations: npt.NDArray[np.int64]) -> None:
    """Do `operations` on `table`, in place, row by row: the oracle of the compiled loops."""
    rows, spare = list(table), np.empty_like(table[0])
    factors = operations[:, 3].astype(table.dtype)  # wraps
    for target, first, second, factor in zip(*operations[:, :3].T.tolist(), factors.tolist()):
        if factor == 1:
            np.add(rows[first], rows[second], out=rows[target])
        elif factor == -1:
            np.subtract(rows[first], rows[second], out=rows[target])
        elif factor == 0:
            np.copyto(rows[target], rows[first])
        else:
            np.multiply(rows[second], factor, out=spare)
            np.add(rows[first], spare, out=rows[target])
