"""A channel of objects in any storage: one holds the messages to all workers, each reply is another one.

Both ends poll: often after a message, then less and less until the next message.
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

MIN_POLL_INTERVAL = 0.002  # between looks when something has come
SLOW_STORAGE_POLL_INTERVAL = 0.01  # the same where the storage takes as long to answer
POLL_INTERVAL_GROWTH = 1.2
MAX_POLL_INTERVAL = 1.0  # between looks when nothing has come for long
N_POLLS_PER_MESSAGE = 25  # from SLOW_STORAGE_POLL_INTERVAL to MAX_POLL_INTERVAL: log(1 / 0.01) / log(1.2)
HEARTBEAT_SECONDS = 5.0  # between heartbeats of either end, which is gone after OUTAGE_SECONDS without any
# The version of the protocol, and the fields of a `ReplyKey`.
REPLY_NAME = re.compile(r"v\d+-\d+(-\d+)*", re.ASCII)


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


class QueuedMessage(NamedTuple):
    """A message to a worker that has not acknowledged it.

    sequence_number : the number of the message, from 1 on.
    frame : the message as `encode_frame` writes it, without its data.
    digest : the digest of its data, by which the data are stored; None if it has none.
    """

    sequence_number: int
    frame: bytes
    digest: bytes | None


class Mailbox(NamedTuple):
    """The content of the object that all workers read.

    heartbeat : changes as long as the driver lives.
    payloads : the data of messages, by digest: each once for all workers. Large data are left out, and are
        objects of their own.
    messages : the unacknowledged messages of each worker, by its id.
    """

    heartbeat: int
    payloads: dict[bytes, bytes]
    messages: dict[int, list[QueuedMessage]]

    def encode(self) -> bytes:
        """Return the version of the protocol and the mailbox as plain data: readers need no polarmap."""
        messages = {key: [tuple(entry) for entry in entries] for key, entries in self.messages.items()}
        record = PROTOCOL_VERSION, self.heartbeat, self.payloads, messages
        return pickle.dumps(record, pickle.HIGHEST_PROTOCOL)

    @classmethod
    def decode(cls, data: bytes) -> Mailbox:
        """Return the mailbox that `encode` wrote; ProtocolMismatchError if it is of another version."""
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
        """The key of the mailbox, which the driver removes when it ends."""
        return f"{self.prefix}/orders"

    @property
    def reply_prefix(self) -> str:
        """The beginning of the keys of all replies."""
        return f"{self.prefix}/replies/"

    def make_payload_key(self, digest: bytes) -> str:
        """Return the key of the object of large data of messages."""
        return f"{self.prefix}/data/{digest.hex()}"

    def format_reply_key(self, reply_key: tuple[int, ...]) -> str:
        """Return the key of the object of a reply, or its beginning if only the first fields are given."""
        fields = "-".join(f"{field:d}" for field in reply_key)
        return f"{self.reply_prefix}v{PROTOCOL_VERSION}-{fields}"

    def parse_reply_key(self, object_key: str) -> ReplyKey | None:
        """Return the fields in the key of a reply; None if the object is not a reply.

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
    """The fields in the key of a reply: which worker has sent it, and how far that worker has come.

    worker_id : the id of the worker. In all versions of the protocol it comes first.
    instance_id : changes if its provider starts the worker again.
    sequence_number : the number of the object, from 1 on.
    last_received : the number of the message that the worker has received last; 0 if there is none yet.
    last_sent : the number of this message, or of the last one before this heartbeat.
    size : bytes of the reply, as a listing may show one that is still being written; 0 for a heartbeat.
    """

    worker_id: int
    instance_id: int
    sequence_number: int
    last_received: int
    last_sent: int
    size: int


class StorageChannel:
    """The worker's end.

    storage : a `lithops.Storage`.
    """

    def __init__(self, storage: Any, bucket: str, prefix: str, worker_id: int) -> None:
        self._storage, self._bucket, self._keys = storage, bucket, ChannelKeys(prefix)
        self._worker_id, self._instance_id = worker_id, int.from_bytes(os.urandom(4), "big")
        self._sequence_numbers = itertools.count(1)
        self._last_received = self._last_sent = 0  # numbers of the messages that were received and sent last
        self._mailbox_bytes, self._mailbox = b"", Mailbox(-1, {}, {})  # the latest one, encoded and decoded
        self._polled_at, self._mailbox_changed_at = -1.0, time.monotonic()
        self._is_registered = False  # whether the driver has had messages for this worker
        self._is_driver_lost = False  # when the mailbox was read last
        self._next_heartbeat_at = time.monotonic() + HEARTBEAT_SECONDS
        self._poll_interval = 0.0  # seconds before the mailbox is read again

    def receive(self, timeout: float | None) -> tuple[list[Message], bool]:
        """Return the next messages of the driver, as soon as there are any, and whether it is there.

        It counts as gone once it has removed the mailbox, has dismissed this worker, or has sent no heartbeat
        for OUTAGE_SECONDS. The mailbox is read no more often than is of use.

        timeout : seconds to wait for a message; None for MAX_POLL_INTERVAL.
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
        """Store a message for the driver, and return True.

        It is stored again while the storage is away; after that, the error of the storage is raised.
        """
        data = encode_frame(message)
        retry_request(lambda: self._put_reply(data, self._last_sent + 1))
        self._last_sent += 1
        return True

    def keep_alive(self) -> None:
        """Read the mailbox and store a heartbeat for the driver, if the next one is due."""
        if time.monotonic() < self._next_heartbeat_at:
            return
        self._next_heartbeat_at = time.monotonic() + HEARTBEAT_SECONDS
        self._poll_mailbox()
        if not self._is_driver_lost:
            with contextlib.suppress(Exception):  # The storage is away: the next heartbeat may reach it.
                self._put_reply(b"", self._last_sent)

    def is_peer_closed(self) -> bool:
        """Return whether the driver was gone when this channel read the mailbox last."""
        return self._is_driver_lost

    def close(self) -> None:
        """Do nothing: the channel holds no connection of its own."""

    def _poll_mailbox(self) -> None:
        """Read the mailbox, and note whether the driver is there and has not dismissed this worker."""
        now = self._polled_at = time.monotonic()
        try:
            mailbox_bytes = bytes(self._storage.get_object(self._bucket, self._keys.mailbox_key))
            if mailbox_bytes != self._mailbox_bytes:
                self._mailbox = Mailbox.decode(mailbox_bytes)
                self._mailbox_bytes = mailbox_bytes
                self._mailbox_changed_at = now
        except ProtocolMismatchError:
            raise
        except Exception as error:  # Half an object; or the storage is away for a moment.
            if is_missing_object_error(error):
                self._is_driver_lost = True
                self._remove_replies()
                return
        has_messages = self._worker_id in self._mailbox.messages
        self._is_registered |= has_messages
        is_silent = now > self._mailbox_changed_at + OUTAGE_SECONDS
        self._is_driver_lost = is_silent or (self._is_registered and not has_messages)

    def _pop_next_unread_message(self) -> Message | None:
        """Return the next message in the mailbox; None if there is none."""
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
                except Exception:  # The driver has removed it, as it took this worker for gone; or an outage.
                    return None
            message = message._replace(data=data)
        self._last_received, self._poll_interval = queued.sequence_number, 0.0
        return message

    def _remove_replies(self) -> None:
        """Remove the replies of this worker. The driver has cleaned up and removes no later ones."""
        prefix = self._keys.format_reply_key((self._worker_id, self._instance_id)) + "-"
        with contextlib.suppress(Exception):  # The next look tries again, if there is any.
            if keys := self._storage.list_keys(self._bucket, prefix):
                self._storage.delete_objects(self._bucket, keys)

    def _put_reply(self, data: bytes, last_sent: int) -> None:
        """Store one more object: a message, or a heartbeat if it is empty."""
        identity = self._worker_id, self._instance_id, next(self._sequence_numbers)
        reply_key = ReplyKey(*identity, self._last_received, last_sent, len(data))
        self._storage.put_object(self._bucket, self._keys.format_reply_key(reply_key), data)
