"""A Zarr array that lies in the store already: encoded without copying its chunks."""

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
    """A Zarr array (format 2 or 3) that lies in the storage, uncompressed, in chunks of whole rows.

    As `RawObjects`, for its chunks. Chunks that were never written are copied as the fill value.

    Parameters
    ----------
    prefix : str
        The key of the array: that of its `.zarray` or `zarr.json` without the last part.
    """

    prefix: str

    def open_in(self, store: Store) -> StoredObjectsSource:
        """The `DataSource` that reads these chunks in `store`."""
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
        raise MissingObjectError(f"there is no Zarr array {prefix!r} in {store.name}")


class _ZarrMetadata(NamedTuple):
    """What the metadata of a Zarr array say; keys of chunks begin with `key_prefix`, if it is not empty."""

    shape: list[int]
    chunk_shape: list[int]
    dtype: np.dtype[Any]
    key_prefix: str
    separator: str
    fill_value: Array

    def check(self) -> None:
        """ValueError for what no array can have."""
        counts = [*self.shape, *self.chunk_shape]
        if not all(type(count) is int and count >= 0 for count in counts) or 0 in self.chunk_shape:
            raise ValueError(f"shape {self.shape} and chunk {self.chunk_shape} are not counts")
        if not self.shape or len(self.shape) != len(self.chunk_shape):
            raise ValueError(f"shape {self.shape} and chunk {self.chunk_shape} have not the same axes")
        if prod(self.shape) * self.dtype.itemsize > sys.maxsize:
            raise ValueError(f"shape {self.shape} is more than can be addressed")
        if self.separator not in (".", "/") or self.fill_value.shape:
            raise ValueError(f"no keys are made with {self.separator!r}, or the fill value is not a number")


def _open_zarr_chunks(store: Store, prefix: str, metadata: _ZarrMetadata | None) -> StoredObjectsSource:
    """The rows of the chunks that are there; CodeError unless chunks are raw rows."""
    if metadata is None:
        raise CodeError(
            f"the chunks of the Zarr array {prefix!r} are not raw rows (compressed, sharded, filtered or in "
            "Fortran order): open it with zarr and encode that"
        )
    shape, chunk_shape, dtype, key_prefix, separator, fill_value = metadata
    if chunk_shape[1:] != shape[1:]:
        raise CodeError(
            f"the chunks {tuple(chunk_shape)} of the Zarr array {prefix!r} of shape {tuple(shape)} are not "
            "whole rows: open it with zarr and encode that"
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
    """What `.zarray` says; None of chunks that are not raw rows."""
    if fields.get("compressor") or fields.get("filters") or fields["order"] != "C":
        return None
    dtype, separator = _parse_zarr_dtype(fields["dtype"]), fields.get("dimension_separator", ".")
    fill_value = _parse_fill_value(dtype, fields.get("fill_value"))
    return _ZarrMetadata(fields["shape"], fields["chunks"], dtype, "", separator, fill_value)


def _parse_zarr_v3_metadata(fields: Mapping[str, Any]) -> _ZarrMetadata | None:
    """The same of `zarr.json`."""
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
    """That of numbers of this name; numpy takes much else for a dtype, also nothing."""
    dtype = np.dtype(name if isinstance(name, str) else "")
    if dtype.kind not in "biufc":
        raise TypeError(f"{name!r} is not a dtype of numbers")
    return dtype


def _parse_fill_value(dtype: np.dtype[Any], value: Any) -> Array:
    """A number, also one that JSON cannot write: "NaN", its bits, both parts of a complex one."""
    if isinstance(value, str) and value.startswith("0x"):
        return np.array(int(value, 16), f"{dtype.byteorder}u{dtype.itemsize}").view(dtype)
    if isinstance(value, list) and dtype.kind == "c":
        value = complex(*map(float, value))
    return np.array(0 if value is None else value, dtype)
