"""Messages by way of a storage arrive once, are sent again when they are lost, and stop for nothing."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from memory_storage import DictStorage
from pool_processes import until
from servers import SECRET, Server

from polarmap.errors import ExecutorError
from polarmap.executors import lithops_storage, storage_mailboxes
from polarmap.executors.links import Link
from polarmap.executors.storage_mailboxes import Mailboxes, ObjectMailboxes, RedisMailboxes
from polarmap.worker import object_channel, redis_channel
from polarmap.worker.frames import END, MISSED, PROCESS, Message
from polarmap.worker.object_channel import ObjectChannel, ObjectKeys
from polarmap.worker.redis_channel import RedisChannel, RedisKeys
from polarmap.worker.storage_channel import StorageChannel


def call(number: int, f: bytes | None = None) -> Any:
    """A message with which a task is to be done."""
    return "call", (number, (), None, f, None, {})


def ended(number: int, data: bytes = b"") -> Message:
    """What a worker says of its task."""
    return Message(END, (0, number, 0), b"", data)


class Side:
    """A driver's mailboxes and what makes channels to them."""

    def __init__(self, mailboxes: Any, channel: Any, left: Any) -> None:
        self._mailboxes, self._channel, self.left = mailboxes, channel, left
        self.storage: Any = None
        self.links: dict[int, Link] = {}
        self.channels: list[StorageChannel] = []
        self.boxes: Mailboxes = mailboxes(self.join)

    def join(self, number: int, link: Link, channel: str) -> None:
        self.links[number] = link

    def worker(self, number: int) -> Any:
        """One that has joined."""
        one = self._channel(number)
        self.channels.append(one)
        one.send(Message(PROCESS, header=b"%d" % number))
        assert until(lambda: number in self.links)
        return one

    def tell(self, number: int, message: Any) -> None:
        assert self.links[number].send(message)
        self.boxes.flush()

    def heard(self, number: int, count: int = 1) -> list[Any]:
        """So many messages of a worker; its first tells its process."""
        said: list[Any] = []

        def listen() -> bool:
            said.extend(self.links[number].receive()[0])
            return len(said) >= count

        assert until(listen), said
        return said

    def close(self) -> None:
        for channel in self.channels:
            channel.close()
        self.boxes.close()
        self.boxes.clean()
        for link in self.links.values():
            link.close()


@pytest.fixture
def by_redis(redis_server: Server) -> Iterator[Side]:
    import redis

    prefix = f"polarmap/{uuid.uuid4().hex}"
    with redis.Redis("127.0.0.1", redis_server.port, password=SECRET) as client:
        side = Side(
            lambda join: RedisMailboxes(client, prefix, join),
            lambda number: RedisChannel(client, prefix, number),
            lambda: client.keys(f"{prefix}/*"),
        )
        yield side
        side.close()
        assert set(client.keys(f"{prefix}/*")) <= {RedisKeys(prefix).driver.encode()}
        assert client.get(RedisKeys(prefix).driver) == redis_channel.GOODBYE
        client.delete(RedisKeys(prefix).driver)


@pytest.fixture
def by_objects() -> Iterator[Side]:
    storage, prefix = DictStorage(), "polarmap/pool-1"
    side = Side(
        lambda join: ObjectMailboxes(storage, prefix, join),
        lambda number: ObjectChannel(storage, "b", prefix, number),
        lambda: storage.list_keys("b", prefix),
    )
    side.storage = storage
    yield side
    side.close()
    assert ObjectKeys(prefix).orders not in side.left()


@pytest.fixture(params=["redis", "objects"])
def side(request: pytest.FixtureRequest) -> Side:
    found: Side = request.getfixturevalue(f"by_{request.param}")
    return found


def test_workers_join_and_messages_go_both_ways(side: Side) -> None:
    workers = [side.worker(number) for number in range(3)]
    for number, worker in enumerate(workers):
        assert side.heard(number) == [Message(PROCESS, header=b"%d" % number)]
        side.tell(number, call(10 + number, b"f"))
        assert worker.receive(5.0) == call(10 + number, b"f")
        worker.send(ended(number, bytes(number)))
        assert side.heard(number) == [ended(number, bytes(number))]


def test_only_the_latest_message_is_read(side: Side) -> None:
    worker = side.worker(0)
    for number in range(5):
        side.tell(0, call(number))
    assert worker.receive(5.0) == call(4)
    assert not worker.has_message()
    side.tell(0, ("cancel",))
    assert worker.has_message()


def test_a_worker_that_has_not_read_its_call_before_it_is_cancelled_is_heard(side: Side) -> None:
    worker = side.worker(0)
    side.heard(0)
    side.tell(0, call(1))
    side.tell(0, ("cancel",))
    assert worker.receive(5.0) == ("cancel",)
    assert side.heard(0) == [Message(MISSED)]
    side.tell(0, call(2))
    assert worker.receive(5.0) == call(2)


def test_a_worker_that_is_let_go_of_ends_and_is_not_listened_to(side: Side) -> None:
    worker, other = side.worker(0), side.worker(1)
    side.links[0].close()
    side.boxes.flush()
    assert worker.receive(5.0) == ("end",)
    worker.send(ended(1))
    other.send(ended(2))
    assert side.heard(1, 2)[1] == ended(2)
    assert 0 not in side.boxes._boxes
    side.tell(1, call(3))  # goes on with the others
    assert other.receive(5.0) == call(3)


def test_workers_see_that_their_driver_says_goodbye(side: Side) -> None:
    workers = [side.worker(number) for number in range(2)]
    side.boxes.close()
    for worker in workers:
        with pytest.raises(ConnectionError):
            worker.receive(0.05)


@pytest.fixture
def patient_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_channel, "WAIT_SECONDS", 4.0)


def test_it_is_closed_at_once(patient_server: None, side: Side) -> None:
    began = time.monotonic()
    side.boxes.close()
    assert time.monotonic() < began + 3.5  # not after the time for which the server waits


def test_two_threads_tell_workers_at_once(side: Side) -> None:
    workers = [side.worker(number) for number in range(4)]

    def talk(number: int) -> list[Any]:
        heard = []
        for turn in range(25):
            side.tell(number, call(turn))
            heard.append(workers[number].receive(5.0))
        return heard

    with ThreadPoolExecutor(4) as pool:
        for heard in pool.map(talk, range(4)):
            assert heard == [call(turn) for turn in range(25)]


def test_a_message_that_was_lost_is_sent_again(side: Side) -> None:
    worker = side.worker(0)
    box = side.boxes._boxes[0]
    send, side.boxes._send = side.boxes._send, lambda number, count, message: None
    side.tell(0, call(1))
    side.boxes._send = send
    side.boxes._check(0, 0, True)
    assert not worker.has_message()  # it is too early to tell
    box.posted -= 600.0
    side.boxes._check(0, 0, True)
    assert worker.receive(5.0) == call(1)


def test_a_worker_whose_reply_was_lost_is_gone(side: Side) -> None:
    worker = side.worker(0)
    side.heard(0)
    side.tell(0, call(1))
    worker.receive(5.0)
    side.boxes._boxes[0].posted -= 600.0
    side.boxes._check(0, 1, False)  # it works
    assert side.links[0].receive() == ([], True)
    side.boxes._check(0, 1, True)
    side.boxes._check(0, 1, True)
    assert side.links[0].receive() == ([], False)


def test_a_worker_that_gives_no_sign_of_life_is_gone_and_others_are_not(side: Side) -> None:
    side.worker(0)
    side.worker(1)
    side.boxes._boxes[0].heard -= 600.0
    side.boxes._hang_up_on_silent()
    assert not side.links[0].receive()[1]
    assert side.links[1].receive()[1]


def test_nobody_is_gone_because_the_storage_was_away(side: Side) -> None:
    side.worker(0)
    side.boxes._boxes[0].heard -= 600.0
    side.boxes._hear_nothing()
    side.boxes._hang_up_on_silent()
    assert side.links[0].receive()[1]


def test_a_storage_that_stays_away_is_one_clear_error(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lithops_storage, "RETURN_SECONDS", 0.1)
    monkeypatch.setattr(storage_mailboxes, "ask_again", lithops_storage.ask_again)
    side.worker(0)

    def away() -> None:
        raise ConnectionError("away")

    side.boxes._flush = away
    assert side.links[0].send(call(1))
    side.boxes.flush(may_wait=False)
    with pytest.raises(ExecutorError, match="cannot be told: ConnectionError: away"):
        side.boxes.flush()


# --- Redis ---------------------------------------------------------------------------------------


def test_bytes_that_no_worker_of_ours_says_stop_nothing(by_redis: Side) -> None:
    worker = by_redis.worker(0)
    by_redis.heard(0)
    client, keys = by_redis.boxes._client, by_redis.boxes._keys
    for said in (b"", b"short", b"\1" * 100, b"\xff" * 100):
        client.rpush(keys.to_driver, said)
    worker.send(ended(1))
    assert by_redis.heard(0) == [ended(1)]


# --- objects -------------------------------------------------------------------------------------


def test_objects_of_others_stop_nothing(by_objects: Side) -> None:
    worker = by_objects.worker(0)
    by_objects.heard(0)
    for name in ("x", "1-2-3", "..."):
        by_objects.storage.put_object("b", f"polarmap/pool-1/replies/{name}", b"x")
    worker.send(ended(1))
    assert by_objects.heard(0) == [ended(1)]


def test_a_reply_that_is_listed_while_it_is_written_is_read_when_it_is_whole(by_objects: Side) -> None:
    """A storage of files shows them before all bytes are there."""
    worker = by_objects.worker(0)
    by_objects.heard(0)
    storage, put, list_keys = by_objects.storage, by_objects.storage.put_object, by_objects.storage.list_keys
    seen, go, looks = threading.Event(), threading.Event(), list[int]()

    def list_and_count(bucket: str, prefix: str) -> list[str]:
        looks.append(1)
        found: list[str] = list_keys(bucket, prefix)
        return found

    def put_slowly(bucket: str, key: str, data: bytes) -> None:
        if data and "/replies/" in key:
            for part in (b"", data[:7]):
                put(bucket, key, part)
                before = len(looks)
                assert until(lambda before=before: len(looks) > before + 2)
            seen.set()
            assert go.wait(10.0)
        put(bucket, key, data)

    storage.put_object, storage.list_keys = put_slowly, list_and_count
    by_objects.tell(0, call(0, b"f"))
    with ThreadPoolExecutor(1) as other:
        said = other.submit(worker.send, ended(1))
        assert seen.wait(10.0)
        assert by_objects.links[0].receive() == ([], True)
        go.set()
        said.result(10.0)
    storage.put_object, storage.list_keys = put, list_keys
    assert by_objects.heard(0) == [ended(1)]


def test_replies_are_removed_when_they_were_read(by_objects: Side) -> None:
    worker = by_objects.worker(0)
    for number in range(5):
        worker.send(ended(number))
    by_objects.heard(0, 6)
    assert until(lambda: not any("/replies/" in key for key in by_objects.left()))


def test_a_large_function_is_an_object_of_its_own_until_no_message_needs_it(by_objects: Side) -> None:
    workers = [by_objects.worker(number) for number in range(2)]
    large = [bytes([number]) * 10**6 for number in range(3)]
    for f in large:
        for number in range(2):
            assert by_objects.links[number].send(call(1, f))
        by_objects.boxes.flush()
        orders = by_objects.storage.get_object("b", "polarmap/pool-1/orders")
        assert len(orders) < 10_000
        assert len([key for key in by_objects.left() if "/functions/" in key]) == 1
        for worker in workers:
            assert worker.receive(5.0) == call(1, f)
    for number in range(2):
        by_objects.tell(number, call(2, b"small"))
    assert not any("/functions/" in key for key in by_objects.left())


def test_requests_are_counted(by_objects: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = by_objects.worker(0)
    worker.send(ended(1))
    by_objects.heard(0, 2)
    writes, reads = by_objects.boxes.requests(100.0)
    assert writes >= 4 + 100.0 / object_channel.BEAT_SECONDS  # with listings and the worker's own
    assert reads >= 2 + 100.0
    assert by_objects.boxes.requests(0.0)[1] <= 2 * object_channel.POLLS_PER_MESSAGE


def test_threads_end_with_it(by_objects: Side) -> None:
    by_objects.worker(0)
    by_objects.boxes.close()
    assert not any(thread.name.startswith("polarmap-objects") for thread in threading.enumerate())
