"""Objects as workers read and write them: files below a folder, or objects in a bucket of Lithops.

Runs on workers too: imports the standard library only. `storage` is a `lithops.Storage`, needed for buckets.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from typing import Any

from polarmap.worker.parts import DamagedError, Part, Place, read_file, write_file


def read_part(source: Place, part: Part, storage: Any = None) -> Any:
    """The bytes of a part as they are stored; DamagedError if it is not there."""
    if not part.key:
        return bytes(part.size)
    if source.kind == "folder":
        return read_file(source.place, part)
    if source.kind == "message":
        return part.key
    if not part.size:
        return b""
    bounds = {"Range": f"bytes={part.offset}-{part.offset + part.size - 1}"}
    try:
        return storage.get_object(source.place, part.key, extra_get_args=bounds)
    except Exception as error:
        if is_missing(error) or "InvalidRange" in str(error):
            raise DamagedError(
                f"{part.key} is missing or shorter than {part.offset + part.size} bytes"
            ) from None
        raise


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
