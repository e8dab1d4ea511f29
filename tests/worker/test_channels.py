"""The worker's end of a socket: right messages, and who is at the other end."""

from __future__ import annotations

import os
import pickle
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from polarmap.worker import channels
from polarmap.worker.authentication import AuthenticationError, Seal, Seals, admit_worker
from polarmap.worker.channels import SocketChannel, connected
from polarmap.worker.frames import END, ORDER, Frames, Message, frame

KEY = bytes(range(32))


def seals() -> Seals:
    return Seals(Seal(b"to worker"), Seal(b"to driver"))


@pytest.fixture(params=[False, True])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, SocketChannel, Seals | None]]:
    """The driver's end of a socket, the worker's, and seals or none."""
    ours, theirs = socket.socketpair()
    channel = SocketChannel(theirs, seals() if request.param else None)
    with ours:
        yield ours, channel, seals() if request.param else None
    channel.close()


def told(message: Any, seal: Seal | None) -> bytes:
    return frame(Message(ORDER, header=pickle.dumps(message)), seal)


def test_messages_go_both_ways(pair: Any) -> None:
    ours, channel, both = pair
    assert not channel.has_message()
    assert channel.receive(0.0) is None
    for message in (("call", 1), ("part", "key", bytes(10**5))):
        thread = threading.Thread(target=ours.sendall, args=[told(message, both and both.to_worker)])
        thread.start()
        assert channel.receive(None) == message
        thread.join()
    channel.send(Message(END, (1, 2, 3), b"header", b"data"))
    frames = Frames(both and both.to_driver)
    assert list(frames.of(ours.recv(1000))) == [Message(END, (1, 2, 3), b"header", b"data")]


def test_a_driver_that_closes_is_known_to_be_gone_though_messages_can_be_read(pair: Any) -> None:
    ours, channel, both = pair
    assert not channel.is_closed()
    ours.sendall(told(("call", 1), both and both.to_worker))
    assert channel.has_message()
    ours.close()
    assert channel.is_closed()
    assert channel.receive(None) == ("call", 1)
    with pytest.raises(ConnectionError):
        channel.receive(None)


def test_nothing_is_unpickled_that_was_changed_on_its_way(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "unpickled"),)

    ours, theirs = socket.socketpair()
    channel = SocketChannel(theirs, seals())
    with ours:
        ours.sendall(told(Bomb(), Seal(b"another key")))
        with pytest.raises(AuthenticationError):
            channel.receive(None)
    channel.close()
    assert not (tmp_path / "unpickled").exists()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # has threads
def test_a_process_that_is_forked_does_not_hold_it() -> None:
    ours, theirs = socket.socketpair()
    ours.settimeout(30.0)
    channel = SocketChannel(theirs)
    waiting, go = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            os.close(go)
            os.read(waiting, 1)
            channel.send(Message(END))
        except OSError:
            code = 0
        finally:
            os._exit(code)
    channel.close()
    assert ours.recv(1) == b""  # though the child lives
    os.close(go)
    assert os.waitpid(child, 0)[1] == 0
    os.close(waiting)
    ours.close()


# --- connecting ----------------------------------------------------------------------------------


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as one:
        one.settimeout(10.0)
        yield one


def admitted(listening: socket.socket, key: bytes = KEY) -> int:
    connection, _ = listening.accept()
    with connection:
        connection.settimeout(10.0)
        return admit_worker(connection, key)[0]


def test_the_first_address_that_answers_is_taken(listening: socket.socket) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        nobody = gone.getsockname()
    endpoints = [nobody, ("256.256.256.256", 1), listening.getsockname()]
    with ThreadPoolExecutor() as pool:
        found = pool.submit(admitted, listening)
        channel = connected(endpoints, KEY, 5)
        assert found.result() == 5
    assert channel is not None
    channel.close()


def test_addresses_of_nobody_are_no_channel() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        nobody = gone.getsockname()
    assert connected([nobody], KEY, 5) is None
    assert connected([], KEY, 5) is None


def test_who_has_not_the_key_or_says_nothing_is_no_driver(
    listening: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "CONNECT_SECONDS", 0.2)
    assert connected([listening.getsockname()], KEY, 5) is None  # silence
    listening.accept()[0].close()

    def answer() -> None:
        connection, _ = listening.accept()
        with connection, connection.makefile("rwb") as file:
            file.write(bytes(32))
            file.flush()
            file.read(72)
            file.write(bytes(32))

    with ThreadPoolExecutor() as pool:
        found = pool.submit(answer)
        assert connected([listening.getsockname()], KEY, 5) is None
        found.result()


def test_a_process_with_many_open_files_connects_and_hears(listening: socket.socket) -> None:
    resource = pytest.importorskip("resource")
    most = min(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(most, before[0]), before[1]))
    taken = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]  # select() knows 1024
    try:
        with ThreadPoolExecutor() as pool:
            found = pool.submit(admitted, listening)
            channel = connected([listening.getsockname()], KEY, 5)
            assert channel is not None
            assert found.result() == 5
            with pytest.raises(ConnectionError):
                channel.receive(10.0)
            channel.close()
    finally:
        for one in taken:
            os.close(one)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
