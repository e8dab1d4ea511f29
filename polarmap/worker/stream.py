"""Messages between a driver and its workers, and the sockets over which they travel.

A message is its kind, order and lengths, a pickled header, and raw bytes. Over a network each has a tag,
which is verified before anything of it is used.
Runs on workers too: imports the standard library only.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import socket
import struct
import time
import weakref
from collections.abc import Iterable, Iterator
from math import inf
from typing import NamedTuple

from polarmap.worker.polling import HUNG_UP, POLLIN, Poll, ready

PREFIX = ">c?qqqQQ"  # as struct writes what precedes header and data, whose lengths come last
PREFIX_BYTES = struct.calcsize(PREFIX)
HEADER_BYTES = 1 << 30  # more than any header has: what claims more is not a message
DATA_BYTES = 1 << 40  # the same of data
TAG_BYTES = 32
INLINE_BYTES = 1 << 17  # of data: larger ones are a file or an object of their own, where there are some
# Read at a time; at first as much as most messages are, for which there is room where f has limited memory.
FIRST_BYTES, READ_BYTES = 1 << 14, 1 << 18
SLOWEST = 1e5  # bytes per second of a network
ANSWER_SECONDS = 5.0  # that whoever waits for us may take to read what it is told, or to answer
NONCE_BYTES = 32
NUMBER_BYTES = 8
PROOF_BYTES = NONCE_BYTES + NUMBER_BYTES + TAG_BYTES  # that a worker sends to prove that it has the key
CONNECT_SECONDS = 2.0  # in which one of the driver's addresses answers, or is not reached from here
KEEPALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3}  # a dead machine is noticed in 11 s

Endpoint = tuple[str, int]  # host and port

# Of a driver: modules that functions need; what the tasks of a map have in common; a task; that a map is
# over, so that nobody waits for its tasks; a part of a block that was asked for.
MODULES, MAP, CALL, CANCEL, PART = b"s", b"m", b"c", b"x", b"d"
# Of a worker: its process; a part of a block that it needs; that it has left a task that nobody waits for;
# that it is not fit for one; the end of a task; the same, of a worker that is not fit for another.
PROCESS, NEED, LEFT, UNFIT, END, LAST = b"p", b"n", b"l", b"u", b"e", b"z"
KINDS = {MODULES, MAP, CALL, CANCEL, PART, PROCESS, NEED, LEFT, UNFIT, END, LAST}
REPLIES = {LEFT, UNFIT, END, LAST}  # each ends a call
FAREWELLS = {UNFIT, LAST}  # after these a worker ends itself

# Between a driver and the process that forks its workers: what to do with which of them, and what that says
# when it is there, and of a worker that has ended by itself, and how, as the kernel tells it.
REQUEST, ENDED = struct.Struct(">cQ"), struct.Struct(">Qi")
FORK, KILL, READY = b"f", b"k", b"r"


class FrameError(ConnectionError):
    """Bytes that are no message, or not of one who has the key."""


class Message(NamedTuple):
    """What either side says.

    order : number of the map, task and attempt that it is about.
    is_file : whether `data` names a file that holds the data.
    """

    kind: bytes
    order: tuple[int, int, int] = (-1, -1, -1)
    header: bytes | bytearray = b""
    data: bytes | bytearray | memoryview = b""
    is_file: bool = False


class Seal:
    """Tags of the messages that travel in one direction: of each and its place in the sequence."""

    def __init__(self, key: bytes) -> None:
        self._key, self._count = key, 0

    def tag(self, parts: Iterable[bytes | bytearray | memoryview]) -> bytes:
        """The tag of the next message, whose bytes are these in a row."""
        counted = self._count.to_bytes(8, "big"), *parts
        self._count += 1
        if sum(map(len, counted)) < INLINE_BYTES:  # else it is as slow, copies all, and refuses 2 GiB
            return hmac.digest(self._key, b"".join(counted), "sha256")
        code = hmac.new(self._key, digestmod="sha256")
        for part in counted:
            code.update(part)
        return code.digest()


class Seals(NamedTuple):
    """The seal of what one end of a connection sends, and that of what it hears."""

    sent: Seal
    heard: Seal


def frame(message: Message, seal: Seal | None = None) -> bytes:
    """A message as it travels; `seal`: with a tag at its end."""
    kind, order, header, data, is_file = message
    parts = struct.pack(PREFIX, kind, is_file, *order, len(header), len(data)), header, data
    return b"".join(parts if seal is None else (*parts, seal.tag(parts)))


class Frames:
    """The messages in a stream of bytes, as they become complete.

    seal : of their tags; None if they have none.

    >>> frames = Frames()
    >>> sent = frame(Message(END, (1, 2, 0), b"header", b"data"))
    >>> list(frames.of(sent[:9])), [message.order for message in frames.of(sent[9:])]
    ([], [(1, 2, 0)])
    """

    def __init__(self, seal: Seal | None = None) -> None:
        self._bytes, self._seal = bytearray(), seal

    def of(self, received: bytes) -> Iterator[Message]:
        """Those that are complete with these bytes; FrameError if they are none."""
        self._bytes += received
        tag_bytes = 0 if self._seal is None else TAG_BYTES
        while len(self._bytes) >= PREFIX_BYTES:
            kind, is_file, number, task, attempt, header, data = struct.unpack_from(PREFIX, self._bytes)
            if kind not in KINDS or header > HEADER_BYTES or data > DATA_BYTES:
                raise FrameError(f"a message {kind!r} of {header} and {data} bytes")
            start, end = PREFIX_BYTES + header, PREFIX_BYTES + header + data
            if len(self._bytes) < end + tag_bytes:
                return
            if self._seal is not None:
                # Released here, whoever still holds them, as profilers do that look into frames of threads.
                with memoryview(self._bytes) as view, view[:end] as told, view[end : end + TAG_BYTES] as tag:
                    if not hmac.compare_digest(self._seal.tag((told,)), tag):
                        raise FrameError("a message was changed on its way")
            order = number, task, attempt
            message = Message(kind, order, self._bytes[PREFIX_BYTES:start], self._bytes[start:end], is_file)
            del self._bytes[: end + tag_bytes]
            yield message


class Stream:
    """One end of a stream socket over which messages travel.

    seals : of the two directions; None where nobody else can write to it.
    patience : seconds in which the other end may read nothing of what it waits for, and that it may take for
        all of it, with one more for each SLOWEST bytes; None: as long as it takes.

    Attributes
    ----------
    failure : OSError or None
        The error by which the connection has failed; None if the other end has closed it, or nobody has.
    """

    failure: OSError | None = None

    def __init__(
        self,
        connection: socket.socket,
        seals: Seals | None = None,
        patience: float | None = ANSWER_SECONDS,
    ) -> None:
        connection.setblocking(False)
        self._connection, self._patience, self._poll = connection, patience, Poll()
        self._poll.register(connection, POLLIN)
        self._seal, self._frames = seals and seals.sent, Frames(seals and seals.heard)

    def fileno(self) -> int:
        """The socket's descriptor, which is readable when the other end has said something or is gone."""
        return self._connection.fileno()

    def send(self, *messages: Message) -> bool:
        """Whether the other end was told all of these."""
        data = b""
        for one in messages:
            data += frame(one, self._seal)
        try:
            sent = self._connection.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            return False
        return sent == len(data) or self._send_rest(memoryview(data)[sent:])

    def _send_rest(self, data: memoryview) -> bool:
        """The same of what did not fit into the buffer of the socket."""
        until = inf if self._patience is None else time.monotonic() + self._patience + len(data) / SLOWEST
        try:
            self._connection.settimeout(self._patience)
            while data and time.monotonic() < until:
                data = data[self._connection.send(data) :]
        except OSError:
            return False
        finally:
            with contextlib.suppress(OSError):  # it is closed
                self._connection.setblocking(False)
        return not data

    def receive(self, timeout: float | None = 0.0) -> tuple[list[Message], bool]:
        """What the other end has said since the last time, and whether it will say more.

        timeout : seconds to wait for something to come; None: as long as it takes.
        """
        if timeout != 0.0:
            self._poll.poll(timeout and 1000 * max(0.0, timeout))
        said: list[Message] = []
        size = FIRST_BYTES
        try:
            while True:
                data = self._connection.recv(size)
                said += self._frames.of(data)
                if len(data) < size:
                    return said, bool(data)
                size = READ_BYTES
        except BlockingIOError:
            return said, True
        except OSError as error:
            self.failure = error
            self.hang_up()  # what follows nonsense is none of our messages
            return said, False

    def is_closed(self) -> bool:
        """Whether the other end is closed, whatever can still be read, where the system tells that."""
        if not ready([self._connection], HUNG_UP, 0.0):
            return False
        return HUNG_UP != POLLIN or self._is_at_end()

    def _is_at_end(self) -> bool:
        """Whether all is read, and nothing will come."""
        try:
            return not self._connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def hang_up(self) -> None:
        """The other end is gone, or is to go: whoever waits at either sees that. The descriptor stays."""
        shut(self._connection)

    def close(self) -> None:
        """Say nothing more, hear nothing more."""
        self._connection.close()


def shut(connection: socket.socket) -> None:
    """End what is said on a socket, in both directions; whether its other end is there or not."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def worker_stream(connection: socket.socket, seals: Seals | None = None) -> Stream:
    """A worker's end. A process that is forked of this one, as by f, does not hold or use it."""
    found = weakref.ref(connection)

    def close() -> None:
        ours = found()
        if ours is not None:
            ours.close()

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=close)
    return Stream(connection, seals, None)


# --- TCP connections of workers elsewhere: both sides prove that they have a key -------------------


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
