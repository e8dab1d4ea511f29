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

MAX_PARALLEL_READS = 16  # maximum number of workers' replies that are read from the storage in parallel


class DriverStorageChannel:
    """The driver's end of a channel through which it exchanges messages with a worker as stored objects.

    This class only keeps queues of messages. Threads of `StorageChannelServer` access the storage. The class
    has the same interface as `SocketChannel`.

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
        """Decode messages from the worker, and wake the session (the running map) that polls this channel."""
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
        """Return True if the worker is connected.

        Unlike the method of `SocketChannel`, this method writes nothing, because a thread of
        `StorageChannelServer` writes the messages.
        """
        return self.is_connected

    def drop_unsent_messages(self) -> list[Message]:
        """Return an empty list, because `send` has passed all messages on to `StorageChannelServer`."""
        return []

    def is_stalled(self) -> bool:
        """Return False, because this channel never waits for the worker to read.

        `StorageChannelServer` disconnects workers that have sent no heartbeat for too long.
        """
        return False

    def receive(self) -> tuple[list[Message], bool]:
        """Return the messages received since the last call, and whether the worker is still connected."""
        self._wake_signal.clear()
        # Read the state before the inbox. If the worker disconnects in between, its last messages are still
        # returned, and the next call reports the disconnection.
        is_connected = self.is_connected
        return [self._inbox.popleft() for _ in range(len(self._inbox))], is_connected

    def close(self) -> None:
        """Close the channel, which makes the worker exit.

        In a forked child process, the worker is not affected. Only the child's file descriptors are closed.
        """
        if os.getpid() == self._owner_pid:
            self._post_message(self, None)
        self._wake_signal.close()


WorkerChannel = SocketChannel | DriverStorageChannel
# A callback for new workers. The arguments are the id of the worker, its channel, and how it is connected
# ("TCP" or "objects").
OnConnected = Callable[[int, WorkerChannel, str], None]


class StorageChannelServer:
    """Exchanges messages with a pool's workers as stored objects, if workers cannot connect by TCP.

    One thread writes the messages for all workers, and another thread reads their replies. Maps therefore
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
        # The locks must be reentrant. While a thread holds one of them, the garbage collector may run a
        # destructor on this thread that closes a map or a pool, which needs the lock again.
        self._lock, self._mailbox_lock = threading.RLock(), threading.RLock()
        self._heartbeat, self._next_heartbeat_at = 0, time.monotonic() + HEARTBEAT_SECONDS
        # The numbers of requests to the storage since they were last reported for billing. Listings are
        # counted as writes, because they cost the same.
        self._n_writes = self._n_reads = 0
        # The data of queued messages by their digest, so that equal data for several workers are kept once.
        self._payload_by_digest: dict[bytes, Any] = {}
        # The digests of data that are stored as separate objects, because they are too large for the mailbox.
        self._stored_digests = set[bytes]()
        self._has_unwritten = False
        self._posted, self._poll_soon, self._is_closed = [threading.Event() for _ in range(3)]
        # The error if the thread that writes messages could not write the latest ones; otherwise None.
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
        """Make a background thread write all queued messages to the storage. Return without waiting for it.

        Raises ExecutorError if an earlier write has failed, because the storage has refused it or has not
        responded for OUTAGE_SECONDS.
        """
        if self._has_unwritten:
            self._posted.set()
        # Report each error only once, because the storage may be available again when the next map starts.
        error, self._failure = self._failure, None
        if error is not None:
            raise ExecutorError(
                f"messages cannot be sent to the workers through the storage: {type(error).__name__}: {error}"
            ) from error

    def take_request_counts(self, worker_seconds: float) -> tuple[int, int]:
        """Return the numbers of write and read requests to the storage since the last call, for billing.

        Requests of this process are counted. The requests of workers that poll the storage are estimated from
        `worker_seconds`, the total run time of all workers.
        """
        with self._lock:
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
        """Stop the threads and delete the mailbox, i.e. the object from which workers read their messages.

        The workers then exit. The `WorkerProvider` later removes the replies that are still in the storage.
        """
        # Limit the time that this takes, because requests to the storage may hang.
        deadline = time.monotonic() + OUTAGE_SECONDS
        for event in (self._is_closed, self._posted, self._poll_soon):
            event.set()
        for thread in self._threads:
            # A thread cannot join itself. The current thread may be one of these threads if the garbage
            # collector runs a destructor on it.
            if thread is not threading.current_thread():
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
        """Queue a message for a worker, until `flush_messages` sends it.

        The message None closes the channel to the worker.
        """
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
        """Write the mailbox whenever `flush_messages` is called, and periodically as a heartbeat.

        The mailbox is the object from which workers read their messages. This method runs on a background
        thread until the server is closed.
        """
        while not self._is_closed.is_set():
            self._posted.wait(max(0.0, self._next_heartbeat_at - time.monotonic()))
            self._posted.clear()
            is_due = self._has_unwritten or time.monotonic() >= self._next_heartbeat_at
            if self._is_closed.is_set() or not is_due:
                continue
            try:
                # Write all messages that the workers have not confirmed yet, even if only a heartbeat is due:
                # the storage may have been restarted and lost messages that were written before.
                retry_request(self._write_mailbox)
                self._failure = None
            except Exception as error:
                # Continue: the messages stay queued until a later write succeeds.
                self._failure = error if self._has_unwritten else None
            self._next_heartbeat_at = time.monotonic() + HEARTBEAT_SECONDS
            self._poll_soon.set()

    def _write_mailbox(self) -> None:
        # Only one thread writes at a time, so that an older version never replaces a newer one.
        with self._mailbox_lock:
            if self._is_closed.is_set():  # Do not re-create the mailbox that `close` has deleted.
                return
            with self._lock:
                # If the mailbox does not mention a worker, this worker exits.
                channels = list(self._channels.values())
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
        """Poll the storage for replies of workers. The pauses grow exponentially while no replies arrive.

        This method runs on a background thread until the server is closed.
        """
        poll_interval, next_review = 0.0, 0.0
        while not self._is_closed.is_set():
            started_at, n_replies = time.monotonic(), 0
            try:
                n_replies = self._read_replies()
                if started_at >= next_review:
                    next_review = started_at + HEARTBEAT_SECONDS
                    self._disconnect_silent_workers()
            except Exception:
                # The storage is unavailable, so workers could not send heartbeats. Do not count this time as
                # silence, which would make them appear lost.
                for channel in list(self._channels.values()):
                    channel.last_heartbeat_at = time.monotonic()
            poll_seconds = time.monotonic() - started_at
            poll_interval = compute_next_poll_interval(0.0 if n_replies else poll_interval, poll_seconds)
            if self._poll_soon.wait(poll_interval):
                self._poll_soon.clear()
                poll_interval = 0.0
                # The mailbox was written. Give the workers some time to read it, then poll for replies.
                self._is_closed.wait(MIN_POLL_INTERVAL)

    def _read_replies(self) -> int:
        """Read all new replies from the storage, deliver them to their channels, and delete them.

        Return the number of replies, without heartbeats.
        """
        with self._lock:
            self._n_writes += 1
        listed_keys = set(self._storage.list_keys(self._storage.bucket, self._keys.reply_prefix))
        self._seen_keys &= listed_keys  # The objects of all other seen keys have been deleted.
        new_replies = sorted(
            (reply_key, object_key)
            for object_key in listed_keys - self._seen_keys
            if (reply_key := self._parse_reply_key(object_key))
        )
        n_replies = sum(reply_key.size > 0 for reply_key, _ in new_replies)
        with self._lock:
            self._n_reads += n_replies
        # Read all replies before delivering the first one. The messages that answer them are then queued at
        # about the same time, so that a single write can send them all.
        contents = map_in_parallel(self._read_object, new_replies, MAX_PARALLEL_READS)
        delivered_keys = list[str]()
        # The ids of workers with an incompletely stored reply. Their later replies wait, to keep the order.
        blocked_workers = set[int]()
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
        """Parse the key of an object that contains a worker's reply.

        Return None if the object is not a reply, or was written by an incompatible version of polarmap.
        """
        try:
            return self._keys.parse_reply_key(object_key)
        except ProtocolMismatchError as error:
            self._seen_keys.add(object_key)
            self.mismatches.append(error)
            return None

    def _read_object(self, reply: tuple[ReplyKey, str]) -> bytes:
        """Return the bytes of a reply. For a heartbeat, which has no bytes, return b"" without reading it."""
        reply_key, object_key = reply
        return bytes(self._storage.get_object(self._storage.bucket, object_key)) if reply_key.size else b""

    def _handle_reply(self, reply_key: ReplyKey, data: bytes) -> None:
        """Deliver a reply to the channel of its worker. The first reply of a worker creates the channel.

        A reply without data is a heartbeat, which only shows that the worker is alive and which messages it
        has received.
        """
        channel = self._channels.get(reply_key.worker_id)
        if channel is None or channel.worker_instance != reply_key.instance_id:
            if reply_key.last_sent > 1 or not data:
                # The worker is not new, but its channel was closed. Ignore the reply: the worker will exit
                # when it notices this.
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
            # There is nothing to deliver: the reply is a heartbeat, or a message that has already arrived.
            return
        if data:
            channel.n_received, channel.n_missed = reply_key.last_sent, 0
            channel.deliver_frames(data)
        else:
            channel.n_missed += 1
            # Two heartbeats have mentioned a message that has not arrived. The storage must have lost it, for
            # example because it was restarted.
            if channel.n_missed > 1:
                channel.disconnect()

    def _disconnect_silent_workers(self) -> None:
        now = time.monotonic()
        for channel in list(self._channels.values()):
            if now > channel.last_heartbeat_at + OUTAGE_SECONDS:
                channel.disconnect()
