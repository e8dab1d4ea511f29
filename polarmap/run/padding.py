"""What became of the rows of zeros that fill up the last blocks of an array that does not divide.

Results with one row for each row of a block have rows that come from padding, which are cut off. Of any
other result nobody but f knows what zeros have done to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from polarmap.blocks.coded import CodedData
from polarmap.blocks.equal import Blocks, dividing_counts
from polarmap.codes.dtypes import DType
from polarmap.errors import warn
from polarmap.run.local_run import LocalRun
from polarmap.run.options import MapOptions
from polarmap.run.trusted import Trust
from polarmap.run.verify import leaf_agrees
from polarmap.worker.pytree import Shape, unflatten

Precision = Callable[[DType], DType]  # whose rounding limits results of a dtype

ROW_PER_ROW = "one row of a result for each row of a block"


class PaddingRows:
    """Which leaves of the results have one row for each row of a block.

    A result may have as many rows as a block by chance. So f is evaluated on the driver, beside the
    map, on two rows of a block and on four; once for all maps of the same function.
    """

    def __init__(self, f: Callable[[Any], Any], coded: CodedData, options: MapOptions) -> None:
        self._coded, self._rtol = coded, options.rtol
        self._blocks = coded.blocks
        self._asked_at: float | None = None
        self._trust = Trust(f, ROW_PER_ROW, self._blocks.dtypes, options.known.row_by_row)
        self._run: LocalRun | None = None
        if self._trust.known is None:
            self._run = LocalRun(lambda pair: (f(pair[0]), f(pair[1])), self._some_rows)

    def is_over(self, now: float, patience: float) -> bool:
        """Whether it is known, or has taken longer than this since it was first asked for."""
        if self._asked_at is None:
            self._asked_at = now
        return self.is_known or now - self._asked_at > patience

    @property
    def is_known(self) -> bool:
        """Whether f has been evaluated on a few rows, or need not be."""
        return self._run is None or not self._run.is_running

    def found(self, precision: Precision, shapes: Sequence[Shape]) -> tuple[bool, ...]:
        """For each leaf, of these shapes, whether its padding rows are to be cut off.

        Warns where f has seen zeros that may show in a result.
        """
        are = self.are_rows(precision, shapes)
        if self._run is not None and self._run.leaves is not None:
            self._trust.note(are)
        if not all(are):
            self._warn()
        return are

    def are_rows(self, precision: Precision, shapes: Sequence[Shape]) -> tuple[bool, ...]:
        """`found`, as far as it is known by now, and without a word of it."""
        return tuple(
            shape[:1] == (self._blocks.rows,) and self._is_row_by_row(precision, leaf, len(shapes))
            for leaf, shape in enumerate(shapes)
        )

    def _is_row_by_row(self, precision: Precision, leaf: int, count: int) -> bool:
        """Whether a leaf, of so many, has one row for each row, which has not seen those behind it."""
        known = self._trust.known
        if known is not None:
            return known is True or (leaf < len(known) and known[leaf])
        leaves = self._run.leaves if self._run is not None else None
        if leaves is None or len(leaves) != 2 * count:
            return False
        few, more = leaves[leaf], leaves[leaf + count]
        if (few.shape[:1], more.shape[:1]) != ((self._counts[0],), (self._counts[1],)):
            return False
        numbers = more[np.isfinite(more)] if more.dtype.kind in "iufc" else np.zeros(0)
        largest = float(np.abs(numbers).max(initial=0))
        return leaf_agrees(few, more[: len(few)], precision(few.dtype), self._rtol, 1.0, largest, 0.0)

    @property
    def _counts(self) -> tuple[int, int]:
        """Rows that f is evaluated on, no more than a block has: not one, which numpy may squeeze."""
        rows = self._blocks.rows
        assert rows is not None
        few = min(2, rows - 1)
        return few, min(few + 2, rows)

    def _some_rows(self) -> tuple[Any, Any]:
        """A few rows of a data block and some more, which would show; made up where they lie in storage."""
        few, more = self._counts
        if self._coded.source is None:
            assert isinstance(self._blocks, Blocks)
            first, leaves = self._blocks.heads(few, more)
        else:
            shapes = [(name, (more, *shape[1:])) for name, shape in self._coded.layout(0)]
            leaves = [np.resize(np.arange(1, 8), shape).astype(name) for name, shape in shapes]
            first = [leaf[:few].copy() for leaf in leaves]
        structure = self._coded.structure
        return unflatten(structure, first), unflatten(structure, leaves)

    def _warn(self) -> None:
        blocks, rows = self._blocks, self._blocks.rows
        assert rows is not None
        total = blocks.k * rows - blocks.padding
        counts = " or ".join(map(str, dividing_counts(total, blocks.k))) or "1"
        warn(
            f"{total} rows do not divide into {blocks.k} blocks: f saw {blocks.padding} rows of zeros at the "
            f"end, which may show in its last results; blocks={counts} divides them"
        )
