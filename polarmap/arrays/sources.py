"""The sources from which `encode` reads its data: array-like objects, files, or objects in the store.

`open_data_source` converts the argument of `encode` to a `DataSource`, from which the data is read in pieces
(slabs). If the bytes of a slab already exist in a file or in the store, the source also returns their
location. Workers can then read them directly, and objects in the store need not be copied.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from polarmap.arrays.stores import get_store_location
from polarmap.arrays.stripes import Hyperslab, get_flat_range
from polarmap.blocks.array_like import load_array_like
from polarmap.blocks.equal import check_encodable_array
from polarmap.dtypes import Array, check_supported_dtype
from polarmap.errors import CodeError, StorageError
from polarmap.storage import Store, check_object_key
from polarmap.validation import is_nonnegative_int
from polarmap.worker.locations import FolderLocation, Location
from polarmap.worker.segments import Segment


class DataSource(Protocol):
    """The interface of data that `encode` can read.

    Attributes
    ----------
    shape, dtype
        The shape and dtype of the whole array, in native byte order.
    rows_per_chunk : int
        The number of rows that are stored together, such as the rows of a Zarr chunk. It is faster to read
        them together.
    rows_per_object : int
        The number of rows per object if the data is already in the store, otherwise 0. Pieces within one
        object are not copied.
    location : Location
        Where workers can read the segments that `find_segments` returns.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    rows_per_chunk: int
    rows_per_object: int
    location: Location

    def read_slab(self, slab: Hyperslab, out: Array) -> None:
        """Read a slab (one slice per axis) of the data into `out`. Rows past the end are set to zero."""

    def find_segments(self, slab: Hyperslab) -> tuple[Segment, ...]:
        """Return where the raw bytes of a slab are stored, as segments (byte ranges of files or objects).

        A slab is a piece of the array, given as one slice per axis. Return () if its bytes cannot be read in
        this way. The segments have no checksums. The key of a file is its absolute path without the leading
        slash. For data in the store, the tuple contains a single segment.
        """


class ArraySource:
    """A `DataSource` for sliceable arrays, such as numpy, zarr, h5py and dask arrays and memory maps."""

    location: Location = FolderLocation("/")

    def __init__(self, data: Any) -> None:
        self._data = data
        self.shape = tuple(int(length) for length in data.shape)
        self.dtype = check_supported_dtype(data.dtype, "the data")
        self.rows_per_chunk, self.rows_per_object = _get_rows_per_chunk(data), 0

    def read_slab(self, slab: Hyperslab, out: Array) -> None:
        """Read a slab (one slice per axis) into `out`. Rows past the end of the array are set to zero."""
        rows, *inner_slices = slab
        n_rows = max(0, min(rows.stop, self.shape[0]) - rows.start)
        target = out.reshape([axis_slice.stop - axis_slice.start for axis_slice in slab])
        if n_rows:
            target[:n_rows] = np.asarray(self._data[(slice(rows.start, rows.start + n_rows), *inner_slices)])
        target[n_rows:] = 0
        self._release_memory_map_pages()

    def find_segments(self, slab: Hyperslab) -> tuple[Segment, ...]:
        """Return which bytes of a memory-mapped file hold a slab of the array, or () for other arrays.

        A slab is a piece of the array, given as one slice per axis. If it extends past the last row, a
        segment with an empty key is appended, which represents rows of zeros.
        """
        if self._memory_map_path_and_offset is None:
            return ()
        path, offset = self._memory_map_path_and_offset
        start, stop = (position * self.dtype.itemsize for position in get_flat_range(self.shape, slab))
        n_available = max(0, min(stop, prod(self.shape) * self.dtype.itemsize) - start)
        segments = (Segment(path, n_available, None, offset + start), Segment("", stop - start - n_available))
        return tuple(segment for segment in segments if segment.size)

    @cached_property
    def _memory_map_path_and_offset(self) -> tuple[str, int] | None:
        """The path of the file, without the leading slash, and the byte offset of the data in the file.

        The value is None if the array is not a contiguous memory map of a file.
        """
        array = self._data
        mapped = getattr(array, "_mmap", None)
        if not isinstance(array, np.memmap) or not isinstance(mapped, mmap.mmap) or array.filename is None:
            return None
        if not array.flags.c_contiguous or array.dtype != self.dtype or array.mode == "c":
            return None
        map_start = array.offset - array.offset % mmap.ALLOCATIONGRANULARITY
        address = np.frombuffer(mapped, np.uint8).__array_interface__["data"][0]
        offset = map_start + array.__array_interface__["data"][0] - address
        return str(array.filename).lstrip("/"), offset

    def _release_memory_map_pages(self) -> None:
        """Release the pages of a memory-mapped file after they have been read, to limit memory usage."""
        mapped = getattr(self._data, "_mmap", None)
        if isinstance(mapped, mmap.mmap) and getattr(self._data, "mode", "c") != "c":
            # Ignore an AttributeError, because mmap objects have no method `madvise` on Windows.
            with contextlib.suppress(OSError, ValueError, AttributeError):
                mapped.madvise(mmap.MADV_DONTNEED)


@dataclass(frozen=True)
class RawObjects:
    """An array whose rows are already in storage, as objects of raw bytes. Pass it to `encode`.

    `encode` then stores only parity blocks, and refers to these objects for the data. It never changes or
    deletes these objects. Do not change them yourself, because changed objects count as damaged.

    Pieces of a block that cross the end of an object or of the array have to be copied. To avoid this, make
    the number of rows per block a multiple of `rows`, or vice versa.

    Parameters
    ----------
    keys : sequence of str
        The keys of the objects, in order.
    shape : tuple of int
        The shape of the whole array.
    dtype : dtype-like
        The dtype of the numbers, which must be in C order. Numbers in non-native byte order are copied.
    rows : int
        The number of rows per object. The last object may hold fewer.
    offset : int
        The number of bytes before the first row of each object.

    Examples
    --------
    >>> import tempfile, polarmap
    >>> from polarmap.storage.folder import FolderStore
    >>> folder = tempfile.TemporaryDirectory()
    >>> store, A = FolderStore(folder.name), np.arange(24.0).reshape(8, 3)
    >>> for i in range(4):
    ...     store.put(f"mine/{i}", A[2 * i : 2 * i + 2].tobytes())
    >>> rows = RawObjects([f"mine/{i}" for i in range(4)], A.shape, A.dtype, rows=2)
    >>> coded = polarmap.encode(rows, blocks=4, tasks=6, name="a", storage=store)
    >>> coded.stored_bytes / A.nbytes  # only two parity blocks are stored
    0.5
    >>> coded.block_segments(1)[0].key
    'mine/1'
    >>> folder.cleanup()
    """

    keys: Sequence[str]
    shape: tuple[int, ...]
    dtype: npt.DTypeLike
    rows: int
    offset: int = 0

    def __post_init__(self) -> None:
        keys: Any = self.keys
        shape: Any = self.shape
        if isinstance(keys, (str, bytes)) or not isinstance(keys, Sequence):
            raise CodeError(f"keys must be a sequence of object keys, not {keys!r:.100}")
        if not isinstance(shape, (tuple, list)) or not all(map(is_nonnegative_int, shape)):
            raise CodeError(f"shape must be a tuple of nonnegative integers, not {shape!r:.100}")
        for name, value, min_value in (("rows", self.rows, 1), ("offset", self.offset, 0)):
            if not is_nonnegative_int(value) or value < min_value:
                raise CodeError(f"{name} must be an integer of at least {min_value}, not {value!r:.100}")
        try:
            np.dtype(self.dtype)
        except TypeError as error:
            raise CodeError(f"dtype must be a numpy dtype: {error}") from error

    def open_in(self, store: Store) -> StoredObjectsSource:
        """Return a `DataSource` that reads the objects from a store."""
        shape, rows, offset = tuple(map(int, self.shape)), int(self.rows), int(self.offset)
        n_expected = -(-shape[0] // rows) if shape else 0
        if len(self.keys) != n_expected:
            raise CodeError(
                f"an array of shape {shape} needs {n_expected} objects of {rows} rows, not {len(self.keys)}"
            )
        key_by_object = {object_index: check_object_key(key) for object_index, key in enumerate(self.keys)}
        return StoredObjectsSource(store, key_by_object, shape, np.dtype(self.dtype), rows, offset)


class StoredObjectsSource:
    """A `DataSource` for rows that are already in a store as objects of raw bytes."""

    def __init__(
        self,
        store: Store,
        key_by_object: Mapping[int, str],
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        rows_per_object: int,
        offset: int = 0,
        fill_value: Any = 0,
    ) -> None:
        self._store, self._key_by_object, self._stored_dtype = store, key_by_object, dtype
        self._offset, self._fill_value, self.location = offset, fill_value, get_store_location(store)
        self.shape, self.dtype = tuple(shape), check_supported_dtype(dtype, "the data")
        self.rows_per_chunk, self.rows_per_object = 1, rows_per_object
        self._row_size = prod(self.shape[1:])

    def read_slab(self, slab: Hyperslab, out: Array) -> None:
        """Read a slab (one slice per axis) of the array into `out`, with one request per stored object.

        Rows beyond the end of the array are set to zero.
        """
        start, end = get_flat_range(self.shape, slab)
        stop = max(start, min(end, prod(self.shape)))
        remaining_out, object_size = out.reshape(-1), self.rows_per_object * self._row_size
        remaining_out[stop - start :] = 0
        while start < stop:
            object_index, object_start = divmod(start, object_size)
            n_items = min(stop - start, object_size - object_start)
            remaining_out[:n_items] = self._read_object_elements(object_index, object_start, n_items)
            remaining_out = remaining_out[n_items:]
            start += n_items

    def find_segments(self, slab: Hyperslab) -> tuple[Segment, ...]:
        """Return the segment (byte range of an object) that holds a slab, as a tuple with one item.

        A slab is a piece of the array, given as one slice per axis. Return () if its bytes are not a segment,
        so that they must be copied. This is the case, for example, if the slab spans several objects.
        """
        start, stop = get_flat_range(self.shape, slab)
        object_size, itemsize = self.rows_per_object * self._row_size, self.dtype.itemsize
        key = self._key_by_object.get(start // object_size)
        if key is None or (stop - 1) // object_size != start // object_size or stop > prod(self.shape):
            return ()
        if self._stored_dtype != self.dtype:
            return ()
        return (Segment(key, (stop - start) * itemsize, None, self._offset + start % object_size * itemsize),)

    def _read_object_elements(self, object_index: int, first_item: int, n_items: int) -> Array | Any:
        if object_index not in self._key_by_object:
            return self._fill_value
        itemsize, key = self.dtype.itemsize, self._key_by_object[object_index]
        byte_start = self._offset + first_item * itemsize
        data = self._store.get(key, byte_start, byte_start + n_items * itemsize)
        if len(data) != n_items * itemsize:
            raise StorageError(
                f"the object {key!r} in {self._store.name} is shorter than its shape and dtype require"
            )
        return np.frombuffer(data, self._stored_dtype)


def open_data_source(data: Any, store: Store) -> DataSource:
    """Return a `DataSource` for the data that was passed to `encode`.

    Raises CodeError if the data cannot be coded.
    """
    if hasattr(data, "open_in"):
        source: DataSource = data.open_in(store)
        check_encodable_array(source, "A")
        return source
    data = load_array_like(data, "A")
    if not (hasattr(data, "shape") and hasattr(data, "dtype") and hasattr(data, "__getitem__")):
        raise CodeError(
            f"data must be an array (with shape, dtype and slicing) or the path of a .npy file, not "
            f"{type(data).__name__}: join a sequence of blocks with numpy.concatenate"
        )
    check_encodable_array(data, "A")
    if isinstance(data, np.matrix):
        raise CodeError(
            "A is a numpy.matrix, but the blocks of a coded array are plain arrays: use numpy.asarray(A)"
        )
    return ArraySource(data)


def _get_rows_per_chunk(data: Any) -> int:
    """Return the number of rows per chunk of a Zarr, HDF5 or dask array; 1 for other arrays."""
    chunks = getattr(data, "chunks", None)
    if not chunks:
        return 1
    rows = chunks[0]
    return max(1, int(max(rows) if isinstance(rows, tuple) else rows))
