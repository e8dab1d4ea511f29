"""A channel of objects in any storage: one object tells all workers what to do, each reply is another.

Both sides poll: often while something is under way, ever less when nothing is.
Runs on workers: imports the standard library only.
"""

from __future__ import annotations

import pickle
import threading
import time
from typing import Any, NamedTuple

from polarmap.worker.frames import frame
from polarmap.worker.objects import is_missing

FIRST_POLL_SECONDS = 0.01  # between looks while something is expected
POLL_GROWTH = 1.2
LAST_POLL_SECONDS = 1.0  # between looks when nothing has come for long
BEAT_SECONDS = 5.0  # between signs of life of either side
GOODBYE_SECONDS = 20.0  # without any, the other side is taken to be gone


class Orders(NamedTuple):
    """What one object tells all workers. Plain data.

    beat : changes as long as the driver lives.
    functions : pickled ones by digest, each once for all workers.
    messages : from the number of a worker to the number of its latest message, the message, and the
        digest of its function.
    """

    beat: int
    functions: dict[bytes, bytes]
    messages: dict[int, tuple[int, Any, bytes | None]]


class ObjectKeys(NamedTuple):
    """What the two sides call their objects."""

    prefix: str

    @property
    def orders(self) -> str:
        """Of what is said to workers; gone with the driver."""
        return f"{self.prefix}/orders"

    @property
    def replies(self) -> str:
        """What the keys of all replies begin with."""
        return f"{self.prefix}/up/"

    def reply(self, number: int, count: int, is_beat: bool) -> str:
        """Of something that a worker says; a sign of life is empty."""
        return f"{self.replies}{number}-{count:012d}-{'beat' if is_beat else 'said'}"


class ObjectChannel:
    """The worker's side.

    storage : a `lithops.Storage`.
    """

    def __init__(self, storage: Any, bucket: str, prefix: str, number: int) -> None:
        self._storage, self._bucket = storage, bucket
        self._keys, self._number = ObjectKeys(prefix), number
        self._latest = -1  # message that was received
        self._beat, self._beat_at = -1, time.monotonic()
        self._count, self._sending = 0, threading.Lock()
        self._poll_seconds = FIRST_POLL_SECONDS
        self._next_look = 0.0
        self._is_over = threading.Event()
        threading.Thread(target=self._give_signs, daemon=True).start()

    def receive(self, timeout: float | None) -> Any:
        """What the driver says next; None if nothing within so many seconds."""
        deadline = time.monotonic() + (LAST_POLL_SECONDS if timeout is None else timeout)
        while True:
            message = self._look(take=True)
            if message is not None:
                self._poll_seconds = FIRST_POLL_SECONDS
                return message
            rest = deadline - time.monotonic()
            if rest <= 0:
                return None
            time.sleep(min(rest, self._poll_seconds))
            self._poll_seconds = min(LAST_POLL_SECONDS, POLL_GROWTH * self._poll_seconds)

    def send(self, fields: Any, data: Any = b"") -> None:
        """A message to the driver."""
        self._put(frame(fields, data), is_beat=False)

    def has_message(self) -> bool:
        """Whether the driver has said something."""
        return self._look(take=False) is not None

    def is_closed(self) -> bool:
        """Whether the driver has given no sign of life for some time; looks seldom."""
        if time.monotonic() < self._next_look:
            return False
        self._next_look = time.monotonic() + BEAT_SECONDS
        try:
            self._look(take=False)
        except ConnectionError:
            return True
        return False

    def close(self) -> None:
        """Give no more signs of life."""
        self._is_over.set()

    def _look(self, take: bool) -> Any:
        """The driver's latest message if it is a new one; ConnectionError if it is gone."""
        now = time.monotonic()
        try:
            orders = Orders(*pickle.loads(self._storage.get_object(self._bucket, self._keys.orders)))
        except Exception as error:
            if is_missing(error) or now > self._beat_at + GOODBYE_SECONDS:
                raise ConnectionError("the driver is gone") from error
            return None  # the storage is away for a moment
        if orders.beat != self._beat:
            self._beat, self._beat_at = orders.beat, now
        elif now > self._beat_at + GOODBYE_SECONDS:
            raise ConnectionError("the driver has given no sign of life")
        count, message, digest = orders.messages.get(self._number, (-1, None, None))
        if count <= self._latest:
            return None
        if take:
            self._latest = count
        return message if digest is None else with_function(message, orders.functions[digest])

    def _give_signs(self) -> None:
        while not self._is_over.wait(BEAT_SECONDS):
            try:
                self._put(b"", is_beat=True)
            except Exception:  # the storage is away: the next one may reach it
                continue

    def _put(self, data: bytes, is_beat: bool) -> None:
        """One object more; in the order in which they were put."""
        with self._sending:
            self._count += 1
            self._storage.put_object(self._bucket, self._keys.reply(self._number, self._count, is_beat), data)


def with_function(message: Any, f: Any) -> Any:
    """A message that a task is to be done, with this function."""
    kind, fields = message
    return kind, (*fields[:3], f, *fields[4:])
