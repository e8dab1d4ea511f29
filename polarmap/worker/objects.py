"""A channel of objects in any storage: one object tells all workers what to do, each reply is another.

Both sides poll: often when something has come, then ever less until something comes again.
Runs on workers: imports the standard library only.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import time
from typing import Any, NamedTuple

from polarmap.worker.parts import is_missing
from polarmap.worker.retries import AWAY_SECONDS, retry_call
from polarmap.worker.stream import Message, frame

FIRST_POLL_SECONDS = 0.002  # between looks when something has come
SLOW_POLL_SECONDS = 0.01  # the same where the storage takes as long to answer
POLL_GROWTH = 1.2
LAST_POLL_SECONDS = 1.0  # between looks when nothing has come for long
POLLS_PER_MESSAGE = 25  # from SLOW_POLL_SECONDS to LAST_POLL_SECONDS: log(1 / 0.01) / log(1.2)
BEAT_SECONDS = 5.0  # between signs of life of either side: without any for AWAY_SECONDS, it is gone


def next_pause(last: float, took: float) -> float:
    """Seconds between two looks, the first of which took so long: more than between those before it.

    last : that pause; 0.0 when something has come.

    >>> next_pause(0.0, 0.0), next_pause(0.0, 0.1), next_pause(0.5, 0.1), next_pause(1.0, 0.1)
    (0.002, 0.01, 0.6, 1.0)
    """
    return min(LAST_POLL_SECONDS, max(FIRST_POLL_SECONDS, POLL_GROWTH * last, min(took, SLOW_POLL_SECONDS)))


class Orders(NamedTuple):
    """What one object tells all workers. Plain data.

    beat : changes as long as the driver lives.
    data : of messages, by digest: each once for all workers; large ones are objects of their own.
    messages : from the number of each worker to those that it has not said to have: the number of each, the
        fields of the `Message`, and the digest of its data, which are left out.
    """

    beat: int
    data: dict[bytes, bytes]
    messages: dict[int, list[tuple[int, tuple[Any, ...], bytes | None]]]


class ObjectKeys(NamedTuple):
    """What the two sides call their objects."""

    prefix: str

    @property
    def orders(self) -> str:
        """The key of the object of messages to workers; gone with the driver."""
        return f"{self.prefix}/orders"

    @property
    def replies(self) -> str:
        """What the keys of all replies begin with."""
        return f"{self.prefix}/replies/"

    def data(self, digest: bytes) -> str:
        """The key of the object of large data of messages."""
        return f"{self.prefix}/data/{digest.hex()}"

    def reply(self, said: Said) -> str:
        """The key of the object of one message of a worker."""
        return self.replies + "-".join(f"{field:d}" for field in said)

    def said(self, key: str) -> Said | None:
        """What such a key tells; None if it is none."""
        try:
            return Said(*map(int, key[len(self.replies) :].split("-")))
        except (TypeError, ValueError):
            return None


class Said(NamedTuple):
    """What the key of a reply tells: whose it is, and how far that worker has come.

    instance : another one if its site has started the worker again.
    sequence : of its objects, from 1 on.
    latest : number of the message that it received last; 0: none yet.
    sent : number of the message that this is, or of the last one before this sign of life.
    size : bytes of the reply: a listing may show one that is still being written. 0: a sign of life.
    """

    number: int
    instance: int
    sequence: int
    latest: int
    sent: int
    size: int


class ObjectChannel:
    """The worker's side.

    storage : a `lithops.Storage`.
    """

    def __init__(self, storage: Any, bucket: str, prefix: str, number: int) -> None:
        self._storage, self._bucket, self._keys = storage, bucket, ObjectKeys(prefix)
        self._number, self._instance = number, int.from_bytes(os.urandom(4), "big")
        self._sequence = itertools.count(1)
        self._latest = self._sent = 0  # numbers of the messages that were received and sent last
        self._read, self._orders = b"", Orders(-1, {}, {})  # the same, as it lay there last
        self._read_at, self._changed_at = -1.0, time.monotonic()
        self._is_known = False  # to the driver, which has orders for it from then on
        self._next_sign = time.monotonic() + BEAT_SECONDS
        self._pause = 0.0  # before the next look

    def receive(self, timeout: float | None) -> tuple[list[Message], bool]:
        """What the driver says next, as soon as it does within so many seconds, and whether it is there.

        It is not once it has said goodbye, has let this worker go, or gives no sign of life for long. It is
        looked no more often than is of use.
        """
        said = list(iter(self._unread, None))
        now = time.monotonic()
        if said or (timeout == 0.0 and now < self._read_at + SLOW_POLL_SECONDS):
            return said, True
        deadline = now + (LAST_POLL_SECONDS if timeout is None else timeout)
        while True:
            began = time.monotonic()
            is_there = self._look()
            said, ended = list(iter(self._unread, None)), time.monotonic()
            if said or not is_there or ended >= deadline:
                return said, is_there
            self._pause = next_pause(self._pause, ended - began)
            time.sleep(min(deadline - ended, self._pause))

    def send(self, message: Message) -> bool:
        """True: the driver will be told. It is put again while the storage is away, whose error is raised."""
        data = frame(message)
        retry_call(lambda: self._put(data, self._sent + 1))
        self._sent += 1
        return True

    def is_closed(self) -> bool:
        """Return whether the driver is gone. Look, and store a heartbeat for it, every BEAT_SECONDS."""
        if time.monotonic() < self._next_sign:
            return False
        self._next_sign = time.monotonic() + BEAT_SECONDS
        if not self._look():
            return True
        with contextlib.suppress(Exception):  # the storage is away: the next one may reach it
            self._put(b"", self._sent)
        return False

    def close(self) -> None:
        """Do nothing: the channel holds no connection of its own."""

    def _look(self) -> bool:
        """Read the orders, and return whether the driver is there and has not let this worker go."""
        now = self._read_at = time.monotonic()
        try:
            read = bytes(self._storage.get_object(self._bucket, self._keys.orders))
            if read != self._read:
                self._read, self._orders, self._changed_at = read, Orders(*pickle.loads(read)), now
        except Exception as error:  # half an object; or the storage is away for a moment
            if is_missing(error):
                self._remove_replies()
                return False
        has_orders = self._number in self._orders.messages
        self._is_known |= has_orders
        return now <= self._changed_at + AWAY_SECONDS and (has_orders or not self._is_known)

    def _unread(self) -> Message | None:
        """The next message of those that were read; None if there is none."""
        messages = self._orders.messages.get(self._number, ())
        count, fields, digest = next((one for one in messages if one[0] > self._latest), (0, (), None))
        if not count:
            return None
        message = Message(*fields)
        if digest is not None:
            data = self._orders.data.get(digest)
            if data is None:
                try:
                    data = bytes(self._storage.get_object(self._bucket, self._keys.data(digest)))
                except Exception:  # the driver needs it no more: it took us for gone; or the storage is away
                    return None
            message = message._replace(data=data)
        self._latest, self._pause = count, 0.0
        return message

    def _remove_replies(self) -> None:
        """Remove the replies of this worker. The driver has cleaned up and removes no later ones."""
        prefix = f"{self._keys.replies}{self._number:d}-{self._instance:d}-"
        with contextlib.suppress(Exception):  # the next look tries again, if there is any
            if keys := self._storage.list_keys(self._bucket, prefix):
                self._storage.delete_objects(self._bucket, keys)

    def _put(self, data: bytes, sent: int) -> None:
        """One object more: a message, or a sign of life if it is empty."""
        said = Said(self._number, self._instance, next(self._sequence), self._latest, sent, len(data))
        self._storage.put_object(self._bucket, self._keys.reply(said), data)
