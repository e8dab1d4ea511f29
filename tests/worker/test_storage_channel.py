"""Signs of life, and what a worker says of a call that was taken back before it had read it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from polarmap.worker import storage_channel
from polarmap.worker.frames import END, MISSED, Frames, Message
from polarmap.worker.storage_channel import StorageChannel, asked_again


class ListChannel(StorageChannel):
    """Lists in memory."""

    def __init__(self, beat_seconds: float = 600.0) -> None:
        self.messages: list[tuple[int, Any]] = []
        self.said: list[tuple[bytes, bool, int, bool]] = []
        self.is_broken = False
        super().__init__(7, beat_seconds)

    def take(self, timeout: float | None) -> tuple[int, Any] | None:
        return self.messages.pop(0) if self.messages else None

    def put(self, data: bytes, is_sign: bool) -> None:
        if self.is_broken:
            raise OSError("away")
        self.said.append((data, is_sign, self.latest, self.is_idle))


@pytest.fixture
def channel() -> Iterator[ListChannel]:
    with closing(ListChannel()) as one:
        yield one


ENDED = Message(END, (1, 5, 0), b"header", b"result")


def message(said: tuple[bytes, bool, int, bool]) -> Message:
    [found] = Frames().of(said[0])
    return found


def test_messages_are_received_in_turn_and_replies_tell_how_far_it_is(channel: ListChannel) -> None:
    assert channel.receive(0.0) is None
    channel.messages += [(1, ("call", 5)), (2, ("call", 6))]
    assert channel.receive(None) == ("call", 5)
    channel.send(ENDED)
    ((data, is_sign, latest, is_idle),) = channel.said
    assert list(Frames().of(data)) == [ENDED]
    assert (is_sign, latest, is_idle) == (False, 1, False)
    assert channel.receive(None) == ("call", 6)
    assert channel.receive(None) is None
    assert (channel.latest, channel.is_idle) == (2, True)


def test_a_call_that_was_cancelled_before_it_was_read_is_replied_to(channel: ListChannel) -> None:
    channel.messages += [(1, ("call", 5)), (3, ("cancel",))]  # the second call never came
    assert channel.receive(None) == ("call", 5)
    assert channel.receive(None) == ("cancel",)
    (said,) = channel.said
    assert message(said) == Message(MISSED)


def test_a_call_that_was_read_is_not_replied_to_twice(channel: ListChannel) -> None:
    channel.messages += [(1, ("call", 5)), (2, ("cancel",))]
    assert channel.receive(None) == ("call", 5)
    channel.send(ENDED)
    assert channel.receive(None) == ("cancel",)
    assert [message(one) for one in channel.said] == [ENDED]


def test_signs_of_life_go_on_while_the_storage_is_away_and_end_with_the_channel() -> None:
    channel = ListChannel(beat_seconds=0.01)
    others = threading.active_count() - 1
    try:
        channel.is_broken = True
        time.sleep(0.05)
        channel.is_broken = False
        deadline = time.monotonic() + 10.0
        while len(channel.said) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        assert all(is_sign and data == b"" and latest == -1 for data, is_sign, latest, _ in channel.said)
    finally:
        channel.close()
    deadline = time.monotonic() + 10.0
    while threading.active_count() > others:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_what_a_storage_refuses_for_a_while_is_asked_again() -> None:
    failures = iter([OSError("away"), OSError("away"), None])

    def request() -> str:
        failure = next(failures)
        if failure is not None:
            raise failure
        return "answer"

    assert asked_again(request) == "answer"


def test_a_storage_that_stays_away_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_channel, "AWAY_SECONDS", 0.1)
    with pytest.raises(OSError, match="away"):
        asked_again(lambda: (_ for _ in ()).throw(OSError("away")))
