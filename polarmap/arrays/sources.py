"""Where the data comes from: anything with shape, dtype and slicing, read slab by slab."""

from __future__ import annotations

import contextlib
import mmap
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from polarmap.arrays.stripes import Hyperslab
from polarmap.blocks.array_like import read_data
from polarmap.code.dtypes import check_dtype
from polarmap.errors import CodeError
from polarmap.storage import Store
from polarmap.worker.parts import Part

Array = npt.NDArray[Any]


class Source(Protocol):
    """Rows to encode.

    shape, dtype : of the whole, in native byte order.
    chunk_rows : rows that are stored together and should be read together.
    object_rows : rows that lie in one object, across whose end no part should reach; 0 if any may.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunk_rows: int
    object_rows: int

    def read(self, first: int, slab: Hyperslab, out: Array) -> None:
        """Fill `out` with the slab whose row 0 is row `first` of the whole; zeros beyond its end."""

    def locate(self, first: int, slab: Hyperslab) -> Part | None:
        """Where the slab already lies in the store as raw bytes (without a checksum), if it does."""


class ArraySource:
    """An array: numpy, memmap, zarr, h5py, dask."""

    def __init__(self, data: Any) -> None:
        self._data = data
        self.shape = tuple(int(length) for length in data.shape)
        self.dtype = check_dtype(data.dtype, "the data")
        self.chunk_rows, self.object_rows = _chunk_rows(data), 0

    def read(self, first: int, slab: Hyperslab, out: Array) -> None:
        """The rows from `first` on, and of the other axes what the slab says, by one access to the array."""
        rows, *inner = slab
        start, stop = (min(first + row, self.shape[0]) for row in (rows.start, rows.stop))
        target = out.reshape([one.stop - one.start for one in slab])
        if stop > start:
            target[: stop - start] = np.asarray(self._data[(slice(start, stop), *inner)])
        target[stop - start :] = 0
        self._release()

    def locate(self, first: int, slab: Hyperslab) -> Part | None:
        """An array lies in no store that we know of."""
        return None

    @property
    def array(self) -> Any:
        """What was given."""
        return self._data

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
        If it is none of these.
    """
    if hasattr(data, "open_in"):
        source: Source = data.open_in(store)
        return source
    data = read_data(data)
    if not (hasattr(data, "shape") and hasattr(data, "dtype") and hasattr(data, "__getitem__")):
        raise CodeError(
            f"data must be an array (shape, dtype, slicing) or the path of a .npy file, not "
            f"{type(data).__name__}; stack a sequence of blocks with numpy.concatenate"
        )
    return ArraySource(data)


def _chunk_rows(data: Any) -> int:
    """Rows of the chunks of Zarr, HDF5 (one number per axis) and dask (all lengths per axis)."""
    chunks = getattr(data, "chunks", None)
    if not chunks:
        return 1
    rows = chunks[0]
    return max(1, int(max(rows) if isinstance(rows, tuple) else rows))
