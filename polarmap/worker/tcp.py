"""TCP connections of workers elsewhere to their driver: both sides prove that they have a key.

Runs on workers too: imports the standard library only.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import socket
import time
from collections.abc import Iterable

from polarmap.worker.stream import ANSWER_SECONDS, TAG_BYTES, FrameError, Seal, Seals, Stream, worker_stream

NONCE_BYTES = 32
NUMBER_BYTES = 8
PROOF_BYTES = NONCE_BYTES + NUMBER_BYTES + TAG_BYTES  # that a worker sends to prove that it has the key
CONNECT_SECONDS = 2.0  # in which one of the driver's addresses answers, or is not reached from here
KEEPALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3}  # a dead machine is noticed in 11 s

Endpoint = tuple[str, int]  # host and port


def connected(endpoints: Iterable[Endpoint], key: bytes, number: int) -> Stream | None:
    """A channel to the first of the driver's addresses that answers and has the key; None if none does."""
    for endpoint in endpoints:
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            connection = stack.enter_context(socket.create_connection(endpoint, CONNECT_SECONDS))
            stay_awake(connection)
            seals = admit_driver(connection, key, number)
            stack.pop_all()
            return worker_stream(connection, seals)
    return None


def stay_awake(connection: socket.socket) -> None:
    """Let small messages go at once, and a machine at the other end that is gone be noticed."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def admit_worker(connection: socket.socket, key: bytes) -> tuple[int, Seals]:
    """The driver's side of a connection: the number of a worker that proves that it has the key, and seals.

    Each side makes a nonce, so that nothing of an earlier connection is of use.
    """
    ours = os.urandom(NONCE_BYTES)
    connection.sendall(ours)
    said = _exactly(connection, PROOF_BYTES, ANSWER_SECONDS)
    theirs, number, proof = said[:NONCE_BYTES], said[NONCE_BYTES:-TAG_BYTES], said[-TAG_BYTES:]
    if not hmac.compare_digest(_code(key, b"worker", ours + theirs + number), proof):
        raise FrameError("a worker without the key")
    connection.sendall(_code(key, b"driver", ours + theirs + number))
    return int.from_bytes(number, "big"), Seals(*_seals(key, ours + theirs))


def admit_driver(connection: socket.socket, key: bytes, number: int) -> Seals:
    """The worker's side: it proves that it has the key, and so has the driver at the other end."""
    theirs = _exactly(connection, NONCE_BYTES, CONNECT_SECONDS)
    ours, sent = os.urandom(NONCE_BYTES), number.to_bytes(NUMBER_BYTES, "big")
    connection.sendall(ours + sent + _code(key, b"worker", theirs + ours + sent))
    proof = _exactly(connection, TAG_BYTES, CONNECT_SECONDS)
    if not hmac.compare_digest(_code(key, b"driver", theirs + ours + sent), proof):
        raise FrameError("a driver without the key")
    return Seals(*reversed(_seals(key, theirs + ours)))


def _seals(key: bytes, nonces: bytes) -> tuple[Seal, Seal]:
    """The seal of messages to the worker, and that of messages to the driver."""
    return Seal(_code(key, b"to worker", nonces)), Seal(_code(key, b"to driver", nonces))


def _code(key: bytes, purpose: bytes, data: bytes) -> bytes:
    return hmac.digest(key, purpose + b"\0" + data, "sha256")


def _exactly(connection: socket.socket, count: int, seconds: float) -> bytes:
    """So many bytes; OSError if the other end closes before, or takes longer than that."""
    deadline, data = time.monotonic() + seconds, b""
    while len(data) < count:
        connection.settimeout(max(1e-3, deadline - time.monotonic()))
        received = connection.recv(count - len(data))
        if not received:
            raise ConnectionError("the other end has closed the connection")
        data += received
    return data
