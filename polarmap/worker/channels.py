"""How a worker that stays hears its driver and replies over a socket.

Who may connect to a socket has the key, and each message over a network is verified before it is
unpickled. Runs on workers: imports numpy at most.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import pickle
import select
import socket
import struct
import time
import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Union

from polarmap.worker.frames import PREFIX, PREFIX_BYTES, TAG_BYTES, FrameError, Message, Seal, Seals, frame

if TYPE_CHECKING:
    from polarmap.worker.object_channel import ObjectChannel

CONNECT_SECONDS = 2.0  # in which one of the driver's addresses answers, or is not reached from here
NONCE_BYTES = 32
NUMBER_BYTES = 8
KEEPALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3}  # a dead machine is noticed in 11 s

Endpoint = tuple[str, int]  # host and port


class SocketChannel:
    """A stream socket. A process that is forked of this one, as by f, loses it.

    seals : of the two directions, where others than the driver could write to it.
    """

    def __init__(self, connection: socket.socket, seals: Seals | None = None) -> None:
        self._connection, self._seals = connection, seals
        _close_in_children(connection)

    def receive(self, timeout: float | None) -> Any:
        """What the driver says next; None if nothing within so many seconds.

        ConnectionError when it will say nothing any more.
        """
        if timeout is not None and not ready([self._connection], select.POLLIN, timeout):
            return None
        prefix = exactly(self._connection, PREFIX_BYTES)
        message = exactly(self._connection, sum(struct.unpack(PREFIX, prefix)[-2:]))
        if self._seals is not None:
            self._seals.to_worker.verify((prefix, message), exactly(self._connection, TAG_BYTES))
        return pickle.loads(message)

    def send(self, message: Message) -> None:
        """A message to the driver."""
        self._connection.sendall(frame(message, self._seals and self._seals.to_driver))

    def has_message(self) -> bool:
        """Whether the driver has said something that was not received yet."""
        return bool(ready([self._connection], select.POLLIN, 0.0))

    def is_closed(self) -> bool:
        """Whether the driver has closed its end, whatever can still be read."""
        return bool(ready([self._connection], getattr(select, "POLLRDHUP", select.POLLHUP), 0.0))

    def close(self) -> None:
        """Close the socket."""
        self._connection.close()


def _close_in_children(connection: socket.socket) -> None:
    """Close it in each process that is forked of this one, which would hold or use it in our place."""
    found = weakref.ref(connection)

    def close() -> None:
        ours = found()
        if ours is not None:
            ours.close()

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=close)


Channel = Union[SocketChannel, "ObjectChannel"]  # what connects a worker that stays with its driver


def connected(endpoints: Iterable[Endpoint], key: bytes, number: int) -> SocketChannel | None:
    """A channel to the first of the driver's addresses that answers and has the key; None if none does."""
    for endpoint in endpoints:
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError, FrameError):
            connection = stack.enter_context(socket.create_connection(endpoint, CONNECT_SECONDS))
            stay_awake(connection)
            seals = admit_driver(connection, key, number)
            connection.settimeout(None)
            stack.pop_all()
            return SocketChannel(connection, seals)
    return None


def ready(connections: Iterable[Any], event: int, seconds: float | None) -> list[Any]:
    """Those for which poll() tells this within so many seconds, or that they are broken."""
    poll, found = select.poll(), dict[int, Any]()
    for connection in connections:
        poll.register(connection, event)
        found[connection.fileno()] = connection
    return [found[descriptor] for descriptor, _ in poll.poll(seconds and 1000 * max(0.0, seconds))]


def stay_awake(connection: socket.socket) -> None:
    """Let small messages go at once, and a machine at the other end that is gone be noticed."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def admit_worker(connection: socket.socket, key: bytes) -> tuple[int, Seals]:
    """The number of the worker that has connected, which has proved that it has the key.

    Each side sends a nonce, so that nothing of an earlier connection is of use.
    """
    ours = os.urandom(NONCE_BYTES)
    connection.sendall(ours)
    said = exactly(connection, NONCE_BYTES + NUMBER_BYTES + TAG_BYTES)
    theirs, number, proof = said[:NONCE_BYTES], said[NONCE_BYTES:-TAG_BYTES], said[-TAG_BYTES:]
    if not hmac.compare_digest(_code(key, b"worker", ours + theirs + number), proof):
        raise FrameError("a worker without the key")
    connection.sendall(_code(key, b"driver", ours + theirs + number))
    return int.from_bytes(number, "big"), _seals(key, ours + theirs)


def admit_driver(connection: socket.socket, key: bytes, number: int) -> Seals:
    """The other side of `admit_worker`: the driver, too, has proved that it has the key."""
    theirs = exactly(connection, NONCE_BYTES)
    ours, sent = os.urandom(NONCE_BYTES), number.to_bytes(NUMBER_BYTES, "big")
    connection.sendall(ours + sent + _code(key, b"worker", theirs + ours + sent))
    proof = exactly(connection, TAG_BYTES)
    if not hmac.compare_digest(_code(key, b"driver", theirs + ours + sent), proof):
        raise FrameError("a driver without the key")
    return _seals(key, theirs + ours)


def _seals(key: bytes, nonces: bytes | bytearray) -> Seals:
    return Seals(Seal(_code(key, b"to worker", nonces)), Seal(_code(key, b"to driver", nonces)))


def _code(key: bytes, purpose: bytes, data: bytes | bytearray) -> bytes:
    return hmac.digest(key, purpose + b"\0" + data, "sha256")


def exactly(connection: socket.socket, count: int) -> bytearray:
    """So many bytes; ConnectionError if the other end closes before, or takes twice the time it has."""
    patience, began, data, filled = connection.gettimeout(), time.monotonic(), bytearray(count), 0
    with memoryview(data) as view:
        while filled < count:
            if patience is not None and time.monotonic() > began + patience:
                raise TimeoutError("the other end takes too long")
            received = connection.recv_into(view[filled:])
            if not received:
                raise ConnectionError("the other end has closed the connection")
            filled += received
    return data
