"""Read, verify and write segments: byte ranges of stored objects, with a checksum.

A block in storage consists of one or more segments. This module also runs on workers, so it imports only the
standard library.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import zlib
from collections.abc import Callable
from operator import attrgetter
from threading import get_ident
from typing import Any, NamedTuple

MIN_MAPPED_BYTES = 1 << 18  # Byte ranges of at least this size are memory-mapped.

# Load all pages when a file is mapped, which is faster than a page fault for each page later.
MMAP_OPTIONS: dict[str, int] = (
    {"flags": mmap.MAP_SHARED | mmap.MAP_POPULATE, "prot": mmap.PROT_READ}
    if hasattr(mmap, "MAP_POPULATE")
    else {"access": mmap.ACCESS_READ}
)


class Segment(NamedTuple):
    """A byte range of a stored object, such as a file.

    Attributes
    ----------
    key : str
        The key of the object in its bucket, or its path below a folder. Empty for a segment of zeros, which
        is not stored.
    size : int
        The number of bytes before encryption.
    crc32 : int or None
        The `zlib.crc32` checksum of the stored bytes. None if there is no checksum, or if the bytes have not
        been written yet.
    offset : int
        The position in the object at which the range starts, in bytes.
    """

    key: str
    size: int
    crc32: int | None = None
    offset: int = 0


class DamagedError(Exception):
    """Raised if stored bytes are missing, truncated, or different from the bytes that were written.

    Parameters
    ----------
    message : str
        The text of the error.
    kind : str
        The kind of damage: "missing", "truncated", "corrupt" or "forged". Empty if unknown.
    """

    def __init__(self, message: str, kind: str = "") -> None:
        super().__init__(message)
        self.kind = kind


SegmentReader = Callable[[Segment], Any]


def encode_segment_range(segment: Segment) -> bytes:
    """Encode a segment (a byte range of a stored object) as text, to request it from the driver.

    >>> decode_segment_range(encode_segment_range(Segment("a b", 3, None, 8)))
    Segment(key='a b', size=3, crc32=None, offset=8)
    """
    return f"{segment.offset} {segment.size} {segment.key}".encode()


def decode_segment_range(text: bytes | bytearray) -> Segment:
    """Decode a worker's request for a segment (a byte range). Raises ValueError if the text is invalid."""
    offset, size, key = text.decode().split(" ", 2)
    return Segment(key, int(size), None, int(offset))


def check_segment_integrity(segment: Segment, data: Any) -> Any:
    """Return `data` if its size and checksum are those of the segment. Raises DamagedError otherwise."""
    if len(data) != segment.size:
        raise make_truncated_segment_error(segment, len(data))
    if segment.crc32 is not None and zlib.crc32(data) != segment.crc32:
        raise DamagedError(
            f"{segment.key} is corrupt: its checksum is not the one in the manifest", "corrupt"
        )
    return data


def read_file_segment(folder: str, segment: Segment) -> bytes | memoryview:
    """Return the bytes of a segment (a byte range of a file) below `folder`.

    A large segment is memory-mapped instead of read. If the file ends before the segment does, fewer bytes
    are returned. Raises DamagedError if the file does not exist.
    """
    try:
        with open(os.path.join(folder, segment.key), "rb", buffering=0) as file:
            n_available = min(segment.size, os.fstat(file.fileno()).st_size - segment.offset)
            if n_available < MIN_MAPPED_BYTES:
                file.seek(segment.offset)
                return file.read(segment.size)
            map_start = segment.offset - segment.offset % mmap.ALLOCATIONGRANULARITY
            map_length = segment.offset - map_start + n_available
            mapped = mmap.mmap(file.fileno(), map_length, **MMAP_OPTIONS, offset=map_start)
    except FileNotFoundError:
        raise make_missing_segment_error(segment) from None
    return memoryview(mapped)[segment.offset - map_start :]


def write_file(folder: str, key: str, *buffers: Any) -> None:
    """Write the concatenated buffers to the file `key` below `folder`.

    This is atomic: readers never see an incomplete file.
    """
    path = os.path.join(folder, key)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    staging_path = f"{path}.{os.getpid()}-{get_ident()}.unfinished"
    try:
        with open(staging_path, "wb") as file:
            file.writelines(buffers)
        os.replace(staging_path, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(staging_path)
        raise


def make_missing_segment_error(segment: Segment) -> DamagedError:
    """Return the error to raise if the object that contains a segment (a byte range) does not exist."""
    return DamagedError(f"{segment.key} is missing", "missing")


def make_truncated_segment_error(segment: Segment, n_available: int) -> DamagedError:
    """Return the error to raise if an object ends after `n_available` bytes of a segment (a byte range)."""
    return DamagedError(
        f"{segment.key} has {n_available} of {segment.size} bytes from {segment.offset} on", "truncated"
    )


def make_fetch_timeout_error(task: int, seconds: float, place: str, segment: Segment) -> TimeoutError:
    """Return the error to raise if a worker could not read a task's data block within `seconds`.

    `place` is the name of the storage that failed to return the segment in time.
    """
    return TimeoutError(
        f"block {task} was not read within {seconds:g} s, as {place} has not returned {segment.key}: check "
        "the storage, or pass a longer time as Pool(fetch_timeout=...)"
    )


def is_missing_object_error(error: Exception) -> bool:
    """Return whether a Lithops storage error means that the requested object does not exist."""
    return type(error).__name__ == "StorageNoSuchKeyError"


def drop_inherited_connections(storage: Any) -> None:
    """Close the keep-alive connections of a `lithops.Storage`, so that new ones are opened.

    Call this in a forked process, which must not use the same connections as its parent.
    """
    # Since Lithops 3.8, a task runs in a forked process whose parent continues to use the same connections.
    # Each process could receive responses to the other's requests. Redis clients detect a fork themselves.
    with contextlib.suppress(AttributeError):  # The client of another storage has no such attribute.
        storage.get_client()._endpoint.http_session._manager.clear()  # clients of S3 and IBM Cloud
    for session_path in ("_http", "_pipeline._transport.session"):  # clients of Google Cloud and Azure
        with contextlib.suppress(AttributeError):
            for adapter in attrgetter(session_path)(storage.get_client()).adapters.values():
                adapter.poolmanager.clear()
