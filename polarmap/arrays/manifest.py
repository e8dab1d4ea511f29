"""The manifest: a JSON document that describes a coded array and says where its bytes are stored.

    polarmap/manifests/A.json               the manifest; the array exists if this object does
        "code": {"n": 32, "k": 24, ...}     the parameters of the code
        "blocks": [[segment, ...], ...]     one list per block, one segment per stripe

A stripe is the same slice of every block, and a segment is a byte range of an object that holds one stripe of
one block. To replace or repair an array, new segments are written first. Then the manifest is replaced as a
whole. The format is specified in docs/coded-array-format.md.
"""

from __future__ import annotations

import itertools
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from math import prod
from operator import itemgetter
from typing import Any

import numpy as np

from polarmap.arrays.zarr_view import ZarrChunk, ZarrView
from polarmap.codes.polar import PolarCode
from polarmap.errors import CodeError, StorageError
from polarmap.storage import check_object_key, check_object_keys
from polarmap.worker.encryption import Encryption, KeyUnavailableError, compute_encrypted_size
from polarmap.worker.segments import Segment

FORMAT_NAME, FORMAT_VERSION = "polarmap coded array", 1
# Encrypted arrays have their own version number, so that programs that can only read version 1 refuse to open
# them. Such programs would otherwise report the encrypted bytes as damaged.
ENCRYPTED_FORMAT_VERSION = 2
CIPHER_NAME = "AES-256-GCM"
ARRAY_FIELD = b',"array":'  # separates the header of the document from the canonical JSON of the array
SEGMENT_PREFIX = "polarmap/coded/"  # The keys of all segments begin with this prefix.
# The keys of all manifests begin with this prefix. It differs from the prefix of the data, so that listing
# all arrays does not list the objects with their data.
MANIFEST_PREFIX = "polarmap/manifests/"
# Exceptions that may be raised while entries of an invalid JSON document are read.
PARSE_ERRORS = (LookupError, ArithmeticError, TypeError, ValueError, AttributeError, RecursionError)
_NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_DTYPE_PATTERN = re.compile(r"[<>|][iufc][0-9]{1,2}")
_get_segment_fields = itemgetter(*Segment._fields)


def check_array_name(name: object) -> str:
    """Return `name` if it is a valid name for a coded array. Raises StorageError otherwise.

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
    """Return the key under which a coded array's manifest (its description) is stored."""
    return f"{MANIFEST_PREFIX}{array_name}.json"


def get_array_key_prefix(array_name: str) -> str:
    """Return the common key prefix of all objects that hold a coded array's data."""
    return f"{SEGMENT_PREFIX}{array_name}/"


@dataclass(frozen=True)
class Manifest:
    """The description of a coded array in storage: its shape, its code, and where its bytes are.

    The array consists of n blocks with the same number of rows. All blocks are cut at the same positions, and
    their parts between two cuts form a stripe.

    Attributes
    ----------
    name : str
        The name of the array.
    shape, dtype
        The shape and dtype of the data. The byte order of the dtype is that of the stored bytes.
    code : PolarCode
        The code that was used to compute the parity blocks.
    segments : tuple of tuples of Segment
        Where the bytes are: for each block, one segment (byte range of an object) per stripe.
    has_scalar_blocks : bool
        Whether each block is a scalar (without axes), and the array is the vector of these scalars.
    zarr_view : ZarrView or None
        The Zarr array whose chunks are the data blocks, incomplete while a data block is missing. None if
        there is no Zarr array.
    encryption : Encryption or None
        How the segments are encrypted. In an encrypted array, `Segment.size` counts the bytes before
        encryption, and `Segment.crc32` is the checksum of the encrypted bytes.
    transaction_id : str
        The id of the `WriteTransaction` that encoded the array. A repair keeps it. Empty for arrays that were
        stored by early versions of polarmap.
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
        """The number of rows of each block."""
        return -(-self.shape[0] // self.code.k)

    @property
    def n_padding_rows(self) -> int:
        """The number of rows that were added to fill the last data block, and are not part of the array."""
        return self.code.k * self.rows_per_block - self.shape[0]

    @cached_property
    def parity_dtype(self) -> np.dtype[Any]:
        """The dtype of the parity blocks."""
        return self.code.parity_dtype(self.dtype)

    @property
    def block_shape(self) -> tuple[int, ...]:
        """The shape of every block."""
        return () if self.has_scalar_blocks else (self.rows_per_block, *self.shape[1:])

    @cached_property
    def stripe_bounds(self) -> list[int]:
        """The boundaries of the stripes (slices) of a block, as positions in the flattened block.

        Stripe i consists of the elements from `stripe_bounds[i]` up to `stripe_bounds[i + 1]`.
        """
        return [
            size // self.dtype.itemsize
            for size in accumulate((segment.size for segment in self.segments[0]), initial=0)
        ]

    def get_stored_segment_size(self, segment: Segment) -> int:
        """Return how many bytes a segment occupies in storage.

        If the array is encrypted, this is more than `segment.size`, the number of bytes before encryption.
        """
        return segment.size if self.encryption is None else compute_encrypted_size(segment.size)

    def get_block_dtype(self, block_index: int) -> np.dtype[Any]:
        """Return the dtype of a block. Parity blocks may have a different dtype than data blocks."""
        return self.dtype if block_index < self.code.k else self.parity_dtype

    def describes_same_array(self, other: Manifest) -> bool:
        """Return whether two manifests describe the same coded array.

        This is also the case if parts of the data have been rebuilt or moved to other objects.
        """
        descriptions = [
            (manifest.transaction_id, manifest.shape, manifest.dtype, manifest.stripe_bounds)
            for manifest in (self, other)
        ]
        return bool(self.transaction_id) and descriptions[0] == descriptions[1]

    def with_replaced_segments(self, changed_segments: Mapping[tuple[int, int], Segment]) -> Manifest:
        """Return a copy of the manifest with some of its segments (byte ranges of objects) replaced.

        `changed_segments` maps (block index, stripe index) to the new segment.
        """
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
        """All chunks of the Zarr array that contains the data blocks, even if they are not stored yet.

        The list is empty if the data blocks are not stored as a Zarr array.
        """
        return (
            []
            if self.zarr_view is None
            else self.zarr_view.list_chunks(self.shape, self.rows_per_block, self.stripe_bounds)
        )

    @property
    def zarr_chunk_bytes(self) -> int:
        """The size in bytes of each chunk of the Zarr array that contains the data blocks.

        The size is 0 if the data blocks are not stored as a Zarr array.
        """
        return 0 if self.zarr_view is None else self.zarr_view.compute_chunk_bytes(self.dtype)

    @property
    def zarr_metadata(self) -> tuple[Segment, ...]:
        """The objects with the metadata of the Zarr array that contains the data blocks.

        The tuple is empty if the data blocks are not stored as a Zarr array, or if chunks are still missing.
        """
        return () if self.zarr_view is None else self.zarr_view.metadata

    @property
    def has_zarr_array(self) -> bool:
        """Whether there is a complete Zarr array, with all chunks and metadata in storage."""
        return bool(self.zarr_metadata)

    @cached_property
    def object_keys(self) -> set[str]:
        """The keys of all objects that hold bytes of the array or belong to its Zarr array."""
        keys = {segment.key for segments in self.segments for segment in segments}
        if self.has_zarr_array:
            keys |= {chunk.key for chunk in self.zarr_chunks}
            keys |= {segment.key for segment in self.zarr_metadata}
        return keys

    @cached_property
    def object_extents(self) -> dict[str, tuple[int, int]]:
        """The stored objects of the array, as a dict that maps each key to a pair of sizes in bytes.

        The pair is (size of the object without padding, size of the object). Only Zarr chunks may be padded
        with zeros. Objects that were not written by `encode` are left out.
        """
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
        """The number of bytes in storage that belong to the array, without metadata.

        Objects that already existed in the storage, and that `encode` did not write, do not count.
        """
        metadata_bytes = sum(segment.size for segment in self.zarr_metadata)
        return sum(length for _, length in self.object_extents.values()) - metadata_bytes

    def __reduce__(self) -> tuple[Callable[..., Manifest], tuple[bytes, str | None]]:
        """Pickle the manifest as canonical JSON, so that equal manifests have equal pickles."""
        key = None if self.encryption is None else self.encryption.key
        if isinstance(key, bytes):
            raise TypeError(
                f"the coded array {self.name!r} cannot be pickled, because it was opened with the bytes of "
                "its key: open it with key='env:NAME' or key='file:PATH'"
            )
        return _restore_pickled_manifest, (
            _to_canonical_json(self._to_json_fields(get_code_parameters(self.code))),
            key,
        )

    def to_bytes(self) -> bytes:
        """Convert the manifest to the JSON document that is stored."""
        array, version, tag = self._to_json_fields(serialize_code(self.code)), FORMAT_VERSION, {}
        if self.encryption is not None:
            version = ENCRYPTED_FORMAT_VERSION
            tag = {"tag": self.encryption.compute_tag(_to_canonical_json(array)).hex()}
        array_json = _to_canonical_json(array)
        header = {"format": FORMAT_NAME, "version": version, **tag, "crc32": zlib.crc32(array_json)}
        header_json = json.dumps(header, separators=(",", ":")).encode()
        return header_json[:-1] + ARRAY_FIELD + array_json + b"}"

    def _to_json_fields(self, code_fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return the description of the array as a dict of JSON types.

        `code_fields` is the entry "code" of the dict, which describes the code.
        """
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
        """Parse and validate a stored manifest, as written by `to_bytes`.

        Parameters
        ----------
        data : bytes
            The JSON document.
        description : str
            What to call the manifest in error messages, which begin with this text.
        key : str or bytes, optional
            The key of an encrypted array. If given, the manifest is verified to have been written with this
            key, and not to have been modified since.

        Raises
        ------
        StorageError
            If the document is damaged, inconsistent or not authentic, or has an unknown version.
        """
        try:
            document = json.loads(data)
            is_coded_array = document["format"] == FORMAT_NAME
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise StorageError(f"{description} is damaged: it is not valid JSON") from error
        if not is_coded_array:
            raise StorageError(f"{description} is not the manifest of a coded array")
        array_fields = document.get("array")
        is_encrypted = isinstance(array_fields, dict) and "encryption" in array_fields
        if document.get("version") != (ENCRYPTED_FORMAT_VERSION if is_encrypted else FORMAT_VERSION):
            raise StorageError(
                f"{description} has format version {document.get('version')!r}, but this version of polarmap "
                f"reads version {FORMAT_VERSION} ({ENCRYPTED_FORMAT_VERSION} of encrypted arrays)"
            )
        if document.get("crc32") != _compute_array_checksum(data, array_fields):
            raise StorageError(f"{description} is damaged: its checksum is wrong")
        if key is not None and not is_encrypted:
            raise StorageError(f"{description} describes an array that is not encrypted: leave key out")
        with convert_parse_errors_to_storage_errors(description):
            encryption = _parse_encryption(array_fields, key)
        if encryption is not None and key is not None:
            _verify_authentication_tag(document, encryption, description)
        with convert_parse_errors_to_storage_errors(description):
            for field in ("dtype", "parity_dtype"):
                if not _DTYPE_PATTERN.fullmatch(array_fields[field]):
                    raise ValueError(f"{field} {array_fields[field]!r} is not a numeric dtype")
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
            segments=_parse_blocks(array_fields["blocks"]),
            has_scalar_blocks=array_fields.get("scalars", False),
            zarr_view=_parse_zarr_view(array_fields.get("zarr")),
            encryption=encryption,
            transaction_id=array_fields.get("run", ""),
        )

    def _check_consistency(self, rows_per_block: Any, parity_dtype: str) -> None:
        """Raise ValueError if entries of the manifest contradict each other.

        The arguments are entries of the JSON document that are redundant, i.e. that can be computed from
        other entries. They must have the values computed from these entries.
        """
        segments = [*itertools.chain.from_iterable(self.segments), *self.zarr_metadata]
        check_object_keys([segment.key for segment in segments])
        numbers = [*self.shape, rows_per_block]
        numbers += [segment.size for segment in segments]
        numbers += [segment.offset for segment in segments]
        numbers += [segment.crc32 for segment in segments if segment.crc32 is not None]
        if set(map(type, numbers)) != {int} or min(numbers) < 0:
            raise ValueError("a size, offset or checksum is not a nonnegative integer")
        if not self.shape or self.rows_per_block != rows_per_block:
            raise ValueError(f"{self.code.k} blocks of {rows_per_block} rows do not hold shape {self.shape}")
        if self.has_scalar_blocks and self.shape != (self.code.k,):
            raise ValueError(f"{self.code.k} blocks of one number do not form an array of shape {self.shape}")
        if self.parity_dtype != parity_dtype:
            raise ValueError(
                f"the parity of {self.dtype} data has dtype {self.parity_dtype}, not {parity_dtype}"
            )
        if len(self.segments) != self.code.n:
            raise ValueError(
                f"the manifest lists {len(self.segments)} blocks, but the code has {self.code.n}"
            )
        if self.stripe_bounds[-1] != prod(self.block_shape):
            raise ValueError(
                f"the segments of a block hold {self.stripe_bounds[-1]} numbers, not {prod(self.block_shape)}"
            )
        stripe_sizes = np.diff(self.stripe_bounds).tolist()
        expected_sizes = [
            [self.get_block_dtype(block_index).itemsize * length for length in stripe_sizes]
            for block_index in (0, self.code.n - 1)
        ]
        for block_index, block_segments in enumerate(self.segments):
            is_parity = block_index >= self.code.k
            if [segment.size for segment in block_segments] != expected_sizes[is_parity]:
                raise ValueError(f"block {block_index} is not cut into the same stripes as block 0")
        if self.zarr_view is not None:
            check_object_key(self.zarr_view.path)
            self.zarr_view.check(
                get_array_key_prefix(self.name), self.shape, rows_per_block, self.stripe_bounds
            )
        if self.encryption is not None and self.zarr_view is not None:
            raise ValueError("an encrypted array cannot have a Zarr array")


@contextmanager
def convert_parse_errors_to_storage_errors(description: str) -> Iterator[None]:
    """Convert exceptions from parsing an invalid JSON document in a `with` block to StorageError.

    The error message begins with `description`, a name for the document.
    """
    try:
        yield
    except (*PARSE_ERRORS, StorageError) as error:
        raise StorageError(f"{description} is inconsistent: {type(error).__name__}: {error}") from error


def _parse_blocks(blocks: Sequence[Sequence[Mapping[str, Any]]]) -> tuple[tuple[Segment, ...], ...]:
    """Parse the JSON list of blocks. Return the segments (byte ranges of objects) of each block."""
    segments = map(_parse_segment, itertools.chain.from_iterable(blocks))
    return tuple([tuple(itertools.islice(segments, n_stripes)) for n_stripes in map(len, blocks)])


def _parse_segment(fields: Mapping[str, Any]) -> Segment:
    return Segment._make(_get_segment_fields(fields))


def _parse_zarr_view(fields: Mapping[str, Any] | None) -> ZarrView | None:
    """Parse the description of the Zarr array. Return None if the coded array has no Zarr array."""
    if fields is None:
        return None
    metadata = tuple(map(_parse_segment, fields["metadata"]))
    return ZarrView(fields["path"], tuple(fields["chunk_shape"]), metadata)


def _parse_encryption(array_fields: Mapping[str, Any], key: str | bytes | None) -> Encryption | None:
    """Parse an array's encryption parameters, and add its key. Return None if it is not encrypted."""
    if "encryption" not in array_fields:
        return None
    fields = array_fields["encryption"]
    if fields["cipher"] != CIPHER_NAME:
        raise ValueError(f"the cipher {fields['cipher']!r} is not {CIPHER_NAME}")
    return Encryption(key or "", bytes.fromhex(fields["salt"]), bytes.fromhex(fields["check"]))


def _verify_authentication_tag(document: Mapping[str, Any], encryption: Encryption, description: str) -> None:
    """Raise StorageError unless a manifest was written with the array's key and is unchanged."""
    try:
        if document.get("tag") != encryption.compute_tag(_to_canonical_json(document["array"])).hex():
            raise StorageError(f"{description} was not written with this key, or has been changed since")
    except KeyUnavailableError as error:
        raise StorageError(f"{description} cannot be verified: {error}") from error


def _restore_pickled_manifest(json_bytes: bytes, key: str | None) -> Manifest:
    array_fields = json.loads(json_bytes)
    return Manifest._from_json_fields(
        array_fields, PolarCode(**array_fields["code"]), _parse_encryption(array_fields, key)
    )


def get_code_parameters(code: PolarCode) -> dict[str, Any]:
    """Return the keyword arguments with which `PolarCode` creates a code equal to `code`."""
    parameters = {field: getattr(code, field) for field in ("n", "k", "kernel", "decoder")}
    if code.levels_option is not None:
        parameters["levels"] = code.levels_option
    if code.n_groups > 1:
        parameters["groups"] = code.n_groups
    # The design erasure probability is None (the default), one number for all workers, or one per worker.
    erasure = code.erasure_option
    erasure_field = None if erasure is None else np.asarray(erasure, float).tolist()
    return {**parameters, "erasure": erasure_field, "seed": int(code.seed)}


def serialize_code(code: PolarCode) -> dict[str, Any]:
    """Convert a code to a JSON-serializable dict of its parameters and a few parity values.

    The parity values serve to verify that a code rebuilt from the parameters is the same.
    """
    return {**get_code_parameters(code), "probe": compute_code_fingerprint(code)}


def deserialize_code(fields: Mapping[str, Any]) -> PolarCode:
    """Rebuild a code from the result of `serialize_code`.

    Raises CodeError if the rebuilt code does not reproduce the recorded parity values.
    """
    parameters = {**fields}
    expected_probe = parameters.pop("probe")
    code = PolarCode(**parameters)
    if not np.allclose(compute_code_fingerprint(code), expected_probe, rtol=1e-9, atol=1e-9):
        raise CodeError("this version of polarmap computes different parity blocks from these parameters")
    return code


def compute_code_fingerprint(code: PolarCode) -> list[float]:
    """Return up to eight parity values of fixed data. Codes with different values are different.

    The data is a column of k numbers, x_j = j mod 7. The first four and the last four of its parity values
    are returned.
    """
    values = (np.arange(code.k) % 7).astype(np.float64)[:, None]
    parity: list[float] = code.encode_parity(values)[:, 0].tolist()
    return parity[:4] + parity[-4:]


def _compute_array_checksum(data: bytes, array_fields: Any) -> int:
    """Return the CRC-32 of the canonical JSON of the array.

    Parameters
    ----------
    data : bytes
        The manifest, which is a JSON document.
    array_fields
        The entry "array" of the parsed document.

    Notes
    -----
    Documents written by `to_bytes` end with the canonical JSON of the array. In this case, the checksum is
    computed from `data`, which saves a third of the time to open an array of 100,000 blocks. Other programs
    may format the document differently. Then `array_fields` is serialized again.
    """
    header, separator, array_json = data.partition(ARRAY_FIELD)
    checksum = zlib.crc32(array_json[:-1])
    if separator and f'"crc32":{checksum}'.encode() in header:
        return checksum
    return zlib.crc32(_to_canonical_json(array_fields))


def _to_canonical_json(array_fields: Any) -> bytes:
    return json.dumps(array_fields, sort_keys=True, separators=(",", ":")).encode()
