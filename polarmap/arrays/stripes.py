"""Stripes: how blocks are cut so that the same stripe of all n blocks fits into memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

from polarmap.codes.polar import PolarCode

Hyperslab = tuple[slice, ...]

STRIPES_IN_MEMORY = 3  # stripes that memory must hold: one computed, one being stored, copies for sending
FINER = 8  # times as many stripes, at most, where that makes them Zarr chunks


class StripePlan(NamedTuple):
    """How an array is cut into blocks and these into stripes.

    hyperslabs : one per stripe: a contiguous piece of a block in C order, one slice per axis.
    chunk_shape : of the Zarr array that the data blocks make; None if they lie elsewhere.
    """

    code: PolarCode
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    hyperslabs: tuple[Hyperslab, ...]
    chunk_shape: tuple[int, ...] | None = None

    @property
    def rows(self) -> int:
        """Rows of a block."""
        return -(-self.shape[0] // self.code.k)

    @property
    def parity_dtype(self) -> np.dtype[Any]:
        """Dtype of the parity blocks."""
        return self.code.parity_dtype(self.dtype)

    def slab(self, block: int, stripe: int) -> Hyperslab:
        """What of the array a stripe of a data block is; its rows may lie beyond the last."""
        rows, *inner = self.hyperslabs[stripe]
        return slice(block * self.rows + rows.start, block * self.rows + rows.stop), *inner

    def width(self, stripe: int) -> int:
        """Elements of a stripe of one block."""
        return element_count(self.hyperslabs[stripe])

    @property
    def stripes_are_chunks(self) -> bool:
        """Whether each stripe of a data block is a chunk of the Zarr array, not a piece of one."""
        slabs = self.hyperslabs
        lengths = tuple(one.stop - one.start for one in slabs[0]) if slabs else ()
        return lengths == self.chunk_shape

    def is_filled_up(self, stripe: int) -> bool:
        """Whether a stripe of a data block is less than the chunk that it is: zeros are stored behind it."""
        return self.stripes_are_chunks and self.width(stripe) < prod(self.chunk_shape or ())

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
    column = code.k * dtype.itemsize + (code.n - code.k) * code.parity_dtype(dtype).itemsize
    limit = max(1, memory // (STRIPES_IN_MEMORY * column))
    inner = shape[1:]
    if object_rows:  # the data stay where they are
        run = object_rows if rows % object_rows == 0 else rows
        slab = _slab((run, *inner), limit)
        cut = tuple(
            (slice(start + first.start, start + first.stop), *rest)
            for start in range(0, rows, run)
            for first, *rest in hyperslabs((run, *inner), slab)
        )
        return StripePlan(code, tuple(shape), dtype, cut)
    slab = _slab((rows, *inner), limit, chunk_rows)
    cut = tuple(hyperslabs((rows, *inner), slab))
    chunk = chunk_shape((rows, *inner), slab)
    return StripePlan(code, tuple(shape), dtype, cut, chunk)


def chunk_shape(block_shape: Sequence[int], slab: Sequence[int]) -> tuple[int, ...]:
    """Shape of the chunks of the Zarr array of such blocks, stored in slabs of that shape.

    One chunk for each slab, or one for each block where slabs do not divide the rows of a block.

    >>> chunk_shape((12, 5), (4, 5)), chunk_shape((13, 5), (4, 5)), chunk_shape((2, 7), (1, 4))
    ((4, 5), (13, 5), (1, 4))
    """
    divides = slab and block_shape[0] % max(1, slab[0]) == 0
    return tuple(max(1, length) for length in (slab if divides else block_shape))


def _slab(shape: Sequence[int], limit: int, multiple: int = 0) -> tuple[int, ...]:
    """The shape of contiguous pieces of an array, of at most `limit` elements, as large as these can be.

    multiple : rows that are stored together: whole rows are cut in multiples of these where they fit. Then
        rows are cut evenly, too, so that each piece is a Zarr chunk, if that makes them not much smaller, and
        rows that are cut themselves into pieces as equal as can be.

    >>> _slab((2, 5), 3), _slab((7, 5), 15), _slab((7, 5), 15, 2)
    ((1, 3), (3, 5), (2, 5))
    >>> _slab((12, 7), 35, 1), _slab((1009, 7), 6300, 1), _slab((3, 8), 6, 1)
    ((4, 7), (900, 7), (1, 4))
    """
    axis = next(axis for axis in range(len(shape)) if prod(shape[axis + 1 :]) <= limit)
    length, step = shape[axis], limit // max(1, prod(shape[axis + 1 :]))
    if axis == 0 and 0 < multiple < step:
        step -= step % multiple
    step = min(length, step)
    if multiple:
        step = -(-length // -(-length // step)) if axis else _even_step(length, step, multiple)
    return (*[1] * axis, step, *shape[axis + 1 :])


def _even_step(rows: int, most: int, multiple: int) -> int:
    """The largest divisor of `rows` up to `most` that is not much smaller; `most` if there is none.

    Data in chunks of `multiple` rows are read in whole chunks where these begin when blocks do.
    """
    unit = multiple if rows % multiple == 0 and multiple <= most else 1
    counts = range(-(-rows // most), -(-FINER * rows // most))
    steps = (rows // count for count in counts if rows % count == 0)
    least = min(multiple, most)  # or chunks would be read more often
    return next((step for step in steps if step % unit == 0 and step >= least), most)


def hyperslabs(shape: Sequence[int], slab: Sequence[int]) -> Iterator[Hyperslab]:
    """The pieces of an array, in order, if it is cut into ones of that shape.

    >>> [[(s.start, s.stop) for s in one] for one in hyperslabs((2, 5), (1, 3))]
    [[(0, 1), (0, 3)], [(0, 1), (3, 5)], [(1, 2), (0, 3)], [(1, 2), (3, 5)]]
    """
    axes = [
        [slice(start, min(length, start + step)) for start in range(0, length, max(1, step))]
        for length, step in zip(shape, slab, strict=True)
    ]
    return itertools.product(*axes)


def flat_range(shape: Sequence[int], slab: Hyperslab) -> tuple[int, int]:
    """First and last element of a slab, of a whole of that shape.

    >>> flat_range((9, 5), (slice(7, 8), slice(2, 5)))
    (37, 40)
    """
    start = 0
    for length, one in zip(shape, slab, strict=True):
        start = start * length + one.start
    return start, start + element_count(slab)


def element_count(slab: Hyperslab) -> int:
    """How many numbers a slab holds."""
    return prod(one.stop - one.start for one in slab)
