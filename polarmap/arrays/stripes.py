"""Decide how to cut the blocks of a coded array into stripes, so that it can be encoded in limited memory.

    block 0   | stripe 0 | stripe 1 | ...
      ...     |          |          |
    block n-1 | stripe 0 | stripe 1 | ...      all blocks are cut at the same elements

A stripe is the same slice of every block, and is encoded on its own. Within a block, it is contiguous in
memory (in C order). If possible, it is also one chunk of the Zarr array that the data blocks form.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

from polarmap.codes.polar import PolarCode

Hyperslab = tuple[slice, ...]

# The number of stripes (slices of all blocks) in memory at a time: one is being computed, one is being
# stored, and one is a copy that is being sent.
N_STRIPES_IN_MEMORY = 3
# Blocks are cut into pieces of equal size if possible, so that each piece can be a Zarr chunk. This may
# require more pieces than the memory budget does. It is only done if the number of pieces grows by at most
# about this factor.
MAX_SPLIT_FACTOR = 8


class StripePlan(NamedTuple):
    """A plan for cutting an array into blocks, and all blocks into stripes.

    A stripe is the same slice of every block. One stripe is encoded at a time.

    Attributes
    ----------
    code : PolarCode
        The code, which has the numbers of data blocks and of all blocks.
    shape, dtype
        The shape and dtype of the whole array.
    hyperslabs : tuple of Hyperslab
        For each stripe, its slice of a block, as one Python slice per axis. It is contiguous in C order.
    chunk_shape : tuple of int or None
        The chunk shape of the Zarr array that the data blocks form. None if there is no Zarr array.
    """

    code: PolarCode
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    hyperslabs: tuple[Hyperslab, ...]
    chunk_shape: tuple[int, ...] | None = None

    @property
    def rows_per_block(self) -> int:
        """The number of rows of a block."""
        return -(-self.shape[0] // self.code.k)

    @property
    def parity_dtype(self) -> np.dtype[Any]:
        """The dtype of the parity blocks."""
        return self.code.parity_dtype(self.dtype)

    def get_data_slab(self, block_index: int, stripe_index: int) -> Hyperslab:
        """Return the position of one stripe of a data block in the whole array, as one slice per axis.

        The slice along the first axis may end past the last row of the array. These are padding rows.
        """
        rows, *inner_slices = self.hyperslabs[stripe_index]
        block_start = block_index * self.rows_per_block
        return slice(block_start + rows.start, block_start + rows.stop), *inner_slices

    def count_stripe_elements(self, stripe_index: int) -> int:
        """Return the number of array elements that a stripe (slice of all blocks) has in each block."""
        return count_elements(self.hyperslabs[stripe_index])

    @property
    def has_chunk_per_stripe(self) -> bool:
        """Whether each stripe of a data block is one chunk of the Zarr array."""
        slabs = self.hyperslabs
        lengths = tuple(axis_slice.stop - axis_slice.start for axis_slice in slabs[0]) if slabs else ()
        return lengths == self.chunk_shape

    def is_padded_chunk(self, stripe_index: int) -> bool:
        """Return whether a stripe (slice) of a block is smaller than a Zarr chunk and must be zero-padded."""
        chunk_size = prod(self.chunk_shape or ())
        return self.has_chunk_per_stripe and self.count_stripe_elements(stripe_index) < chunk_size

    @property
    def max_stripe_size(self) -> int:
        """The number of elements per block in the largest stripe."""
        return max((count_elements(slab) for slab in self.hyperslabs), default=0)


def plan_stripes(
    code: PolarCode,
    shape: Sequence[int],
    dtype: np.dtype[Any],
    max_bytes: int,
    rows_per_chunk: int = 1,
    rows_per_object: int = 0,
) -> StripePlan:
    """Choose how to cut an array into blocks and stripes, so that encoding stays within a memory budget.

    A stripe is the same slice of every block, and is encoded on its own.

    Parameters
    ----------
    code : PolarCode
        The code, which has the numbers of data blocks and of all blocks.
    shape, dtype
        The shape and dtype of the array.
    max_bytes : int
        The memory budget in bytes. N_STRIPES_IN_MEMORY stripes of all n blocks must fit into it.
    rows_per_chunk, rows_per_object : int
        How the data is stored; see `DataSource`.
    """
    rows_per_block = -(-shape[0] // code.k)
    bytes_per_column = code.k * dtype.itemsize + (code.n - code.k) * code.parity_dtype(dtype).itemsize
    max_elements = max(1, max_bytes // (N_STRIPES_IN_MEMORY * bytes_per_column))
    inner_shape = shape[1:]
    # Data that is already in the store is not copied, except for pieces that cross the end of an object. So
    # cut the blocks at the ends of the objects if possible.
    if rows_per_object:
        segment_rows = rows_per_object if rows_per_block % rows_per_object == 0 else rows_per_block
        slab_shape = _choose_slab_shape((segment_rows, *inner_shape), max_elements)
        stripe_slabs = tuple(
            (slice(start + first_slice.start, start + first_slice.stop), *inner_slices)
            for start in range(0, rows_per_block, segment_rows)
            for first_slice, *inner_slices in iterate_hyperslabs((segment_rows, *inner_shape), slab_shape)
        )
        return StripePlan(code, tuple(shape), dtype, stripe_slabs)
    slab_shape = _choose_slab_shape((rows_per_block, *inner_shape), max_elements, rows_per_chunk)
    stripe_slabs = tuple(iterate_hyperslabs((rows_per_block, *inner_shape), slab_shape))
    chunk = choose_chunk_shape((rows_per_block, *inner_shape), slab_shape)
    return StripePlan(code, tuple(shape), dtype, stripe_slabs, chunk)


def choose_chunk_shape(block_shape: Sequence[int], slab_shape: Sequence[int]) -> tuple[int, ...]:
    """Return the Zarr chunk shape for blocks that are stored in pieces of shape `slab_shape`.

    If the number of rows of a piece divides that of a block, each piece is a chunk. Otherwise, each whole
    block is a chunk.

    >>> choose_chunk_shape((12, 5), (4, 5)), choose_chunk_shape((13, 5), (4, 5))
    ((4, 5), (13, 5))
    >>> choose_chunk_shape((2, 7), (1, 4))
    (1, 4)
    """
    is_divisible = slab_shape and block_shape[0] % max(1, slab_shape[0]) == 0
    return tuple(max(1, length) for length in (slab_shape if is_divisible else block_shape))


def _choose_slab_shape(shape: Sequence[int], max_elements: int, row_multiple: int = 0) -> tuple[int, ...]:
    """Choose the shape of the pieces into which an array is cut, as large as possible.

    Each piece is contiguous in C order, and has up to `max_elements` elements. `row_multiple` is the number
    of rows that are stored together, or 0. If it is positive:

    - Pieces have a multiple of this number of rows, if so many rows fit into a piece.
    - Pieces have equal sizes, so that each can be a Zarr chunk, unless this makes them much smaller.
    - If a row is too long for a piece, it is cut as evenly as possible.

    >>> _choose_slab_shape((2, 5), 3), _choose_slab_shape((7, 5), 15), _choose_slab_shape((7, 5), 15, 2)
    ((1, 3), (3, 5), (2, 5))
    >>> _choose_slab_shape((12, 7), 35, 1), _choose_slab_shape((1009, 7), 6300, 1)
    ((4, 7), (900, 7))
    >>> _choose_slab_shape((3, 8), 6, 1)
    (1, 4)
    """
    axis = next(axis for axis in range(len(shape)) if prod(shape[axis + 1 :]) <= max_elements)
    length, step = shape[axis], max_elements // max(1, prod(shape[axis + 1 :]))
    if axis == 0 and 0 < row_multiple < step:
        step -= step % row_multiple
    step = min(length, step)
    if row_multiple:
        step = -(-length // -(-length // step)) if axis else _choose_even_row_step(length, step, row_multiple)
    return (*[1] * axis, step, *shape[axis + 1 :])


def _choose_even_row_step(n_rows: int, max_step: int, row_multiple: int) -> int:
    """Choose a number of rows up to `max_step` that cuts `n_rows` rows into equal pieces.

    Return the largest suitable divisor of `n_rows`, or `max_step` if all divisors are much smaller.

    `row_multiple` is the number of rows per chunk of the data. If possible, the result is a multiple of it,
    so that only whole chunks are read.
    """
    unit = row_multiple if n_rows % row_multiple == 0 and row_multiple <= max_step else 1
    counts = range(-(-n_rows // max_step), -(-MAX_SPLIT_FACTOR * n_rows // max_step))
    steps = (n_rows // count for count in counts if n_rows % count == 0)
    # If a piece had fewer rows than a chunk of the data, each chunk would be read several times.
    min_step = min(row_multiple, max_step)
    return next((step for step in steps if step % unit == 0 and step >= min_step), max_step)


def iterate_hyperslabs(shape: Sequence[int], slab_shape: Sequence[int]) -> Iterator[Hyperslab]:
    """Cut an array into pieces of shape `slab_shape`, and yield each piece as a tuple of slices, in C order.

    >>> [[(s.start, s.stop) for s in one] for one in iterate_hyperslabs((2, 5), (1, 3))]
    [[(0, 1), (0, 3)], [(0, 1), (3, 5)], [(1, 2), (0, 3)], [(1, 2), (3, 5)]]
    """
    axis_slices = [
        [slice(start, min(length, start + step)) for start in range(0, length, max(1, step))]
        for length, step in zip(shape, slab_shape, strict=True)
    ]
    return itertools.product(*axis_slices)


def get_flat_range(shape: Sequence[int], hyperslab: Hyperslab) -> tuple[int, int]:
    """Return the range (start, stop) of a contiguous piece of an array in the flattened array.

    >>> get_flat_range((9, 5), (slice(7, 8), slice(2, 5)))
    (37, 40)
    """
    start = 0
    for length, axis_slice in zip(shape, hyperslab, strict=True):
        start = start * length + axis_slice.start
    return start, start + count_elements(hyperslab)


def count_elements(hyperslab: Hyperslab) -> int:
    """Return the number of elements in a piece of an array, given as one slice per axis."""
    return prod(axis_slice.stop - axis_slice.start for axis_slice in hyperslab)
