"""Objects as a worker uses them, in a storage that is a dict."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from memory_storage import DictStorage
from pool_processes import until

from polarmap.worker import object_channel
from polarmap.worker.frames import END, PROCESS, Frames, Message
from polarmap.worker.object_channel import ObjectChannel, ObjectKeys, Orders, Said, with_function

KEYS = ObjectKeys("polarmap/pool-1")
CALL = ("call", (1, (), None, None, None, {}))


class Driver:
    """What a driver puts there."""

    def __init__(self) -> None:
        self.storage, self.beat = DictStorage(), 0

    def put(self, functions: Any = None, **messages: Any) -> None:
        self.beat += 1
        told = {int(key[1:]): [(count, pickle.dumps(one), f)] for key, (count, one, f) in messages.items()}
        orders = Orders(self.beat, functions or {}, told)
        self.storage.put_object("b", KEYS.orders, pickle.dumps(tuple(orders)))


@pytest.fixture
def driver() -> Driver:
    one = Driver()
    one.put()
    return one


@pytest.fixture
def channel(driver: Driver) -> Iterator[ObjectChannel]:
    with closing(ObjectChannel(driver.storage, "b", KEYS.prefix, 7)) as one:
        yield one


@pytest.mark.parametrize(
    "said", [Said(0, 1, 0, True, 0), Said(123, 10**11, 45, False, 10**9), Said(7, 2, 0, True, 3)]
)
def test_keys_tell_what_was_said(said: Said) -> None:
    assert KEYS.said(KEYS.reply(said)) == said


def test_a_message_is_taken_once(driver: Driver, channel: ObjectChannel) -> None:
    assert channel.receive(0.0) is None
    driver.put(w7=(4, ("cancel",), None), w8=(9, CALL, None))
    assert not channel.has_message()  # as it has just looked
    assert until(channel.has_message)
    channel._latest = 3
    assert channel.receive(1.0) == ("cancel",)
    assert not channel.has_message()
    assert channel.receive(0.0) is None
    driver.put(w7=(4, ("cancel",), None))
    assert channel.receive(0.0) is None


def test_a_message_whose_function_is_gone_is_none(driver: Driver, channel: ObjectChannel) -> None:
    driver.put(w7=(1, CALL, b"digest"))
    assert channel.receive(0.0) is None
    assert not channel.is_closed()
    driver.put({b"other": b"newer"}, w7=(2, CALL, b"other"))
    assert channel.receive(1.0) == with_function(CALL, b"newer")


def test_replies_are_objects(driver: Driver, channel: ObjectChannel) -> None:
    channel.send(Message(PROCESS, header=b"5"))
    driver.put(w7=(1, CALL, None))
    channel.receive(1.0)
    channel.send(Message(END, (1, 2, 0), data=b"raw"))
    found = driver.storage.list_keys("b", KEYS.replies)
    assert [KEYS.said(key) for key in found] == [Said(7, 1, 0, True, 43), Said(7, 2, 1, False, 45)]
    frames = [list(Frames().of(driver.storage.get_object("b", key))) for key in found]
    assert frames == [[Message(PROCESS, header=b"5")], [Message(END, (1, 2, 0), b"", b"raw")]]


def test_a_driver_that_takes_its_object_away_is_gone(driver: Driver, channel: ObjectChannel) -> None:
    assert not channel.is_closed()
    driver.storage.delete_object("b", KEYS.orders)
    with pytest.raises(ConnectionError, match="gone"):
        channel.receive(0.0)
    channel._next_look = 0.0
    assert channel.is_closed()


def test_a_driver_whose_object_does_not_change_is_gone(
    driver: Driver, channel: ObjectChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert channel.receive(0.0) is None
    monkeypatch.setattr(object_channel, "GOODBYE_SECONDS", 0.02)
    time.sleep(0.05)
    driver.put()
    assert channel.receive(0.0) is None  # it has
    time.sleep(0.05)
    with pytest.raises(ConnectionError, match="no sign of life"):
        channel.receive(0.0)


def test_a_storage_that_is_away_for_a_moment_is_waited_for(driver: Driver, channel: ObjectChannel) -> None:
    right = driver.storage.objects["b", KEYS.orders]
    driver.storage.objects["b", KEYS.orders] = right[:5]  # half an object
    assert channel.receive(0.0) is None
    driver.put(w7=(1, ("cancel",), None))
    assert channel.receive(1.0) == ("cancel",)


# --- what it says by itself ----------------------------------------------------------------------


def said(driver: Driver) -> list[tuple[Said, bytes]]:
    keys = driver.storage.list_keys("b", KEYS.replies)
    return [(found, driver.storage.get_object("b", key)) for key in keys if (found := KEYS.said(key))]


def test_a_call_that_was_read_is_not_replied_to_twice(driver: Driver, channel: ObjectChannel) -> None:
    driver.put(w7=(1, CALL, None))
    assert channel.receive(1.0) == CALL
    driver.put(w7=(2, ("cancel",), None))
    assert channel.receive(1.0) == ("cancel",)
    assert said(driver) == []


def test_signs_of_life_go_on_while_the_storage_is_away_and_end_with_the_channel(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_channel, "BEAT_SECONDS", 0.01)
    others, put, failed = threading.active_count(), driver.storage.put_object, threading.Event()

    def away(bucket: str, key: str, data: bytes) -> None:
        failed.set()
        raise OSError("away")

    driver.storage.put_object = away
    with closing(ObjectChannel(driver.storage, "b", KEYS.prefix, 7)) as channel:
        assert failed.wait(10.0)
        driver.storage.put_object = put
        assert until(lambda: len(said(driver)) > 1)
        driver.put(w7=(1, CALL, None))
        assert channel.receive(1.0) == CALL
        assert until(lambda: not said(driver)[-1][0].is_idle)
    assert all((one.number, one.size) == (7, 0) for one, _ in said(driver))
    assert {(one.latest, one.is_idle) for one, _ in said(driver)} == {(0, True), (1, False)}
    assert until(lambda: threading.active_count() == others)


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now, self.pauses = 0.0, list[float]()

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


@pytest.mark.parametrize("seconds", [0.0, 0.005, 0.03])
def test_it_asks_no_more_often_than_the_storage_answers(
    driver: Driver, channel: ObjectChannel, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, get = Clock(), driver.storage.get_object
    monkeypatch.setattr(object_channel, "time", clock)
    channel._changed_at = 0.0

    def slowly(*arguments: Any, **options: Any) -> bytes:
        clock.now += seconds
        return get(*arguments, **options)

    driver.storage.get_object = slowly
    assert channel.receive(1.0) is None
    first, slow = object_channel.FIRST_POLL_SECONDS, object_channel.SLOW_POLL_SECONDS
    assert clock.pauses[0] == pytest.approx(min(max(seconds, first), slow))
    channel.receive(12.0)  # until it asks as seldom as can be
    often = [pause for pause in clock.pauses[:-1] if pause < 0.9 * object_channel.LAST_POLL_SECONDS]
    assert seconds < slow or len(often) <= object_channel.POLLS_PER_MESSAGE  # what is billed
    assert max(clock.pauses) == object_channel.LAST_POLL_SECONDS
