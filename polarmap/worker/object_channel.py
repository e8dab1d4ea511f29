"""A channel of objects in any storage: one object tells all workers what to do, each reply is another.

Both sides poll: often when something has come, then ever less until something comes again.
Runs on workers: imports the standard library only.
"""

from __future__ import annotations

import pickle
import threading
import time
from typing import Any, NamedTuple

from polarmap.worker.frames import Message, frame
from polarmap.worker.parts import is_missing
from polarmap.worker.retry import retry_call

FIRST_POLL_SECONDS = 0.002  # between looks when something has come
SLOW_POLL_SECONDS = 0.01  # the same where the storage takes as long to answer
POLL_GROWTH = 1.2
LAST_POLL_SECONDS = 1.0  # between looks when nothing has come for long
POLLS_PER_MESSAGE = 25  # from SLOW_POLL_SECONDS to LAST_POLL_SECONDS: log(1 / 0.01) / log(1.2)
BEAT_SECONDS = 5.0  # between signs of life of either side
GOODBYE_SECONDS = 20.0  # without any, the other side is taken to be gone


class Orders(NamedTuple):
    """What one object tells all workers. Plain data.

    beat : changes as long as the driver lives.
    functions : pickled ones by digest, each once for all workers; large ones are objects of their own.
    messages : from the number of a worker to those that it has not said to have: the number of each, the
        message, pickled, and the digest of its function.
    """

    beat: int
    functions: dict[bytes, bytes]
    messages: dict[int, list[tuple[int, bytes, bytes | None]]]


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
        return f"{self.prefix}/replies/"

    def function(self, digest: bytes) -> str:
        """Of a large function."""
        return f"{self.prefix}/functions/{digest.hex()}"

    def reply(self, said: Said) -> str:
        """Of something that a worker says."""
        return self.replies + "-".join(f"{field:d}" for field in said)

    def said(self, key: str) -> Said | None:
        """What such a key tells; None if it is none."""
        try:
            return Said(*map(int, key[len(self.replies) :].split("-")))
        except (TypeError, ValueError):
            return None


class Said(NamedTuple):
    """What the key of a reply tells: whose it is, and how far that worker has come.

    sequence : number of what it has said, from 1 on.
    latest : number of the message that it received last; 0: none yet.
    size : bytes of the reply: a listing may show one that is still being written. 0: a sign of life.
    """

    number: int
    sequence: int
    latest: int
    is_idle: int
    size: int


class ObjectChannel:
    """The worker's side. Signs of life tell the latest message that was received, and whether it is done.

    storage : a `lithops.Storage`.
    """

    def __init__(self, storage: Any, bucket: str, prefix: str, number: int) -> None:
        self._storage, self._bucket, self._keys = storage, bucket, ObjectKeys(prefix)
        self._number, self._latest, self._is_idle = number, 0, True
        self._read, self._orders = b"", Orders(-1, {}, {})  # the same, as it lay there last
        self._changed_at = self._read_at = time.monotonic()
        self._count = 0
        self._poll_seconds = FIRST_POLL_SECONDS
        self._next_look = 0.0
        self._is_over, self._sending = threading.Event(), threading.Lock()
        threading.Thread(target=self._give_signs, daemon=True).start()

    def receive(self, timeout: float | None) -> Any:
        """What the driver says next; None if nothing within so many seconds.

        ConnectionError when it has said goodbye, or given no sign of life for long.
        """
        self._is_idle = True
        found = self._next(LAST_POLL_SECONDS if timeout is None else timeout)
        if found is None:
            return None
        self._poll_seconds = FIRST_POLL_SECONDS
        self._latest, message = found
        self._is_idle = False
        return message

    def send(self, message: Message) -> None:
        """A message to the driver, put again while the storage is away."""
        data = frame(message)
        retry_call(lambda: self._put(data))

    def has_message(self) -> bool:
        """Whether the driver has said something; looks no more often than it is of use."""
        is_recent = time.monotonic() < self._read_at + SLOW_POLL_SECONDS
        return (self._unread() if is_recent else self._look()) is not None

    def is_closed(self) -> bool:
        """Whether the driver has said goodbye, or given no sign of life for long; looks seldom."""
        if time.monotonic() < self._next_look:
            return False
        self._next_look = time.monotonic() + BEAT_SECONDS
        try:
            self._read_orders()
        except ConnectionError:
            return True
        return False

    def close(self) -> None:
        """Give no more signs of life."""
        self._is_over.set()

    def _next(self, timeout: float) -> tuple[int, Any] | None:
        """The driver's next message and its number; None if there is none within so many seconds."""
        deadline = time.monotonic() + timeout
        while True:
            began = time.monotonic()
            found = self._look()
            ended = time.monotonic()
            if found is not None or ended >= deadline:
                return found
            self._poll_seconds = max(self._poll_seconds, min(ended - began, SLOW_POLL_SECONDS))
            time.sleep(min(deadline - ended, self._poll_seconds))
            self._poll_seconds = min(LAST_POLL_SECONDS, POLL_GROWTH * self._poll_seconds)

    def _look(self) -> tuple[int, Any] | None:
        """The driver's next message, if there is any; ConnectionError if the driver is gone."""
        found = self._unread()
        if found is None:
            self._read_orders()
            found = self._unread()
        return found

    def _read_orders(self) -> None:
        """Read what the driver tells all workers; ConnectionError if the driver is gone."""
        now = self._read_at = time.monotonic()
        try:
            read = bytes(self._storage.get_object(self._bucket, self._keys.orders))
            if read != self._read:
                self._read, self._orders, self._changed_at = read, Orders(*pickle.loads(read)), now
        except Exception as error:  # half an object; or the storage is away for a moment
            if is_missing(error) or now > self._changed_at + GOODBYE_SECONDS:
                raise ConnectionError("the driver is gone") from error
            return
        if now > self._changed_at + GOODBYE_SECONDS:
            raise ConnectionError("the driver has given no sign of life")

    def _unread(self) -> tuple[int, Any] | None:
        """The next message of those that were read, and its number; None if there is none."""
        messages = self._orders.messages.get(self._number, ())
        count, message, digest = next((one for one in messages if one[0] > self._latest), (0, b"", None))
        if not count:
            return None
        if digest is None:
            return count, pickle.loads(message)
        function = self._orders.functions.get(digest)
        if function is None:
            try:
                function = bytes(self._storage.get_object(self._bucket, self._keys.function(digest)))
            except Exception:  # the driver needs it no more: it took us for gone; or the storage is away
                return None
        return count, with_function(pickle.loads(message), function)

    def _give_signs(self) -> None:
        while not self._is_over.wait(BEAT_SECONDS):
            try:
                self._put(b"")
            except Exception:  # the storage is away: the next one may reach it
                continue

    def _put(self, data: bytes) -> None:
        """One object more: a message, or a sign of life if it is empty."""
        with self._sending:  # in the order of their numbers
            self._count += 1
            said = Said(self._number, self._count, self._latest, self._is_idle, len(data))
            self._storage.put_object(self._bucket, self._keys.reply(said), data)


def with_function(message: Any, f: Any) -> Any:
    """A message that a task is to be done, with this function."""
    kind, fields = message
    return kind, (*fields[:3], f, *fields[4:])
