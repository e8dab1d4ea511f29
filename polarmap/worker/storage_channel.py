"""Exchange messages between a driver and its workers by objects in a storage.

    <prefix>/orders            the mailbox: messages to all workers; replaced by the driver, polled by workers
    <prefix>/data/<digest>     large data of these messages
    <prefix>/replies/<fields>  one object for each message or heartbeat of a worker; listed by the driver

Used where workers cannot reach their driver by a socket. Both ends poll: often after a message, and then with
exponential backoff until the next message.
Runs on workers: imports the standard library only.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import re
import time
from typing import Any, NamedTuple

from polarmap.worker.messages import (
    PROTOCOL_VERSION,
    FrameDecoder,
    Message,
    ProtocolMismatchError,
    check_protocol_version,
    encode_frame,
)
from polarmap.worker.retries import OUTAGE_SECONDS, retry_request
from polarmap.worker.segments import is_missing_object_error

MIN_POLL_INTERVAL = 0.002  # seconds between polls after a message, for a fast storage
SLOW_STORAGE_POLL_INTERVAL = 0.01  # seconds between polls after a message, for a slow storage
POLL_INTERVAL_GROWTH = 1.2  # factor by which the interval grows with each poll without a message
MAX_POLL_INTERVAL = 1.0  # maximum seconds between polls
N_POLLS_PER_MESSAGE = 25  # from SLOW_STORAGE_POLL_INTERVAL to MAX_POLL_INTERVAL: log(1 / 0.01) / log(1.2)
HEARTBEAT_SECONDS = 5.0  # seconds between heartbeats; after OUTAGE_SECONDS without one, an end is lost
# Pattern of the version of the protocol and the fields of a `ReplyKey`.
REPLY_NAME = re.compile(r"v\d+-\d+(-\d+)*", re.ASCII)


def compute_next_poll_interval(previous_interval: float, poll_seconds: float) -> float:
    """Return the seconds to wait before the next poll. They grow with each poll without a message.

    Parameters
    ----------
    previous_interval : float
        The previous value, in seconds; 0.0 after a message.
    poll_seconds : float
        How long the latest poll took: a slow storage is polled less often.

    Examples
    --------
    >>> compute_next_poll_interval(0.0, 0.0), compute_next_poll_interval(0.0, 0.1)
    (0.002, 0.01)
    >>> compute_next_poll_interval(0.5, 0.1), compute_next_poll_interval(1.0, 0.1)
    (0.6, 1.0)
    """
    interval = max(POLL_INTERVAL_GROWTH * previous_interval, min(poll_seconds, SLOW_STORAGE_POLL_INTERVAL))
    return min(MAX_POLL_INTERVAL, max(MIN_POLL_INTERVAL, interval))


class QueuedMessage(NamedTuple):
    """A message that its worker has not acknowledged.

    Attributes
    ----------
    sequence_number : int
        The number of the message among those to this worker, from 1 on.
    frame : bytes
        The message as `encode_frame` writes it, without its data.
    digest : bytes or None
        The digest under which the data are stored; None if the message has no data.
    """

    sequence_number: int
    frame: bytes
    digest: bytes | None


class Mailbox(NamedTuple):
    """The content of the object that all workers read.

    Attributes
    ----------
    heartbeat : int
        A number that changes while the driver is alive.
    payloads : dict of bytes to bytes
        The data of messages by their digest, each stored once for all workers. Large data are stored as
        separate objects instead.
    messages : dict of int to list of QueuedMessage
        The unacknowledged messages of each worker, by its id.
    """

    heartbeat: int
    payloads: dict[bytes, bytes]
    messages: dict[int, list[QueuedMessage]]

    def encode(self) -> bytes:
        """Return the version of the protocol and the mailbox as a pickle of builtin types."""
        messages = {key: [tuple(entry) for entry in entries] for key, entries in self.messages.items()}
        record = PROTOCOL_VERSION, self.heartbeat, self.payloads, messages
        return pickle.dumps(record, pickle.HIGHEST_PROTOCOL)

    @classmethod
    def decode(cls, data: bytes) -> Mailbox:
        """Return the mailbox that `encode` wrote; raise ProtocolMismatchError if its version differs."""
        protocol_version, *fields = pickle.loads(data)
        check_protocol_version(protocol_version)
        heartbeat, payloads, messages = fields
        queues = {key: [QueuedMessage(*entry) for entry in entries] for key, entries in messages.items()}
        return cls(heartbeat, payloads, queues)


class ChannelKeys(NamedTuple):
    """The keys of the objects of a channel."""

    prefix: str

    @property
    def mailbox_key(self) -> str:
        """The key of the mailbox, which the driver deletes when it closes."""
        return f"{self.prefix}/orders"

    @property
    def reply_prefix(self) -> str:
        """The prefix of the keys of all replies."""
        return f"{self.prefix}/replies/"

    def make_payload_key(self, digest: bytes) -> str:
        """Return the key under which large data with this digest are stored."""
        return f"{self.prefix}/data/{digest.hex()}"

    def format_reply_key(self, reply_key: tuple[int, ...]) -> str:
        """Return the key of a reply with these `ReplyKey` fields, or a key prefix, given the first fields."""
        fields = "-".join(f"{field:d}" for field in reply_key)
        return f"{self.reply_prefix}v{PROTOCOL_VERSION}-{fields}"

    def parse_reply_key(self, object_key: str) -> ReplyKey | None:
        """Return the fields in the key of a reply, or None if the object is not a reply.

        Raises ProtocolMismatchError for the reply of a worker that uses another version of the protocol.
        """
        match = REPLY_NAME.fullmatch(object_key, len(self.reply_prefix))
        if match is None:
            return None
        version, *fields = map(int, match[0].removeprefix("v").split("-"))
        if version != PROTOCOL_VERSION:
            raise ProtocolMismatchError(version, fields[0])
        return ReplyKey(*fields) if len(fields) == len(ReplyKey._fields) else None


class ReplyKey(NamedTuple):
    """The fields in the key of a reply: its sender, and the messages that the sender has received and sent.

    Attributes
    ----------
    worker_id : int
        The id of the worker. It is the first field in all versions of the protocol.
    instance_id : int
        A random number that changes if the worker is restarted by its provider.
    sequence_number : int
        The number of the object among those of this worker, from 1 on.
    last_received : int
        The number of the latest message that the worker has received; 0 before the first one.
    last_sent : int
        The number of this message, or of the latest message before this heartbeat.
    size : int
        Bytes of the reply, by which an object that is still being written is recognized; 0 for a heartbeat.
    """

    worker_id: int
    instance_id: int
    sequence_number: int
    last_received: int
    last_sent: int
    size: int


class StorageChannel:
    """The worker's end of a channel in a storage.

    Parameters
    ----------
    storage : lithops.Storage
        The storage.
    bucket, prefix : str
        Where the objects of the channel are stored.
    worker_id : int
        The id of this worker.
    """

    def __init__(self, storage: Any, bucket: str, prefix: str, worker_id: int) -> None:
        self._storage, self._bucket, self._keys = storage, bucket, ChannelKeys(prefix)
        self._worker_id, self._instance_id = worker_id, int.from_bytes(os.urandom(4), "big")
        self._sequence_numbers = itertools.count(1)
        self._last_received = self._last_sent = 0  # numbers of the latest messages
        self._mailbox_bytes, self._mailbox = b"", Mailbox(-1, {}, {})  # as read last, encoded and decoded
        self._polled_at, self._mailbox_changed_at = -1.0, time.monotonic()
        self._is_registered = False  # whether the mailbox has ever listed this worker
        self._is_driver_lost = False  # as of the latest read of the mailbox
        self._next_heartbeat_at = time.monotonic() + HEARTBEAT_SECONDS
        self._poll_interval = 0.0  # seconds before the mailbox is read again

    def receive(self, timeout: float | None) -> tuple[list[Message], bool]:
        """Wait for messages of the driver. Return them, and whether the driver is still connected.

        The driver counts as disconnected once it has deleted the mailbox, has dismissed this worker, or has
        sent no heartbeat for OUTAGE_SECONDS.

        Parameters
        ----------
        timeout : float or None
            Seconds to wait for a message; None stands for MAX_POLL_INTERVAL. With 0.0, the mailbox is polled
            at most every SLOW_STORAGE_POLL_INTERVAL seconds.
        """
        messages = list(iter(self._pop_next_unread_message, None))
        now = time.monotonic()
        if messages or (timeout == 0.0 and now < self._polled_at + SLOW_STORAGE_POLL_INTERVAL):
            return messages, True
        deadline = now + (MAX_POLL_INTERVAL if timeout is None else timeout)
        while True:
            started_at = time.monotonic()
            self._poll_mailbox()
            messages, finished_at = list(iter(self._pop_next_unread_message, None)), time.monotonic()
            if messages or self._is_driver_lost or finished_at >= deadline:
                return messages, not self._is_driver_lost
            self._poll_interval = compute_next_poll_interval(self._poll_interval, finished_at - started_at)
            time.sleep(min(deadline - finished_at, self._poll_interval))

    def send(self, message: Message) -> bool:
        """Store a message for the driver and return True. Retry transient errors for OUTAGE_SECONDS."""
        data = encode_frame(message)
        retry_request(lambda: self._put_reply(data, self._last_sent + 1))
        self._last_sent += 1
        return True

    def keep_alive(self) -> None:
        """Poll the mailbox and store a heartbeat for the driver, if one is due."""
        if time.monotonic() < self._next_heartbeat_at:
            return
        self._next_heartbeat_at = time.monotonic() + HEARTBEAT_SECONDS
        self._poll_mailbox()
        if not self._is_driver_lost:
            with contextlib.suppress(Exception):  # The next heartbeat may succeed.
                self._put_reply(b"", self._last_sent)

    def is_peer_closed(self) -> bool:
        """Return whether the driver had disconnected when the mailbox was read last."""
        return self._is_driver_lost

    def close(self) -> None:
        """Do nothing: the channel has no open connection."""

    def _poll_mailbox(self) -> None:
        """Read the mailbox, and update whether the driver has disconnected or dismissed this worker."""
        now = self._polled_at = time.monotonic()
        try:
            mailbox_bytes = bytes(self._storage.get_object(self._bucket, self._keys.mailbox_key))
            if mailbox_bytes != self._mailbox_bytes:
                self._mailbox = Mailbox.decode(mailbox_bytes)
                self._mailbox_bytes = mailbox_bytes
                self._mailbox_changed_at = now
        except ProtocolMismatchError:
            raise
        except Exception as error:  # A partly written object, or a transient error.
            if is_missing_object_error(error):
                self._is_driver_lost = True
                self._remove_replies()
                return
        has_messages = self._worker_id in self._mailbox.messages
        self._is_registered |= has_messages
        is_silent = now > self._mailbox_changed_at + OUTAGE_SECONDS
        self._is_driver_lost = is_silent or (self._is_registered and not has_messages)

    def _pop_next_unread_message(self) -> Message | None:
        """Return the next unread message in the mailbox, or None if all are read."""
        messages = self._mailbox.messages.get(self._worker_id, ())
        queued = next((item for item in messages if item.sequence_number > self._last_received), None)
        if queued is None:
            return None
        (message,) = FrameDecoder().feed(queued.frame)
        if queued.digest is not None:
            data = self._mailbox.payloads.get(queued.digest)
            if data is None:
                payload_key = self._keys.make_payload_key(queued.digest)
                try:
                    data = bytes(self._storage.get_object(self._bucket, payload_key))
                except Exception:  # A transient error, or the driver takes this worker for lost.
                    return None
            message = message._replace(data=data)
        self._last_received, self._poll_interval = queued.sequence_number, 0.0
        return message

    def _remove_replies(self) -> None:
        """Delete the replies of this worker, which the driver will not delete as it has closed."""
        prefix = self._keys.format_reply_key((self._worker_id, self._instance_id)) + "-"
        with contextlib.suppress(Exception):  # The next poll tries again.
            if keys := self._storage.list_keys(self._bucket, prefix):
                self._storage.delete_objects(self._bucket, keys)

    def _put_reply(self, data: bytes, last_sent: int) -> None:
        """Store an encoded message, or a heartbeat if `data` is empty, as a new object."""
        identity = self._worker_id, self._instance_id, next(self._sequence_numbers)
        reply_key = ReplyKey(*identity, self._last_received, last_sent, len(data))
        self._storage.put_object(self._bucket, self._keys.format_reply_key(reply_key), data)
