"""What the tasks of a map and their driver leave for each other in a Lithops storage, besides blocks."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from functools import partial
from typing import Any

from polarmap.errors import ExecutorError
from polarmap.executors.lithops_storage import PREFIX, remove_objects
from polarmap.worker.frames import Frames, Message
from polarmap.worker.io_lithops import Address
from polarmap.worker.retry import retry_call

LISTING_SECONDS = 0.1  # between looks for results of subtasks


class MapObjects:
    """A sign that somebody waits, and the results of subtasks, below a prefix of their own.

    Attributes
    ----------
    address : Address
        By which workers find them.
    """

    def __init__(self, storage: Any) -> None:
        self._storage = storage
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

    def partial_results(self) -> list[Message]:
        """The results of subtasks that workers have stored since the last look."""
        if time.monotonic() < self._next_listing:
            return []
        try:
            keys = self._storage.list_keys(self.address.bucket, f"{self.address.prefix}/subtask/")
        except Exception:  # the ends of the tasks tell what cannot be reached
            keys = []
        found = [self._taken(key) for key in sorted(keys) if key not in self._told]
        self._next_listing = time.monotonic() + LISTING_SECONDS
        return [message for message in found if message is not None]

    def rest_of(self, task: int, attempt: int, subtasks: Sequence[int]) -> tuple[list[Message], int]:
        """The results of these subtasks that were not told yet, and how many could not be read."""
        keys = [self.address.subtask_key(task, attempt, subtask) for subtask in subtasks]
        taken = [self._taken(key) for key in keys if key not in self._told]
        found = [message for message in taken if message is not None]
        return found, len(taken) - len(found)

    def remove(self, others: Sequence[str] = ()) -> None:
        """Remove all that lies below the prefix, blocks too, and below others."""
        remove_objects(self._storage, [f"{self.address.prefix}/", *others])

    def _taken(self, key: str) -> Message | None:
        """The result of a subtask, once; None while its object is still being written."""
        try:
            [message] = Frames().of(bytes(self._storage.get_object(self.address.bucket, key)))
        except Exception:
            return None
        self._told.add(key)
        return message
