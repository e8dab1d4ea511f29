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

from polarmap.worker.messages import Message, encode_frame
from polarmap.worker.retries import OUTAGE_SECONDS, retry_request
from polarmap.worker.segments import is_missing_object_error

MIN_POLL_INTERVAL = 0.002  # between looks when something has come
SLOW_STORAGE_POLL_INTERVAL = 0.01  # the same where the storage takes as long to answer
POLL_INTERVAL_GROWTH = 1.2
MAX_POLL_INTERVAL = 1.0  # between looks when nothing has come for long
N_POLLS_PER_MESSAGE = 25  # from SLOW_STORAGE_POLL_INTERVAL to MAX_POLL_INTERVAL: log(1 / 0.01) / log(1.2)
HEARTBEAT_SECONDS = 5.0  # between signs of life of either side: without any for OUTAGE_SECONDS, it is gone


def compute_next_poll_interval(previous_interval: float, poll_seconds: float) -> float:
    """Seconds between two looks, the first of which took so long: more than between those before it.

    previous_interval : that pause; 0.0 when something has come.

    >>> compute_next_poll_interval(0.0, 0.0), compute_next_poll_interval(0.0, 0.1)
    (0.002, 0.01)
    >>> compute_next_poll_interval(0.5, 0.1), compute_next_poll_interval(1.0, 0.1)
    (0.6, 1.0)
    """
    interval = max(POLL_INTERVAL_GROWTH * previous_interval, min(poll_seconds, SLOW_STORAGE_POLL_INTERVAL))
    return min(MAX_POLL_INTERVAL, max(MIN_POLL_INTERVAL, interval))


class Mailbox(NamedTuple):
    """What one object tells all workers. Plain data.

    heartbeat : changes as long as the driver lives.
    payloads : of messages, by digest: each once for all workers; large ones are objects of their own.
    messages : from the number of each worker to those that it has not said to have: the number of each, the
        fields of the `Message`, and the digest of its data, which are left out.
    """

    heartbeat: int
    payloads: dict[bytes, bytes]
    messages: dict[int, list[tuple[int, tuple[Any, ...], bytes | None]]]


class ChannelKeys(NamedTuple):
    """What the two sides call their objects."""

    prefix: str

    @property
    def mailbox_key(self) -> str:
        """The key of the object of messages to workers; gone with the driver."""
        return f"{self.prefix}/orders"

    @property
    def reply_prefix(self) -> str:
        """What the keys of all replies begin with."""
        return f"{self.prefix}/replies/"

    def make_payload_key(self, digest: bytes) -> str:
        """The key of the object of large data of messages."""
        return f"{self.prefix}/data/{digest.hex()}"

    def format_reply_key(self, reply_key: ReplyKey) -> str:
        """The key of the object of one message of a worker."""
        return self.reply_prefix + "-".join(f"{field:d}" for field in reply_key)

    def parse_reply_key(self, object_key: str) -> ReplyKey | None:
        """What such a key tells; None if it is none."""
        try:
            return ReplyKey(*map(int, object_key[len(self.reply_prefix) :].split("-")))
        except (TypeError, ValueError):
            return None


class ReplyKey(NamedTuple):
    """What the key of a reply tells: whose it is, and how far that worker has come.

    instance_id : another one if its site has started the worker again.
    sequence_number : of its objects, from 1 on.
    last_received : number of the message that it received last; 0: none yet.
    last_sent : number of the message that this is, or of the last one before this sign of life.
    size : bytes of the reply: a listing may show one that is still being written. 0: a sign of life.
    """

    worker_id: int
    instance_id: int
    sequence_number: int
    last_received: int
    last_sent: int
    size: int


class StorageChannel:
    """The worker's side.

    storage : a `lithops.Storage`.
    """

    def __init__(self, storage: Any, bucket: str, prefix: str, worker_id: int) -> None:
        self._storage, self._bucket, self._keys = storage, bucket, ChannelKeys(prefix)
        self._worker_id, self._instance_id = worker_id, int.from_bytes(os.urandom(4), "big")
        self._sequence_numbers = itertools.count(1)
        self._last_received = self._last_sent = 0  # numbers of the messages that were received and sent last
        self._mailbox_bytes, self._mailbox = b"", Mailbox(-1, {}, {})  # the same, as it lay there last
        self._polled_at, self._mailbox_changed_at = -1.0, time.monotonic()
        self._is_registered = False  # to the driver, which has orders for it from then on
        self._next_heartbeat_at = time.monotonic() + HEARTBEAT_SECONDS
        self._poll_interval = 0.0  # before the next look

    def receive(self, timeout: float | None) -> tuple[list[Message], bool]:
        """What the driver says next, as soon as it does within so many seconds, and whether it is there.

        It is not once it has said goodbye, has let this worker go, or gives no sign of life for long. It is
        looked no more often than is of use.
        """
        messages = list(iter(self._pop_next_unread_message, None))
        now = time.monotonic()
        if messages or (timeout == 0.0 and now < self._polled_at + SLOW_STORAGE_POLL_INTERVAL):
            return messages, True
        deadline = now + (MAX_POLL_INTERVAL if timeout is None else timeout)
        while True:
            started_at = time.monotonic()
            is_connected = self._poll_mailbox()
            messages, finished_at = list(iter(self._pop_next_unread_message, None)), time.monotonic()
            if messages or not is_connected or finished_at >= deadline:
                return messages, is_connected
            self._poll_interval = compute_next_poll_interval(self._poll_interval, finished_at - started_at)
            time.sleep(min(deadline - finished_at, self._poll_interval))

    def send(self, message: Message) -> bool:
        """True: the driver will be told. It is put again while the storage is away, whose error is raised."""
        data = encode_frame(message)
        retry_request(lambda: self._put_reply(data, self._last_sent + 1))
        self._last_sent += 1
        return True

    def is_peer_closed(self) -> bool:
        """Return whether the driver is gone. Look, and store a heartbeat for it, every HEARTBEAT_SECONDS."""
        if time.monotonic() < self._next_heartbeat_at:
            return False
        self._next_heartbeat_at = time.monotonic() + HEARTBEAT_SECONDS
        if not self._poll_mailbox():
            return True
        with contextlib.suppress(Exception):  # the storage is away: the next one may reach it
            self._put_reply(b"", self._last_sent)
        return False

    def close(self) -> None:
        """Do nothing: the channel holds no connection of its own."""

    def _poll_mailbox(self) -> bool:
        """Read the orders, and return whether the driver is there and has not let this worker go."""
        now = self._polled_at = time.monotonic()
        try:
            mailbox_bytes = bytes(self._storage.get_object(self._bucket, self._keys.mailbox_key))
            if mailbox_bytes != self._mailbox_bytes:
                self._mailbox = Mailbox(*pickle.loads(mailbox_bytes))
                self._mailbox_bytes = mailbox_bytes
                self._mailbox_changed_at = now
        except Exception as error:  # half an object; or the storage is away for a moment
            if is_missing_object_error(error):
                self._remove_replies()
                return False
        has_messages = self._worker_id in self._mailbox.messages
        self._is_registered |= has_messages
        return now <= self._mailbox_changed_at + OUTAGE_SECONDS and (has_messages or not self._is_registered)

    def _pop_next_unread_message(self) -> Message | None:
        """The next message of those that were read; None if there is none."""
        messages = self._mailbox.messages.get(self._worker_id, ())
        new_messages = (entry for entry in messages if entry[0] > self._last_received)
        sequence_number, fields, digest = next(new_messages, (0, (), None))
        if not sequence_number:
            return None
        message = Message(*fields)
        if digest is not None:
            data = self._mailbox.payloads.get(digest)
            if data is None:
                try:
                    data = bytes(self._storage.get_object(self._bucket, self._keys.make_payload_key(digest)))
                except Exception:  # the driver needs it no more: it took us for gone; or the storage is away
                    return None
            message = message._replace(data=data)
        self._last_received, self._poll_interval = sequence_number, 0.0
        return message

    def _remove_replies(self) -> None:
        """Remove the replies of this worker. The driver has cleaned up and removes no later ones."""
        prefix = f"{self._keys.reply_prefix}{self._worker_id:d}-{self._instance_id:d}-"
        with contextlib.suppress(Exception):  # the next look tries again, if there is any
            if keys := self._storage.list_keys(self._bucket, prefix):
                self._storage.delete_objects(self._bucket, keys)

    def _put_reply(self, data: bytes, last_sent: int) -> None:
        """One object more: a message, or a sign of life if it is empty."""
        identity = self._worker_id, self._instance_id, next(self._sequence_numbers)
        reply_key = ReplyKey(*identity, self._last_received, last_sent, len(data))
        self._storage.put_object(self._bucket, self._keys.format_reply_key(reply_key), data)
