"""Message channels between the driver and workers that cannot connect by TCP, through object storage.

The driver writes the messages for all workers to a single object, the mailbox, which the workers poll. The
workers write each reply as a separate object, which the driver lists, reads and deletes.
"""

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

MAX_PARALLEL_READS = 16  # the maximum number of replies read in parallel


class DriverStorageChannel:
    """The driver's end of a message channel to a worker through object storage.

    This object only queues messages, which threads of `StorageChannelServer` write and read. It has the same
    interface as `SocketChannel`.

    Parameters
    ----------
    worker_id : int
        The id of the worker.
    worker_instance : int
        A number that the worker sends with each reply, and that changes if the worker is restarted.
    post_message : callable
        Called with this channel and a message for the worker, or None when the channel is closed.

    Attributes
    ----------
    unacknowledged : deque of QueuedMessage
        The messages that the worker has not acknowledged yet.
    n_sent, n_received : int
        The sequence numbers of the latest message to and from the worker.
    last_heartbeat_at : float
        When the worker's latest heartbeat was received, on the monotonic clock.
    n_missed : int
        The number of heartbeats in which the worker has mentioned a message that has not arrived.
    is_connected : bool
        True if more messages may arrive.
    has_unsent : bool
        Always False: `StorageChannelServer` buffers unsent messages, so there is no socket to poll for
        writing.
    failure : None
        Always None, because there is no connection that could fail.
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
        """Decode messages from the worker and wake the session that polls this channel."""
        try:
            self._inbox.extend(FrameDecoder().feed(frames))
        except FrameError:
            self.is_connected = False
        self._wake_signal.set()

    def disconnect(self) -> None:
        """Mark the worker as disconnected and wake the session that polls this channel."""
        self.is_connected = False
        self._wake_signal.set()

    def fileno(self) -> int:
        """Return a file descriptor that becomes readable when messages have arrived."""
        return self._wake_signal.fileno()

    def send(self, *messages: Message) -> bool:
        """Queue messages for the worker. Return False if the worker is known to be disconnected."""
        for message in messages:
            self._post_message(self, message)
        return self.is_connected

    def flush(self) -> bool:
        """Return True if the worker is connected, without writing anything.

        `StorageChannelServer` writes the messages.
        """
        return self.is_connected

    def drop_unsent_messages(self) -> list[Message]:
        """Return an empty list, because this channel hands over all messages immediately."""
        return []

    def is_stalled(self) -> bool:
        """Return False: `StorageChannelServer` disconnects workers that are silent for too long."""
        return False

    def receive(self) -> tuple[list[Message], bool]:
        """Return the messages received since the last call, and whether the worker is still connected."""
        self._wake_signal.clear()
        # Read this first, so that messages sent just before a disconnection are still returned.
        is_connected = self.is_connected
        return [self._inbox.popleft() for _ in range(len(self._inbox))], is_connected

    def close(self) -> None:
        """Close the channel. The worker then exits.

        In a forked child process, this only closes the child's own resources.
        """
        if os.getpid() == self._owner_pid:
            self._post_message(self, None)
        self._wake_signal.close()


WorkerChannel = SocketChannel | DriverStorageChannel
# A callback for new workers, called with the worker id, the worker's channel and the channel's name.
OnConnected = Callable[[int, WorkerChannel, str], None]


class StorageChannelServer:
    """Runs a pool's message channels to workers that cannot connect by TCP, through object storage.

    One thread writes the messages for all workers, and another one reads their replies, so that sessions
    never wait for the storage, which may hang.

    Parameters
    ----------
    storage : lithops.Storage
        The storage client, which must not be used by anything else.
    key_prefix : str
        The common key prefix of all messages.
    on_connected : callable
        Called with the worker id, the channel and "objects" when a worker's first message arrives.

    Attributes
    ----------
    mismatches : deque of ProtocolMismatchError
        Errors about workers that run another version of polarmap. The owner removes them from the queue.
    """

    def __init__(self, storage: Any, key_prefix: str, on_connected: OnConnected) -> None:
        self._storage, self._keys, self._on_connected = storage, ChannelKeys(key_prefix), on_connected
        self._channels: dict[int, DriverStorageChannel] = {}
        self.mismatches = deque[ProtocolMismatchError]()
        # The locks are reentrant because a destructor may close a session or a pool while a lock is held.
        self._lock, self._mailbox_lock = threading.RLock(), threading.RLock()
        self._heartbeat, self._next_heartbeat_at = 0, time.monotonic() + HEARTBEAT_SECONDS
        # The number of requests since they were last reported. Listings cost as much as writes.
        self._n_writes = self._n_reads = 0
        self._payload_by_digest: dict[bytes, Any] = {}  # large parts of messages, by digest
        self._stored_digests = set[bytes]()  # digests of large parts stored as separate objects
        self._has_unwritten = False
        self._posted, self._poll_soon, self._is_closed = [threading.Event() for _ in range(3)]
        # The error of the writing thread's latest attempt; None if it has succeeded.
        self._failure: Exception | None = None
        self._seen_keys: set[str] = set()
        self._write_mailbox()
        self._threads = [
            threading.Thread(target=target, name=f"polarmap-objects-{target.__name__}", daemon=True)
            for target in (self._write_mailbox_until_closed, self._poll_replies_until_closed)
        ]
        for thread in self._threads:
            thread.start()

    def flush_messages(self) -> None:
        """Make the writing thread send all queued messages, without waiting for the storage.

        Raises ExecutorError if the storage has refused messages or has not responded for OUTAGE_SECONDS.
        """
        if self._has_unwritten:
            self._posted.set()
        # Report each error only once, because the storage may be available again when the next job starts.
        error, self._failure = self._failure, None
        if error is not None:
            raise ExecutorError(
                f"messages cannot be sent to the workers through the storage: {type(error).__name__}: {error}"
            ) from error

    def take_request_counts(self, worker_seconds: float) -> tuple[int, int]:
        """Return the number of billed write and read requests to the storage since the last call.

        The driver's requests are counted. The workers' polling requests are estimated from `worker_seconds`,
        the total run time of all workers.
        """
        n_writes, n_reads, self._n_writes, self._n_reads = self._n_writes, self._n_reads, 0, 0
        n_heartbeats, n_polls = worker_seconds / HEARTBEAT_SECONDS, worker_seconds / MAX_POLL_INTERVAL
        return round(n_writes + n_reads + n_heartbeats), round(
            n_reads + n_polls + n_reads * N_POLLS_PER_MESSAGE
        )

    def disconnect(self, worker_id: int) -> None:
        """Mark the channel of an exited worker as disconnected."""
        channel = self._channels.get(worker_id)
        if channel is not None:
            channel.disconnect()

    def close(self) -> None:
        """Stop the threads and delete the mailbox, which makes the workers exit.

        The `WorkerProvider` removes the remaining replies.
        """
        deadline = time.monotonic() + OUTAGE_SECONDS  # The storage may hang.
        for event in (self._is_closed, self._posted, self._poll_soon):
            event.set()
        for thread in self._threads:
            if thread is not threading.current_thread():  # A destructor may call this on `thread` itself.
                thread.join(max(0.0, deadline - time.monotonic()))
        # Wait for any write in progress, which would otherwise re-create the mailbox after it is deleted.
        is_free = self._mailbox_lock.acquire(timeout=max(0.0, deadline - time.monotonic()))
        try:
            with contextlib.suppress(Exception):
                self._storage.delete_object(self._storage.bucket, self._keys.mailbox_key)
        finally:
            if is_free:
                self._mailbox_lock.release()

    def _enqueue_message(self, channel: DriverStorageChannel, message: Message | None) -> None:
        """Queue a message for a worker, or None to close its channel. `flush_messages` sends it."""
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

    def _write_mailbox_until_closed(self) -> None:
        """Write the mailbox whenever messages are flushed, and from time to time as a heartbeat.

        Runs on a thread until the server is closed.
        """
        while not self._is_closed.is_set():
            self._posted.wait(max(0.0, self._next_heartbeat_at - time.monotonic()))
            self._posted.clear()
            is_due = self._has_unwritten or time.monotonic() >= self._next_heartbeat_at
            if self._is_closed.is_set() or not is_due:
                continue
            try:
                # A heartbeat rewrites all messages, because a restarted storage may have lost them.
                retry_request(self._write_mailbox)
                self._failure = None
            except Exception as error:  # The messages stay queued and are written next time.
                self._failure = error if self._has_unwritten else None
            self._next_heartbeat_at = time.monotonic() + HEARTBEAT_SECONDS
            self._poll_soon.set()

    def _write_mailbox(self) -> None:
        # Only one thread writes at a time, so that an older version never replaces a newer one.
        with self._mailbox_lock:
            if self._is_closed.is_set():  # Do not re-create the mailbox that `close` has deleted.
                return
            with self._lock:
                channels = list(self._channels.values())  # A worker that is not in the mailbox exits.
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

    def _poll_replies_until_closed(self) -> None:
        """Poll the storage for replies, with exponential backoff while none arrive.

        Runs on a thread until the server is closed.
        """
        poll_interval, next_review = 0.0, 0.0
        while not self._is_closed.is_set():
            started_at, n_replies = time.monotonic(), 0
            try:
                n_replies = self._read_replies()
                if started_at >= next_review:
                    next_review = started_at + HEARTBEAT_SECONDS
                    self._disconnect_silent_workers()
            except Exception:  # A storage outage does not mean that workers are lost.
                for channel in list(self._channels.values()):
                    channel.last_heartbeat_at = time.monotonic()
            poll_seconds = time.monotonic() - started_at
            poll_interval = compute_next_poll_interval(0.0 if n_replies else poll_interval, poll_seconds)
            if self._poll_soon.wait(poll_interval):
                self._poll_soon.clear()
                poll_interval = 0.0
                self._is_closed.wait(MIN_POLL_INTERVAL)  # Workers cannot reply sooner than this.

    def _read_replies(self) -> int:
        """Read, deliver and delete all new replies. Return the number of replies."""
        with self._lock:
            self._n_writes += 1
        listed_keys = set(self._storage.list_keys(self._storage.bucket, self._keys.reply_prefix))
        self._seen_keys &= listed_keys  # Forget the keys of deleted objects.
        new_replies = sorted(
            (reply_key, object_key)
            for object_key in listed_keys - self._seen_keys
            if (reply_key := self._parse_reply_key(object_key))
        )
        n_replies = sum(reply_key.size > 0 for reply_key, _ in new_replies)
        self._n_reads += n_replies
        # Read all replies before delivering the first one, so that a single write can answer them all.
        contents = map_in_parallel(self._read_object, new_replies, MAX_PARALLEL_READS)
        delivered_keys = list[str]()
        blocked_workers = set[int]()  # ids of workers whose next reply is incomplete
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
        """Parse the key of a reply. Return None for other objects, and for other versions of polarmap."""
        try:
            return self._keys.parse_reply_key(object_key)
        except ProtocolMismatchError as error:
            self._seen_keys.add(object_key)
            self.mismatches.append(error)
            return None

    def _read_object(self, reply: tuple[ReplyKey, str]) -> bytes:
        """Return the bytes of a reply. Heartbeats have no bytes and are not read."""
        reply_key, object_key = reply
        return bytes(self._storage.get_object(self._storage.bucket, object_key)) if reply_key.size else b""

    def _handle_reply(self, reply_key: ReplyKey, data: bytes) -> None:
        """Deliver a reply to its worker's channel. A new worker gets a new channel.

        A reply without data is a heartbeat.
        """
        channel = self._channels.get(reply_key.worker_id)
        if channel is None or channel.worker_instance != reply_key.instance_id:
            if reply_key.last_sent > 1 or not data:
                # Ignore a worker that has not noticed yet that its channel was closed.
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
            # The reply is a heartbeat, or a message that was stored twice. There is nothing to deliver.
            return
        if data:
            channel.n_received, channel.n_missed = reply_key.last_sent, 0
            channel.deliver_frames(data)
        else:
            channel.n_missed += 1
            if channel.n_missed > 1:  # The storage has lost a message, for example in a restart.
                channel.disconnect()

    def _disconnect_silent_workers(self) -> None:
        now = time.monotonic()
        for channel in list(self._channels.values()):
            if now > channel.last_heartbeat_at + OUTAGE_SECONDS:
                channel.disconnect()
