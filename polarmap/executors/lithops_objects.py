"""What the tasks of a map and their driver leave for each other in a Lithops storage, besides blocks."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from functools import partial
from typing import Any

from polarmap.errors import ExecutorError
from polarmap.executors.lithops_storage import PREFIX, remove_objects
from polarmap.worker.io_lithops import Address
from polarmap.worker.messages import Reply, reply_of_bytes
from polarmap.worker.retry import retry_call

LISTING_SECONDS = 0.1  # between looks for results of subtasks


class MapObjects:
    """A sign that somebody waits, and the results of subtasks, below a prefix of their own.

    Attributes
    ----------
    address : Address
        By which workers find them.
    """

    def __init__(self, storage: Any, is_sealed: bool) -> None:
        self._storage, self._is_sealed = storage, is_sealed
        self.address = Address(storage.bucket, f"{PREFIX}/{uuid.uuid4().hex}")
        self._told: set[str] = set()  # keys of results of subtasks
        self._next_listing = 0.0

    def put_sign(self) -> None:
        """From now on somebody waits for results."""
        bucket, key = self.address.bucket, self.address.liveness_key
        try:
            retry_call(partial(self._storage.put_object, bucket, key, b"alive"))
        except Exception as error:
            raise ExecutorError(
                f"nothing can be stored in bucket {bucket!r}: {type(error).__name__}: {error}"
            ) from error

    def remove_sign(self) -> None:
        """Nobody waits for results any more."""
        self._storage.delete_object(self.address.bucket, self.address.liveness_key)

    def partial_results(self) -> list[Reply]:
        """The results of subtasks that workers have stored since the last look."""
        if time.monotonic() < self._next_listing:
            return []
        try:
            keys = self._storage.list_keys(self.address.bucket, f"{self.address.prefix}/subtask/")
        except Exception:  # the ends of the tasks tell what cannot be reached
            keys = []
        found = [self._taken(key) for key in sorted(keys) if key not in self._told]
        self._next_listing = time.monotonic() + LISTING_SECONDS
        return [reply for reply in found if reply is not None]

    def rest_of(self, task: int, attempt: int, subtasks: Sequence[int]) -> tuple[list[Reply], int]:
        """The results of these subtasks that were not told yet, and how many could not be read."""
        keys = [self.address.subtask_key(task, attempt, subtask) for subtask in subtasks]
        taken = [self._taken(key) for key in keys if key not in self._told]
        found = [reply for reply in taken if reply is not None]
        return found, len(taken) - len(found)

    def remove(self, others: Sequence[str] = ()) -> None:
        """Remove all that lies below the prefix, blocks too, and below others."""
        remove_objects(self._storage, [f"{self.address.prefix}/", *others])

    def _taken(self, key: str) -> Reply | None:
        """The result of a subtask, once; None while its object is still being written."""
        try:
            task, attempt, _ = map(int, key.rpartition("/")[2].split("-"))
            sealed_of = (task, attempt) if self._is_sealed else None
            reply = reply_of_bytes(bytes(self._storage.get_object(self.address.bucket, key)), sealed_of)
        except Exception:
            return None
        if reply is not None:
            self._told.add(key)
        return reply
