"""The storage of a Lithops configuration or executor, with clients that do not wait for minutes."""

from __future__ import annotations

import copy
import os
import time
import uuid
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

from polarmap.errors import ExecutorError, StorageError, warn
from polarmap.executors.lithops_internals import impatient_storage, storage_settings

TIMEOUT = 10  # seconds to connect, and to wait for the next byte; whoever asks decides how often
PREFIX = "polarmap"  # of all keys of maps
SETTLE_SECONDS = 0.1  # that a storage may take to finish a PUT whose sender is gone
PROBE_BYTES = 1024
REMOVE_PAUSES = (0.0, 0.1, 0.5, 2.0, 0.0)  # seconds before looking again whether objects are gone


def open_storage(choice: Any) -> tuple[Any, str]:
    """A `lithops.Storage` of our own and its bucket, for a YAML path or a FunctionExecutor.

    Raises
    ------
    StorageError
        If Lithops cannot make one of it.
    """
    if isinstance(choice, (str, os.PathLike)):
        file = Path(choice)
        if not file.is_file():
            raise StorageError(f"there is no Lithops configuration {str(file)!r}")
        storage = _built(f"{str(file)!r}", partial(storage_settings, file))
    else:
        storage = _built(
            f"lithops/{choice.backend}", lambda: copy.deepcopy(choice.storage.get_storage_config())
        )
        storage.bucket = choice.storage.bucket  # which may be one that it made itself
    return storage, str(storage.bucket)


def _built(where: str, settings: Callable[[], dict[str, Any]]) -> Any:
    """A storage with these settings; StorageError names where they come from."""
    try:
        return impatient_storage(settings(), TIMEOUT)
    except Exception as error:
        raise StorageError(f"Lithops has no storage for {where}: {type(error).__name__}: {error}") from error


def delete_below(storage: Any, prefix: str) -> int:
    """Ask for what lies below a prefix to be deleted; how many objects that were.

    S3 answers with those that it did not delete, of which Lithops says nothing: so ask until there are none.
    """
    keys = storage.list_keys(storage.bucket, prefix)
    if keys:
        storage.delete_objects(storage.bucket, keys)
    return len(keys)


def remove_all(storage: Any, prefixes: Collection[str]) -> None:
    """Remove what lies below them; raises what the storage does."""
    for prefix in prefixes:
        for pause in REMOVE_PAUSES:
            found = delete_below(storage, prefix)
            if not found:
                break
            time.sleep(pause)
        else:
            raise StorageError(f"the storage does not delete {found} objects below {prefix!r}")


def remove_objects(storage: Any, prefixes: Collection[str]) -> None:
    """Remove what lies below them; a storage that is down must not hide why a map ended."""
    try:
        remove_all(storage, prefixes)
    except Exception as error:
        warn(f"objects below {', '.join(prefixes)} in bucket {storage.bucket!r} may be left: {error}")


def probe_storage(functions: Any) -> float:
    """Seconds to put, get and delete a small object; ExecutorError says which of them failed."""
    storage, data = functions.storage, os.urandom(PROBE_BYTES)
    key = f"{PREFIX}/{uuid.uuid4().hex}/probe"
    began, step = time.monotonic(), "written"
    try:
        storage.put_object(storage.bucket, key, data)
        step = "read back"
        same = bytes(storage.get_object(storage.bucket, key)) == data
        step = "deleted"
        storage.delete_object(storage.bucket, key)
    except Exception as error:
        raise ExecutorError(
            f"an object in bucket {storage.bucket!r} could not be {step}: {type(error).__name__}: {error}"
        ) from error
    if not same:
        raise ExecutorError(f"an object in bucket {storage.bucket!r} was read back with other bytes")
    return time.monotonic() - began
