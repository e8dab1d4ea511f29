"""A channel of lists in Redis, where a driver's storage is one: both sides wait in the server.

Runs on workers: imports the standard library only.
"""

from __future__ import annotations

import pickle
import threading
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from polarmap.worker.frames import frame

BEAT_SECONDS = 3.0  # between signs of life of a worker
WAIT_SECONDS = 1.0  # that the server is asked to wait at a time: longer than that, clients give up
GOODBYE_SECONDS = 10  # after its last sign of life a driver is taken to be gone


class RedisKeys(NamedTuple):
    """What the two sides call their lists."""

    prefix: str

    @property
    def driver(self) -> str:
        """Exists for as long as the driver lives."""
        return f"{self.prefix}/driver"

    @property
    def to_driver(self) -> str:
        """Of what all workers say: number and frame."""
        return f"{self.prefix}/up"

    def to_worker(self, number: int) -> str:
        """Of what is said to this worker."""
        return f"{self.prefix}/down/{number}"


class RedisChannel:
    """The worker's side.

    client : a `redis.Redis`.
    """

    def __init__(self, client: Any, prefix: str, number: int) -> None:
        self._client, self._keys, self._number = client, RedisKeys(prefix), number
        self._received: deque[bytes] = deque()
        self._is_over = threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()

    def receive(self, timeout: float | None) -> Any:
        """What the driver says next; None if nothing within a second."""
        wait = WAIT_SECONDS if timeout is None else min(timeout, WAIT_SECONDS)
        found = self._client.blpop([self._keys.to_worker(self._number)], timeout=wait)
        if found is not None:
            return pickle.loads(found[1])
        if self.is_closed():
            raise ConnectionError("the driver has given no sign of life")
        return None

    def send(self, fields: Any, data: Any = b"") -> None:
        """A message to the driver."""
        self._client.rpush(self._keys.to_driver, self._number.to_bytes(8, "big") + frame(fields, data))

    def has_message(self) -> bool:
        """Whether the driver has said something."""
        return bool(self._client.llen(self._keys.to_worker(self._number)))

    def is_closed(self) -> bool:
        """Whether the driver has given no sign of life for some time, or said goodbye."""
        return not self._client.exists(self._keys.driver)

    def close(self) -> None:
        """Give no more signs of life."""
        self._is_over.set()

    def _beat(self) -> None:
        """Give signs of life, whatever the task does."""
        while not self._is_over.wait(BEAT_SECONDS):
            try:
                self.send({"alive": True})
            except Exception:  # the server is away: the next one may reach it
                continue


def first_of(found: Sequence[bytes]) -> tuple[int, bytes]:
    """The number of the worker, and what it says."""
    data = found[1]
    return int.from_bytes(data[:8], "big"), data[8:]
