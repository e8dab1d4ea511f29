"""Stripes: how blocks are cut so that the same stripe of all n blocks fits into memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

from polarmap.code.polar import PolarCode

Hyperslab = tuple[slice, ...]

STRIPES_IN_MEMORY = 3  # stripes that memory must hold: one computed, one being stored, copies for sending


class StripePlan(NamedTuple):
    """How an array is cut into blocks and these into stripes.

    rows : of a block.
    hyperslabs : one per stripe: a contiguous piece of a block in C order, one slice per axis.
    """

    code: PolarCode
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    parity_dtype: np.dtype[Any]
    rows: int
    hyperslabs: tuple[Hyperslab, ...]

    def width(self, stripe: int) -> int:
        """Elements of a stripe of one block."""
        return element_count(self.hyperslabs[stripe])

    @property
    def widest_stripe(self) -> int:
        """Elements of the widest stripe."""
        return max((element_count(slab) for slab in self.hyperslabs), default=0)


def plan_stripes(
    code: PolarCode,
    shape: Sequence[int],
    dtype: np.dtype[Any],
    memory: int,
    chunk_rows: int = 1,
    object_rows: int = 0,
) -> StripePlan:
    """Stripes of which STRIPES_IN_MEMORY, data and parity, take at most `memory` bytes.

    See `Source` for the last two arguments.
    """
    rows = -(-shape[0] // code.k)
    parity_dtype = code.parity_dtype(dtype)
    column = code.k * dtype.itemsize + (code.n - code.k) * parity_dtype.itemsize
    limit = max(1, memory // (STRIPES_IN_MEMORY * column))
    run = object_rows if object_rows and rows % object_rows == 0 else rows
    cut = tuple(
        (slice(start + slab[0].start, start + slab[0].stop), *slab[1:])
        for start in range(0, rows, run)
        for slab in hyperslabs((run, *shape[1:]), limit, chunk_rows)
    )
    return StripePlan(code, tuple(shape), dtype, parity_dtype, rows, cut)


def hyperslabs(shape: Sequence[int], limit: int, multiple: int = 1) -> Iterator[Hyperslab]:
    """Contiguous pieces of an array, in order, of at most `limit` elements.

    Whole rows where they fit, in multiples of `multiple` where these fit.

    >>> [[(s.start, s.stop) for s in slab] for slab in hyperslabs((2, 5), 3)]
    [[(0, 1), (0, 3)], [(0, 1), (3, 5)], [(1, 2), (0, 3)], [(1, 2), (3, 5)]]
    >>> [[(s.start, s.stop) for s in slab] for slab in hyperslabs((7, 5), 15, 2)]
    [[(0, 2), (0, 5)], [(2, 4), (0, 5)], [(4, 6), (0, 5)], [(6, 7), (0, 5)]]
    """
    rows, inner = shape[0], prod(shape[1:])
    if not rows or not inner:
        return
    if inner > limit:
        for row in range(rows):
            yield from ((slice(row, row + 1), *slab) for slab in hyperslabs(shape[1:], limit))
        return
    step = limit // inner
    if step > multiple:
        step -= step % multiple
    rest = tuple(slice(0, length) for length in shape[1:])
    for start in range(0, rows, step):
        yield (slice(start, min(rows, start + step)), *rest)


def element_count(slab: Hyperslab) -> int:
    """How many numbers a slab holds."""
    return prod(one.stop - one.start for one in slab)
