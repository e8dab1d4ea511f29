"""A channel of lists in Redis, where a driver's storage is one: both sides wait in the server.

Runs on workers: imports the standard library only.
"""

from __future__ import annotations

import pickle
import struct
import time
from typing import Any, NamedTuple

from polarmap.worker.storage_channel import AWAY_SECONDS, StorageChannel

BEAT_SECONDS = 3.0  # between signs of life of either side
WAIT_SECONDS = 1.0  # that the server is asked to wait at a time: longer than that, clients give up
KEPT_SECONDS = 60  # that what nobody reads any more is kept
GOODBYE_SECONDS = 12.0  # that a driver's sign of life is kept
LIVES, GOODBYE = b"lives", b"goodbye"  # what the driver's key holds
HEADER = ">QqBB"  # of what a worker says: its number, the latest message, whether it is idle, and a sign


class RedisKeys(NamedTuple):
    """What the two sides call their lists."""

    prefix: str

    @property
    def driver(self) -> str:
        """Whether the driver lives."""
        return f"{self.prefix}/driver"

    @property
    def to_driver(self) -> str:
        """Of what all workers say."""
        return f"{self.prefix}/to-driver"

    def to_worker(self, number: int) -> str:
        """Of what is said to this worker: only the latest."""
        return f"{self.prefix}/to-worker/{number}"


class RedisChannel(StorageChannel):
    """The worker's side.

    client : a `redis.Redis`.
    """

    def __init__(self, client: Any, prefix: str, number: int) -> None:
        self._client, self._keys = client, RedisKeys(prefix)
        self._seen_at = self._answered_at = time.monotonic()
        super().__init__(number, BEAT_SECONDS)

    def take(self, timeout: float | None) -> tuple[int, Any] | None:
        """The driver's next message and its number; None if there is none within a second."""
        wait = WAIT_SECONDS if timeout is None else min(timeout, WAIT_SECONDS)
        try:
            found = self._client.blpop([self._keys.to_worker(self.number)], timeout=wait)
        except Exception:  # the server is away
            found = None
            time.sleep(wait)
        if found is None:
            if self.is_closed():
                raise ConnectionError("the driver is gone")
            return None
        count, message = pickle.loads(found[1])
        return (count, message) if count > self.latest else None  # else it was sent again

    def put(self, data: bytes, is_sign: bool) -> None:
        """Append a message, or a sign of life, to the driver's list."""
        header = struct.pack(HEADER, self.number, self.latest, self.is_idle, is_sign)
        self._client.rpush(self._keys.to_driver, header + data)
        if is_sign:  # and not for each message: they are to be fast
            self._client.expire(self._keys.to_driver, KEPT_SECONDS)

    def has_message(self) -> bool:
        """Whether the driver has said something."""
        return bool(self._client.llen(self._keys.to_worker(self.number)))

    def is_closed(self) -> bool:
        """Whether the driver has given no sign of life for some time, or said goodbye."""
        now = time.monotonic()
        try:
            said = self._client.get(self._keys.driver)
        except Exception:  # the server is away, and the driver has time to come back with it
            self._seen_at = now + BEAT_SECONDS
            return now > self._answered_at + AWAY_SECONDS
        self._answered_at = now
        if said == LIVES:
            self._seen_at = now
        return bool(said == GOODBYE or now > self._seen_at + BEAT_SECONDS)
