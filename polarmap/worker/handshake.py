"""TCP connections of remote workers to their driver: both ends prove that they have the same key.

Each end greets the other one with the version of its protocol and a nonce. Both ends authenticate each other
before either believes a version, so that nobody else can make a map fail. All versions have this handshake.
Runs on workers too: imports the standard library only.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import socket
import struct
import time
from collections.abc import Iterable

from polarmap.worker.messages import (
    MAC_BYTES,
    PROTOCOL_VERSION,
    ChannelAuthenticators,
    FrameError,
    MessageAuthenticator,
    ProtocolMismatchError,
    check_protocol_version,
)
from polarmap.worker.socket_channel import TCP_TIMEOUT, SocketChannel, configure_tcp, make_worker_channel

PROOF_TIMEOUT = 5.0  # Seconds in which whoever connects has to prove that it has the key.
PROTOCOL_NAME = b"polarmap"
GREETING = ">8sH32s"  # the name of the protocol, its version, and a nonce, in the format of `struct`
GREETING_BYTES = struct.calcsize(GREETING)
WORKER_ID_BYTES = 8
RESPONSE_BYTES = GREETING_BYTES + WORKER_ID_BYTES + MAC_BYTES  # by which a worker proves that it has the key
CONNECT_TIMEOUT = 2.0  # Seconds in which one of the driver's addresses answers, or is not reached from here.

Endpoint = tuple[str, int]  # host and port


def connect_to_driver(
    endpoints: Iterable[Endpoint], key: bytes, worker_id: int, timeout: float = TCP_TIMEOUT
) -> SocketChannel | None:
    """Return a channel to the first of the driver's addresses that answers and has the key, or None.

    Raises ProtocolMismatchError if the driver uses another version of the protocol.
    """
    for endpoint in endpoints:
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            connection = stack.enter_context(socket.create_connection(endpoint, CONNECT_TIMEOUT))
            configure_tcp(connection, timeout)
            authenticators = authenticate_driver(connection, key, worker_id)
            stack.pop_all()
            return make_worker_channel(connection, authenticators)
    return None


def authenticate_worker(connection: socket.socket, key: bytes) -> tuple[int, ChannelAuthenticators]:
    """Return the id of a worker that proves that it has the key, and the authenticators of its messages.

    Each end makes a nonce, so that nothing of an earlier connection can be used again. Raises FrameError for
    a peer without the key, and ProtocolMismatchError for a worker that uses another version of the protocol.
    That worker has then received all that it needs to raise the same error.
    """
    driver_greeting = _make_greeting()
    connection.sendall(driver_greeting)
    response = _receive_exactly(connection, RESPONSE_BYTES, PROOF_TIMEOUT)
    worker_greeting, worker_id_bytes = response[:GREETING_BYTES], response[GREETING_BYTES:-MAC_BYTES]
    challenge = driver_greeting + worker_greeting + worker_id_bytes
    if not hmac.compare_digest(_compute_hmac(key, b"worker", challenge), response[-MAC_BYTES:]):
        raise FrameError("a worker without the key")
    connection.sendall(_compute_hmac(key, b"driver", challenge))
    worker_id, worker_version = int.from_bytes(worker_id_bytes, "big"), _parse_version(worker_greeting)
    if worker_version != PROTOCOL_VERSION:
        raise ProtocolMismatchError(worker_version, worker_id)
    return worker_id, ChannelAuthenticators(*_derive_authenticators(key, driver_greeting + worker_greeting))


def authenticate_driver(connection: socket.socket, key: bytes, worker_id: int) -> ChannelAuthenticators:
    """Prove to a driver that this worker has the key, and return the authenticators of their messages.

    Raises FrameError for a driver without the key, and ProtocolMismatchError for a driver that uses another
    version of the protocol.
    """
    driver_greeting = _receive_exactly(connection, GREETING_BYTES, CONNECT_TIMEOUT)
    driver_version = _parse_version(driver_greeting)
    worker_greeting, worker_id_bytes = _make_greeting(), worker_id.to_bytes(WORKER_ID_BYTES, "big")
    challenge = driver_greeting + worker_greeting + worker_id_bytes
    connection.sendall(worker_greeting + worker_id_bytes + _compute_hmac(key, b"worker", challenge))
    proof = _receive_exactly(connection, MAC_BYTES, CONNECT_TIMEOUT)
    if not hmac.compare_digest(_compute_hmac(key, b"driver", challenge), proof):
        raise FrameError("a driver without the key")
    check_protocol_version(driver_version)
    return ChannelAuthenticators(*reversed(_derive_authenticators(key, driver_greeting + worker_greeting)))


def _make_greeting() -> bytes:
    return struct.pack(GREETING, PROTOCOL_NAME, PROTOCOL_VERSION, os.urandom(32))


def _parse_version(greeting: bytes) -> int:
    """Return the version of the protocol that a greeting names; FrameError if it names another protocol."""
    protocol_name, version, _ = struct.unpack(GREETING, greeting)
    if protocol_name != PROTOCOL_NAME:
        raise FrameError("the other end does not use polarmap's protocol")
    return int(version)


def _derive_authenticators(key: bytes, nonces: bytes) -> tuple[MessageAuthenticator, MessageAuthenticator]:
    """Return the authenticator of messages to the worker, and that of messages to the driver."""
    to_worker = MessageAuthenticator(_compute_hmac(key, b"to worker", nonces))
    return to_worker, MessageAuthenticator(_compute_hmac(key, b"to driver", nonces))


def _compute_hmac(key: bytes, purpose: bytes, data: bytes) -> bytes:
    return hmac.digest(key, purpose + b"\0" + data, "sha256")


def _receive_exactly(connection: socket.socket, n_bytes: int, timeout: float) -> bytes:
    """Return the next `n_bytes` bytes; OSError if they have not come within `timeout` seconds."""
    deadline, data = time.monotonic() + timeout, b""
    while len(data) < n_bytes:
        connection.settimeout(max(1e-3, deadline - time.monotonic()))
        received = connection.recv(n_bytes - len(data))
        if not received:
            raise ConnectionError("the other end has closed the connection")
        data += received
    return data
