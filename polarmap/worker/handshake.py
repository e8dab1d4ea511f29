"""Authenticate the TCP connections of remote workers: both ends prove that they have the same key.

    driver  --- greeting: name and version of the protocol, nonce ---------->  worker
    driver  <-- greeting with another nonce, worker id, HMAC of all these ---  worker
    driver  --- HMAC of all these ------------------------------------------>  worker

Versions are compared only after authentication, so that a process without the key cannot make a job fail. All
versions of the protocol use this handshake. This module also runs on workers, so it imports only the standard
library.
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

PROOF_TIMEOUT = 5.0  # time limit in seconds for a connecting worker to prove that it has the secret key
PROTOCOL_NAME = b"polarmap"
# `struct` format of the greeting: the name of the protocol, its version, and a nonce.
GREETING = ">8sH32s"
GREETING_BYTES = struct.calcsize(GREETING)
WORKER_ID_BYTES = 8
# Size in bytes of the worker's answer to the driver's greeting: its own greeting, its id, and an
# authentication code which proves that it has the secret key.
RESPONSE_BYTES = GREETING_BYTES + WORKER_ID_BYTES + MAC_BYTES
CONNECT_TIMEOUT = 2.0  # seconds before a worker tries the driver's next address

Endpoint = tuple[str, int]  # host and port


def connect_to_driver(
    endpoints: Iterable[Endpoint], key: bytes, worker_id: int, timeout: float = TCP_TIMEOUT
) -> SocketChannel | None:
    """Connect this worker to its driver, and return the channel over which they exchange messages.

    The driver is the process that runs the user's program. Return None if it cannot be reached. Raises
    ProtocolMismatchError if it uses another version of the protocol.

    Parameters
    ----------
    endpoints : iterable of (host, port)
        The driver's addresses. The worker uses the first one that answers and proves that it has the key.
    key : bytes
        The secret that driver and worker share.
    worker_id : int
        The id of this worker.
    timeout : float
        Seconds without a response after which the established connection counts as lost.
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
    """Authenticate a worker that has connected to the driver: the driver's side of the handshake.

    Return the worker's id, and the authenticators for all later messages. Each end contributes a nonce, so
    messages from an earlier connection cannot be replayed.

    Raises FrameError if the peer does not have the key, and ProtocolMismatchError if it uses another version
    of the protocol. The worker then raises ProtocolMismatchError, too.
    """
    driver_greeting = _make_greeting()
    connection.sendall(driver_greeting)
    response = _receive_exactly(connection, RESPONSE_BYTES, PROOF_TIMEOUT)
    worker_greeting, worker_id_bytes = response[:GREETING_BYTES], response[GREETING_BYTES:-MAC_BYTES]
    challenge = driver_greeting + worker_greeting + worker_id_bytes
    if not hmac.compare_digest(_compute_hmac(key, b"worker", challenge), response[-MAC_BYTES:]):
        raise FrameError("a worker has connected without the right key")
    connection.sendall(_compute_hmac(key, b"driver", challenge))
    worker_id, worker_version = int.from_bytes(worker_id_bytes, "big"), _parse_version(worker_greeting)
    if worker_version != PROTOCOL_VERSION:
        raise ProtocolMismatchError(worker_version, worker_id)
    return worker_id, ChannelAuthenticators(*_derive_authenticators(key, driver_greeting + worker_greeting))


def authenticate_driver(connection: socket.socket, key: bytes, worker_id: int) -> ChannelAuthenticators:
    """Authenticate the driver to which a worker has connected: the worker's side of the handshake.

    Return the authenticators for all later messages.

    Raises FrameError if the driver does not have the key, and ProtocolMismatchError if it uses another
    version of the protocol.
    """
    driver_greeting = _receive_exactly(connection, GREETING_BYTES, CONNECT_TIMEOUT)
    driver_version = _parse_version(driver_greeting)
    worker_greeting, worker_id_bytes = _make_greeting(), worker_id.to_bytes(WORKER_ID_BYTES, "big")
    challenge = driver_greeting + worker_greeting + worker_id_bytes
    connection.sendall(worker_greeting + worker_id_bytes + _compute_hmac(key, b"worker", challenge))
    proof = _receive_exactly(connection, MAC_BYTES, CONNECT_TIMEOUT)
    if not hmac.compare_digest(_compute_hmac(key, b"driver", challenge), proof):
        raise FrameError("the driver does not have the right key")
    check_protocol_version(driver_version)
    return ChannelAuthenticators(*reversed(_derive_authenticators(key, driver_greeting + worker_greeting)))


def _make_greeting() -> bytes:
    return struct.pack(GREETING, PROTOCOL_NAME, PROTOCOL_VERSION, os.urandom(32))


def _parse_version(greeting: bytes) -> int:
    """Return the protocol version in a greeting.

    Raises FrameError if the bytes are not a polarmap greeting.
    """
    protocol_name, version, _ = struct.unpack(GREETING, greeting)
    if protocol_name != PROTOCOL_NAME:
        raise FrameError("the peer does not use polarmap's protocol")
    return int(version)


def _derive_authenticators(key: bytes, nonces: bytes) -> tuple[MessageAuthenticator, MessageAuthenticator]:
    """Return an authenticator for messages to the worker, and another one for messages to the driver.

    Each has its own key, derived from the shared key and the connection's nonces.
    """
    to_worker = MessageAuthenticator(_compute_hmac(key, b"to worker", nonces))
    return to_worker, MessageAuthenticator(_compute_hmac(key, b"to driver", nonces))


def _compute_hmac(key: bytes, purpose: bytes, data: bytes) -> bytes:
    return hmac.digest(key, purpose + b"\0" + data, "sha256")


def _receive_exactly(connection: socket.socket, n_bytes: int, timeout: float) -> bytes:
    """Receive exactly `n_bytes` bytes from a socket.

    Raises OSError if they do not arrive within `timeout` seconds.
    """
    deadline, data = time.monotonic() + timeout, b""
    while len(data) < n_bytes:
        connection.settimeout(max(1e-3, deadline - time.monotonic()))
        received = connection.recv(n_bytes - len(data))
        if not received:
            raise ConnectionError("the peer has closed the connection")
        data += received
    return data
