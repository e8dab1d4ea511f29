"""The driver's ends of channels: what workers say, and that it is from them."""

from __future__ import annotations

import os
import pickle
import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from polarmap.errors import ExecutorError
from polarmap.executors import links
from polarmap.executors.links import ObjectLink, SocketLink, WakeSignal
from polarmap.worker.channels import SocketChannel, ready
from polarmap.worker.frames import END, Message, Seal, Seals, frame


def seals() -> Seals:
    return Seals(Seal(b"to worker"), Seal(b"to driver"))


@pytest.fixture(params=[False, True])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[SocketLink, SocketChannel, socket.socket]]:
    """The link of a driver, the channel of its worker, and that one's socket."""
    ours, theirs = socket.socketpair()
    link = SocketLink(ours, seals() if request.param else None)
    channel = SocketChannel(theirs, seals() if request.param else None)
    yield link, channel, theirs
    link.close()
    channel.close()


def said(task: int, data: bytes = b"") -> Message:
    return Message(END, (0, task, 0), b"", data)


def heard(link: Any) -> list[Any]:
    found, is_there = link.receive()
    assert is_there
    return found


def readable(link: Any) -> bool:
    return bool(ready([link], select.POLLIN, 0.0))


def test_messages_go_both_ways(pair: Any) -> None:
    link, channel, _ = pair
    assert heard(link) == []
    assert not channel.has_message()
    assert channel.receive(0.0) is None
    for message in (("call", {"x": 1}), ("part", "key", bytes(10**5))):
        assert link.send(message)
        assert channel.receive(10.0) == message
    channel.send(said(1, b"raw"))
    channel.send(said(2))
    assert readable(link)
    assert heard(link) == [said(1, b"raw"), said(2)]
    assert not readable(link)


class Counted(socket.socket):
    """Counts what is asked of the kernel."""

    calls = 0

    def recv(self, *args: Any) -> bytes:
        self.calls += 1
        return super().recv(*args)

    def sendall(self, *args: Any) -> None:
        self.calls += 1
        super().sendall(*args)


def test_a_small_reply_is_sent_and_received_at_once() -> None:
    ours, theirs = (Counted(fileno=one.detach()) for one in socket.socketpair())
    link, channel = SocketLink(ours, seals()), SocketChannel(theirs, seals())
    channel.send(said(1, bytes(10_000)))
    assert heard(link) == [said(1, bytes(10_000))]
    assert (ours.calls, theirs.calls) == (1, 1)
    link.close()
    channel.close()


def test_a_large_result_comes_in_pieces(pair: Any) -> None:
    link, channel, _ = pair
    data = os.urandom(5_000_000)
    thread = threading.Thread(target=channel.send, args=[said(1, data)])
    thread.start()
    found: list[Any] = []
    while not found:
        is_sending = thread.is_alive()
        assert readable(link) or is_sending
        found += heard(link)
    thread.join()
    assert found == [said(1, data)]


def test_a_worker_that_is_gone_is_found_after_its_last_words(pair: Any) -> None:
    link, channel, _ = pair
    channel.send(said(1))
    channel.close()
    found: list[Any] = []
    is_there = True
    while is_there:
        more, is_there = link.receive()
        found += more
    assert found == [said(1)]
    link.send(("call", bytes(10**6)))
    assert not link.send(("call", bytes(10**6)))


def test_who_hangs_up_is_seen_by_both(pair: Any) -> None:
    link, channel, _ = pair
    link.hang_up()
    assert link.fileno() >= 0
    assert readable(link)
    assert link.receive() == ([], False)
    with pytest.raises(ConnectionError):
        channel.receive(10.0)


def test_a_worker_that_does_not_read_is_given_up(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "SEND_SECONDS", 0.1)
    monkeypatch.setattr(links, "SLOWEST", 1e9)
    link, _, _ = pair
    assert not link.send(("call", bytes(10**8)))


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


def nonsense(folder: Path) -> list[bytes]:
    bomb = pickle.dumps(Bomb(folder))
    whole = frame(Message(END, header=bomb))
    return [bomb, bomb * 1000, whole, whole[:-1], bytes(4) + bomb, os.urandom(500), b"\xff" * 64]


@pytest.mark.parametrize("turn", range(7))
def test_nothing_a_worker_says_is_unpickled_here(pair: Any, tmp_path: Path, turn: int) -> None:
    link, _, theirs = pair
    other = ObjectLink(lambda message: None)
    one = nonsense(tmp_path / "unpickled")[turn]
    theirs.sendall(one)
    theirs.shutdown(socket.SHUT_WR)
    other.deliver(one)
    for end in (link, other):
        said, _ = end.receive()
        assert all(isinstance(message.header, bytearray) for message in said)
        assert end is other or not link._seals or said == []  # none of it has a right tag
    assert not (tmp_path / "unpickled").exists()
    other.close()


# --- by way of objects --------------------------------------------------------------------------------


def test_what_is_delivered_is_heard_once_and_in_turn() -> None:
    link = ObjectLink(lambda message: None)
    assert not readable(link)
    sent = [frame(said(number, bytes(number))) for number in range(100)]
    for one in sent:
        link.deliver(one)
    assert readable(link)
    assert heard(link) == [said(number, bytes(number)) for number in range(100)]
    assert heard(link) == []
    assert not readable(link)
    link.close()


def test_a_link_of_a_worker_that_is_gone_says_so() -> None:
    link = ObjectLink(lambda message: None)
    link.deliver(frame(said(1)))
    link.hang_up()
    assert readable(link)
    assert link.receive() == ([said(1)], False)
    link.close()


def test_a_message_that_cannot_be_posted_was_not_told() -> None:
    def post(message: Any) -> None:
        raise KeyError("no such worker")

    link = ObjectLink(post)
    assert not link.send(("call", 1))
    link.close()


# --- a descriptor that any thread may make readable ---------------------------------------------------


def test_it_is_readable_from_set_to_clear_however_often_it_is_set() -> None:
    signal = WakeSignal()
    assert not readable(signal)
    for _ in range(100_000):  # more than a pipe holds
        signal.set()
    assert readable(signal)
    assert signal.clear()
    assert not readable(signal)
    assert not signal.clear()
    signal.close()


def test_nothing_happens_once_it_is_closed_even_if_others_have_the_number_of_its_descriptor() -> None:
    signal = WakeSignal()
    number = signal.fileno()
    signal.close()
    signal.close()
    other, end = os.pipe()
    try:
        assert number in (other, end)
        signal.set()
        signal.clear()
        assert not select.select([other], [], [], 0.0)[0]
        assert signal.fileno() == -1
    finally:
        os.close(other)
        os.close(end)


def test_it_closes_its_descriptors_when_it_goes() -> None:
    signal = WakeSignal()
    descriptors = signal._read, signal._write
    del signal
    for number in descriptors:
        with pytest.raises(OSError, match="descriptor"):
            os.fstat(number)


def test_a_process_without_descriptors_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*arguments: object) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "pipe", none_left)
    with pytest.raises(ExecutorError, match="Too many open files"):
        WakeSignal()
