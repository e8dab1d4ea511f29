"""Exchange messages between a driver and its workers by objects in a storage.

    <prefix>/orders            the mailbox: messages to all workers; replaced by the driver, polled by workers
    <prefix>/data/<digest>     large data of these messages
    <prefix>/replies/<fields>  one object for each message or heartbeat of a worker; listed by the driver

This channel is used if workers cannot connect to their driver by a socket. Both ends poll the storage: often
after a message, and then with exponential backoff until the next message. This module runs on workers, so it
imports only the standard library.
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

# The storage is polled for messages. The pauses between polls are short after each message, and then grow.
MIN_POLL_INTERVAL = 0.002  # minimum seconds between polls
SLOW_STORAGE_POLL_INTERVAL = 0.01  # first pause after a message if the storage is slow, in seconds
POLL_INTERVAL_GROWTH = 1.2  # factor by which the interval grows with each poll that finds no message
MAX_POLL_INTERVAL = 1.0  # maximum seconds between polls

# The number of polls after each message, used to estimate the cost of storage requests. Each poll without a
# message increases the interval by a factor of 1.2. It takes log(1 / 0.01) / log(1.2) polls until the
# interval has grown from 0.01 s to 1 s.
N_POLLS_PER_MESSAGE = 25
# Seconds between heartbeats of a driver or worker. Without a heartbeat for OUTAGE_SECONDS, it counts as lost.
HEARTBEAT_SECONDS = 5.0

# A pattern for the last part of the key of a worker's message. It consists of the protocol version and the
# fields of a `ReplyKey`, separated by hyphens.
REPLY_NAME = re.compile(r"v\d+-\d+(-\d+)*", re.ASCII)


def compute_next_poll_interval(previous_interval: float, poll_seconds: float) -> float:
    """Return how many seconds to wait before polling the storage for messages again.

    The interval grows with each poll that finds no message, and is longer for slow storage.

    Parameters
    ----------
    previous_interval : float
        The previous result of this function, or 0.0 if the latest poll has found a message.
    poll_seconds : float
        The duration of the latest poll, in seconds.

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
    """A message from the driver to a worker, until the worker acknowledges it.

    Attributes
    ----------
    sequence_number : int
        The number of the message. Messages to a worker are numbered from 1.
    frame : bytes
        The message without its data, as encoded by `encode_frame`.
    digest : bytes or None
        The digest under which the data are stored separately. None if the message has no data.
    """

    sequence_number: int
    frame: bytes
    digest: bytes | None


class Mailbox(NamedTuple):
    """A driver's messages to its workers, stored as a single object.

    The driver is the process that runs the user's program. It replaces the object when there are new
    messages, and all workers poll the object.

    Attributes
    ----------
    heartbeat : int
        A number that changes periodically while the driver is alive.
    payloads : dict of bytes to bytes
        The messages' data by digest, so that data for several workers are stored only once. Large data are
        stored as separate objects instead.
    messages : dict of int to list of QueuedMessage
        For each worker id, the messages that the worker has not acknowledged yet.
    """

    heartbeat: int
    payloads: dict[bytes, bytes]
    messages: dict[int, list[QueuedMessage]]

    def encode(self) -> bytes:
        """Return the bytes to store: a pickle of the protocol version and the fields, as builtin types."""
        messages = {key: [tuple(entry) for entry in entries] for key, entries in self.messages.items()}
        record = PROTOCOL_VERSION, self.heartbeat, self.payloads, messages
        return pickle.dumps(record, pickle.HIGHEST_PROTOCOL)

    @classmethod
    def decode(cls, data: bytes) -> Mailbox:
        """Decode a mailbox from the bytes that `encode` returned.

        Raises ProtocolMismatchError if the driver uses another version of the protocol.
        """
        protocol_version, *fields = pickle.loads(data)
        check_protocol_version(protocol_version)
        heartbeat, payloads, messages = fields
        queues = {key: [QueuedMessage(*entry) for entry in entries] for key, entries in messages.items()}
        return cls(heartbeat, payloads, queues)


class ChannelKeys(NamedTuple):
    """The keys of the objects by which a driver and its workers exchange messages through a storage.

    All keys begin with `prefix`.
    """

    prefix: str

    @property
    def mailbox_key(self) -> str:
        """The key of the mailbox, which is the object with all messages to workers.

        The driver deletes the object when it finishes.
        """
        return f"{self.prefix}/orders"

    @property
    def reply_prefix(self) -> str:
        """The prefix of the keys of all messages from workers."""
        return f"{self.prefix}/replies/"

    def make_payload_key(self, digest: bytes) -> str:
        """Return the key under which a message's large data are stored, given their digest."""
        return f"{self.prefix}/data/{digest.hex()}"

    def format_reply_key(self, reply_key: tuple[int, ...]) -> str:
        """Return the key of a worker's message, given the fields of its `ReplyKey`.

        Given only the first fields, return the common prefix of all keys with these fields.
        """
        fields = "-".join(f"{field:d}" for field in reply_key)
        return f"{self.reply_prefix}v{PROTOCOL_VERSION}-{fields}"

    def parse_reply_key(self, object_key: str) -> ReplyKey | None:
        """Return the fields in the key of a worker's message, or None if the key is of another kind.

        Raises ProtocolMismatchError if the worker uses another version of the protocol.
        """
        match = REPLY_NAME.fullmatch(object_key, len(self.reply_prefix))
        if match is None:
            return None
        version, *fields = map(int, match[0].removeprefix("v").split("-"))
        if version != PROTOCOL_VERSION:
            raise ProtocolMismatchError(version, fields[0])
        return ReplyKey(*fields) if len(fields) == len(ReplyKey._fields) else None


class ReplyKey(NamedTuple):
    """The fields in the key of a worker's message or heartbeat.

    The driver gets these fields by listing keys, without reading the objects.

    Attributes
    ----------
    worker_id : int
        The id of the worker. It is the first field in all versions of the protocol.
    instance_id : int
        A random number that changes if the cloud restarts the worker.
    sequence_number : int
        The number of the object. A worker numbers its objects from 1.
    last_received : int
        The number of the latest message that the worker has received; 0 if it has received none.
    last_sent : int
        The number of this message, or for a heartbeat, of the latest message before it.
    size : int
        The size of the object in bytes, which shows whether it is complete. 0 for a heartbeat.
    """

    worker_id: int
    instance_id: int
    sequence_number: int
    last_received: int
    last_sent: int
    size: int


class StorageChannel:
    """A worker's channel to its driver, through a storage that both can access.

    Each message is stored as an object. This channel is used if the worker cannot connect to the driver
    through a socket.

    Parameters
    ----------
    storage : lithops.Storage
        The client of the storage.
    bucket, prefix : str
        The bucket of the messages, and the prefix of their keys.
    worker_id : int
        The id of this worker.
    """

    def __init__(self, storage: Any, bucket: str, prefix: str, worker_id: int) -> None:
        self._storage, self._bucket, self._keys = storage, bucket, ChannelKeys(prefix)
        self._worker_id, self._instance_id = worker_id, int.from_bytes(os.urandom(4), "big")
        self._sequence_numbers = itertools.count(1)
        self._last_received = self._last_sent = 0  # the numbers of the latest messages in both directions
        self._mailbox_bytes, self._mailbox = b"", Mailbox(-1, {}, {})  # the mailbox, encoded and decoded
        self._polled_at, self._mailbox_changed_at = -1.0, time.monotonic()
        self._is_registered = False  # whether this worker has ever been listed in the mailbox
        self._is_driver_lost = False  # whether the driver had disconnected at the latest poll
        self._next_heartbeat_at = time.monotonic() + HEARTBEAT_SECONDS
        self._poll_interval = 0.0  # seconds before the mailbox is polled again

    def receive(self, timeout: float | None) -> tuple[list[Message], bool]:
        """Wait for messages from the driver, and return them and whether the driver is still connected.

        The driver counts as disconnected if it has deleted the mailbox (the object with its messages), has
        removed this worker from it, or has not changed it for OUTAGE_SECONDS.

        Parameters
        ----------
        timeout : float or None
            How many seconds to wait for a message; None for MAX_POLL_INTERVAL. If it is 0.0, the storage is
            polled at most every SLOW_STORAGE_POLL_INTERVAL seconds.
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
        """Send a message to the driver by storing it as an object, and return True.

        If the storage is unavailable, the request is retried for OUTAGE_SECONDS before the error is raised.
        """
        data = encode_frame(message)
        retry_request(lambda: self._put_reply(data, self._last_sent + 1))
        self._last_sent += 1
        return True

    def keep_alive(self) -> None:
        """Check that the driver is alive, and store a heartbeat of this worker.

        Call this periodically. It does nothing if the latest heartbeat is less than HEARTBEAT_SECONDS old.
        """
        if time.monotonic() < self._next_heartbeat_at:
            return
        self._next_heartbeat_at = time.monotonic() + HEARTBEAT_SECONDS
        self._poll_mailbox()
        if not self._is_driver_lost:
            with contextlib.suppress(Exception):  # Even if this heartbeat fails, the next one may succeed.
                self._put_reply(b"", self._last_sent)

    def is_peer_closed(self) -> bool:
        """Return whether the driver had disconnected when the storage was last polled."""
        return self._is_driver_lost

    def close(self) -> None:
        """Do nothing, because the channel has no open connection."""

    def _poll_mailbox(self) -> None:
        """Read the mailbox, and detect whether the driver has disconnected."""
        now = self._polled_at = time.monotonic()
        try:
            mailbox_bytes = bytes(self._storage.get_object(self._bucket, self._keys.mailbox_key))
            if mailbox_bytes != self._mailbox_bytes:
                self._mailbox = Mailbox.decode(mailbox_bytes)
                self._mailbox_bytes = mailbox_bytes
                self._mailbox_changed_at = now
        except ProtocolMismatchError:
            raise
        except Exception as error:  # The object may be incomplete, or the storage may be unavailable.
            if is_missing_object_error(error):
                self._is_driver_lost = True
                self._remove_replies()
                return
        has_messages = self._worker_id in self._mailbox.messages
        self._is_registered |= has_messages
        is_silent = now > self._mailbox_changed_at + OUTAGE_SECONDS
        self._is_driver_lost = is_silent or (self._is_registered and not has_messages)

    def _pop_next_unread_message(self) -> Message | None:
        """Return the driver's next unread message, or None if there is none."""
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
                except Exception:  # The storage may be unavailable. Try again at the next poll.
                    return None
            message = message._replace(data=data)
        self._last_received, self._poll_interval = queued.sequence_number, 0.0
        return message

    def _remove_replies(self) -> None:
        """Delete this worker's messages. Call this if the driver is gone and cannot do so itself."""
        prefix = self._keys.format_reply_key((self._worker_id, self._instance_id)) + "-"
        with contextlib.suppress(Exception):  # If the storage is unavailable, try again at the next poll.
            if keys := self._storage.list_keys(self._bucket, prefix):
                self._storage.delete_objects(self._bucket, keys)

    def _put_reply(self, data: bytes, last_sent: int) -> None:
        """Store an encoded message as a new object, or a heartbeat if `data` is empty.

        `last_sent` is the number of this message or, for a heartbeat, of the latest message.
        """
        identity = self._worker_id, self._instance_id, next(self._sequence_numbers)
        reply_key = ReplyKey(*identity, self._last_received, last_sent, len(data))
        self._storage.put_object(self._bucket, self._keys.format_reply_key(reply_key), data)
