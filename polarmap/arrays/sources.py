"""Where the data comes from: anything with shape, dtype and slicing, read slab by slab."""

from __future__ import annotations

import contextlib
import mmap
from functools import cached_property
from math import prod
from typing import Any, Protocol

import numpy as np

from polarmap.arrays.stripes import Hyperslab, flat_range
from polarmap.blocks.array_like import read_data
from polarmap.blocks.equal import check_array
from polarmap.code.dtypes import Array, check_dtype
from polarmap.errors import CodeError
from polarmap.storage import Store
from polarmap.worker.parts import Part, Place


class Source(Protocol):
    """The rows that are to be encoded, wherever they are.

    shape, dtype : of the whole, in native byte order.
    chunk_rows : rows that are stored together and should be read together.
    object_rows : rows that lie in one object, across whose end no part should reach; 0 if any may.
    is_stored : whether they lie in the store, so that data blocks need no copy.
    place : where parts lie that `locate` gives.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunk_rows: int
    object_rows: int
    is_stored: bool
    place: Place

    def read(self, first: int, slab: Hyperslab, out: Array) -> None:
        """Fill `out` with the slab whose row 0 is row `first` of the data; zeros beyond its end."""

    def locate(self, first: int, slab: Hyperslab) -> tuple[Part, ...]:
        """Where the slab lies as raw bytes, without a checksum: in the store or in files. Empty if nowhere.

        Keys of files are paths below the root. What lies in the store is one part.
        """


class ArraySource:
    """A `Source` that reads an array: numpy, memmap, zarr, h5py, dask."""

    place = Place("folder", "/")

    def __init__(self, data: Any) -> None:
        self._data = data
        self.shape = tuple(int(length) for length in data.shape)
        self.dtype = check_dtype(data.dtype, "the data")
        self.chunk_rows, self.object_rows, self.is_stored = _chunk_rows(data), 0, False

    def read(self, first: int, slab: Hyperslab, out: Array) -> None:
        """The rows from `first` on, and of the other axes what the slab says, by one access to the array."""
        rows, *inner = slab
        start, stop = (min(first + row, self.shape[0]) for row in (rows.start, rows.stop))
        target = out.reshape([one.stop - one.start for one in slab])
        if stop > start:
            target[: stop - start] = np.asarray(self._data[(slice(start, stop), *inner)])
        target[stop - start :] = 0
        self._release()

    def locate(self, first: int, slab: Hyperslab) -> tuple[Part, ...]:
        """Where the slab lies in the mapped file; rows beyond the last are zeros that lie nowhere."""
        if self._file is None:
            return ()
        path, offset = self._file
        start, stop = (place * self.dtype.itemsize for place in flat_range(self.shape, first, slab))
        there = max(0, min(stop, prod(self.shape) * self.dtype.itemsize) - start)
        parts = (Part(path, there, None, offset + start), Part("", stop - start - there))
        return tuple(part for part in parts if part.size)

    @cached_property
    def _file(self) -> tuple[str, int] | None:
        """Path below the root and offset of an array that is a contiguous piece of a file; None if not."""
        array = self._data
        mapped = getattr(array, "_mmap", None)
        if not isinstance(array, np.memmap) or not isinstance(mapped, mmap.mmap) or array.filename is None:
            return None
        if not array.flags.c_contiguous or array.dtype != self.dtype or array.mode == "c":
            return None
        begin = array.offset - array.offset % mmap.ALLOCATIONGRANULARITY
        address = np.frombuffer(mapped, np.uint8).__array_interface__["data"][0]
        offset = begin + array.__array_interface__["data"][0] - address
        return str(array.filename).lstrip("/"), offset

    def _release(self) -> None:
        """Pages of a mapped file that were read count as memory of this process until let go."""
        mapped = getattr(self._data, "_mmap", None)
        if isinstance(mapped, mmap.mmap) and getattr(self._data, "mode", "c") != "c":
            with contextlib.suppress(OSError, ValueError):
                mapped.madvise(mmap.MADV_DONTNEED)


def open_source(data: Any, store: Store) -> Source:
    """The source that `encode(data)` means: a path of a .npy file, what lies in the store, an array.

    Raises
    ------
    CodeError
        If it is none of these, or cannot be cut into blocks and coded.
    """
    if hasattr(data, "open_in"):
        source: Source = data.open_in(store)
        check_array(source, "A")
        return source
    data = read_data(data, "A")
    if not (hasattr(data, "shape") and hasattr(data, "dtype") and hasattr(data, "__getitem__")):
        raise CodeError(
            f"data must be an array (shape, dtype, slicing) or the path of a .npy file, not "
            f"{type(data).__name__}; stack a sequence of blocks with numpy.concatenate"
        )
    check_array(data, "A")
    if isinstance(data, np.matrix):
        raise CodeError("A is a matrix, and f would see arrays of a coded one: use numpy.asarray(A), and @")
    return ArraySource(data)


def _chunk_rows(data: Any) -> int:
    """Rows of the chunks of Zarr, HDF5 (one number per axis) and dask (all lengths per axis)."""
    chunks = getattr(data, "chunks", None)
    if not chunks:
        return 1
    rows = chunks[0]
    return max(1, int(max(rows) if isinstance(rows, tuple) else rows))
