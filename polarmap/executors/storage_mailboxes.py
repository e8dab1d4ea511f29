"""Messages to and from workers by way of a storage, where no socket reaches the driver."""

from __future__ import annotations

import contextlib
import hashlib
import pickle
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from polarmap.errors import ExecutorError
from polarmap.executors.links import MailboxLink
from polarmap.executors.lithops_storage import ask_again
from polarmap.executors.worker_listener import Join
from polarmap.worker import object_channel, redis_channel
from polarmap.worker.messages import plain
from polarmap.worker.object_channel import ObjectKeys, Orders, with_function
from polarmap.worker.redis_channel import RedisKeys

TRANSFERS = 16  # objects read at once
FUNCTION_BYTES = 1 << 16  # larger ones are objects of their own
IDLE_LOOK_SECONDS = 1.0  # between looks for workers that begin, while nothing is under way


class Box:
    """What is known of one worker.

    count : of the latest message for it.
    posted : when that was posted; message : the message.
    awaits_reply : whether nothing has been heard since.
    heard : when it gave its latest sign of life.
    doubts : how often it seemed to be done though no reply had come.
    """

    def __init__(self) -> None:
        self.link: MailboxLink | None = None
        self.count, self.posted = 0, 0.0
        self.message: Any = None
        self.awaits_reply = False
        self.heard, self.doubts = time.monotonic(), 0


class Mailboxes:
    """What the two kinds have in common: the boxes by worker, who is gone, and what has been lost.

    Parameters
    ----------
    join : callable
        Told of each worker that says something for the first time.
    channel : as reports name it.
    beat_seconds : between signs of life of a worker.
    silence : seconds without one after which a worker is taken to be gone.
    """

    def __init__(self, join: Join, channel: str, beat_seconds: float, silence: float) -> None:
        self._join, self._channel = join, channel
        self._beat_seconds, self._silence = beat_seconds, silence
        self._boxes: dict[int, Box] = {}
        self._gone: set[int] = set()
        self._is_closed = threading.Event()

    def post(self, number: int, message: tuple[Any, ...]) -> None:
        """A message for a worker, in place of one that it has not read; it goes when `flush` is called."""
        box = self._boxes[number]
        if message[0] == "end":  # and is not listened to any more
            self._gone.add(number)
            del self._boxes[number]
        box.count += 1
        box.message, box.posted, box.doubts = plain(message), time.monotonic(), 0
        box.awaits_reply |= message[0] == "call"  # a worker replies to what is cancelled, too
        self._send(number, box.count, box.message)

    def flush(self, may_wait: bool = True) -> None:
        """Let all that was posted be on its way; ExecutorError if the storage is away for long.

        may_wait : False: it is tried once, and again by the thread that listens to workers.
        """
        try:
            if may_wait:
                ask_again(self._flush)
            else:
                self._flush()
        except Exception as error:
            if may_wait:
                raise ExecutorError(f"workers cannot be told: {type(error).__name__}: {error}") from error

    def requests(self, seconds: float) -> tuple[int, int]:
        """Writes and reads since this was asked before, of workers that have run for so many seconds.

        None are charged for, as far as is known here.
        """
        return 0, 0

    def hang_up(self, number: int) -> None:
        """A worker is gone: nothing more will come of it."""
        box = self._boxes.get(number)
        if box is not None and box.link is not None:
            box.link.hang_up()

    def close(self) -> None:
        """Workers end, and are not listened to any more."""
        raise NotImplementedError

    def clean(self) -> None:
        """Remove what was left for either side, when workers have ended, as far as the site does not."""

    def _flush(self) -> None:
        """Send what was posted; what cannot be sent now stays for the next time."""
        raise NotImplementedError

    def _send(self, number: int, count: int, message: Any) -> None:
        """Take such a message for the next flush."""
        raise NotImplementedError

    def _heard(self, number: int, data: bytes) -> None:
        """A worker has said this; nothing, if it is a sign of life."""
        if number in self._gone:
            return
        box = self._boxes.setdefault(number, Box())
        box.heard = time.monotonic()
        if box.link is None:
            box.link = MailboxLink(partial(self.post, number))
            self._join(number, box.link, self._channel)
        if data:
            box.awaits_reply = False
            box.link.deliver(data)

    def _check(self, number: int, latest: int, is_idle: bool) -> None:
        """Send again what a worker has not received long after it was sent; hang up if its reply was lost.

        A storage that was killed may have forgotten either.
        """
        box = self._boxes.get(number)
        if box is None or not box.awaits_reply or time.monotonic() < box.posted + 2 * self._beat_seconds:
            return
        if latest < box.count:
            self._send(number, box.count, box.message)
            self.flush(may_wait=False)
        elif is_idle:
            box.doubts += 1
            if box.doubts > 1:
                self.hang_up(number)

    def _hear_nothing(self) -> None:
        """The storage is away: that nothing was heard meanwhile says nothing of the workers."""
        for box in list(self._boxes.values()):
            box.heard = time.monotonic()

    def _hang_up_on_silent(self) -> None:
        now = time.monotonic()
        for number, box in list(self._boxes.items()):
            if now > box.heard + self._silence:
                self.hang_up(number)


class RedisMailboxes(Mailboxes):
    """Lists in Redis.

    Parameters
    ----------
    client : redis.Redis
        Of a storage of our own.
    """

    def __init__(self, client: Any, prefix: str, join: Join) -> None:
        beat = redis_channel.BEAT_SECONDS
        super().__init__(join, "Redis lists", beat, silence=5 * beat)
        self._client, self._keys = client, RedisKeys(prefix)
        self._posted: dict[int, bytes] = {}
        self._flushing = threading.Lock()
        self._told: set[int] = set()
        self._live()
        self._thread = threading.Thread(target=self._carry, name="polarmap-redis", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Workers end, and are not listened to any more."""
        self._is_closed.set()
        with contextlib.suppress(Exception):  # workers that read it after this are not needed any more
            self._client.set(self._keys.driver, redis_channel.GOODBYE, ex=int(redis_channel.GOODBYE_SECONDS))
            self._client.rpush(self._keys.to_driver, b"")  # the thread waits for something
        self._thread.join()

    def clean(self) -> None:
        """Remove the lists; one of a worker that is heard once more goes by itself."""
        with contextlib.suppress(Exception):
            self._client.delete(self._keys.to_driver, *map(self._keys.to_worker, self._told))

    def _flush(self) -> None:
        with self._flushing:  # the latest message for a worker is the last that is sent
            posted = dict(list(self._posted.items()))
            if not posted:
                return
            pipeline = self._client.pipeline(transaction=False)
            for number, data in posted.items():
                key = self._keys.to_worker(number)
                pipeline.delete(key)
                pipeline.rpush(key, data)
                pipeline.expire(key, redis_channel.KEPT_SECONDS)
            self._told |= posted.keys()
            pipeline.execute()
            for number, data in posted.items():
                if self._posted.get(number) is data:
                    del self._posted[number]

    def _send(self, number: int, count: int, message: Any) -> None:
        self._posted[number] = pickle.dumps((count, message), pickle.HIGHEST_PROTOCOL)

    def _carry(self) -> None:
        """Hand on what workers say until all is closed."""
        next_sign = 0.0
        while not self._is_closed.is_set():
            try:
                if time.monotonic() >= next_sign:
                    self._live()
                    next_sign = time.monotonic() + self._beat_seconds
                    self._hang_up_on_silent()
                self._flush()
                found = self._client.blpop([self._keys.to_driver], timeout=redis_channel.WAIT_SECONDS)
            except Exception:  # the server is away
                self._hear_nothing()
                self._is_closed.wait(redis_channel.WAIT_SECONDS)
                continue
            if found is not None:
                self._hand_on(found[1])

    def _hand_on(self, said: bytes) -> None:
        start = struct.calcsize(redis_channel.HEADER)
        if len(said) < start:
            return
        number, latest, is_idle, is_sign = struct.unpack_from(redis_channel.HEADER, said)
        self._heard(number, said[start:])
        if is_sign:
            self._check(number, latest, bool(is_idle))

    def _live(self) -> None:
        self._client.set(self._keys.driver, redis_channel.LIVES, ex=int(redis_channel.GOODBYE_SECONDS))


class ObjectMailboxes(Mailboxes):
    """Objects in any storage.

    Parameters
    ----------
    storage : lithops.Storage
        Of our own.
    """

    def __init__(self, storage: Any, prefix: str, join: Join) -> None:
        super().__init__(join, "objects", object_channel.BEAT_SECONDS, object_channel.GOODBYE_SECONDS)
        self._storage, self._keys = storage, ObjectKeys(prefix)
        self._lock, self._putting = threading.Lock(), threading.Lock()
        self._beat = 0
        self._writes = self._reads = 0  # with listings, which cost as much as writes
        self._functions: dict[bytes, bytes] = {}
        self._stored = set[bytes]()  # of them
        self._messages: dict[int, tuple[int, Any, bytes | None]] = {}
        self._is_new = False
        self._expected = threading.Event()
        self._seen: set[str] = set()
        self._put_orders()
        self._thread = threading.Thread(target=self._carry, name="polarmap-objects", daemon=True)
        self._thread.start()

    def requests(self, seconds: float) -> tuple[int, int]:
        """Those of this process as they were; those of workers, which poll, as they usually are."""
        writes, reads, self._writes, self._reads = self._writes, self._reads, 0, 0
        signs, polls = seconds / self._beat_seconds, seconds / object_channel.LAST_POLL_SECONDS
        return round(writes + reads + signs), round(reads + polls + reads * object_channel.POLLS_PER_MESSAGE)

    def close(self) -> None:
        """Workers end, and are not listened to any more; the site removes what they have said."""
        self._is_closed.set()
        self._expected.set()
        self._thread.join()
        with contextlib.suppress(Exception):
            self._storage.delete_object(self._storage.bucket, self._keys.orders)

    def _flush(self) -> None:
        """In one object."""
        if self._is_new:
            self._put_orders()
            self._expected.set()

    def _send(self, number: int, count: int, message: Any) -> None:
        digest = None
        with self._lock:
            if message[0] == "call" and isinstance(message[1][3], bytes):
                function = message[1][3]
                digest = hashlib.blake2b(function, digest_size=16).digest()
                self._functions[digest] = function
                message = with_function(message, None)
            self._messages[number] = count, message, digest
            self._is_new = True

    def _put_orders(self) -> None:
        with self._putting:  # the latest is the last that is put
            with self._lock:
                needed = {digest for _, _, digest in self._messages.values()}
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
        """Hand on what workers say until all is closed; look often while some work."""
        next_sign, pause = 0.0, object_channel.FIRST_POLL_SECONDS
        with ThreadPoolExecutor(TRANSFERS, thread_name_prefix="polarmap-objects") as pool:
            while not self._is_closed.is_set():
                heard = 0
                try:
                    if time.monotonic() >= next_sign:
                        self._put_orders()
                        next_sign = time.monotonic() + self._beat_seconds
                        self._hang_up_on_silent()
                    self._flush()
                    heard = self._take(pool.map)
                except Exception:  # the storage is away
                    self._hear_nothing()
                pause = object_channel.FIRST_POLL_SECONDS if heard else pause * object_channel.POLL_GROWTH
                pause = min(pause, IDLE_LOOK_SECONDS)
                if self._expected.wait(pause):
                    self._expected.clear()
                    pause = object_channel.FIRST_POLL_SECONDS

    def _take(self, each: Callable[..., Any]) -> int:
        """Read all replies there are, and remove them; how many there were."""
        self._writes += 1
        found = set(self._storage.list_keys(self._storage.bucket, self._keys.replies))
        self._seen &= found  # others are removed by now
        new = sorted((said, key) for key in found - self._seen if (said := self._keys.said(key)))
        keys = [key for said, key in new if said.size]
        self._reads += len(keys)
        contents = dict(zip(keys, each(partial(self._storage.get_object, self._storage.bucket), keys)))
        written, waiting = list[str](), set[int]()  # numbers of workers whose next reply is not whole yet
        for said, key in new:
            data = bytes(contents.get(key, b""))
            if said.number in waiting or len(data) != said.size:
                waiting.add(said.number)
                continue
            self._seen.add(key)
            written.append(key)
            self._heard(said.number, data)
            if not said.size:
                self._check(said.number, said.latest, said.is_idle)
        if written:
            self._storage.delete_objects(self._storage.bucket, written)
        return len(keys)
