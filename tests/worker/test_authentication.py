"""Who has not the key is found out, and so is who changes, repeats or swaps what others say."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from polarmap.worker.authentication import (
    NONCE_BYTES,
    NUMBER_BYTES,
    TAG_BYTES,
    AuthenticationError,
    Seal,
    admit_driver,
    admit_worker,
)

KEY = bytes(range(32))
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


def exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        data += connection.recv(count - len(data))
    return data


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


def test_a_worker_with_another_key_is_refused(ends: Any, background: Any) -> None:
    found = background(admit_driver, ends[1], os.urandom(32), 1)
    with pytest.raises(AuthenticationError, match="without the key"):
        admit_worker(ends[0], KEY)
    ends[0].close()  # as the listener does: nothing was said that depends on the key
    with pytest.raises((AuthenticationError, ConnectionError)):
        found.result()


def test_a_driver_with_another_key_is_refused(ends: Any, background: Any) -> None:
    found = background(admit_driver, ends[1], KEY, 1)
    ends[0].sendall(os.urandom(NONCE_BYTES))
    exactly(ends[0], ANSWER_BYTES)
    ends[0].sendall(os.urandom(TAG_BYTES))
    with pytest.raises(AuthenticationError, match="without the key"):
        found.result()


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
        with pytest.raises(AuthenticationError):
            found.result()
        middle.close()
        with pytest.raises((AuthenticationError, ConnectionError)):
            proof.result()


def test_what_was_said_on_an_earlier_connection_is_of_no_use(ends: Any, background: Any) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:  # somebody listens here
        proof = background(admit_driver, theirs, KEY, 1)
        ours.sendall(os.urandom(NONCE_BYTES))
        said = exactly(ours, ANSWER_BYTES)
        ours.close()
        with pytest.raises((AuthenticationError, ConnectionError)):
            proof.result()
    ends[1].sendall(said)
    with pytest.raises(AuthenticationError, match="without the key"):
        admit_worker(ends[0], KEY)


def test_a_handshake_that_is_sent_back_proves_nothing(ends: Any, background: Any) -> None:
    found = background(admit_worker, ends[0], KEY)
    nonce = exactly(ends[1], NONCE_BYTES)
    ends[1].sendall(nonce + bytes(NUMBER_BYTES) + nonce)  # all that is known without the key
    with pytest.raises(AuthenticationError, match="without the key"):
        found.result()


def test_a_worker_that_is_sent_its_own_proof_does_not_take_it(ends: Any, background: Any) -> None:
    found = background(admit_driver, ends[1], KEY, 1)
    ends[0].sendall(os.urandom(NONCE_BYTES))
    ends[0].sendall(exactly(ends[0], ANSWER_BYTES)[-TAG_BYTES:])
    with pytest.raises(AuthenticationError, match="without the key"):
        found.result()


def test_who_closes_early_is_refused(ends: Any) -> None:
    ends[1].sendall(b"short")
    ends[1].shutdown(socket.SHUT_WR)
    with pytest.raises(ConnectionError, match="closed"):
        admit_worker(ends[0], KEY)


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


# --- seals ---------------------------------------------------------------------------------------


def sealed(*messages: bytes) -> list[tuple[bytes, bytes]]:
    seal = Seal(KEY)
    return [(message, seal.tag([message])) for message in messages]


def test_a_changed_byte_is_found() -> None:
    message, tag = sealed(bytes(100))[0]
    for place in (0, 50, 99):
        changed = bytearray(message)
        changed[place] ^= 1
        with pytest.raises(AuthenticationError):
            Seal(KEY).verify([changed], tag)


def test_a_changed_or_shorter_tag_is_found() -> None:
    message, tag = sealed(b"message")[0]
    for wrong in (tag[:-1], b"", bytes(TAG_BYTES), tag[::-1]):
        with pytest.raises(AuthenticationError):
            Seal(KEY).verify([message], wrong)


def test_messages_that_are_repeated_swapped_or_left_out_are_found() -> None:
    messages = sealed(b"same", b"same", b"other")
    for good, wrong in (([0], 0), ([], 1), ([0], 2), ([0, 1], 1), ([0, 1, 2], 0)):
        seal = Seal(KEY)
        for number in good:
            seal.verify([messages[number][0]], messages[number][1])
        with pytest.raises(AuthenticationError):
            seal.verify([messages[wrong][0]], messages[wrong][1])


def test_a_message_of_the_other_direction_is_found(ends: Any, background: Any) -> None:
    found = background(admit_driver, ends[1], KEY, 1)
    _, seals = admit_worker(ends[0], KEY)
    with pytest.raises(AuthenticationError):  # sent back to who said it
        seals.to_driver.verify([b"call"], seals.to_worker.tag([b"call"]))
    found.result()
