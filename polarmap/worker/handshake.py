"""TCP connections of remote workers to their driver: both sides prove that they have the same key.

Runs on workers too: imports the standard library only.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import socket
import time
from collections.abc import Iterable

from polarmap.worker.messages import MAC_BYTES, ChannelAuthenticators, FrameError, MessageAuthenticator
from polarmap.worker.socket_channel import TCP_TIMEOUT, SocketChannel, configure_tcp, make_worker_channel

PROOF_TIMEOUT = 5.0  # in which whoever connects has to prove that it has the key
NONCE_BYTES = 32
WORKER_ID_BYTES = 8
PROOF_BYTES = NONCE_BYTES + WORKER_ID_BYTES + MAC_BYTES  # that a worker sends to prove that it has the key
CONNECT_TIMEOUT = 2.0  # in which one of the driver's addresses answers, or is not reached from here

Endpoint = tuple[str, int]  # host and port


def connect_to_driver(
    endpoints: Iterable[Endpoint], key: bytes, worker_id: int, timeout: float = TCP_TIMEOUT
) -> SocketChannel | None:
    """A channel to the first of the driver's addresses that answers and has the key; None if none does."""
    for endpoint in endpoints:
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            connection = stack.enter_context(socket.create_connection(endpoint, CONNECT_TIMEOUT))
            configure_tcp(connection, timeout)
            authenticators = authenticate_driver(connection, key, worker_id)
            stack.pop_all()
            return make_worker_channel(connection, authenticators)
    return None


def authenticate_worker(connection: socket.socket, key: bytes) -> tuple[int, ChannelAuthenticators]:
    """The driver's side of a connection: the number of a worker that proves that it has the key, and seals.

    Each side makes a nonce, so that nothing of an earlier connection is of use.
    """
    driver_nonce = os.urandom(NONCE_BYTES)
    connection.sendall(driver_nonce)
    response = _receive_exactly(connection, PROOF_BYTES, PROOF_TIMEOUT)
    worker_nonce = response[:NONCE_BYTES]
    worker_id_bytes = response[NONCE_BYTES:-MAC_BYTES]
    proof = response[-MAC_BYTES:]
    challenge = driver_nonce + worker_nonce + worker_id_bytes
    if not hmac.compare_digest(_compute_hmac(key, b"worker", challenge), proof):
        raise FrameError("a worker without the key")
    connection.sendall(_compute_hmac(key, b"driver", challenge))
    authenticators = ChannelAuthenticators(*_derive_authenticators(key, driver_nonce + worker_nonce))
    return int.from_bytes(worker_id_bytes, "big"), authenticators


def authenticate_driver(connection: socket.socket, key: bytes, worker_id: int) -> ChannelAuthenticators:
    """The worker's side: it proves that it has the key, and so has the driver at the other end."""
    driver_nonce = _receive_exactly(connection, NONCE_BYTES, CONNECT_TIMEOUT)
    worker_nonce, worker_id_bytes = os.urandom(NONCE_BYTES), worker_id.to_bytes(WORKER_ID_BYTES, "big")
    challenge = driver_nonce + worker_nonce + worker_id_bytes
    connection.sendall(worker_nonce + worker_id_bytes + _compute_hmac(key, b"worker", challenge))
    proof = _receive_exactly(connection, MAC_BYTES, CONNECT_TIMEOUT)
    if not hmac.compare_digest(_compute_hmac(key, b"driver", challenge), proof):
        raise FrameError("a driver without the key")
    return ChannelAuthenticators(*reversed(_derive_authenticators(key, driver_nonce + worker_nonce)))


def _derive_authenticators(key: bytes, nonces: bytes) -> tuple[MessageAuthenticator, MessageAuthenticator]:
    """The seal of messages to the worker, and that of messages to the driver."""
    to_worker = MessageAuthenticator(_compute_hmac(key, b"to worker", nonces))
    return to_worker, MessageAuthenticator(_compute_hmac(key, b"to driver", nonces))


def _compute_hmac(key: bytes, purpose: bytes, data: bytes) -> bytes:
    return hmac.digest(key, purpose + b"\0" + data, "sha256")


def _receive_exactly(connection: socket.socket, n_bytes: int, timeout: float) -> bytes:
    """So many bytes; OSError if the other end closes before, or takes longer than that."""
    deadline, data = time.monotonic() + timeout, b""
    while len(data) < n_bytes:
        connection.settimeout(max(1e-3, deadline - time.monotonic()))
        received = connection.recv(n_bytes - len(data))
        if not received:
            raise ConnectionError("the other end has closed the connection")
        data += received
    return data
