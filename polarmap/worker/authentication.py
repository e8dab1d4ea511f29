"""Proof that both ends of a connection have the same key, and of every message after that.

Runs on workers too: imports the standard library only.
"""

from __future__ import annotations

import hmac
import os
import socket
import time
from collections.abc import Iterable
from typing import NamedTuple

NONCE_BYTES = TAG_BYTES = 32
NUMBER_BYTES = 8


class AuthenticationError(Exception):
    """The other end does not have the key, or somebody between has changed what it said."""


class Seal:
    """Tags of the messages that travel in one direction: of each and its place in the sequence."""

    def __init__(self, key: bytes) -> None:
        self._key, self._count = key, 0

    def tag(self, parts: Iterable[bytes | bytearray | memoryview]) -> bytes:
        """Of the next message, whose bytes are these in a row."""
        code = hmac.new(self._key, self._count.to_bytes(8, "big"), "sha256")
        for part in parts:
            code.update(part)
        self._count += 1
        return code.digest()

    def verify(self, parts: Iterable[bytes | bytearray | memoryview], tag: bytes | bytearray) -> None:
        """AuthenticationError unless the next message has this tag."""
        if not hmac.compare_digest(self.tag(parts), tag):
            raise AuthenticationError("a message was changed on its way")


class Seals(NamedTuple):
    """Of the two directions of a connection."""

    to_worker: Seal
    to_driver: Seal


def admit_worker(connection: socket.socket, key: bytes) -> tuple[int, Seals]:
    """The number of the worker that has connected, which has proved that it has the key.

    Each side sends a nonce, so that nothing of an earlier connection is of use.
    """
    ours = os.urandom(NONCE_BYTES)
    connection.sendall(ours)
    said = exactly(connection, NONCE_BYTES + NUMBER_BYTES + TAG_BYTES)
    theirs, number, proof = said[:NONCE_BYTES], said[NONCE_BYTES:-TAG_BYTES], said[-TAG_BYTES:]
    if not hmac.compare_digest(_code(key, b"worker", ours + theirs + number), proof):
        raise AuthenticationError("a worker without the key")
    connection.sendall(_code(key, b"driver", ours + theirs + number))
    return int.from_bytes(number, "big"), _seals(key, ours + theirs)


def admit_driver(connection: socket.socket, key: bytes, number: int) -> Seals:
    """The other side of `admit_worker`: the driver, too, has proved that it has the key."""
    theirs = exactly(connection, NONCE_BYTES)
    ours, sent = os.urandom(NONCE_BYTES), number.to_bytes(NUMBER_BYTES, "big")
    connection.sendall(ours + sent + _code(key, b"worker", theirs + ours + sent))
    proof = exactly(connection, TAG_BYTES)
    if not hmac.compare_digest(_code(key, b"driver", theirs + ours + sent), proof):
        raise AuthenticationError("a driver without the key")
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
