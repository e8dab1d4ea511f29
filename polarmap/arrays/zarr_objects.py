"""A Zarr array that lies in the store already: encoded without copying its chunks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from polarmap.arrays.sources import StoredRows
from polarmap.errors import CodeError, MissingObjectError, StorageError
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
