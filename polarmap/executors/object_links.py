"""The thread of a driver that carries what it and its workers say to and from a storage."""

from __future__ import annotations

import contextlib
import hashlib
import pickle
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from polarmap.errors import ExecutorError
from polarmap.executors.links import Join, ObjectLink
from polarmap.worker.object_channel import (
    BEAT_SECONDS,
    FIRST_POLL_SECONDS,
    GOODBYE_SECONDS,
    LAST_POLL_SECONDS,
    POLL_GROWTH,
    POLLS_PER_MESSAGE,
    SLOW_POLL_SECONDS,
    ObjectKeys,
    Orders,
    Said,
    with_function,
)
from polarmap.worker.retry import retry_call

TRANSFERS = 16  # objects read at once
FUNCTION_BYTES = 1 << 16  # larger ones are objects of their own


class ObjectLinks:
    """The links of a pool that go by way of a storage, with the thread that carries their messages.

    Parameters
    ----------
    storage : lithops.Storage
        Of our own.
    join : callable
        Told of each worker that says something for the first time.
    """

    def __init__(self, storage: Any, prefix: str, join: Join) -> None:
        self._storage, self._keys, self._join = storage, ObjectKeys(prefix), join
        self._links: dict[int, ObjectLink] = {}
        self._gone: set[int] = set()
        self._lock, self._putting = threading.Lock(), threading.Lock()
        self._beat, self._next_sign = 0, 0.0
        self._writes = self._reads = 0  # with listings, which cost as much as writes
        self._functions: dict[bytes, bytes] = {}
        self._stored = set[bytes]()  # of them
        self._messages: dict[int, list[tuple[int, bytes, bytes | None]]] = {}
        self._is_new = False
        self._expected, self._is_closed = threading.Event(), threading.Event()
        self._seen: set[str] = set()
        self._put_orders()
        self._thread = threading.Thread(target=self._carry, name="polarmap-objects", daemon=True)
        self._thread.start()

    def flush(self, may_wait: bool = True) -> None:
        """Let all that was said be on its way; ExecutorError if the storage is away for long.

        may_wait : False: it is tried once, and again by the thread that listens to workers.
        """
        try:
            if may_wait:
                retry_call(self._flush)
            else:
                self._flush()
        except Exception as error:
            if may_wait:
                raise ExecutorError(f"workers cannot be told: {type(error).__name__}: {error}") from error

    def requests(self, seconds: float) -> tuple[int, int]:
        """Writes and reads since this was asked before, of workers that have run for so many seconds.

        Those of this process as they were; those of workers, which poll, as they usually are.
        """
        writes, reads, self._writes, self._reads = self._writes, self._reads, 0, 0
        signs, polls = seconds / BEAT_SECONDS, seconds / LAST_POLL_SECONDS
        return round(writes + reads + signs), round(reads + polls + reads * POLLS_PER_MESSAGE)

    def hang_up(self, number: int) -> None:
        """A worker is gone: nothing more will come of it, and nobody reads what was said to it."""
        with self._lock:
            self._messages.pop(number, None)
        link = self._links.get(number)
        if link is not None:
            link.hang_up()

    def close(self) -> None:
        """Workers end, and are not listened to any more; the site removes what they have said."""
        self._is_closed.set()
        self._expected.set()
        self._thread.join()
        with contextlib.suppress(Exception):
            self._storage.delete_object(self._storage.bucket, self._keys.orders)

    def _post(self, number: int, message: tuple[Any, ...]) -> None:
        """A message for a worker, which goes when `flush` is called."""
        link = self._links[number]
        count = link.number_message(message[0] == "call")  # a worker replies to what is cancelled, too
        digest = None
        with self._lock:
            if message[0] == "end":  # and is not listened to any more; nor does it read what was said before
                self._gone.add(number)
                del self._links[number]
                self._messages.pop(number, None)
                if not link.is_there:
                    return
            if message[0] == "call" and isinstance(message[1][3], bytes):
                function = message[1][3]
                digest = hashlib.blake2b(function, digest_size=16).digest()
                self._functions[digest] = function
                message = with_function(message, None)
            data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
            self._messages.setdefault(number, []).append((count, data, digest))
            self._is_new = True

    def _flush(self) -> None:
        """Send what was posted, in one object; what cannot be sent now stays for the next time."""
        if self._is_new:
            self._put_orders()
            self._expected.set()

    def _put_orders(self) -> None:
        with self._putting:  # the latest is the last that is put
            with self._lock:
                needed = {digest for each in self._messages.values() for _, _, digest in each}
                self._functions = {key: one for key, one in self._functions.items() if key in needed}
                large = {key for key, one in self._functions.items() if len(one) > FUNCTION_BYTES}
                inline = {key: one for key, one in self._functions.items() if key not in large}
                self._beat += 1
                orders = Orders(self._beat, inline, self._messages)
                data = pickle.dumps(tuple(orders), pickle.HIGHEST_PROTOCOL)
                new, self._is_new = self._is_new, False
            try:
                self._put_functions(large)
                self._put(self._keys.orders, data)
            except BaseException:
                self._is_new |= new
                raise
            self._remove_functions(large)

    def _put_functions(self, needed: set[bytes]) -> None:
        """Store those that are new in objects of their own: the one with the messages is read often."""
        for digest in needed - self._stored:
            self._put(self._keys.function(digest), self._functions[digest])
            self._stored.add(digest)

    def _remove_functions(self, needed: set[bytes]) -> None:
        """Remove those that no message needs any more."""
        for digest in self._stored - needed:
            self._storage.delete_object(self._storage.bucket, self._keys.function(digest))
            self._stored.discard(digest)

    def _put(self, key: str, data: bytes) -> None:
        self._writes += 1
        self._storage.put_object(self._storage.bucket, key, data)

    def _carry(self) -> None:
        """Hand on what workers say until all is closed; look ever less until something is said."""
        pause = FIRST_POLL_SECONDS
        with ThreadPoolExecutor(TRANSFERS, thread_name_prefix="polarmap-objects") as pool:
            while not self._is_closed.is_set():
                began, heard = time.monotonic(), 0
                try:
                    if began >= self._next_sign:
                        self._put_orders()  # again, if the storage was killed and has forgotten them
                        self._next_sign = began + BEAT_SECONDS
                        self._hang_up_on_silent()
                    self._flush()
                    heard = self._take(pool.map)
                except Exception:  # the storage is away: that nothing was heard says nothing of the workers
                    for link in list(self._links.values()):
                        link.heard = time.monotonic()
                pause = FIRST_POLL_SECONDS if heard else min(pause * POLL_GROWTH, LAST_POLL_SECONDS)
                pause = max(pause, min(time.monotonic() - began, SLOW_POLL_SECONDS))
                if self._expected.wait(pause):
                    self._expected.clear()
                    pause = FIRST_POLL_SECONDS
                    self._is_closed.wait(pause)  # nobody replies before

    def _take(self, each: Callable[..., Any]) -> int:
        """Read all replies there are, and remove them; how many there were."""
        self._writes += 1
        found = set(self._storage.list_keys(self._storage.bucket, self._keys.replies))
        self._seen &= found  # others are removed by now
        new = sorted((said, key) for key in found - self._seen if (said := self._keys.said(key)))
        count = sum(said.size > 0 for said, _ in new)
        self._reads += count
        contents = list(each(self._content, new))  # all before any is told: so all are answered at once
        written, waiting = list[str](), set[int]()  # numbers of workers whose next reply is not whole yet
        for (said, key), data in zip(new, contents):
            if said.number in waiting or len(data) != said.size:
                waiting.add(said.number)
                continue
            self._seen.add(key)
            written.append(key)
            self._heard(said, data)
        if written:
            self._storage.delete_objects(self._storage.bucket, written)
        return count

    def _content(self, new: tuple[Said, str]) -> bytes:
        """The bytes of a reply; none of a sign of life."""
        said, key = new
        return bytes(self._storage.get_object(self._storage.bucket, key)) if said.size else b""

    def _heard(self, said: Said, data: bytes) -> None:
        """A worker has said this; nothing, if it is a sign of life."""
        number = said.number
        if number in self._gone:
            return
        link = self._links.get(number)
        if link is None:
            link = self._links[number] = ObjectLink(partial(self._post, number))
            self._join(number, link, "objects")
        link.heard = time.monotonic()
        with self._lock:
            unread = [one for one in self._messages.get(number, ()) if one[0] > said.latest]
            self._messages[number] = unread
        if data:
            link.deliver(data)
        elif link.unanswered and said.is_idle and not unread:
            link.doubts += 1
            if link.doubts > 1:  # its reply was lost: a storage that was killed forgets
                link.hang_up()

    def _hang_up_on_silent(self) -> None:
        now = time.monotonic()
        for link in list(self._links.values()):
            if now > link.heard + GOODBYE_SECONDS:
                link.hang_up()
