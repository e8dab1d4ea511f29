"""`ZarrObjects`, with which `encode` adds parity blocks to a Zarr array without copying its chunks.

The chunks must be uncompressed and consist of whole rows. The metadata (of Zarr format 2 or 3) is parsed
here, without the zarr package.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import numpy as np

from polarmap.arrays.manifest import convert_parse_errors_to_storage_errors
from polarmap.arrays.sources import StoredObjectsSource
from polarmap.dtypes import Array
from polarmap.errors import CodeError, MissingObjectError
from polarmap.storage import Store, check_object_key


@dataclass(frozen=True)
class ZarrObjects:
    """A Zarr array that is already in storage. Pass it to `encode` to add parity blocks.

    The array (Zarr format 2 or 3) must be uncompressed, and its chunks must consist of whole rows. `encode`
    then refers to the chunks instead of copying them, as for `RawObjects`. Chunks that were never written are
    stored, filled with the fill value.

    Parameters
    ----------
    prefix : str
        The key of the array, which is the key of its `.zarray` or `zarr.json` without the file name.
    """

    prefix: str

    def open_in(self, store: Store) -> StoredObjectsSource:
        """Return a `DataSource` that reads the chunks from a store."""
        prefix_argument: Any = self.prefix
        prefix = check_object_key(
            prefix_argument.rstrip("/") if isinstance(prefix_argument, str) else prefix_argument
        )
        for file_name, parse_metadata in (
            (".zarray", _parse_zarr_v2_metadata),
            ("zarr.json", _parse_zarr_v3_metadata),
        ):
            try:
                data = store.get(f"{prefix}/{file_name}")
            except MissingObjectError:
                continue
            with convert_parse_errors_to_storage_errors(f"{prefix}/{file_name} in {store.name}"):
                metadata = parse_metadata(json.loads(data))
                if metadata is not None:
                    metadata.check()
            return _open_zarr_chunks(store, prefix, metadata)
        raise MissingObjectError(f"the Zarr array {prefix!r} does not exist in {store.name}")


class _ZarrMetadata(NamedTuple):
    """The part of the metadata of a Zarr array that is needed to read its chunks.

    The key of a chunk consists of `key_prefix` and the chunk coordinates, joined by `separator`. An empty
    `key_prefix` is left out. For example, a key is "c/5/1" if `key_prefix` is "c" and `separator` is "/".
    """

    shape: list[int]
    chunk_shape: list[int]
    dtype: np.dtype[Any]
    key_prefix: str
    separator: str
    fill_value: Array

    def check(self) -> None:
        """Raise ValueError if the metadata is invalid."""
        counts = [*self.shape, *self.chunk_shape]
        if not all(type(count) is int and count >= 0 for count in counts) or 0 in self.chunk_shape:
            raise ValueError(f"shape {self.shape} and chunk shape {self.chunk_shape} are not valid")
        if not self.shape or len(self.shape) != len(self.chunk_shape):
            raise ValueError(
                f"shape {self.shape} and chunk shape {self.chunk_shape} differ in their number of axes"
            )
        if prod(self.shape) * self.dtype.itemsize > sys.maxsize:
            raise ValueError(f"an array of shape {self.shape} is too large for this machine")
        if self.separator not in (".", "/") or self.fill_value.shape:
            raise ValueError(
                f"the separator {self.separator!r} is not '.' or '/', or the fill value is not a number"
            )


def _open_zarr_chunks(store: Store, prefix: str, metadata: _ZarrMetadata | None) -> StoredObjectsSource:
    """Return a data source that reads the chunks of a Zarr array.

    Raises CodeError unless the chunks consist of whole rows of raw bytes. `metadata` is None if they are
    compressed or otherwise encoded.
    """
    if metadata is None:
        raise CodeError(
            f"the chunks of the Zarr array {prefix!r} are not raw rows (they are compressed, sharded, "
            "filtered or in Fortran order): open the array with zarr, and pass it to encode"
        )
    shape, chunk_shape, dtype, key_prefix, separator, fill_value = metadata
    if chunk_shape[1:] != shape[1:]:
        raise CodeError(
            f"the chunks of the Zarr array {prefix!r} are not whole rows (chunk shape {tuple(chunk_shape)}, "
            f"array shape {tuple(shape)}): open the array with zarr, and pass it to encode"
        )
    key_start = f"{prefix}/{key_prefix and key_prefix + separator}"
    key_pattern = re.compile(
        rf"{re.escape(key_start)}(0|[1-9][0-9]*){re.escape(f'{separator}0' * (len(shape) - 1))}"
    )
    matches = filter(None, map(key_pattern.fullmatch, store.keys(key_start)))
    key_by_chunk = {int(key_match[1]): key_match[0] for key_match in matches}
    return StoredObjectsSource(
        store, key_by_chunk, tuple(shape), dtype, chunk_shape[0], fill_value=fill_value
    )


def _parse_zarr_v2_metadata(fields: Mapping[str, Any]) -> _ZarrMetadata | None:
    """Parse the metadata file `.zarray` of Zarr format 2. Return None if the chunks are not raw bytes."""
    if fields.get("compressor") or fields.get("filters") or fields["order"] != "C":
        return None
    dtype, separator = _parse_zarr_dtype(fields["dtype"]), fields.get("dimension_separator", ".")
    fill_value = _parse_fill_value(dtype, fields.get("fill_value"))
    return _ZarrMetadata(fields["shape"], fields["chunks"], dtype, "", separator, fill_value)


def _parse_zarr_v3_metadata(fields: Mapping[str, Any]) -> _ZarrMetadata | None:
    """Parse the metadata file `zarr.json` of Zarr format 3. Return None if the chunks are not raw bytes."""
    grid, encoding, codecs = fields["chunk_grid"], fields["chunk_key_encoding"], fields["codecs"]
    if [codec["name"] for codec in codecs] != ["bytes"] or grid["name"] != "regular":
        return None
    byte_order = {"big": ">", "little": "<"}[codecs[0].get("configuration", {}).get("endian", "little")]
    dtype = np.dtype(byte_order + _parse_zarr_dtype(fields["data_type"]).str[1:])
    key_prefix, default_separator = {"default": ("c", "/"), "v2": ("", ".")}[encoding["name"]]
    separator = encoding.get("configuration", {}).get("separator", default_separator)
    fill_value = _parse_fill_value(dtype, fields.get("fill_value"))
    chunk_shape = grid["configuration"]["chunk_shape"]
    return _ZarrMetadata(fields["shape"], chunk_shape, dtype, key_prefix, separator, fill_value)


def _parse_zarr_dtype(name: Any) -> np.dtype[Any]:
    """Convert the name of a Zarr data type to a dtype. Raises TypeError unless it is numeric.

    Only strings are accepted, because numpy would convert some other objects, even None, to a dtype.
    """
    dtype = np.dtype(name if isinstance(name, str) else "")
    if dtype.kind not in "biufc":
        raise TypeError(f"{name!r} is not a dtype of numbers")
    return dtype


def _parse_fill_value(dtype: np.dtype[Any], value: Any) -> Array:
    """Convert the fill value in the metadata of a Zarr array to a number of the given dtype.

    The value may be a number, a string such as "NaN", hexadecimal bits, or the parts of a complex number.
    """
    if isinstance(value, str) and value.startswith("0x"):
        return np.array(int(value, 16), f"{dtype.byteorder}u{dtype.itemsize}").view(dtype)
    if isinstance(value, list) and dtype.kind == "c":
        value = complex(*map(float, value))
    return np.array(0 if value is None else value, dtype)
