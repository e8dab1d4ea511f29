"""The driver's ends of channels by way of a storage, and the threads that write and read messages there."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from polarmap.errors import ExecutorError
from polarmap.executors.transfers import map_in_parallel
from polarmap.executors.wake_signal import WakeSignal
from polarmap.worker.messages import (
    MAX_INLINE_BYTES,
    FrameDecoder,
    FrameError,
    Message,
    ProtocolMismatchError,
    encode_frame,
)
from polarmap.worker.retries import OUTAGE_SECONDS, retry_request
from polarmap.worker.socket_channel import SocketChannel
from polarmap.worker.storage_channel import (
    HEARTBEAT_SECONDS,
    MAX_POLL_INTERVAL,
    MIN_POLL_INTERVAL,
    N_POLLS_PER_MESSAGE,
    ChannelKeys,
    Mailbox,
    QueuedMessage,
    ReplyKey,
    compute_next_poll_interval,
)

MAX_PARALLEL_READS = 16  # objects read at once


class DriverStorageChannel:
    """The driver's end of one worker's channel, which a thread of `StorageChannelServer` writes and reads.

    Parameters
    ----------
    worker_id, worker_instance : of the worker, as it tells them.
    post_message : takes this link and a message to the worker; None when nothing more will be said.

    Attributes
    ----------
    unacknowledged : deque of QueuedMessage
        The messages whose receipt the worker has not acknowledged.
    n_sent, n_received : int
        Numbers of the latest message to the worker, and from it.
    last_heartbeat_at : float
        When the worker gave its latest sign of life.
    n_missed : int
        Signs of life after a message that has not come.
    is_connected : bool
        Whether it may say more.
    has_unsent : bool
        False: messages that wait are those of `StorageChannelServer`, and no socket has to be writable for
        them.
    failure : None
        A link by way of a storage has no connection that could fail.
    """

    has_unsent = False
    failure = None

    def __init__(
        self,
        worker_id: int,
        worker_instance: int,
        post_message: Callable[[DriverStorageChannel, Message | None], None],
    ) -> None:
        self.worker_id, self.worker_instance, self._post_message = worker_id, worker_instance, post_message
        self.unacknowledged = deque[QueuedMessage]()
        self.n_sent = self.n_received = self.n_missed = 0
        self.last_heartbeat_at, self.is_connected = time.monotonic(), True
        self._inbox, self._owner_pid = deque[Message](), os.getpid()
        self._wake_signal = WakeSignal()

    def deliver_frames(self, frames: bytes) -> None:
        """A message that the worker has sent."""
        try:
            self._inbox.extend(FrameDecoder().feed(frames))
        except FrameError:
            self.is_connected = False
        self._wake_signal.set()

    def disconnect(self) -> None:
        """The worker is gone, or is to go."""
        self.is_connected = False
        self._wake_signal.set()

    def fileno(self) -> int:
        """The descriptor that is readable when the worker has said something."""
        return self._wake_signal.fileno()

    def send(self, *messages: Message) -> bool:
        """Whether the worker will be told, as far as anybody knows."""
        for message in messages:
            self._post_message(self, message)
        return self.is_connected

    def flush(self) -> bool:
        """Return whether the worker will be told: `StorageChannelServer` writes the messages."""
        return self.is_connected

    def drop_unsent(self) -> list[Message]:
        """Return no messages: the storage has them all."""
        return []

    def is_stalled(self) -> bool:
        """Return False: `StorageChannelServer` hangs up on a worker that is silent for too long."""
        return False

    def receive(self) -> tuple[list[Message], bool]:
        """What it has said since the last time, and whether it will say more."""
        self._wake_signal.clear()
        is_connected = self.is_connected  # what it said before it was gone is there, too
        return [self._inbox.popleft() for _ in range(len(self._inbox))], is_connected

    def close(self) -> None:
        """Let the worker end, unless it is that of a process that this one was forked of."""
        if os.getpid() == self._owner_pid:
            self._post_message(self, None)
        self._wake_signal.close()


WorkerChannel = SocketChannel | DriverStorageChannel
# with the number of a worker, its link and the name of the channel
OnConnected = Callable[[int, WorkerChannel, str], None]


class StorageChannelServer:
    """The links of a pool that go by way of a storage, with the threads that carry their messages.

    Maps never wait for the storage, which may hang: one thread writes what they say, another one reads.

    Parameters
    ----------
    storage : a `lithops.Storage` of our own.
    on_connected : told of each worker that says something for the first time.

    Attributes
    ----------
    mismatches : deque of ProtocolMismatchError
        The errors about workers that use another version of the protocol, for the owner to take.
    """

    def __init__(self, storage: Any, key_prefix: str, on_connected: OnConnected) -> None:
        self._storage, self._keys, self._on_connected = storage, ChannelKeys(key_prefix), on_connected
        self._channels: dict[int, DriverStorageChannel] = {}
        self.mismatches = deque[ProtocolMismatchError]()
        # A destructor may close a run or a pool at any moment, also within either lock.
        self._lock, self._mailbox_lock = threading.RLock(), threading.RLock()
        self._heartbeat, self._next_heartbeat_at = 0, time.monotonic() + HEARTBEAT_SECONDS
        self._n_writes = self._n_reads = 0  # with listings, which cost as much as writes
        self._payload_by_digest: dict[bytes, Any] = {}  # of messages, by digest
        self._stored_digests = set[bytes]()  # of them, in objects of their own
        self._has_unwritten = False
        self._posted, self._poll_soon, self._is_closed = [threading.Event() for _ in range(3)]
        self._failure: Exception | None = None  # of the thread that writes, since it has succeeded last
        self._seen_keys: set[str] = set()
        self._write_mailbox()
        self._threads = [
            threading.Thread(target=target, name=f"polarmap-objects-{target.__name__}", daemon=True)
            for target in (self._write_loop, self._poll_loop)
        ]
        for thread in self._threads:
            thread.start()

    def flush_messages(self) -> None:
        """Have the messages written that wait, without waiting for the storage.

        ExecutorError if the storage refuses them, or has been away for OUTAGE_SECONDS.
        """
        if self._has_unwritten:
            self._posted.set()
        error, self._failure = self._failure, None  # once: the next map may reach the storage
        if error is not None:
            raise ExecutorError(f"workers cannot be told: {type(error).__name__}: {error}") from error

    def take_request_counts(self, worker_seconds: float) -> tuple[int, int]:
        """Writes and reads since this was asked before, of workers that have run for so many seconds.

        Those of this process as they were; those of workers, which poll, as they usually are.
        """
        n_writes, n_reads, self._n_writes, self._n_reads = self._n_writes, self._n_reads, 0, 0
        n_heartbeats, n_polls = worker_seconds / HEARTBEAT_SECONDS, worker_seconds / MAX_POLL_INTERVAL
        return round(n_writes + n_reads + n_heartbeats), round(
            n_reads + n_polls + n_reads * N_POLLS_PER_MESSAGE
        )

    def disconnect(self, worker_id: int) -> None:
        """A worker is gone: nothing more will come of it, and nobody reads what was said to it."""
        channel = self._channels.get(worker_id)
        if channel is not None:
            channel.disconnect()

    def close(self) -> None:
        """Let the workers end, and store nothing from now on. The site removes their replies."""
        deadline = time.monotonic() + OUTAGE_SECONDS  # a storage may not answer
        for event in (self._is_closed, self._posted, self._poll_soon):
            event.set()
        for thread in self._threads:
            if thread is not threading.current_thread():  # a destructor runs on any thread
                thread.join(max(0.0, deadline - time.monotonic()))
        # Orders may still be on their way into the storage: an object that arrived later would stay for ever.
        is_free = self._mailbox_lock.acquire(timeout=max(0.0, deadline - time.monotonic()))
        try:
            with contextlib.suppress(Exception):
                self._storage.delete_object(self._storage.bucket, self._keys.mailbox_key)
        finally:
            if is_free:
                self._mailbox_lock.release()

    def _enqueue_message(self, channel: DriverStorageChannel, message: Message | None) -> None:
        """A message for a worker, which goes when `flush_messages` is called; None: the worker is let go."""
        with self._lock:
            if message is None:
                if self._channels.get(channel.worker_id) is channel:
                    del self._channels[channel.worker_id]
            else:
                digest = None
                if message.data:
                    digest = hashlib.blake2b(message.data, digest_size=16).digest()
                    self._payload_by_digest[digest] = message.data
                channel.n_sent += 1
                frame = encode_frame(message._replace(data=b""))
                channel.unacknowledged.append(QueuedMessage(channel.n_sent, frame, digest))
            self._has_unwritten = True

    def _write_loop(self) -> None:
        """Write what was posted, and a sign of life now and then, until all is closed."""
        while not self._is_closed.is_set():
            self._posted.wait(max(0.0, self._next_heartbeat_at - time.monotonic()))
            self._posted.clear()
            is_due = self._has_unwritten or time.monotonic() >= self._next_heartbeat_at
            if self._is_closed.is_set() or not is_due:
                continue
            try:
                # A sign of life writes all anew: a storage that was killed may have forgotten it.
                retry_request(self._write_mailbox)
                self._failure = None
            except Exception as error:  # what was posted stays for the next time
                self._failure = error if self._has_unwritten else None
            self._next_heartbeat_at = time.monotonic() + HEARTBEAT_SECONDS
            self._poll_soon.set()

    def _write_mailbox(self) -> None:
        with self._mailbox_lock:  # the latest is the last that is put
            if self._is_closed.is_set():  # a map that goes on for a moment must not store them again
                return
            with self._lock:
                channels = list(self._channels.values())  # who is not among them is let go
                messages = {
                    item.worker_id: list(item.unacknowledged) for item in channels if item.is_connected
                }
                digests = {entry.digest for entries in messages.values() for entry in entries if entry.digest}
                payloads = self._payload_by_digest = {key: self._payload_by_digest[key] for key in digests}
                large_digests = {key for key in digests if len(payloads[key]) > MAX_INLINE_BYTES}
                inline_payloads = {key: bytes(payloads[key]) for key in digests - large_digests}
                self._heartbeat += 1
                mailbox = Mailbox(self._heartbeat, inline_payloads, messages).encode()
                was_unwritten, self._has_unwritten = self._has_unwritten, False
            try:
                for digest in large_digests - self._stored_digests:
                    self._put_object(self._keys.make_payload_key(digest), self._payload_by_digest[digest])
                    self._stored_digests.add(digest)
                self._put_object(self._keys.mailbox_key, mailbox)
            except BaseException:
                self._has_unwritten |= was_unwritten
                raise
            for digest in self._stored_digests - large_digests:
                self._storage.delete_object(self._storage.bucket, self._keys.make_payload_key(digest))
                self._stored_digests.discard(digest)

    def _put_object(self, key: str, data: bytes) -> None:
        with self._lock:
            self._n_writes += 1
        self._storage.put_object(self._storage.bucket, key, data)

    def _poll_loop(self) -> None:
        """Hand on what workers say until all is closed; look ever less until something is said."""
        poll_interval, next_review = 0.0, 0.0
        while not self._is_closed.is_set():
            started_at, n_replies = time.monotonic(), 0
            try:
                n_replies = self._read_replies()
                if started_at >= next_review:
                    next_review = started_at + HEARTBEAT_SECONDS
                    self._disconnect_silent_workers()
            except Exception:  # the storage is away: that nothing was heard says nothing of the workers
                for channel in list(self._channels.values()):
                    channel.last_heartbeat_at = time.monotonic()
            poll_seconds = time.monotonic() - started_at
            poll_interval = compute_next_poll_interval(0.0 if n_replies else poll_interval, poll_seconds)
            if self._poll_soon.wait(poll_interval):
                self._poll_soon.clear()
                poll_interval = 0.0
                self._is_closed.wait(MIN_POLL_INTERVAL)  # nobody replies before

    def _read_replies(self) -> int:
        """Read all replies there are, and remove them; how many there were."""
        with self._lock:
            self._n_writes += 1
        listed_keys = set(self._storage.list_keys(self._storage.bucket, self._keys.reply_prefix))
        self._seen_keys &= listed_keys  # others are removed by now
        new_replies = sorted(
            (reply_key, object_key)
            for object_key in listed_keys - self._seen_keys
            if (reply_key := self._parse_reply_key(object_key))
        )
        n_replies = sum(reply_key.size > 0 for reply_key, _ in new_replies)
        self._n_reads += n_replies
        # All are read before any is delivered, so that all are answered at once.
        contents = map_in_parallel(self._read_object, new_replies, MAX_PARALLEL_READS)
        delivered_keys = list[str]()
        blocked_workers = set[int]()  # ids of workers whose next reply is not whole yet
        for (reply_key, object_key), data in zip(new_replies, contents):
            if reply_key.worker_id in blocked_workers or len(data) != reply_key.size:
                blocked_workers.add(reply_key.worker_id)
                continue
            self._handle_reply(reply_key, data)
            self._seen_keys.add(object_key)
            delivered_keys.append(object_key)
        if delivered_keys:
            self._storage.delete_objects(self._storage.bucket, delivered_keys)
        return n_replies

    def _parse_reply_key(self, object_key: str) -> ReplyKey | None:
        """Return the fields in the key of a reply; None for other objects, and of other protocol versions."""
        try:
            return self._keys.parse_reply_key(object_key)
        except ProtocolMismatchError as error:
            self._seen_keys.add(object_key)
            self.mismatches.append(error)
            return None

    def _read_object(self, reply: tuple[ReplyKey, str]) -> bytes:
        """The bytes of a reply; none of a sign of life."""
        reply_key, object_key = reply
        return bytes(self._storage.get_object(self._storage.bucket, object_key)) if reply_key.size else b""

    def _handle_reply(self, reply_key: ReplyKey, data: bytes) -> None:
        """A worker has said this; nothing, if it is a sign of life."""
        channel = self._channels.get(reply_key.worker_id)
        if channel is None or channel.worker_instance != reply_key.instance_id:
            if reply_key.last_sent > 1 or not data:  # one that was let go, and has not read it yet
                return
            channel = DriverStorageChannel(reply_key.worker_id, reply_key.instance_id, self._enqueue_message)
            with self._lock:
                self._channels[reply_key.worker_id] = channel
            self._on_connected(reply_key.worker_id, channel, "objects")
        channel.last_heartbeat_at = time.monotonic()
        with self._lock:
            unacknowledged = channel.unacknowledged
            while unacknowledged and unacknowledged[0].sequence_number <= reply_key.last_received:
                unacknowledged.popleft()
        if reply_key.last_sent <= channel.n_received:
            return  # a sign of life, or a message that was put twice
        if data:
            channel.n_received, channel.n_missed = reply_key.last_sent, 0
            channel.deliver_frames(data)
        else:
            channel.n_missed += 1
            if channel.n_missed > 1:  # a storage that was killed forgets
                channel.disconnect()

    def _disconnect_silent_workers(self) -> None:
        now = time.monotonic()
        for channel in list(self._channels.values()):
            if now > channel.last_heartbeat_at + OUTAGE_SECONDS:
                channel.disconnect()
