"""Messages to and from workers by way of a storage, where no socket reaches the driver."""

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

from polarmap.executors.links import MailboxLink
from polarmap.executors.lithops_storage import ask_again
from polarmap.executors.worker_listener import Join
from polarmap.worker import object_channel, redis_channel
from polarmap.worker.messages import plain
from polarmap.worker.object_channel import ObjectKeys, Orders, with_function
from polarmap.worker.redis_channel import RedisKeys, first_of

TRANSFERS = 16  # objects read at once
IDLE_LOOK_SECONDS = 1.0  # between looks for workers that begin, while nothing is under way


class Mailboxes:
    """What the two kinds have in common: the links by number, and who has been silent for too long.

    Parameters
    ----------
    join : callable
        Told of each worker that says something for the first time.
    channel : as reports name it.
    silence : seconds without a sign of life after which a worker is taken to be gone.
    """

    def __init__(self, join: Join, channel: str, silence: float) -> None:
        self._join, self._channel, self._silence = join, channel, silence
        self._links: dict[int, MailboxLink] = {}
        self._heard: dict[int, float] = {}
        self._gone: set[int] = set()
        self._is_closed = threading.Event()

    def post(self, number: int, message: tuple[Any, ...]) -> None:
        """A message for a worker, which is on its way when `flush` has been called."""
        raise NotImplementedError

    def flush(self) -> None:
        """Let all that was posted be on its way."""
        raise NotImplementedError

    def heard(self, number: int, data: bytes) -> None:
        """A worker has said this, or given a sign of life."""
        if number in self._gone:
            return
        self._heard[number] = time.monotonic()
        link = self._links.get(number)
        if link is None:
            link = self._links[number] = MailboxLink(partial(self.post, number))
            self._join(number, link, self._channel)
        if data:
            link.deliver(data)

    def part(self, number: int) -> None:
        """A worker is not listened to any more."""
        self._gone.add(number)
        self._links.pop(number, None)
        self._heard.pop(number, None)

    def hang_up(self, number: int) -> None:
        """A worker is gone: nothing more will come of it."""
        if number in self._links:
            self._links[number].hang_up()

    def drop_silent(self) -> None:
        """Hang up on workers that have given no sign of life for too long."""
        now = time.monotonic()
        for number, heard in list(self._heard.items()):
            if now > heard + self._silence:
                self.hang_up(number)

    def close(self) -> None:
        """Workers end; what was left for either side is removed."""
        raise NotImplementedError


class RedisMailboxes(Mailboxes):
    """Lists in Redis.

    Parameters
    ----------
    client : redis.Redis
        Of a storage of our own.
    """

    def __init__(self, client: Any, prefix: str, join: Join) -> None:
        super().__init__(join, "Redis lists", 5 * redis_channel.BEAT_SECONDS)
        self._client, self._keys = client, RedisKeys(prefix)
        self._posted: list[tuple[int, bytes]] = []
        self._told: set[int] = set()
        self._live()
        self._thread = threading.Thread(target=self._carry, name="polarmap-redis", daemon=True)
        self._thread.start()

    def post(self, number: int, message: tuple[Any, ...]) -> None:
        """A message for a worker: the only one that waits for it, if it has missed others."""
        self._posted.append((number, pickle.dumps(plain(message), pickle.HIGHEST_PROTOCOL)))

    def flush(self) -> None:
        """Let all that was posted be on its way."""
        posted, self._posted = self._posted, []
        if not posted:
            return
        pipeline = self._client.pipeline(transaction=False)
        for number, data in posted:
            key = self._keys.to_worker(number)
            self._told.add(number)
            pipeline.delete(key)
            pipeline.rpush(key, data)
        ask_again(pipeline.execute)

    def close(self) -> None:
        """Workers end; what was left for either side is removed."""
        self._is_closed.set()
        keys = [self._keys.driver, self._keys.to_driver, *map(self._keys.to_worker, self._told)]
        with contextlib.suppress(Exception):
            self._client.delete(*keys)
        self._thread.join()
        with contextlib.suppress(Exception):
            self._client.delete(*keys)

    def _carry(self) -> None:
        """Hand on what workers say until all is closed."""
        next_sign = 0.0
        while not self._is_closed.is_set():
            try:
                if time.monotonic() >= next_sign:
                    self._live()
                    next_sign = time.monotonic() + redis_channel.BEAT_SECONDS
                    self.drop_silent()
                found = self._client.blpop([self._keys.to_driver], timeout=redis_channel.WAIT_SECONDS)
            except Exception:  # the server is away
                self._is_closed.wait(redis_channel.WAIT_SECONDS)
                continue
            if found is not None:
                self.heard(*first_of(found))

    def _live(self) -> None:
        self._client.set(self._keys.driver, b"1", ex=redis_channel.GOODBYE_SECONDS)


class ObjectMailboxes(Mailboxes):
    """Objects in any storage.

    Parameters
    ----------
    storage : lithops.Storage
        Of our own.
    """

    def __init__(self, storage: Any, prefix: str, join: Join) -> None:
        super().__init__(join, "objects", object_channel.GOODBYE_SECONDS)
        self._storage, self._keys = storage, ObjectKeys(prefix)
        self._lock, self._putting = threading.Lock(), threading.Lock()
        self._beat, self._count = 0, 0
        self._functions: dict[bytes, bytes] = {}
        self._messages: dict[int, tuple[int, Any, bytes | None]] = {}
        self._is_new = False
        self._expected = threading.Event()
        self._seen: set[str] = set()
        self._put_orders()
        self._thread = threading.Thread(target=self._carry, name="polarmap-objects", daemon=True)
        self._thread.start()

    def post(self, number: int, message: tuple[Any, ...]) -> None:
        """A message for a worker, in place of the one before."""
        digest = None
        message = plain(message)
        with self._lock:
            if message[0] == "call" and isinstance(message[1][3], bytes):
                function = message[1][3]
                digest = hashlib.blake2b(function, digest_size=16).digest()
                self._functions[digest] = function
                message = with_function(message, None)
            self._count += 1
            self._messages[number] = self._count, message, digest
            self._is_new = True

    def flush(self) -> None:
        """Let all that was posted be on its way, in one object."""
        if self._is_new:
            ask_again(self._put_orders)
            self._expected.set()

    def part(self, number: int) -> None:
        """A worker is not listened to any more."""
        super().part(number)
        with self._lock:
            self._messages.pop(number, None)

    def close(self) -> None:
        """Workers end; all objects are removed."""
        self._is_closed.set()
        self._expected.set()
        self._thread.join()
        with contextlib.suppress(Exception):
            self._storage.delete_object(self._storage.bucket, self._keys.orders)

    def _put_orders(self) -> None:
        with self._putting:  # the latest is the last that is put
            with self._lock:
                needed = {digest for _, _, digest in self._messages.values()}
                self._functions = {key: one for key, one in self._functions.items() if key in needed}
                self._beat += 1
                orders = Orders(self._beat, self._functions, self._messages)
                data = pickle.dumps(tuple(orders), pickle.HIGHEST_PROTOCOL)
                self._is_new = False
            self._storage.put_object(self._storage.bucket, self._keys.orders, data)

    def _carry(self) -> None:
        """Hand on what workers say until all is closed; look often while some work."""
        next_sign, pause = 0.0, object_channel.FIRST_POLL_SECONDS
        with ThreadPoolExecutor(TRANSFERS, thread_name_prefix="polarmap-objects") as pool:
            while not self._is_closed.is_set():
                heard = 0
                with contextlib.suppress(Exception):  # the storage is away
                    if time.monotonic() >= next_sign:
                        self._put_orders()
                        next_sign = time.monotonic() + object_channel.BEAT_SECONDS
                        self.drop_silent()
                    heard = self._take(pool.map)
                pause = object_channel.FIRST_POLL_SECONDS if heard else pause * object_channel.POLL_GROWTH
                pause = min(pause, IDLE_LOOK_SECONDS)
                if self._expected.wait(pause):
                    self._expected.clear()
                    pause = object_channel.FIRST_POLL_SECONDS

    def _take(self, each: Callable[..., Any]) -> int:
        """Read all replies there are, and remove them; how many there were."""
        found = set(self._storage.list_keys(self._storage.bucket, self._keys.replies))
        self._seen &= found  # others are removed by now
        keys = sorted(found - self._seen)
        said = [key for key in keys if key.endswith("said")]
        contents = dict(zip(said, each(partial(self._storage.get_object, self._storage.bucket), said)))
        for key in keys:
            number = int(key[len(self._keys.replies) :].partition("-")[0])
            self.heard(number, bytes(contents.get(key, b"")))
        self._seen.update(keys)
        if keys:
            self._storage.delete_objects(self._storage.bucket, keys)
        return len(said)
