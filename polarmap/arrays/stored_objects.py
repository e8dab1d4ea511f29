"""Data that lies in the store already, as raw rows: encoded without copying it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from polarmap.arrays.stripes import Hyperslab, flat_range
from polarmap.code.dtypes import check_dtype, is_integer
from polarmap.errors import CodeError, MissingObjectError, StorageError
from polarmap.storage.base import Store, check_key
from polarmap.worker.parts import Part

Array = npt.NDArray[Any]


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
        if not isinstance(shape, (tuple, list)) or not all(map(_is_count, shape)):
            raise CodeError(f"shape must be a tuple of integers, not {shape!r:.100}")
        for name, value in (("rows", self.rows), ("offset", self.offset)):
            if not _is_count(value):
                raise CodeError(f"{name} must be an integer of at least 0, not {value!r:.100}")
        try:
            np.dtype(self.dtype)
        except TypeError as error:
            raise CodeError(f"dtype must be one of numpy: {error}") from error

    def open_in(self, store: Store) -> StoredRows:
        """As a source for `encode`."""
        shape, rows, offset = tuple(map(int, self.shape)), int(self.rows), int(self.offset)
        wanted = -(-shape[0] // rows) if rows and shape else 0
        if len(self.keys) != wanted:
            raise CodeError(f"{len(self.keys)} objects of {rows} rows do not hold shape {shape}")
        places = {number: check_key(key) for number, key in enumerate(self.keys)}
        return StoredRows(store, places, shape, np.dtype(self.dtype), rows, offset)


@dataclass(frozen=True)
class ZarrObjects:
    """A Zarr array (format 2 or 3) that lies in the storage, uncompressed, in chunks of whole rows.

    As `RawObjects`, for its chunks. Chunks that were never written are copied as the fill value.

    Parameters
    ----------
    prefix : str
        The key of the array: that of its `.zarray` or `zarr.json` without the last part.
    """

    prefix: str

    def open_in(self, store: Store) -> StoredRows:
        """As a source for `encode`."""
        given: Any = self.prefix
        prefix = check_key(given.rstrip("/") if isinstance(given, str) else given)
        for file, read in ((".zarray", _second_format), ("zarr.json", _third_format)):
            try:
                fields = json.loads(store.get(f"{prefix}/{file}"))
            except MissingObjectError:
                continue
            except (ValueError, RecursionError) as error:
                raise StorageError(f"{prefix}/{file} in {store.name} is not JSON") from error
            return self._chunks(store, prefix, *read(prefix, fields))
        raise MissingObjectError(f"there is no Zarr array {prefix!r} in {store.name}")

    def _chunks(
        self, store: Store, prefix: str, shape: list[int], chunk: list[int], dtype: str, key: str, fill: Any
    ) -> StoredRows:
        if chunk[1:] != shape[1:]:
            raise CodeError(
                f"the chunks {tuple(chunk)} of the Zarr array {prefix!r} of shape {tuple(shape)} are not "
                "whole rows: open it with zarr and encode that"
            )
        there = set(store.keys(f"{prefix}/"))
        keys = [f"{prefix}/{key.format(number)}" for number in range(-(-shape[0] // chunk[0]))]
        places = {number: one for number, one in enumerate(keys) if one in there}
        return StoredRows(store, places, tuple(shape), np.dtype(dtype), chunk[0], 0, fill or 0)


def _second_format(prefix: str, fields: Mapping[str, Any]) -> tuple[list[int], list[int], str, str, Any]:
    """Shape, chunk, dtype, keys of chunks and fill value from `.zarray`."""
    if fields.get("compressor") or fields.get("filters") or fields.get("order") != "C":
        raise _encoded_otherwise(prefix)
    shape = fields["shape"]
    separator = fields.get("dimension_separator", ".")
    key = separator.join(["{}", *["0"] * (len(shape) - 1)])
    return shape, fields["chunks"], fields["dtype"], key, fields.get("fill_value")


def _third_format(prefix: str, fields: Mapping[str, Any]) -> tuple[list[int], list[int], str, str, Any]:
    """The same from `zarr.json`."""
    codecs = fields.get("codecs", [])
    if [codec["name"] for codec in codecs] != ["bytes"] or fields["chunk_grid"]["name"] != "regular":
        raise _encoded_otherwise(prefix)
    order = ">" if codecs[0].get("configuration", {}).get("endian") == "big" else "<"
    shape, encoding = fields["shape"], fields["chunk_key_encoding"]
    default = "/" if encoding["name"] == "default" else "."
    separator = encoding.get("configuration", {}).get("separator", default)
    start = ["c"] if encoding["name"] == "default" else []
    key = separator.join([*start, "{}", *["0"] * (len(shape) - 1)])
    chunk = fields["chunk_grid"]["configuration"]["chunk_shape"]
    dtype = np.dtype(fields["data_type"]).newbyteorder(order).str
    return shape, chunk, dtype, key, fields.get("fill_value")


def _encoded_otherwise(prefix: str) -> CodeError:
    return CodeError(
        f"the chunks of the Zarr array {prefix!r} are not raw rows (compressed, sharded, filtered or in "
        "Fortran order): open it with zarr and encode that"
    )


class StoredRows:
    """Rows in objects of a store; a Source."""

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
        self._offset, self._fill = offset, fill
        self.shape, self.dtype = tuple(shape), check_dtype(dtype, "the data")
        self.chunk_rows, self.object_rows, self.is_stored = 1, rows, True
        self._width = prod(self.shape[1:])

    def read(self, first: int, slab: Hyperslab, out: Array) -> None:
        """Range by range; zeros beyond the last row."""
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


def _is_count(value: Any) -> bool:
    return is_integer(value) and value >= 0
