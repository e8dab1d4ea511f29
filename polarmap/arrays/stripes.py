"""Stripes: how blocks are cut so that the same stripe of all n blocks fits into memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

from polarmap.code.polar import PolarCode

Box = tuple[slice, ...]

IN_FLIGHT = 3  # stripes that memory must hold: one computed, one being stored, copies for sending


class StripePlan(NamedTuple):
    """How an array is cut into blocks and these into stripes.

    rows : of a block.
    boxes : one per stripe: a contiguous piece of a block in C order, one slice per axis.
    """

    code: PolarCode
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    parity_dtype: np.dtype[Any]
    rows: int
    boxes: tuple[Box, ...]

    def width(self, stripe: int) -> int:
        """Elements of a stripe of one block."""
        return elements(self.boxes[stripe])

    @property
    def widest(self) -> int:
        """Elements of the widest stripe."""
        return max((elements(box) for box in self.boxes), default=0)


def plan_stripes(
    code: PolarCode,
    shape: Sequence[int],
    dtype: np.dtype[Any],
    memory: int,
    chunk_rows: int = 1,
    unbroken_rows: int = 0,
) -> StripePlan:
    """Stripes of which IN_FLIGHT, data and parity, take at most `memory` bytes.

    See `Source` for the last two arguments.
    """
    rows = -(-shape[0] // code.k)
    parity_dtype = code.parity_dtype(dtype)
    column = code.k * dtype.itemsize + (code.n - code.k) * parity_dtype.itemsize
    limit = max(1, memory // (IN_FLIGHT * column))
    run = unbroken_rows if unbroken_rows and rows % unbroken_rows == 0 else rows
    cut = tuple(
        (slice(start + box[0].start, start + box[0].stop), *box[1:])
        for start in range(0, rows, run)
        for box in boxes((run, *shape[1:]), limit, chunk_rows)
    )
    return StripePlan(code, tuple(shape), dtype, parity_dtype, rows, cut)


def boxes(shape: Sequence[int], limit: int, multiple: int = 1) -> Iterator[Box]:
    """Contiguous pieces of an array, in order, of at most `limit` elements.

    Whole rows where they fit, in multiples of `multiple` where these fit.

    >>> [[(s.start, s.stop) for s in box] for box in boxes((2, 5), 3)]
    [[(0, 1), (0, 3)], [(0, 1), (3, 5)], [(1, 2), (0, 3)], [(1, 2), (3, 5)]]
    >>> [[(s.start, s.stop) for s in box] for box in boxes((7, 5), 15, 2)]
    [[(0, 2), (0, 5)], [(2, 4), (0, 5)], [(4, 6), (0, 5)], [(6, 7), (0, 5)]]
    """
    rows, inner = shape[0], prod(shape[1:])
    if not rows or not inner:
        return
    if inner > limit:
        for row in range(rows):
            yield from ((slice(row, row + 1), *box) for box in boxes(shape[1:], limit))
        return
    step = limit // inner
    if step > multiple:
        step -= step % multiple
    rest = tuple(slice(0, length) for length in shape[1:])
    for start in range(0, rows, step):
        yield (slice(start, min(rows, start + step)), *rest)


def elements(box: Box) -> int:
    """How many numbers a box holds."""
    return prod(one.stop - one.start for one in box)
