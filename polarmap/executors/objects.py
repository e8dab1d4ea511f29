"""The driver's ends of channels by way of a storage, and the threads that write and read messages there."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from polarmap.errors import ExecutorError
from polarmap.executors.base import WakeSignal
from polarmap.executors.transfers import in_parallel
from polarmap.worker.retries import OUTAGE_SECONDS, retry_request
from polarmap.worker.socket_channel import MAX_INLINE_BYTES, FrameDecoder, FrameError, Message, SocketChannel
from polarmap.worker.storage_channel import (
    HEARTBEAT_SECONDS,
    MAX_POLL_INTERVAL,
    MIN_POLL_INTERVAL,
    N_POLLS_PER_MESSAGE,
    ChannelKeys,
    ReplyKey,
    next_poll_interval,
)

TRANSFERS = 16  # objects read at once


class ObjectLink:
    """The driver's end of one worker's channel, which a thread of `ObjectLinks` writes and reads.

    Parameters
    ----------
    number, instance : of the worker, as it tells them.
    post : takes this link and a message to the worker; None when nothing more will be said.

    Attributes
    ----------
    unread : deque
        Messages that the worker has not said to have, as `Mailbox` tells them.
    count, sent : int
        Numbers of the latest message to the worker, and from it.
    heard : float
        When the worker gave its latest sign of life.
    doubts : int
        Signs of life after a message that has not come.
    is_there : bool
        Whether it may say more.
    has_unsent : bool
        False: messages that wait are those of `ObjectLinks`, and no socket has to be writable for them.
    failure : None
        A link by way of a storage has no connection that could fail.
    """

    has_unsent = False
    failure = None

    def __init__(
        self, number: int, instance: int, post: Callable[[ObjectLink, Message | None], None]
    ) -> None:
        self.number, self.instance, self._post = number, instance, post
        self.unread = deque[tuple[int, tuple[Any, ...], bytes | None]]()
        self.count = self.sent = self.doubts = 0
        self.heard, self.is_there = time.monotonic(), True
        self._said, self._owner = deque[Message](), os.getpid()
        self._news = WakeSignal()

    def deliver(self, data: bytes) -> None:
        """A message that the worker has sent."""
        try:
            self._said.extend(FrameDecoder().feed(data))
        except FrameError:
            self.is_there = False
        self._news.set()

    def hang_up(self) -> None:
        """The worker is gone, or is to go."""
        self.is_there = False
        self._news.set()

    def fileno(self) -> int:
        """The descriptor that is readable when the worker has said something."""
        return self._news.fileno()

    def send(self, *messages: Message) -> bool:
        """Whether the worker will be told, as far as anybody knows."""
        for message in messages:
            self._post(self, message)
        return self.is_there

    def flush(self) -> bool:
        """Return whether the worker will be told: `ObjectLinks` writes the messages."""
        return self.is_there

    def drop_unsent(self) -> list[Message]:
        """Return no messages: the storage has them all."""
        return []

    def is_stalled(self) -> bool:
        """Return False: `ObjectLinks` hangs up on a worker that is silent for too long."""
        return False

    def receive(self) -> tuple[list[Message], bool]:
        """What it has said since the last time, and whether it will say more."""
        self._news.clear()
        is_there = self.is_there  # what it said before it was gone is there, too
        return [self._said.popleft() for _ in range(len(self._said))], is_there

    def close(self) -> None:
        """Let the worker end, unless it is that of a process that this one was forked of."""
        if os.getpid() == self._owner:
            self._post(self, None)
        self._news.close()


Link = SocketChannel | ObjectLink
Join = Callable[[int, Link, str], None]  # with the number of a worker, its link and the name of the channel


class ObjectLinks:
    """The links of a pool that go by way of a storage, with the threads that carry their messages.

    Maps never wait for the storage, which may hang: one thread writes what they say, another one reads.

    Parameters
    ----------
    storage : a `lithops.Storage` of our own.
    join : told of each worker that says something for the first time.
    """

    def __init__(self, storage: Any, prefix: str, join: Join) -> None:
        self._storage, self._keys, self._join = storage, ChannelKeys(prefix), join
        self._links: dict[int, ObjectLink] = {}
        # A destructor may close a run or a pool at any moment, also within either lock.
        self._lock, self._putting = threading.RLock(), threading.RLock()
        self._beat, self._next_sign = 0, time.monotonic() + HEARTBEAT_SECONDS
        self._writes = self._reads = 0  # with listings, which cost as much as writes
        self._data: dict[bytes, Any] = {}  # of messages, by digest
        self._stored = set[bytes]()  # of them, in objects of their own
        self._is_new = False
        self._posted, self._expected, self._is_closed = [threading.Event() for _ in range(3)]
        self._failure: Exception | None = None  # of the thread that writes, since it has succeeded last
        self._seen: set[str] = set()
        self._put_orders()
        self._threads = [
            threading.Thread(target=target, name=f"polarmap-objects-{target.__name__}", daemon=True)
            for target in (self._write, self._carry)
        ]
        for thread in self._threads:
            thread.start()

    def flush(self) -> None:
        """Have the messages written that wait, without waiting for the storage.

        ExecutorError if the storage refuses them, or has been away for AWAY_SECONDS.
        """
        if self._is_new:
            self._posted.set()
        error, self._failure = self._failure, None  # once: the next map may reach the storage
        if error is not None:
            raise ExecutorError(f"workers cannot be told: {type(error).__name__}: {error}") from error

    def requests(self, seconds: float) -> tuple[int, int]:
        """Writes and reads since this was asked before, of workers that have run for so many seconds.

        Those of this process as they were; those of workers, which poll, as they usually are.
        """
        writes, reads, self._writes, self._reads = self._writes, self._reads, 0, 0
        signs, polls = seconds / HEARTBEAT_SECONDS, seconds / MAX_POLL_INTERVAL
        return round(writes + reads + signs), round(reads + polls + reads * N_POLLS_PER_MESSAGE)

    def hang_up(self, number: int) -> None:
        """A worker is gone: nothing more will come of it, and nobody reads what was said to it."""
        link = self._links.get(number)
        if link is not None:
            link.hang_up()

    def close(self) -> None:
        """Let the workers end, and store nothing from now on. The site removes their replies."""
        deadline = time.monotonic() + OUTAGE_SECONDS  # a storage may not answer
        for event in (self._is_closed, self._posted, self._expected):
            event.set()
        for thread in self._threads:
            if thread is not threading.current_thread():  # a destructor runs on any thread
                thread.join(max(0.0, deadline - time.monotonic()))
        # Orders may still be on their way into the storage: an object that arrived later would stay for ever.
        is_free = self._putting.acquire(timeout=max(0.0, deadline - time.monotonic()))
        try:
            with contextlib.suppress(Exception):
                self._storage.delete_object(self._storage.bucket, self._keys.mailbox_key)
        finally:
            if is_free:
                self._putting.release()

    def _post(self, link: ObjectLink, message: Message | None) -> None:
        """A message for a worker, which goes when `flush` is called; None: the worker is let go."""
        with self._lock:
            if message is None:
                if self._links.get(link.number) is link:
                    del self._links[link.number]
            else:
                digest = None
                if message.data:
                    digest = hashlib.blake2b(message.data, digest_size=16).digest()
                    self._data[digest] = message.data
                link.count += 1
                link.unread.append((link.count, tuple(message._replace(data=b"")), digest))
            self._is_new = True

    def _write(self) -> None:
        """Write what was posted, and a sign of life now and then, until all is closed."""
        while not self._is_closed.is_set():
            self._posted.wait(max(0.0, self._next_sign - time.monotonic()))
            self._posted.clear()
            if self._is_closed.is_set() or not (self._is_new or time.monotonic() >= self._next_sign):
                continue
            try:
                # A sign of life writes all anew: a storage that was killed may have forgotten it.
                retry_request(self._put_orders)
                self._failure = None
            except Exception as error:  # what was posted stays for the next time
                self._failure = error if self._is_new else None
            self._next_sign = time.monotonic() + HEARTBEAT_SECONDS
            self._expected.set()

    def _put_orders(self) -> None:
        with self._putting:  # the latest is the last that is put
            if self._is_closed.is_set():  # a map that goes on for a moment must not store them again
                return
            with self._lock:
                links = list(self._links.values())  # who is not among them is let go
                messages = {link.number: list(link.unread) for link in links if link.is_there}
                needed = {digest for each in messages.values() for _, _, digest in each if digest}
                self._data = {digest: self._data[digest] for digest in needed}
                large = {digest for digest in needed if len(self._data[digest]) > MAX_INLINE_BYTES}
                inline = {digest: bytes(self._data[digest]) for digest in needed - large}
                self._beat += 1
                data = pickle.dumps((self._beat, inline, messages), pickle.HIGHEST_PROTOCOL)
                new, self._is_new = self._is_new, False
            try:
                for digest in large - self._stored:
                    self._put(self._keys.payload_key(digest), self._data[digest])
                    self._stored.add(digest)
                self._put(self._keys.mailbox_key, data)
            except BaseException:
                self._is_new |= new
                raise
            for digest in self._stored - large:
                self._storage.delete_object(self._storage.bucket, self._keys.payload_key(digest))
                self._stored.discard(digest)

    def _put(self, key: str, data: bytes) -> None:
        with self._lock:
            self._writes += 1
        self._storage.put_object(self._storage.bucket, key, data)

    def _carry(self) -> None:
        """Hand on what workers say until all is closed; look ever less until something is said."""
        pause, next_review = 0.0, 0.0
        while not self._is_closed.is_set():
            began, heard = time.monotonic(), 0
            try:
                heard = self._take()
                if began >= next_review:
                    next_review = began + HEARTBEAT_SECONDS
                    self._hang_up_on_silent()
            except Exception:  # the storage is away: that nothing was heard says nothing of the workers
                for link in list(self._links.values()):
                    link.heard = time.monotonic()
            pause = next_poll_interval(0.0 if heard else pause, time.monotonic() - began)
            if self._expected.wait(pause):
                self._expected.clear()
                pause = 0.0
                self._is_closed.wait(MIN_POLL_INTERVAL)  # nobody replies before

    def _take(self) -> int:
        """Read all replies there are, and remove them; how many there were."""
        with self._lock:
            self._writes += 1
        found = set(self._storage.list_keys(self._storage.bucket, self._keys.reply_prefix))
        self._seen &= found  # others are removed by now
        new = sorted((said, key) for key in found - self._seen if (said := self._keys.parse_reply_key(key)))
        count = sum(said.size > 0 for said, _ in new)
        self._reads += count
        # All are read before any is delivered, so that all are answered at once.
        contents = in_parallel(self._content, new, TRANSFERS)
        written, waiting = list[str](), set[int]()  # numbers of workers whose next reply is not whole yet
        for (said, key), data in zip(new, contents):
            if said.worker_id in waiting or len(data) != said.size:
                waiting.add(said.worker_id)
                continue
            self._heard(said, data)
            self._seen.add(key)
            written.append(key)
        if written:
            self._storage.delete_objects(self._storage.bucket, written)
        return count

    def _content(self, new: tuple[ReplyKey, str]) -> bytes:
        """The bytes of a reply; none of a sign of life."""
        said, key = new
        return bytes(self._storage.get_object(self._storage.bucket, key)) if said.size else b""

    def _heard(self, said: ReplyKey, data: bytes) -> None:
        """A worker has said this; nothing, if it is a sign of life."""
        link = self._links.get(said.worker_id)
        if link is None or link.instance != said.instance_id:
            if said.last_sent > 1 or not data:  # one that was let go, and has not read it yet
                return
            link = ObjectLink(said.worker_id, said.instance_id, self._post)
            with self._lock:
                self._links[said.worker_id] = link
            self._join(said.worker_id, link, "objects")
        link.heard = time.monotonic()
        with self._lock:
            while link.unread and link.unread[0][0] <= said.last_received:
                link.unread.popleft()
        if said.last_sent <= link.sent:
            return  # a sign of life, or a message that was put twice
        if data:
            link.sent, link.doubts = said.last_sent, 0
            link.deliver(data)
        else:
            link.doubts += 1
            if link.doubts > 1:  # a storage that was killed forgets
                link.hang_up()

    def _hang_up_on_silent(self) -> None:
        now = time.monotonic()
        for link in list(self._links.values()):
            if now > link.heard + OUTAGE_SECONDS:
                link.hang_up()
