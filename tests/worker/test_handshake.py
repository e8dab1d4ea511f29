"""Tests that a worker connects to its driver, and that each proves to the other that it has the key."""

from __future__ import annotations

import hmac
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from polarmap.worker import handshake
from polarmap.worker.handshake import (
    GREETING,
    GREETING_BYTES,
    PROTOCOL_NAME,
    RESPONSE_BYTES,
    WORKER_ID_BYTES,
    authenticate_driver,
    authenticate_worker,
    connect_to_driver,
)
from polarmap.worker.messages import MAC_BYTES, PROTOCOL_VERSION, FrameError, ProtocolMismatchError

KEY = bytes(range(32))


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as one:
        one.settimeout(10.0)
        yield one


def accept_worker(listening: socket.socket) -> int:
    connection, _ = listening.accept()
    with connection:
        connection.settimeout(10.0)
        return authenticate_worker(connection, KEY)[0]


def test_the_first_address_that_responds_is_used(listening: socket.socket) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        nobody = gone.getsockname()
    endpoints = [nobody, ("256.256.256.256", 1), listening.getsockname()]
    assert connect_to_driver(endpoints[:-1], KEY, 5) is None
    with ThreadPoolExecutor() as pool:
        pending = pool.submit(accept_worker, listening)
        channel = connect_to_driver(endpoints, KEY, 5)
        assert pending.result() == 5
    assert channel is not None
    channel.close()


def test_a_silent_peer_is_not_accepted_as_driver(
    listening: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handshake, "CONNECT_TIMEOUT", 0.2)
    assert connect_to_driver([listening.getsockname()], KEY, 5) is None
    listening.accept()[0].close()


def test_a_process_with_many_open_files_connects_and_receives(listening: socket.socket) -> None:
    resource = pytest.importorskip("resource")
    max_files = min(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(max_files, before[0]), before[1]))
    # select() supports descriptors below 1024.
    descriptors = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        with ThreadPoolExecutor() as pool:
            pending = pool.submit(accept_worker, listening)
            channel = connect_to_driver([listening.getsockname()], KEY, 5)
            assert channel is not None
            assert pending.result() == 5
            assert channel.receive(10.0) == ([], False)
            channel.close()
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Yield the driver's and the worker's end of a connection."""
    driver_end, worker_end = socket.socketpair()
    with driver_end, worker_end:
        driver_end.settimeout(10.0)
        worker_end.settimeout(10.0)
        yield driver_end, worker_end


@pytest.fixture
def background() -> Iterator[Callable[..., Future[Any]]]:
    with ThreadPoolExecutor() as pool:
        yield pool.submit


def test_both_sides_prove_the_key_and_agree_on_session_keys(ends: Any, background: Any) -> None:
    pending = background(authenticate_driver, ends[1], KEY, 123)
    number, driver_seals = authenticate_worker(ends[0], KEY)
    assert number == 123
    worker_seals = pending.result()
    for sender, receiver in (
        (driver_seals.outgoing, worker_seals.incoming),
        (worker_seals.outgoing, driver_seals.incoming),
    ):
        for message in ((b"one",), (b"o", b"ne"), (b"",)):
            assert receiver.compute_tag(message) == sender.compute_tag(message)


def test_no_two_connections_have_the_same_session_keys(background: Any) -> None:
    tags = set()
    for _ in range(3):
        driver_end, worker_end = socket.socketpair()
        with driver_end, worker_end:
            pending = background(authenticate_driver, worker_end, KEY, 1)
            _, seals = authenticate_worker(driver_end, KEY)
            tags |= {seals.outgoing.compute_tag([b"x"]), seals.incoming.compute_tag([b"x"])}
            pending.result()
    assert len(tags) == 6


def greeting(version: int = PROTOCOL_VERSION) -> bytes:
    return struct.pack(GREETING, PROTOCOL_NAME, version, os.urandom(32))


def respond_to(driver_greeting: bytes) -> bytes:
    """Return the response of a worker that has the key to the greeting of a driver."""
    driver_end, worker_end = socket.socketpair()
    with driver_end, worker_end, ThreadPoolExecutor() as pool:
        proof = pool.submit(authenticate_driver, worker_end, KEY, 1)
        driver_end.sendall(driver_greeting)
        response = driver_end.recv(RESPONSE_BYTES)
        driver_end.close()
        with pytest.raises(ConnectionError):
            proof.result()
    return response


def with_another_worker_id(response: bytes) -> bytes:
    changed = bytearray(response)
    changed[GREETING_BYTES + WORKER_ID_BYTES - 1] ^= 2
    return bytes(changed)


def with_another_version(response: bytes) -> bytes:
    name, version, nonce = struct.unpack(GREETING, response[:GREETING_BYTES])
    return struct.pack(GREETING, name, version + 1, nonce) + response[GREETING_BYTES:]


@pytest.mark.parametrize(
    "make_response",
    [
        lambda greeting_bytes: with_another_worker_id(
            respond_to(greeting_bytes)
        ),  # a response that was changed in transit
        lambda greeting_bytes: with_another_version(respond_to(greeting_bytes)),
        lambda greeting_bytes: respond_to(greeting()),  # a replayed response
        lambda greeting_bytes: (
            greeting_bytes + bytes(WORKER_ID_BYTES) + greeting_bytes[-MAC_BYTES:]
        ),  # the best response without the key
    ],
)
def test_forged_or_replayed_responses_of_workers_are_refused(
    make_response: Callable[[bytes], bytes], ends: Any, background: Any
) -> None:
    pending = background(authenticate_worker, ends[0], KEY)
    ends[1].sendall(make_response(ends[1].recv(GREETING_BYTES)))
    with pytest.raises(FrameError, match="a worker has connected without the right key"):
        pending.result()


@pytest.mark.parametrize("version", [PROTOCOL_VERSION, PROTOCOL_VERSION + 1])
@pytest.mark.parametrize("proof", [lambda answer: os.urandom(MAC_BYTES), lambda answer: answer[-MAC_BYTES:]])
def test_forged_or_reflected_proofs_of_drivers_are_refused(
    proof: Callable[[bytes], bytes], version: int, ends: Any, background: Any
) -> None:
    pending = background(authenticate_driver, ends[1], KEY, 1)
    ends[0].sendall(greeting(version))
    ends[0].sendall(proof(ends[0].recv(RESPONSE_BYTES)))
    with pytest.raises(FrameError, match="the driver does not have the right key"):
        pending.result()


def test_a_driver_that_sends_single_bytes_is_refused_after_the_timeout(
    ends: Any, background: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handshake, "CONNECT_TIMEOUT", 0.2)
    is_over, sent = threading.Event(), list[int]()

    def trickle() -> None:
        while not is_over.wait(0.05):
            sent.append(ends[0].send(b"."))

    pending = background(trickle)
    try:
        with pytest.raises(TimeoutError):
            authenticate_driver(ends[1], KEY, 1)
        assert len(sent) < GREETING_BYTES
    finally:
        is_over.set()
        pending.result()


def test_a_worker_names_the_version_of_its_driver(ends: Any, background: Any) -> None:
    pending = background(authenticate_driver, ends[1], KEY, 7)
    driver_greeting = greeting(PROTOCOL_VERSION + 1)
    ends[0].sendall(driver_greeting)
    challenge = driver_greeting + ends[0].recv(RESPONSE_BYTES)[:-MAC_BYTES]
    ends[0].sendall(hmac.digest(KEY, b"driver\0" + challenge, "sha256"))
    with pytest.raises(ProtocolMismatchError, match=f"its driver has version {PROTOCOL_VERSION + 1}"):
        pending.result()


def test_a_driver_names_the_worker_of_another_version(ends: Any, background: Any) -> None:
    pending = background(authenticate_worker, ends[0], KEY)
    driver_greeting = ends[1].recv(GREETING_BYTES)
    challenge = driver_greeting + greeting(PROTOCOL_VERSION + 1) + (7).to_bytes(WORKER_ID_BYTES, "big")
    response = challenge[GREETING_BYTES:] + hmac.digest(KEY, b"worker\0" + challenge, "sha256")
    ends[1].sendall(response)
    assert ends[1].recv(MAC_BYTES) == hmac.digest(KEY, b"driver\0" + challenge, "sha256")
    with pytest.raises(
        ProtocolMismatchError, match="worker of another version of polarmap has connected"
    ) as error:
        pending.result()
    assert (error.value.worker_id, error.value.peer_version) == (7, PROTOCOL_VERSION + 1)


def test_a_server_of_another_protocol_is_not_accepted_as_driver(
    listening: socket.socket, background: Any
) -> None:
    pending = background(connect_to_driver, [listening.getsockname()], KEY, 5)
    connection, _ = listening.accept()
    with connection:
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(100))
        assert pending.result() is None
