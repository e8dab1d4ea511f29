"""Bytes that lie in storage, named part by part, and how to read them back: verified, or not at all.

They are files below a folder, or objects in a bucket of Lithops; `storage` is a `lithops.Storage`, needed
for buckets. Runs on workers too: imports the standard library only.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import zlib
from collections.abc import Callable, Iterable
from operator import attrgetter
from threading import get_ident
from typing import Any, NamedTuple

MAPPED_BYTES = 1 << 18  # smaller parts of files are read
# How files are mapped; pages that are entered one by one are slow.
READ_ONLY: dict[str, int] = (
    {"flags": mmap.MAP_SHARED | mmap.MAP_POPULATE, "prot": mmap.PROT_READ}
    if hasattr(mmap, "MAP_POPULATE")
    else {"access": mmap.ACCESS_READ}
)


class Part(NamedTuple):
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


class Place(NamedTuple):
    """Where objects lie."""

    # "folder" of a file system, "private" ones as `private_files` has them, "bucket" of a Lithops storage,
    # the "driver" that is to be asked, the "message" that a block travels in, "dask" or "ray" that has it.
    kind: str
    place: str  # the path or the name
    backend: str = ""  # Lithops' name for the storage that holds the bucket; empty for a folder
    encryption: Any = None  # its fields, if there is one: parts have no CRC-32 then


MESSAGE = Place("message", "")


class DamagedError(Exception):
    """Stored bytes are missing, too few or not what was written.

    kind : "missing", "truncated", "corrupt" or "forged".
    """

    def __init__(self, text: str, kind: str = "") -> None:
        super().__init__(text)
        self.kind = kind


Reader = Callable[[Part], Any]


def verified(part: Part, data: Any) -> Any:
    """`data` if it is what `part` says, else DamagedError."""
    if len(data) != part.size:
        raise truncated(part, len(data))
    if part.crc32 is not None and zlib.crc32(data) != part.crc32:
        raise DamagedError(f"{part.key} is corrupt: its checksum is not the one in the manifest", "corrupt")
    return data


def read_file(folder: str, part: Part) -> bytes | memoryview:
    """The bytes of a part below `folder`, mapped if they are many; DamagedError if there is no file.

    They are fewer if it is shorter.
    """
    try:
        with open(os.path.join(folder, part.key), "rb", buffering=0) as file:
            there = min(part.size, os.fstat(file.fileno()).st_size - part.offset)
            if there < MAPPED_BYTES:
                file.seek(part.offset)
                return file.read(part.size)
            begin = part.offset - part.offset % mmap.ALLOCATIONGRANULARITY
            length = part.offset - begin + there
            mapped = mmap.mmap(file.fileno(), length, **READ_ONLY, offset=begin)
    except FileNotFoundError:
        raise missing(part) from None
    return memoryview(mapped)[part.offset - begin :]


def write_file(folder: str, key: str, *buffers: Any) -> None:
    """A file below `folder`, of these bytes in a row, that appears whole or not at all."""
    path = os.path.join(folder, key)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    unfinished = f"{path}.{os.getpid()}-{get_ident()}.unfinished"
    try:
        with open(unfinished, "wb") as file:
            file.writelines(buffers)
        os.replace(unfinished, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(unfinished)
        raise


def read_part(source: Place, part: Part, storage: Any = None) -> Any:
    """The bytes of a part as they lie there; DamagedError if there is none."""
    if source.kind == "folder":
        return read_file(source.place, part)
    bounds = {"Range": f"bytes={part.offset}-{part.offset + part.size - 1}"}
    try:
        return storage.get_object(source.place, part.key, extra_get_args=bounds)
    except Exception as error:
        if is_missing(error):
            raise missing(part) from None
        if "InvalidRange" in str(error):
            raise truncated(part, 0) from None
        raise


def missing(part: Part) -> DamagedError:
    """What is raised where a storage says that it has no such object."""
    return DamagedError(f"{part.key} is missing", "missing")


def truncated(part: Part, there: int) -> DamagedError:
    """What is raised where an object ends after so many bytes of the part."""
    return DamagedError(f"{part.key} has {there} of {part.size} bytes from {part.offset} on", "truncated")


def write_object(place: Place, key: str, data: Any, storage: Any = None) -> None:
    """A new object, or a file that appears whole or not at all."""
    if place.kind == "folder":
        write_file(place.place, key, data)
    else:
        storage.put_object(place.place, key, bytes(data))


def remove_parts(place: Place, parts: Iterable[Part], storage: Any = None) -> None:
    """Take objects out of storage again."""
    for key in {part.key for part in parts}:
        if place.kind == "folder":
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(place.place, key))
        else:
            storage.delete_object(place.place, key)


def is_missing(error: Exception) -> bool:
    """Whether a storage says that there is no such object; Lithops has one error for all of them."""
    return type(error).__name__ == "StorageNoSuchKeyError"


def drop_inherited_connections(storage: Any) -> None:
    """Drop the keep-alive connections of a `lithops.Storage`, so that requests open new ones."""
    # Since Lithops 3.8 a task runs in a process that was forked of one that goes on to use these connections.
    # Requests of both on one connection get each other's answers. Clients for Redis notice a fork themselves.
    with contextlib.suppress(AttributeError):  # no storage, another client, or one without a connection
        storage.get_client()._endpoint.http_session._manager.clear()  # S3 and IBM Cloud
    for session in ("_http", "_pipeline._transport.session"):  # Google Cloud, Azure
        with contextlib.suppress(AttributeError):
            for adapter in attrgetter(session)(storage.get_client()).adapters.values():
                adapter.poolmanager.clear()
