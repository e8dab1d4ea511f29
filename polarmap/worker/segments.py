"""Segments, the checksummed byte ranges of stored objects: verify their bytes, and read and write files.

Runs on workers too: imports the standard library only.
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

MIN_MAPPED_BYTES = 1 << 18  # smaller parts of files are read
# How files are mapped; pages that are entered one by one are slow.
MMAP_OPTIONS: dict[str, int] = (
    {"flags": mmap.MAP_SHARED | mmap.MAP_POPULATE, "prot": mmap.PROT_READ}
    if hasattr(mmap, "MAP_POPULATE")
    else {"access": mmap.ACCESS_READ}
)


class Segment(NamedTuple):
    """A range of bytes of one object.

    key : the name in a bucket or the path below a folder; empty for zeros, which are not stored.
    size : in bytes.
    crc32 : `zlib.crc32` of the bytes; None before they are written.
    offset : of the first byte in the object.
    """

    key: str
    size: int
    crc32: int | None = None
    offset: int = 0


class DamagedError(Exception):
    """Stored bytes are missing, too few or not what was written.

    kind : "missing", "truncated", "corrupt" or "forged".
    """

    def __init__(self, message: str, kind: str = "") -> None:
        super().__init__(message)
        self.kind = kind


SegmentReader = Callable[[Segment], Any]


def check_segment_integrity(segment: Segment, data: Any) -> Any:
    """`data` if it is what `segment` says, else DamagedError."""
    if len(data) != segment.size:
        raise make_truncated_segment_error(segment, len(data))
    if segment.crc32 is not None and zlib.crc32(data) != segment.crc32:
        raise DamagedError(
            f"{segment.key} is corrupt: its checksum is not the one in the manifest", "corrupt"
        )
    return data


def read_file_segment(folder: str, segment: Segment) -> bytes | memoryview:
    """The bytes of a part below `folder`, mapped if they are many; DamagedError if there is no file.

    They are fewer if it is shorter.
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
    """A file below `folder`, of these bytes in a row, that appears whole or not at all."""
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
    """What is raised where a storage says that it has no such object."""
    return DamagedError(f"{segment.key} is missing", "missing")


def make_truncated_segment_error(segment: Segment, n_available: int) -> DamagedError:
    """What is raised where an object ends after so many bytes of the part."""
    return DamagedError(
        f"{segment.key} has {n_available} of {segment.size} bytes from {segment.offset} on", "truncated"
    )


def is_missing_object_error(error: Exception) -> bool:
    """Whether a storage says that there is no such object; Lithops has one error for all of them."""
    return type(error).__name__ == "StorageNoSuchKeyError"


def drop_inherited_connections(storage: Any) -> None:
    """Drop the keep-alive connections of a `lithops.Storage`, so that requests open new ones."""
    # Since Lithops 3.8 a task runs in a process that was forked of one that goes on to use these connections.
    # Requests of both on one connection get each other's answers. Clients for Redis notice a fork themselves.
    with contextlib.suppress(AttributeError):  # no storage, another client, or one without a connection
        storage.get_client()._endpoint.http_session._manager.clear()  # S3 and IBM Cloud
    for session_path in ("_http", "_pipeline._transport.session"):  # Google Cloud, Azure
        with contextlib.suppress(AttributeError):
            for adapter in attrgetter(session_path)(storage.get_client()).adapters.values():
                adapter.poolmanager.clear()
