"""The manifest: what a coded array is and where its parts lie. The format is docs/coded-array-format.md."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from math import prod
from typing import Any

import numpy as np

from polarmap.arrays.keys import MANIFESTS, array_prefix, check_name, manifest_key
from polarmap.code.polar import PolarCode
from polarmap.errors import CodeError, MissingObjectError, StorageError
from polarmap.storage.base import Store, check_key
from polarmap.worker.parts import Part

FORMAT, VERSION = "polarmap coded array", 1
_DTYPE = re.compile(r"[<>|][iufc][0-9]{1,2}")


@dataclass(frozen=True)
class Manifest:
    """A coded array: n blocks of `rows` rows each, every block cut into the same stripes.

    name : what it is called.
    shape, dtype, parity_dtype : of the data, and of the parity blocks.
    rows : of each block; the last data block ends with k * rows - shape[0] padding rows.
    code : what binds the blocks.
    parts : per block, its parts in order.
    scalars : whether each block is one number without axes, of which the array is the vector.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    parity_dtype: np.dtype[Any]
    rows: int
    code: PolarCode
    parts: tuple[tuple[Part, ...], ...]
    scalars: bool = False

    @property
    def block_shape(self) -> tuple[int, ...]:
        """Of every block."""
        return () if self.scalars else (self.rows, *self.shape[1:])

    @cached_property
    def bounds(self) -> list[int]:
        """Where the stripes of a block begin and end, in elements."""
        return [
            size // self.dtype.itemsize for size in accumulate((p.size for p in self.parts[0]), initial=0)
        ]

    def dtype_of(self, index: int) -> np.dtype[Any]:
        """Of block `index`."""
        return self.dtype if index < self.code.k else self.parity_dtype

    def with_parts(self, changed: Mapping[tuple[int, int], Part]) -> Manifest:
        """A copy in which some parts, by (block, stripe), lie elsewhere."""
        table = [
            tuple(changed.get((block, stripe), part) for stripe, part in enumerate(parts))
            for block, parts in enumerate(self.parts)
        ]
        return replace(self, parts=tuple(table))

    @cached_property
    def objects(self) -> set[str]:
        """The keys of all objects that hold parts."""
        return {part.key for parts in self.parts for part in parts}

    @property
    def owned_bytes(self) -> int:
        """Bytes in storage that exist for this array only."""
        prefix = array_prefix(self.name)
        return sum(part.size for parts in self.parts for part in parts if part.key.startswith(prefix))

    def dump(self) -> bytes:
        """As the object that is stored."""
        array = {
            "name": self.name,
            "shape": list(self.shape),
            "dtype": self.dtype.str,
            "parity_dtype": self.parity_dtype.str,
            "rows_per_block": self.rows,
            "filler_rows": self.code.k * self.rows - self.shape[0],
            "code": describe_code(self.code),
            "blocks": [[part._asdict() for part in parts] for parts in self.parts],
        }
        if self.scalars:
            array["scalars"] = True
        document = {"format": FORMAT, "version": VERSION, "crc32": _checksum(array), "array": array}
        return json.dumps(document, separators=(",", ":")).encode()

    @classmethod
    def parse(cls, data: bytes, where: str) -> Manifest:
        """The inverse of `dump`; every mistake is a StorageError that names the manifest `where`."""
        try:
            document = json.loads(data)
            is_ours = document["format"] == FORMAT
        except (ValueError, KeyError, TypeError) as error:
            raise StorageError(f"{where} is damaged: it is not the JSON that was written") from error
        if not is_ours:
            raise StorageError(f"{where} is not the manifest of a coded array")
        if document.get("version") != VERSION:
            raise StorageError(
                f"{where} has format version {document.get('version')!r}; this polarmap reads {VERSION}"
            )
        array = document.get("array")
        if document.get("crc32") != _checksum(array):
            raise StorageError(f"{where} is damaged: its checksum does not fit")
        try:
            return cls._from_fields(array)
        except (KeyError, TypeError, ValueError, AttributeError, StorageError) as error:
            raise StorageError(f"{where} is inconsistent: {type(error).__name__}: {error}") from error

    @classmethod
    def _from_fields(cls, array: Mapping[str, Any]) -> Manifest:
        for field in ("dtype", "parity_dtype"):
            if not _DTYPE.fullmatch(array[field]):
                raise ValueError(f"{field} {array[field]!r} is not one of numbers")
        parts = tuple(
            tuple(Part(check_key(one["key"]), one["size"], one["crc32"], one["offset"]) for one in parts)
            for parts in array["blocks"]
        )
        made = cls(
            name=check_name(array["name"]),
            shape=tuple(array["shape"]),
            dtype=np.dtype(array["dtype"]),
            parity_dtype=np.dtype(array["parity_dtype"]),
            rows=array["rows_per_block"],
            code=rebuild_code(array["code"]),
            parts=parts,
            scalars=array.get("scalars", False),
        )
        made._check()
        return made

    def _check(self) -> None:
        sizes = (size for parts in self.parts for part in parts for size in part[1:])
        counts = [*self.shape, self.rows, *(size for size in sizes if size is not None)]
        if not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError("a size is not a count")
        if not self.shape or -(-self.shape[0] // self.code.k) != self.rows:
            raise ValueError(f"{self.code.k} blocks of {self.rows} rows do not hold shape {self.shape}")
        if self.scalars and self.shape != (self.code.k,):
            raise ValueError(f"{self.code.k} blocks of one number do not make shape {self.shape}")
        if self.code.parity_dtype(self.dtype) != self.parity_dtype:
            raise ValueError(f"parity of {self.dtype} data is not {self.parity_dtype}")
        if len(self.parts) != self.code.n:
            raise ValueError(f"{len(self.parts)} of {self.code.n} blocks are listed")
        if self.bounds[-1] != prod(self.block_shape):
            raise ValueError(f"a block holds {self.bounds[-1]} of {prod(self.block_shape)} numbers")
        lengths = np.diff(self.bounds).tolist()
        for block, parts in enumerate(self.parts):
            itemsize = self.dtype_of(block).itemsize
            if [part.size for part in parts] != [itemsize * length for length in lengths]:
                raise ValueError(f"block {block} is not cut as block 0 is")


def load(store: Store, name: str) -> Manifest:
    """The manifest of a coded array.

    Raises
    ------
    MissingObjectError
        If there is no coded array of that name; says which there are.
    StorageError
        If the manifest is damaged or of another version.
    """
    return load_as_stored(store, name)[0]


def load_as_stored(store: Store, name: str) -> tuple[Manifest, bytes]:
    """The same, and the manifest as it lies in storage."""
    key = manifest_key(name)
    try:
        data = store.get(key)
    except MissingObjectError as error:
        there = ", ".join(map(repr, names(store)[:20])) or "none"
        raise MissingObjectError(
            f"there is no coded array {name!r} in {store.name}; there are: {there}"
        ) from error
    manifest = Manifest.parse(data, f"the manifest {key!r} in {store.name}")
    if manifest.name != name:
        raise StorageError(f"the manifest {key!r} in {store.name} is that of {manifest.name!r}")
    return manifest, data


def read_current(store: Store, name: str) -> bytes | None:
    """The manifest of that name as it is stored; None if there is none."""
    try:
        return store.get(manifest_key(name))
    except MissingObjectError:
        return None


def names(store: Store) -> list[str]:
    """The coded arrays in a store, sorted."""
    found = [key[len(MANIFESTS) :] for key in store.keys(MANIFESTS)]
    return sorted(name[: -len(".json")] for name in found if name.endswith(".json") and "/" not in name)


def describe_code(code: PolarCode) -> dict[str, Any]:
    """What rebuilds a code, and a probe by which one sees that it was rebuilt right."""
    words = {field: getattr(code, field) for field in ("n", "k", "kernel", "decoder")}
    return {**words, "erasure": float(code.erasure), "seed": int(code.seed), "probe": probe(code)}


def rebuild_code(fields: Mapping[str, Any]) -> PolarCode:
    """The code that `describe_code` described.

    Raises
    ------
    CodeError
        If this version of polarmap makes another code of the same parameters.
    """
    parameters = {field: value for field, value in fields.items() if field != "probe"}
    code = PolarCode(**parameters)
    if not np.allclose(probe(code), fields["probe"], rtol=1e-9, atol=1e-9):
        raise CodeError("this version of polarmap builds other parity blocks from these parameters")
    return code


def probe(code: PolarCode) -> list[float]:
    """The first four and the last four parity values of the data x_j = j mod 7."""
    values = (np.arange(code.k) % 7).astype(np.float64)[:, None]
    parity: list[float] = code.parity(values)[:, 0].tolist()
    return parity[:4] + parity[-4:]


def _checksum(array: Any) -> int:
    return checksum(json.dumps(array, sort_keys=True, separators=(",", ":")).encode())


def checksum(data: Any) -> int:
    """CRC-32 (zlib, as in gzip and PNG) of bytes or of a contiguous array."""
    return zlib.crc32(data)
