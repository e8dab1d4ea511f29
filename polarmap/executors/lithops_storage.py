"""The storage of a Lithops configuration or executor, with clients that do not wait for minutes."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from polarmap.errors import ExecutorError, StorageError, warn
from polarmap.executors.block_store import WithDriver
from polarmap.executors.lithops_internals import impatient_storage, storage_settings
from polarmap.worker.io_lithops import delete_below
from polarmap.worker.parts import Place
from polarmap.worker.retry import retry_call

TIMEOUT = 10  # seconds to connect, and to wait for the next byte; whoever asks decides how often
PREFIX = "polarmap"  # of all keys of maps
REMOVE_PAUSES = (0.0, 0.1, 0.5, 2.0, 0.0)  # seconds before looking again whether objects are gone


def open_storage(choice: Any) -> tuple[Any, str]:
    """A `lithops.Storage` of our own and its bucket, for a YAML path or a FunctionExecutor.

    Raises
    ------
    StorageError
        If Lithops cannot make one of it.
    """
    file = Path(choice) if isinstance(choice, (str, os.PathLike)) else None
    where = f"lithops/{choice.backend}" if file is None else repr(str(file))
    if file is not None and not file.is_file():
        raise StorageError(f"there is no Lithops configuration {where}")
    try:
        found = choice.storage.get_storage_config() if file is None else storage_settings(file)
        storage = impatient_storage(copy.deepcopy(found), TIMEOUT)
    except Exception as error:
        raise StorageError(f"Lithops has no storage for {where}: {type(error).__name__}: {error}") from error
    if file is None:
        storage.bucket = choice.storage.bucket  # which may be one that it made itself
    return storage, str(storage.bucket)


def remove_objects(storage: Any, prefixes: Sequence[str]) -> None:
    """Remove what lies below them; a storage that is down must not hide why a map ended."""
    try:
        for prefix in prefixes:
            for pause in REMOVE_PAUSES:
                if not delete_below(storage, storage.bucket, prefix):
                    break
                time.sleep(pause)
            else:
                raise StorageError(f"the storage does not delete what lies below {prefix!r}")
    except Exception as error:
        warn(f"objects below {', '.join(prefixes)} in bucket {storage.bucket!r} may be left: {error}")


class InBucket(WithDriver):
    """The bytes of blocks in the bucket of a `lithops.Storage`."""

    has_bytes = is_parallel = True

    def __init__(self, storage: Any, prefix: str) -> None:
        super().__init__(prefix)
        self.place, self._storage = Place("bucket", storage.bucket, storage.backend), storage

    def put(self, key: str, buffers: Sequence[Any]) -> None:
        """An object."""
        bucket = self._storage.bucket
        try:
            retry_call(partial(self._storage.put_object, bucket, key, b"".join(buffers)))
        except Exception as error:
            raise ExecutorError(
                f"nothing can be stored in bucket {bucket!r}: {type(error).__name__}: {error}"
            ) from error

    def remove(self, roots: Sequence[str]) -> None:
        """Their objects."""
        for root in roots:
            delete_below(self._storage, self._storage.bucket, f"{root}/")
