"""Bytes that lie in storage, named part by part, and how to read them back: verified, or not at all.

They are files below a folder, or objects in a bucket of Lithops; `storage` is a `lithops.Storage`, needed
for buckets. Runs on workers too: imports the standard library only.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
import zlib
from collections.abc import Callable, Iterable
from threading import get_ident
from time import monotonic, sleep
from typing import Any, NamedTuple, TypeVar

MAPPED_BYTES = 1 << 18  # smaller parts of files are read
# How files are mapped; pages that are entered one by one are slow.
READ_ONLY: dict[str, int] = (
    {"flags": mmap.MAP_SHARED | mmap.MAP_POPULATE, "prot": mmap.PROT_READ}
    if hasattr(mmap, "MAP_POPULATE")
    else {"access": mmap.ACCESS_READ}
)
AWAY_SECONDS = 30.0  # that a storage which has answered before may be away
PRIVATE, OTHERS = 0o700, 0o077  # mode of a folder of one user alone, and what others may do
FIRST_PAUSE = 0.1  # seconds before it is asked again, then twice as long each time


class Part(NamedTuple):
    """A run of bytes of one object.

    key : of the object in its bucket, or its path below a folder; empty for zeros that lie nowhere.
    size : in bytes.
    crc32 : `zlib.crc32` of the bytes, or None if they are only being written now; in the manifest of
        an array, None if they were never written.
    offset : where in the object they begin.
    """

    key: str
    size: int
    crc32: int | None = None
    offset: int = 0


class Place(NamedTuple):
    """Where objects lie.

    kind : "folder" of a file system, "private" ones as `read_private` takes them, "bucket" of a Lithops
        storage, the "driver" that is to be asked, or the "message" that a block travels in.
    place : the path or the name.
    backend : Lithops' name for the storage that holds the bucket; empty for a folder.
    encryption : its fields, if there is one: parts have no CRC-32 then.
    """

    kind: str
    place: str
    backend: str = ""
    encryption: Any = None


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


# --- files of a driver and its workers on one machine, two levels below a folder of this user alone ----


def make_private(folder: str) -> bool:
    """Let such a folder be there, also where somebody has removed it; whether it was not there.

    OSError if something else is, or if its file system cannot keep others out.
    """
    is_new = True
    try:
        os.mkdir(folder, PRIVATE)
    except FileExistsError:
        is_new = False
    if _mode_of_own(folder) != PRIVATE:
        os.chmod(folder, PRIVATE)
        check_private(folder)
    return is_new


def check_private(folder: str) -> None:
    """OSError for a folder in which others may have put files: what lies in such a one is read as code."""
    if _mode_of_own(folder) & OTHERS:
        raise PermissionError(f"{folder} is open to others")


def _mode_of_own(folder: str) -> int:
    status = os.lstat(folder)
    is_own = not hasattr(os, "getuid") or status.st_uid == os.getuid()
    if not stat.S_ISDIR(status.st_mode) or not is_own:
        raise PermissionError(f"something else is in the place of {folder}")
    return stat.S_IMODE(status.st_mode) if hasattr(os, "getuid") else PRIVATE  # Windows has no such modes


def write_private(path: str, *buffers: Any) -> None:
    """Such a file, of these bytes in a row; OSError if others could read or replace it."""
    folder, name = os.path.split(path)
    make_private(os.path.dirname(folder))
    write_file(folder, name, *buffers)


def read_private(source: Place, part: Part) -> bytes | memoryview:
    """The bytes of a part of such a file; DamagedError if there is none that only this user can have put."""
    try:
        check_private(os.path.dirname(os.path.dirname(os.path.join(source.place, part.key))))
    except OSError:
        raise missing(part) from None
    return read_file(source.place, part)


# --- a storage that may only be away for a moment: restarting, or too busy ------------------------

Result = TypeVar("Result")

_BUSY = ("SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "500", "502", "503", "504")
# By name: whichever library raises them need not be installed here.
_BROKEN = (
    *("Connection", "Connect", "Timeout", "Timed", "Incomplete", "Protocol", "Streaming", "BusyLoading"),
    *("FileNotFound", "FileExists"),  # a storage of files removes empty folders while others write there
)


def retry_call(request: Callable[[], Result], seconds: float = AWAY_SECONDS) -> Result:
    """The answer to a request, which is made again for so long while it may yet succeed.

    >>> retry_call(iter([1, 2]).__next__, seconds=0.0)
    1
    """
    deadline, pause = monotonic() + seconds, FIRST_PAUSE
    while True:
        try:
            return request()
        except Exception as error:
            if not is_transient(error) or monotonic() + pause > deadline:
                raise
        sleep(pause)
        pause = min(2 * pause, 1.0)


def is_transient(error: Exception) -> bool:
    """Whether the same request may succeed in a moment."""
    code = s3_error_code(error)
    if code:
        return code in _BUSY
    names = [one.__name__ for one in type(error).__mro__]
    if any("Auth" in name for name in names):
        return False
    return any(part in name for name in names for part in _BROKEN)


def s3_error_code(error: Exception) -> str:
    """The code in an answer of S3; empty if it is none."""
    response = getattr(error, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""
