"""The worker's end of a socket: right messages, and who is at the other end."""

from __future__ import annotations

import os
import pickle
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from polarmap.worker import channels
from polarmap.worker.channels import (
    NONCE_BYTES,
    NUMBER_BYTES,
    SocketChannel,
    admit_driver,
    admit_worker,
    connected,
    exactly,
)
from polarmap.worker.frames import END, ORDER, TAG_BYTES, FrameError, Message, Seal, Seals, frame

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
        with pytest.raises(FrameError):
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
    assert connected(endpoints[:-1], KEY, 5) is None
    with ThreadPoolExecutor() as pool:
        found = pool.submit(admitted, listening)
        channel = connected(endpoints, KEY, 5)
        assert found.result() == 5
    assert channel is not None
    channel.close()


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


# --- who is at the other end ----------------------------------------------------------------------

ANSWER_BYTES = NONCE_BYTES + NUMBER_BYTES + TAG_BYTES


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Of a connection: the driver's and the worker's."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(10.0)
        theirs.settimeout(10.0)
        yield ours, theirs


@pytest.fixture
def background() -> Iterator[Callable[..., Future[Any]]]:
    with ThreadPoolExecutor() as pool:
        yield pool.submit


def test_both_sides_prove_it_and_agree_on_their_seals(ends: Any, background: Any) -> None:
    found = background(admit_driver, ends[1], KEY, 123)
    number, seals = admit_worker(ends[0], KEY)
    assert number == 123
    for ours, theirs in zip(seals, found.result()):
        for message in ((b"one",), (b"o", b"ne"), (b"",)):
            theirs.verify(message, ours.tag(message))


def test_no_two_connections_have_the_same_seals(background: Any) -> None:
    tags = set()
    for _ in range(3):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            found = background(admit_driver, theirs, KEY, 1)
            _, seals = admit_worker(ours, KEY)
            tags |= {seals.to_worker.tag([b"x"]), seals.to_driver.tag([b"x"])}
            found.result()
    assert len(tags) == 6


def test_the_number_of_a_worker_cannot_be_changed_on_its_way(ends: Any, background: Any) -> None:
    found = background(admit_worker, ends[0], KEY)
    nonce = exactly(ends[1], NONCE_BYTES)
    middle, worker = socket.socketpair()
    with middle, worker:
        proof = background(admit_driver, worker, KEY, 1)
        middle.sendall(nonce)
        answer = bytearray(exactly(middle, ANSWER_BYTES))
        answer[NONCE_BYTES + NUMBER_BYTES - 1] ^= 2
        ends[1].sendall(answer)
        with pytest.raises(FrameError):
            found.result()
        middle.close()
        with pytest.raises((FrameError, ConnectionError)):
            proof.result()


def test_what_was_said_on_an_earlier_connection_is_of_no_use(ends: Any, background: Any) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:  # somebody listens here
        proof = background(admit_driver, theirs, KEY, 1)
        ours.sendall(os.urandom(NONCE_BYTES))
        said = exactly(ours, ANSWER_BYTES)
        ours.close()
        with pytest.raises((FrameError, ConnectionError)):
            proof.result()
    ends[1].sendall(said)
    with pytest.raises(FrameError, match="without the key"):
        admit_worker(ends[0], KEY)


@pytest.mark.parametrize("proof", [lambda answer: os.urandom(TAG_BYTES), lambda answer: answer[-TAG_BYTES:]])
def test_a_driver_that_makes_up_a_proof_or_sends_back_the_workers_is_refused(
    proof: Callable[[bytes], bytes], ends: Any, background: Any
) -> None:
    found = background(admit_driver, ends[1], KEY, 1)
    ends[0].sendall(os.urandom(NONCE_BYTES))
    ends[0].sendall(proof(exactly(ends[0], ANSWER_BYTES)))
    with pytest.raises(FrameError, match="a driver without the key"):
        found.result()


def test_a_handshake_that_is_sent_back_proves_nothing(ends: Any, background: Any) -> None:
    found = background(admit_worker, ends[0], KEY)
    nonce = exactly(ends[1], NONCE_BYTES)
    ends[1].sendall(nonce + bytes(NUMBER_BYTES) + nonce)  # all that is known without the key
    with pytest.raises(FrameError, match="without the key"):
        found.result()


def test_who_says_it_a_byte_at_a_time_is_refused_after_a_while(ends: Any) -> None:
    ends[0].settimeout(0.2)
    is_over = threading.Event()

    def trickle() -> None:
        while not is_over.wait(0.05):
            ends[1].sendall(b".")

    thread = threading.Thread(target=trickle)
    thread.start()
    try:
        began = time.monotonic()
        with pytest.raises(TimeoutError, match="too long"):
            admit_worker(ends[0], KEY)
        assert time.monotonic() < began + 0.05 * ANSWER_BYTES
    finally:
        is_over.set()
        thread.join()


def test_who_closes_early_is_refused(ends: Any) -> None:
    ends[1].sendall(b"short")
    ends[1].shutdown(socket.SHUT_WR)
    with pytest.raises(ConnectionError, match="closed"):
        admit_worker(ends[0], KEY)
