"""The manifest: what a coded array is and where its parts lie. The format is docs/coded-array-format.md."""

from __future__ import annotations

import itertools
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from math import prod
from typing import Any

import numpy as np

from polarmap.arrays.zarr_view import ZarrChunk, ZarrView
from polarmap.codes.polar import PolarCode
from polarmap.errors import CodeError, StorageError
from polarmap.storage import check_key
from polarmap.worker.encryption import Encryption, KeyUnavailableError, encrypted_size
from polarmap.worker.parts import Part

FORMAT, VERSION = "polarmap coded array", 1
ENCRYPTED_VERSION = 2  # of what readers of version 1 would take for damaged
CIPHER = "AES-256-GCM"
PARTS = "polarmap/coded/"  # prefix of all parts of coded arrays
MANIFESTS = "polarmap/manifests/"  # apart from the parts, so that listing arrays lists few objects
# What is raised by what makes no sense, once it is used.
NONSENSE = (LookupError, ArithmeticError, TypeError, ValueError, AttributeError, RecursionError)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_DTYPE = re.compile(r"[<>|][iufc][0-9]{1,2}")


def check_name(name: object) -> str:
    """`name` if a coded array may be called that.

    >>> check_name("../secrets")
    Traceback (most recent call last):
    polarmap.errors.StorageError: '../secrets' cannot name a coded array: use 1 to 128 letters, \
digits, '.', '_' or '-', a letter or digit first
    """
    if isinstance(name, str) and _NAME.fullmatch(name) and ".." not in name:
        return name
    raise StorageError(
        f"{name!r} cannot name a coded array: use 1 to 128 letters, digits, '.', '_' or '-', "
        "a letter or digit first"
    )


def manifest_key(name: str) -> str:
    """Where the manifest of a coded array lies."""
    return f"{MANIFESTS}{name}.json"


def array_prefix(name: str) -> str:
    """The prefix of everything else that a coded array owns."""
    return f"{PARTS}{name}/"


@dataclass(frozen=True)
class Manifest:
    """A coded array: n blocks of equally many rows, every block cut into the same stripes.

    name : what it is called.
    shape, dtype : of the data.
    code : what binds the blocks.
    parts : per block, its parts in order.
    scalars : whether each block is one number without axes, of which the array is the vector.
    zarr : the Zarr array that the data blocks make, or will when none is missing; None if they lie elsewhere.
    encryption : of the parts, which then have their sizes in memory, and the CRC-32 of what is stored.
    run : that has encoded it, which stays when it is repaired; empty of arrays that earlier versions encoded.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    code: PolarCode
    parts: tuple[tuple[Part, ...], ...]
    scalars: bool = False
    zarr: ZarrView | None = None
    encryption: Encryption | None = None
    run: str = ""

    @cached_property
    def rows(self) -> int:
        """Rows of each block."""
        return -(-self.shape[0] // self.code.k)

    @property
    def padding(self) -> int:
        """Rows of zeros at the end of the last data block."""
        return self.code.k * self.rows - self.shape[0]

    @cached_property
    def parity_dtype(self) -> np.dtype[Any]:
        """Dtype of the parity blocks."""
        return self.code.parity_dtype(self.dtype)

    @property
    def block_shape(self) -> tuple[int, ...]:
        """Shape of every block."""
        return () if self.scalars else (self.rows, *self.shape[1:])

    @cached_property
    def bounds(self) -> list[int]:
        """Where the stripes of a block begin and end, in elements."""
        return [
            size // self.dtype.itemsize for size in accumulate((p.size for p in self.parts[0]), initial=0)
        ]

    def stored_size(self, part: Part) -> int:
        """Bytes of a part in storage."""
        return part.size if self.encryption is None else encrypted_size(part.size)

    def dtype_of(self, index: int) -> np.dtype[Any]:
        """Dtype of block `index`."""
        return self.dtype if index < self.code.k else self.parity_dtype

    def is_of_same_array(self, other: Manifest) -> bool:
        """Whether it tells of the same numbers, of which parts were rebuilt or have moved in between."""
        cuts = [(one.run, one.shape, one.dtype, one.bounds) for one in (self, other)]
        return bool(self.run) and cuts[0] == cuts[1]

    def with_parts(self, changed: Mapping[tuple[int, int], Part]) -> Manifest:
        """A copy in which some parts, by (block, stripe), lie elsewhere."""
        table = [
            tuple(changed.get((block, stripe), part) for stripe, part in enumerate(parts))
            for block, parts in enumerate(self.parts)
        ]
        return replace(self, parts=tuple(table))

    @cached_property
    def chunks(self) -> list[ZarrChunk]:
        """The parts that are the chunks of the Zarr array, or will be."""
        return [] if self.zarr is None else self.zarr.chunks(self.shape, self.rows, self.bounds)

    @property
    def chunk_bytes(self) -> int:
        """Bytes of the object of every chunk; 0 where there is no Zarr array."""
        return 0 if self.zarr is None else self.zarr.chunk_bytes(self.dtype)

    @property
    def metadata(self) -> tuple[Part, ...]:
        """The metadata of the Zarr array that is there."""
        return () if self.zarr is None else self.zarr.metadata

    @property
    def is_zarr(self) -> bool:
        """Whether the Zarr array is there, with all its chunks."""
        return bool(self.metadata)

    @cached_property
    def objects(self) -> set[str]:
        """The keys of all objects that hold parts, or belong to the Zarr array."""
        keys = {part.key for parts in self.parts for part in parts}
        if self.is_zarr:
            keys |= {chunk.key for chunk in self.chunks} | {part.key for part in self.metadata}
        return keys

    @cached_property
    def ends(self) -> dict[str, tuple[int, int]]:
        """Where the last part ends, and how long the object is, of objects that exist for this array."""
        prefix = array_prefix(self.name)
        found: dict[str, tuple[int, int]] = {}
        for part in itertools.chain.from_iterable(self.parts):
            if part.key.startswith(prefix):
                end = max(part.offset + self.stored_size(part), *found.get(part.key, (0, 0)))
                found[part.key] = end, end
        for chunk in self.chunks:
            if self.is_zarr or chunk.key in found:
                size = sum(self.parts[chunk.block][stripe].size for stripe in chunk.stripes)
                found[chunk.key] = size, self.chunk_bytes
        return found | {part.key: (part.size, part.size) for part in self.metadata}

    @property
    def owned_bytes(self) -> int:
        """Bytes in storage that exist for this array only, without manifest and metadata."""
        return sum(length for _, length in self.ends.values()) - sum(part.size for part in self.metadata)

    def __reduce__(self) -> tuple[Callable[..., Manifest], tuple[bytes, str | None]]:
        """As text: the same of the same array, whoever made it, and whatever was asked of it meanwhile."""
        key = None if self.encryption is None else self.encryption.key
        if isinstance(key, bytes):
            raise TypeError(
                f"the coded array {self.name!r} holds its key, which is not pickled: open it with "
                "key='env:NAME' or key='file:PATH'"
            )
        return _of_text, (_canonical(self._fields(code_parameters(self.code))), key)

    def dump(self) -> bytes:
        """The bytes of the object that is stored."""
        array, version, tag = self._fields(describe_code(self.code)), VERSION, {}
        if self.encryption is not None:
            version, tag = ENCRYPTED_VERSION, {"tag": self.encryption.tag(_canonical(array)).hex()}
        crc32 = zlib.crc32(_canonical(array))
        document = {"format": FORMAT, "version": version, "crc32": crc32, "array": array, **tag}
        return json.dumps(document, separators=(",", ":")).encode()

    def _fields(self, code: Mapping[str, Any]) -> dict[str, Any]:
        """What the object says of the array, with such a description of its code."""
        array: dict[str, Any] = {
            "name": self.name,
            "shape": list(self.shape),
            "dtype": self.dtype.str,
            "parity_dtype": self.parity_dtype.str,
            "rows_per_block": self.rows,
            "filler_rows": self.padding,
            "code": code,
            "blocks": [[part._asdict() for part in parts] for parts in self.parts],
        }
        if self.run:
            array["run"] = self.run
        if self.scalars:
            array["scalars"] = True
        if self.zarr:
            metadata = [part._asdict() for part in self.zarr.metadata]
            array["zarr"] = {**self.zarr._asdict(), "metadata": metadata}
        if self.encryption is not None:
            salt, check = self.encryption.salt.hex(), self.encryption.check.hex()
            array["encryption"] = {"cipher": CIPHER, "salt": salt, "check": check}
        return array

    @classmethod
    def parse(cls, data: bytes, where: str, key: str | bytes | None = None) -> Manifest:
        """The inverse of `dump`; every mistake is a StorageError that names the manifest `where`.

        key : that of an encrypted array. Without it nobody knows who has written the manifest.
        """
        try:
            document = json.loads(data)
            is_ours = document["format"] == FORMAT
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise StorageError(f"{where} is damaged: it is not the JSON that was written") from error
        if not is_ours:
            raise StorageError(f"{where} is not the manifest of a coded array")
        array = document.get("array")
        is_encrypted = isinstance(array, dict) and "encryption" in array
        if document.get("version") != (ENCRYPTED_VERSION if is_encrypted else VERSION):
            raise StorageError(
                f"{where} has format version {document.get('version')!r}; this polarmap reads {VERSION}, and "
                f"{ENCRYPTED_VERSION} of encrypted arrays"
            )
        if document.get("crc32") != zlib.crc32(_canonical(array)):
            raise StorageError(f"{where} is damaged: its checksum does not fit")
        if key is not None and not is_encrypted:
            raise StorageError(f"{where} is that of an array that is not encrypted: leave key out")
        with consistent(where):
            encryption = _parse_encryption(array, key)
        if encryption is not None and key is not None:
            _verify(document, encryption, where)
        with consistent(where):
            for field in ("dtype", "parity_dtype"):
                if not _DTYPE.fullmatch(array[field]):
                    raise ValueError(f"{field} {array[field]!r} is not one of numbers")
            made = cls._from_fields(array, rebuild_code(array["code"]), encryption)
            made._check(array["rows_per_block"], array["parity_dtype"])
        return made

    @classmethod
    def _from_fields(
        cls, array: Mapping[str, Any], code: PolarCode, encryption: Encryption | None
    ) -> Manifest:
        return cls(
            name=check_name(array["name"]),
            shape=tuple(array["shape"]),
            dtype=np.dtype(array["dtype"]),
            code=code,
            parts=tuple(tuple(map(_parse_part, parts)) for parts in array["blocks"]),
            scalars=array.get("scalars", False),
            zarr=_parse_zarr(array.get("zarr")),
            encryption=encryption,
            run=array.get("run", ""),
        )

    def _check(self, rows: Any, parity_dtype: str) -> None:
        """Raise ValueError if entries contradict each other; the arguments are derived ones, as written."""
        counts = [*self.shape, rows]
        for part in itertools.chain(*self.parts, self.metadata):
            counts += [part.size, part.offset, 0 if part.crc32 is None else part.crc32]
        if not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError("a size is not a count")
        if not self.shape or self.rows != rows:
            raise ValueError(f"{self.code.k} blocks of {rows} rows do not hold shape {self.shape}")
        if self.scalars and self.shape != (self.code.k,):
            raise ValueError(f"{self.code.k} blocks of one number do not make shape {self.shape}")
        if self.parity_dtype != parity_dtype:
            raise ValueError(f"parity of {self.dtype} data is not {parity_dtype}")
        if len(self.parts) != self.code.n:
            raise ValueError(f"{len(self.parts)} of {self.code.n} blocks are listed")
        if self.bounds[-1] != prod(self.block_shape):
            raise ValueError(f"a block holds {self.bounds[-1]} of {prod(self.block_shape)} numbers")
        lengths = np.diff(self.bounds).tolist()
        for block, parts in enumerate(self.parts):
            itemsize = self.dtype_of(block).itemsize
            if [part.size for part in parts] != [itemsize * length for length in lengths]:
                raise ValueError(f"block {block} is not cut as block 0 is")
        if self.zarr is not None:
            check_key(self.zarr.path)
            self.zarr.check(array_prefix(self.name), self.shape, rows, self.bounds)
        if self.encryption is not None and self.zarr is not None:
            raise ValueError("encrypted chunks make no Zarr array")


@contextmanager
def consistent(where: str) -> Iterator[None]:
    """What `where` says that makes no sense is a StorageError."""
    try:
        yield
    except (*NONSENSE, StorageError) as error:
        raise StorageError(f"{where} is inconsistent: {type(error).__name__}: {error}") from error


def _parse_part(fields: Mapping[str, Any]) -> Part:
    return Part(check_key(fields["key"]), fields["size"], fields["crc32"], fields["offset"])


def _parse_zarr(fields: Mapping[str, Any] | None) -> ZarrView | None:
    """None of arrays that are no Zarr array, among them all that were written before they were."""
    if fields is None:
        return None
    metadata = tuple(map(_parse_part, fields["metadata"]))
    return ZarrView(fields["path"], tuple(fields["chunk_shape"]), metadata)


def _parse_encryption(array: Mapping[str, Any], key: str | bytes | None) -> Encryption | None:
    """How the parts are encrypted, by this key; None if they are not."""
    if "encryption" not in array:
        return None
    fields = array["encryption"]
    if fields["cipher"] != CIPHER:
        raise ValueError(f"the cipher {fields['cipher']!r} is not {CIPHER}")
    return Encryption(key or "", bytes.fromhex(fields["salt"]), bytes.fromhex(fields["check"]))


def _verify(document: Mapping[str, Any], encryption: Encryption, where: str) -> None:
    """StorageError for a manifest that was not written with this key."""
    try:
        if document.get("tag") != encryption.tag(_canonical(document["array"])).hex():
            raise StorageError(f"{where} is not what was written with this key: somebody has changed it")
    except KeyUnavailableError as error:
        raise StorageError(f"{where} cannot be verified: {error}") from error


def _of_text(data: bytes, key: str | None) -> Manifest:
    """What was pickled."""
    array = json.loads(data)
    return Manifest._from_fields(array, PolarCode(**array["code"]), _parse_encryption(array, key))


def code_parameters(code: PolarCode) -> dict[str, Any]:
    """What rebuilds a code."""
    words = {field: getattr(code, field) for field in ("n", "k", "kernel", "decoder")}
    if code.levels < (code.n - 1).bit_length():
        words["levels"] = code.levels
    erasure = np.asarray(code.erasure, float).tolist()  # a number, or one for each worker
    return {**words, "erasure": erasure, "seed": int(code.seed)}


def describe_code(code: PolarCode) -> dict[str, Any]:
    """What rebuilds a code, and a probe by which one sees that it was rebuilt right."""
    return {**code_parameters(code), "probe": probe(code)}


def rebuild_code(fields: Mapping[str, Any]) -> PolarCode:
    """The code that `describe_code` described; CodeError if this version of polarmap makes another one."""
    parameters = {**fields}
    wanted = parameters.pop("probe")
    code = PolarCode(**parameters)
    if not np.allclose(probe(code), wanted, rtol=1e-9, atol=1e-9):
        raise CodeError("this version of polarmap builds other parity blocks from these parameters")
    return code


def probe(code: PolarCode) -> list[float]:
    """The first four and the last four parity values of the data x_j = j mod 7."""
    values = (np.arange(code.k) % 7).astype(np.float64)[:, None]
    parity: list[float] = code.encode_parity(values)[:, 0].tolist()
    return parity[:4] + parity[-4:]


def _canonical(array: Any) -> bytes:
    return json.dumps(array, sort_keys=True, separators=(",", ":")).encode()
