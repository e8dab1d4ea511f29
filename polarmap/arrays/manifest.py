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
from polarmap.storage import check_object_key
from polarmap.worker.encryption import Encryption, KeyUnavailableError, compute_encrypted_size
from polarmap.worker.segments import Segment

FORMAT_NAME, FORMAT_VERSION = "polarmap coded array", 1
ENCRYPTED_FORMAT_VERSION = 2  # of what readers of version 1 would take for damaged
CIPHER_NAME = "AES-256-GCM"
SEGMENT_PREFIX = "polarmap/coded/"  # prefix of all parts of coded arrays
MANIFEST_PREFIX = "polarmap/manifests/"  # apart from the parts, so that listing arrays lists few objects
# What is raised by what makes no sense, once it is used.
PARSE_ERRORS = (LookupError, ArithmeticError, TypeError, ValueError, AttributeError, RecursionError)
_NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_DTYPE_PATTERN = re.compile(r"[<>|][iufc][0-9]{1,2}")


def check_array_name(name: object) -> str:
    """`name` if a coded array may be called that.

    >>> check_array_name("../secrets")
    Traceback (most recent call last):
    polarmap.errors.StorageError: '../secrets' cannot name a coded array: use 1 to 128 letters, \
digits, '.', '_' or '-', a letter or digit first
    """
    if isinstance(name, str) and _NAME_PATTERN.fullmatch(name) and ".." not in name:
        return name
    raise StorageError(
        f"{name!r} cannot name a coded array: use 1 to 128 letters, digits, '.', '_' or '-', "
        "a letter or digit first"
    )


def get_manifest_key(array_name: str) -> str:
    """Where the manifest of a coded array lies."""
    return f"{MANIFEST_PREFIX}{array_name}.json"


def get_array_key_prefix(array_name: str) -> str:
    """The prefix of everything else that a coded array owns."""
    return f"{SEGMENT_PREFIX}{array_name}/"


@dataclass(frozen=True)
class Manifest:
    """A coded array: n blocks of equally many rows, every block cut into the same stripes.

    name : what it is called.
    shape, dtype : of the data.
    code : what binds the blocks.
    segments : per block, its parts in order.
    has_scalar_blocks : whether each block is one number without axes, of which the array is the vector.
    zarr_view : the Zarr array that the data blocks make, or will when none is missing; None if they lie
        elsewhere.
    encryption : of the parts, which then have their sizes in memory, and the CRC-32 of what is stored.
    transaction_id : that has encoded it, which stays when it is repaired; empty of arrays that earlier
        versions encoded.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    code: PolarCode
    segments: tuple[tuple[Segment, ...], ...]
    has_scalar_blocks: bool = False
    zarr_view: ZarrView | None = None
    encryption: Encryption | None = None
    transaction_id: str = ""

    @cached_property
    def rows_per_block(self) -> int:
        """Rows of each block."""
        return -(-self.shape[0] // self.code.k)

    @property
    def n_padding_rows(self) -> int:
        """Rows of zeros at the end of the last data block."""
        return self.code.k * self.rows_per_block - self.shape[0]

    @cached_property
    def parity_dtype(self) -> np.dtype[Any]:
        """Dtype of the parity blocks."""
        return self.code.parity_dtype(self.dtype)

    @property
    def block_shape(self) -> tuple[int, ...]:
        """Shape of every block."""
        return () if self.has_scalar_blocks else (self.rows_per_block, *self.shape[1:])

    @cached_property
    def stripe_bounds(self) -> list[int]:
        """Where the stripes of a block begin and end, in elements."""
        return [
            size // self.dtype.itemsize
            for size in accumulate((segment.size for segment in self.segments[0]), initial=0)
        ]

    def get_stored_segment_size(self, segment: Segment) -> int:
        """Bytes of a part in storage."""
        return segment.size if self.encryption is None else compute_encrypted_size(segment.size)

    def get_block_dtype(self, block_index: int) -> np.dtype[Any]:
        """Dtype of block `block_index`."""
        return self.dtype if block_index < self.code.k else self.parity_dtype

    def describes_same_array(self, other: Manifest) -> bool:
        """Whether it tells of the same numbers, of which parts were rebuilt or have moved in between."""
        descriptions = [
            (manifest.transaction_id, manifest.shape, manifest.dtype, manifest.stripe_bounds)
            for manifest in (self, other)
        ]
        return bool(self.transaction_id) and descriptions[0] == descriptions[1]

    def with_replaced_segments(self, changed_segments: Mapping[tuple[int, int], Segment]) -> Manifest:
        """A copy in which some parts, by (block, stripe), lie elsewhere."""
        segments_by_block = [
            tuple(
                changed_segments.get((block_index, stripe_index), segment)
                for stripe_index, segment in enumerate(segments)
            )
            for block_index, segments in enumerate(self.segments)
        ]
        return replace(self, segments=tuple(segments_by_block))

    @cached_property
    def zarr_chunks(self) -> list[ZarrChunk]:
        """The parts that are the chunks of the Zarr array, or will be."""
        return (
            []
            if self.zarr_view is None
            else self.zarr_view.list_chunks(self.shape, self.rows_per_block, self.stripe_bounds)
        )

    @property
    def zarr_chunk_bytes(self) -> int:
        """Bytes of the object of every chunk; 0 where there is no Zarr array."""
        return 0 if self.zarr_view is None else self.zarr_view.compute_chunk_bytes(self.dtype)

    @property
    def zarr_metadata(self) -> tuple[Segment, ...]:
        """The metadata of the Zarr array that is there."""
        return () if self.zarr_view is None else self.zarr_view.metadata

    @property
    def has_zarr_array(self) -> bool:
        """Whether the Zarr array is there, with all its chunks."""
        return bool(self.zarr_metadata)

    @cached_property
    def object_keys(self) -> set[str]:
        """The keys of all objects that hold parts, or belong to the Zarr array."""
        keys = {segment.key for segments in self.segments for segment in segments}
        if self.has_zarr_array:
            keys |= {chunk.key for chunk in self.zarr_chunks}
            keys |= {segment.key for segment in self.zarr_metadata}
        return keys

    @cached_property
    def object_extents(self) -> dict[str, tuple[int, int]]:
        """Where the last part ends, and how long the object is, of objects that exist for this array."""
        prefix = get_array_key_prefix(self.name)
        extents: dict[str, tuple[int, int]] = {}
        for segment in itertools.chain.from_iterable(self.segments):
            if segment.key.startswith(prefix):
                end = segment.offset + self.get_stored_segment_size(segment)
                end = max(end, *extents.get(segment.key, (0, 0)))
                extents[segment.key] = end, end
        for chunk in self.zarr_chunks:
            if self.has_zarr_array or chunk.key in extents:
                size = sum(self.segments[chunk.block_index][stripe].size for stripe in chunk.stripe_range)
                extents[chunk.key] = size, self.zarr_chunk_bytes
        return extents | {segment.key: (segment.size, segment.size) for segment in self.zarr_metadata}

    @property
    def owned_bytes(self) -> int:
        """Bytes in storage that exist for this array only, without manifest and metadata."""
        metadata_bytes = sum(segment.size for segment in self.zarr_metadata)
        return sum(length for _, length in self.object_extents.values()) - metadata_bytes

    def __reduce__(self) -> tuple[Callable[..., Manifest], tuple[bytes, str | None]]:
        """As text: the same of the same array, whoever made it, and whatever was asked of it meanwhile."""
        key = None if self.encryption is None else self.encryption.key
        if isinstance(key, bytes):
            raise TypeError(
                f"the coded array {self.name!r} holds its key, which is not pickled: open it with "
                "key='env:NAME' or key='file:PATH'"
            )
        return _restore_pickled_manifest, (
            _to_canonical_json(self._to_json_fields(get_code_parameters(self.code))),
            key,
        )

    def to_bytes(self) -> bytes:
        """The bytes of the object that is stored."""
        array, version, tag = self._to_json_fields(serialize_code(self.code)), FORMAT_VERSION, {}
        if self.encryption is not None:
            version = ENCRYPTED_FORMAT_VERSION
            tag = {"tag": self.encryption.compute_tag(_to_canonical_json(array)).hex()}
        crc32 = zlib.crc32(_to_canonical_json(array))
        document = {"format": FORMAT_NAME, "version": version, "crc32": crc32, "array": array, **tag}
        return json.dumps(document, separators=(",", ":")).encode()

    def _to_json_fields(self, code_fields: Mapping[str, Any]) -> dict[str, Any]:
        """What the object says of the array, with such a description of its code."""
        array_fields: dict[str, Any] = {
            "name": self.name,
            "shape": list(self.shape),
            "dtype": self.dtype.str,
            "parity_dtype": self.parity_dtype.str,
            "rows_per_block": self.rows_per_block,
            "filler_rows": self.n_padding_rows,
            "code": code_fields,
            "blocks": [[segment._asdict() for segment in segments] for segments in self.segments],
        }
        if self.transaction_id:
            array_fields["run"] = self.transaction_id
        if self.has_scalar_blocks:
            array_fields["scalars"] = True
        if self.zarr_view:
            metadata = [segment._asdict() for segment in self.zarr_view.metadata]
            array_fields["zarr"] = {**self.zarr_view._asdict(), "metadata": metadata}
        if self.encryption is not None:
            salt, check = self.encryption.salt.hex(), self.encryption.key_check.hex()
            array_fields["encryption"] = {"cipher": CIPHER_NAME, "salt": salt, "check": check}
        return array_fields

    @classmethod
    def from_bytes(cls, data: bytes, description: str, key: str | bytes | None = None) -> Manifest:
        """The inverse of `to_bytes`; every mistake is a StorageError that names the manifest `description`.

        key : that of an encrypted array. Without it nobody knows who has written the manifest.
        """
        try:
            document = json.loads(data)
            is_coded_array = document["format"] == FORMAT_NAME
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise StorageError(f"{description} is damaged: it is not the JSON that was written") from error
        if not is_coded_array:
            raise StorageError(f"{description} is not the manifest of a coded array")
        array_fields = document.get("array")
        is_encrypted = isinstance(array_fields, dict) and "encryption" in array_fields
        if document.get("version") != (ENCRYPTED_FORMAT_VERSION if is_encrypted else FORMAT_VERSION):
            raise StorageError(
                f"{description} has format version {document.get('version')!r}; this polarmap reads "
                f"{FORMAT_VERSION}, and {ENCRYPTED_FORMAT_VERSION} of encrypted arrays"
            )
        if document.get("crc32") != zlib.crc32(_to_canonical_json(array_fields)):
            raise StorageError(f"{description} is damaged: its checksum does not fit")
        if key is not None and not is_encrypted:
            raise StorageError(f"{description} is that of an array that is not encrypted: leave key out")
        with convert_parse_errors_to_storage_errors(description):
            encryption = _parse_encryption(array_fields, key)
        if encryption is not None and key is not None:
            _verify_authentication_tag(document, encryption, description)
        with convert_parse_errors_to_storage_errors(description):
            for field in ("dtype", "parity_dtype"):
                if not _DTYPE_PATTERN.fullmatch(array_fields[field]):
                    raise ValueError(f"{field} {array_fields[field]!r} is not one of numbers")
            manifest = cls._from_json_fields(array_fields, deserialize_code(array_fields["code"]), encryption)
            manifest._check_consistency(array_fields["rows_per_block"], array_fields["parity_dtype"])
        return manifest

    @classmethod
    def _from_json_fields(
        cls, array_fields: Mapping[str, Any], code: PolarCode, encryption: Encryption | None
    ) -> Manifest:
        return cls(
            name=check_array_name(array_fields["name"]),
            shape=tuple(array_fields["shape"]),
            dtype=np.dtype(array_fields["dtype"]),
            code=code,
            segments=tuple(tuple(map(_parse_segment, segments)) for segments in array_fields["blocks"]),
            has_scalar_blocks=array_fields.get("scalars", False),
            zarr_view=_parse_zarr_view(array_fields.get("zarr")),
            encryption=encryption,
            transaction_id=array_fields.get("run", ""),
        )

    def _check_consistency(self, rows_per_block: Any, parity_dtype: str) -> None:
        """Raise ValueError if entries contradict each other; the arguments are derived ones, as written."""
        sizes_and_offsets = [*self.shape, rows_per_block]
        for segment in itertools.chain(*self.segments, self.zarr_metadata):
            sizes_and_offsets += [segment.size, segment.offset, 0 if segment.crc32 is None else segment.crc32]
        if not all(type(count) is int and count >= 0 for count in sizes_and_offsets):
            raise ValueError("a size is not a count")
        if not self.shape or self.rows_per_block != rows_per_block:
            raise ValueError(f"{self.code.k} blocks of {rows_per_block} rows do not hold shape {self.shape}")
        if self.has_scalar_blocks and self.shape != (self.code.k,):
            raise ValueError(f"{self.code.k} blocks of one number do not make shape {self.shape}")
        if self.parity_dtype != parity_dtype:
            raise ValueError(f"parity of {self.dtype} data is not {parity_dtype}")
        if len(self.segments) != self.code.n:
            raise ValueError(f"{len(self.segments)} of {self.code.n} blocks are listed")
        if self.stripe_bounds[-1] != prod(self.block_shape):
            raise ValueError(f"a block holds {self.stripe_bounds[-1]} of {prod(self.block_shape)} numbers")
        stripe_sizes = np.diff(self.stripe_bounds).tolist()
        for block_index, segments in enumerate(self.segments):
            itemsize = self.get_block_dtype(block_index).itemsize
            if [segment.size for segment in segments] != [itemsize * length for length in stripe_sizes]:
                raise ValueError(f"block {block_index} is not cut as block 0 is")
        if self.zarr_view is not None:
            check_object_key(self.zarr_view.path)
            self.zarr_view.check(
                get_array_key_prefix(self.name), self.shape, rows_per_block, self.stripe_bounds
            )
        if self.encryption is not None and self.zarr_view is not None:
            raise ValueError("encrypted chunks make no Zarr array")


@contextmanager
def convert_parse_errors_to_storage_errors(description: str) -> Iterator[None]:
    """What `description` says that makes no sense is a StorageError."""
    try:
        yield
    except (*PARSE_ERRORS, StorageError) as error:
        raise StorageError(f"{description} is inconsistent: {type(error).__name__}: {error}") from error


def _parse_segment(fields: Mapping[str, Any]) -> Segment:
    return Segment(check_object_key(fields["key"]), fields["size"], fields["crc32"], fields["offset"])


def _parse_zarr_view(fields: Mapping[str, Any] | None) -> ZarrView | None:
    """None of arrays that are no Zarr array, among them all that were written before they were."""
    if fields is None:
        return None
    metadata = tuple(map(_parse_segment, fields["metadata"]))
    return ZarrView(fields["path"], tuple(fields["chunk_shape"]), metadata)


def _parse_encryption(array_fields: Mapping[str, Any], key: str | bytes | None) -> Encryption | None:
    """How the parts are encrypted, by this key; None if they are not."""
    if "encryption" not in array_fields:
        return None
    fields = array_fields["encryption"]
    if fields["cipher"] != CIPHER_NAME:
        raise ValueError(f"the cipher {fields['cipher']!r} is not {CIPHER_NAME}")
    return Encryption(key or "", bytes.fromhex(fields["salt"]), bytes.fromhex(fields["check"]))


def _verify_authentication_tag(document: Mapping[str, Any], encryption: Encryption, description: str) -> None:
    """StorageError for a manifest that was not written with this key."""
    try:
        if document.get("tag") != encryption.compute_tag(_to_canonical_json(document["array"])).hex():
            raise StorageError(
                f"{description} is not what was written with this key: somebody has changed it"
            )
    except KeyUnavailableError as error:
        raise StorageError(f"{description} cannot be verified: {error}") from error


def _restore_pickled_manifest(json_bytes: bytes, key: str | None) -> Manifest:
    """What was pickled."""
    array_fields = json.loads(json_bytes)
    return Manifest._from_json_fields(
        array_fields, PolarCode(**array_fields["code"]), _parse_encryption(array_fields, key)
    )


def get_code_parameters(code: PolarCode) -> dict[str, Any]:
    """What rebuilds a code."""
    parameters = {field: getattr(code, field) for field in ("n", "k", "kernel", "decoder")}
    if code.levels < (code.n - 1).bit_length():
        parameters["levels"] = code.levels
    erasure_probabilities = np.asarray(code.erasure, float).tolist()  # a number, or one for each worker
    return {**parameters, "erasure": erasure_probabilities, "seed": int(code.seed)}


def serialize_code(code: PolarCode) -> dict[str, Any]:
    """What rebuilds a code, and a probe by which one sees that it was rebuilt right."""
    return {**get_code_parameters(code), "probe": compute_code_fingerprint(code)}


def deserialize_code(fields: Mapping[str, Any]) -> PolarCode:
    """The code that `serialize_code` described; CodeError if this version of polarmap makes another one."""
    parameters = {**fields}
    expected_probe = parameters.pop("probe")
    code = PolarCode(**parameters)
    if not np.allclose(compute_code_fingerprint(code), expected_probe, rtol=1e-9, atol=1e-9):
        raise CodeError("this version of polarmap builds other parity blocks from these parameters")
    return code


def compute_code_fingerprint(code: PolarCode) -> list[float]:
    """The first four and the last four parity values of the data x_j = j mod 7."""
    values = (np.arange(code.k) % 7).astype(np.float64)[:, None]
    parity: list[float] = code.encode_parity(values)[:, 0].tolist()
    return parity[:4] + parity[-4:]


def _to_canonical_json(array_fields: Any) -> bytes:
    return json.dumps(array_fields, sort_keys=True, separators=(",", ":")).encode()
