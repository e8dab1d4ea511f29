"""Data that lies in the store already, as raw rows: encoded without copying it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from polarmap.arrays.stores import place_of
from polarmap.arrays.stripes import Hyperslab, flat_range
from polarmap.code.checks import is_count
from polarmap.code.dtypes import Array, check_dtype
from polarmap.errors import CodeError, StorageError
from polarmap.storage import Store, check_key
from polarmap.worker.parts import Part


@dataclass(frozen=True)
class RawObjects:
    """An array whose rows lie in the storage as raw bytes in C order, in objects of equal length.

    `encode` stores its parity blocks only and refers to these objects, which must stay as they are
    (changed ones count as damaged) and are never written or deleted. Parts that reach across two
    objects or beyond the last row are copied: let the rows of a block be a multiple of `rows`, or
    the other way round.

    Parameters
    ----------
    keys : sequence of str
        The objects, in order.
    shape : tuple of int
        Of the whole.
    dtype : dtype
        Copied all the same unless in native byte order.
    rows : int
        In each object; the last one may hold fewer.
    offset : int
        Bytes before the first row of each object.

    Examples
    --------
    >>> import tempfile, polarmap
    >>> from polarmap.storage.folder import FolderStore
    >>> folder = tempfile.TemporaryDirectory()
    >>> store, A = FolderStore(folder.name), np.arange(24.0).reshape(8, 3)
    >>> for i in range(4):
    ...     store.put(f"mine/{i}", A[2 * i : 2 * i + 2].tobytes())
    >>> rows = RawObjects([f"mine/{i}" for i in range(4)], A.shape, A.dtype, rows=2)
    >>> coded = polarmap.encode(rows, blocks=4, workers=6, name="a", storage=store)
    >>> coded.stored_bytes / A.nbytes  # two parity blocks
    0.5
    >>> coded.stored(1)[0].key
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
            raise CodeError(f"keys must be a sequence of keys, not {keys!r:.100}")
        if not isinstance(shape, (tuple, list)) or not all(map(is_count, shape)):
            raise CodeError(f"shape must be a tuple of integers, not {shape!r:.100}")
        for name, value in (("rows", self.rows), ("offset", self.offset)):
            if not is_count(value):
                raise CodeError(f"{name} must be an integer of at least 0, not {value!r:.100}")
        try:
            np.dtype(self.dtype)
        except TypeError as error:
            raise CodeError(f"dtype must be one of numpy: {error}") from error

    def open_in(self, store: Store) -> StoredRows:
        """The `Source` that reads these objects in `store`."""
        shape, rows, offset = tuple(map(int, self.shape)), int(self.rows), int(self.offset)
        wanted = -(-shape[0] // rows) if rows and shape else 0
        if len(self.keys) != wanted:
            raise CodeError(f"{len(self.keys)} objects of {rows} rows do not hold shape {shape}")
        places = {number: check_key(key) for number, key in enumerate(self.keys)}
        return StoredRows(store, places, shape, np.dtype(self.dtype), rows, offset)


class StoredRows:
    """A `Source` that reads rows from objects of a store."""

    def __init__(
        self,
        store: Store,
        places: Mapping[int, str],
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        rows: int,
        offset: int = 0,
        fill: Any = 0,
    ) -> None:
        self._store, self._places, self._stored_dtype = store, places, dtype
        self._offset, self._fill, self.place = offset, fill, place_of(store)
        self.shape, self.dtype = tuple(shape), check_dtype(dtype, "the data")
        self.chunk_rows, self.object_rows, self.is_stored = 1, rows, True
        self._width = prod(self.shape[1:])

    def read(self, first: int, slab: Hyperslab, out: Array) -> None:
        """Fill `out` by one read of each range of an object; zeros beyond the last row."""
        start, end = flat_range(self.shape, first, slab)
        stop = max(start, min(end, prod(self.shape)))
        flat, length = out.reshape(-1), self.object_rows * self._width
        flat[stop - start :] = 0
        while start < stop:
            number, skipped = divmod(start, length)
            count = min(stop - start, length - skipped)
            flat[:count], flat = self._piece(number, skipped, count), flat[count:]
            start += count

    def locate(self, first: int, slab: Hyperslab) -> tuple[Part, ...]:
        """The range of the one object that holds the slab."""
        start, stop = flat_range(self.shape, first, slab)
        length, itemsize = self.object_rows * self._width, self.dtype.itemsize
        key = self._places.get(start // length)
        if key is None or (stop - 1) // length != start // length or stop > prod(self.shape):
            return ()
        if self._stored_dtype != self.dtype:
            return ()
        return (Part(key, (stop - start) * itemsize, None, self._offset + start % length * itemsize),)

    def _piece(self, number: int, start: int, count: int) -> Array | Any:
        if number not in self._places:
            return self._fill
        itemsize, key = self.dtype.itemsize, self._places[number]
        low = self._offset + start * itemsize
        data = self._store.get(key, low, low + count * itemsize)
        if len(data) != count * itemsize:
            raise StorageError(f"{key!r} in {self._store.name} is shorter than its shape and dtype say")
        return np.frombuffer(data, self._stored_dtype)
