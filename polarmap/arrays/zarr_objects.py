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

from polarmap.arrays.manifest import consistent
from polarmap.arrays.sources import StoredRows
from polarmap.dtypes import Array
from polarmap.errors import CodeError, MissingObjectError
from polarmap.storage import Store, check_key


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
        """The `Source` that reads these chunks in `store`."""
        given: Any = self.prefix
        prefix = check_key(given.rstrip("/") if isinstance(given, str) else given)
        for file, read in ((".zarray", _second_format), ("zarr.json", _third_format)):
            try:
                data = store.get(f"{prefix}/{file}")
            except MissingObjectError:
                continue
            with consistent(f"{prefix}/{file} in {store.name}"):
                found = read(json.loads(data))
                if found is not None:
                    found.check()
            return _source(store, prefix, found)
        raise MissingObjectError(f"there is no Zarr array {prefix!r} in {store.name}")


class _Described(NamedTuple):
    """What the metadata of a Zarr array say; keys of chunks begin with `start`, if it is not empty."""

    shape: list[int]
    chunk: list[int]
    dtype: np.dtype[Any]
    start: str
    separator: str
    fill: Array

    def check(self) -> None:
        """ValueError for what no array can have."""
        counts = [*self.shape, *self.chunk]
        if not all(type(one) is int and one >= 0 for one in counts) or 0 in self.chunk:
            raise ValueError(f"shape {self.shape} and chunk {self.chunk} are not counts")
        if not self.shape or len(self.shape) != len(self.chunk):
            raise ValueError(f"shape {self.shape} and chunk {self.chunk} have not the same axes")
        if prod(self.shape) * self.dtype.itemsize > sys.maxsize:
            raise ValueError(f"shape {self.shape} is more than can be addressed")
        if self.separator not in (".", "/") or self.fill.shape:
            raise ValueError(f"no keys are made with {self.separator!r}, or the fill value is not a number")


def _source(store: Store, prefix: str, found: _Described | None) -> StoredRows:
    """The rows of the chunks that are there; CodeError unless chunks are raw rows."""
    if found is None:
        raise CodeError(
            f"the chunks of the Zarr array {prefix!r} are not raw rows (compressed, sharded, filtered or in "
            "Fortran order): open it with zarr and encode that"
        )
    shape, chunk, dtype, start, separator, fill = found
    if chunk[1:] != shape[1:]:
        raise CodeError(
            f"the chunks {tuple(chunk)} of the Zarr array {prefix!r} of shape {tuple(shape)} are not "
            "whole rows: open it with zarr and encode that"
        )
    before = f"{prefix}/{start and start + separator}"
    pattern = re.compile(
        rf"{re.escape(before)}(0|[1-9][0-9]*){re.escape(f'{separator}0' * (len(shape) - 1))}"
    )
    matches = filter(None, map(pattern.fullmatch, store.keys(before)))
    places = {int(one[1]): one[0] for one in matches}
    return StoredRows(store, places, tuple(shape), dtype, chunk[0], fill=fill)


def _second_format(fields: Mapping[str, Any]) -> _Described | None:
    """What `.zarray` says; None of chunks that are not raw rows."""
    if fields.get("compressor") or fields.get("filters") or fields["order"] != "C":
        return None
    dtype, separator = _dtype(fields["dtype"]), fields.get("dimension_separator", ".")
    fill = _fill_value(dtype, fields.get("fill_value"))
    return _Described(fields["shape"], fields["chunks"], dtype, "", separator, fill)


def _third_format(fields: Mapping[str, Any]) -> _Described | None:
    """The same of `zarr.json`."""
    grid, encoding, codecs = fields["chunk_grid"], fields["chunk_key_encoding"], fields["codecs"]
    if [codec["name"] for codec in codecs] != ["bytes"] or grid["name"] != "regular":
        return None
    order = {"big": ">", "little": "<"}[codecs[0].get("configuration", {}).get("endian", "little")]
    dtype = np.dtype(order + _dtype(fields["data_type"]).str[1:])
    start, default = {"default": ("c", "/"), "v2": ("", ".")}[encoding["name"]]
    separator = encoding.get("configuration", {}).get("separator", default)
    fill, chunk = _fill_value(dtype, fields.get("fill_value")), grid["configuration"]["chunk_shape"]
    return _Described(fields["shape"], chunk, dtype, start, separator, fill)


def _dtype(name: Any) -> np.dtype[Any]:
    """That of numbers of this name; numpy takes much else for a dtype, also nothing."""
    found = np.dtype(name if isinstance(name, str) else "")
    if found.kind not in "biufc":
        raise TypeError(f"{name!r} is not a dtype of numbers")
    return found


def _fill_value(dtype: np.dtype[Any], value: Any) -> Array:
    """A number, also one that JSON cannot write: "NaN", its bits, both parts of a complex one."""
    if isinstance(value, str) and value.startswith("0x"):
        return np.array(int(value, 16), f"{dtype.byteorder}u{dtype.itemsize}").view(dtype)
    if isinstance(value, list) and dtype.kind == "c":
        value = complex(*map(float, value))
    return np.array(0 if value is None else value, dtype)
