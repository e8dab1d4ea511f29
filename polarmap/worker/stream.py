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
import sys
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from polarmap.worker.polling import HUNG_UP, POLLIN, POLLOUT, Poll, ready

PREFIX = ">cBqqqQQ"  # as struct writes what precedes header and data, whose lengths come last
PREFIX_BYTES = struct.calcsize(PREFIX)
HEADER_BYTES = 1 << 30  # more than any header has: what claims more is not a message
DATA_BYTES = 1 << 40  # the same of data
# Flags of a frame: its data name a file; another frame of its message follows; an earlier one precedes it.
IS_FILE, HAS_MORE, IS_CONTINUED = 1, 2, 4
TAG_BYTES = 32
INLINE_BYTES = 1 << 17  # of data: larger ones are a file or an object of their own, where there are some
# Read at a time; at first as much as most messages are, for which there is room where f has limited memory.
FIRST_BYTES, READ_BYTES = 1 << 14, 1 << 18
CHUNK_BYTES = 1 << 17  # Most bytes of a longer message that are framed at once: only these are copied.
WRITE_BYTES = 1 << 22  # Most bytes that are written to a socket before its owner looks at others again.
UNSENT_BYTES = 1 << 17  # Most bytes that wait in the kernel of the driver: they cannot be taken back.
ANSWER_SECONDS = 5.0  # in which whoever connects has to prove that it has the key
NONCE_BYTES = 32
NUMBER_BYTES = 8
PROOF_BYTES = NONCE_BYTES + NUMBER_BYTES + TAG_BYTES  # that a worker sends to prove that it has the key
CONNECT_SECONDS = 2.0  # in which one of the driver's addresses answers, or is not reached from here
TCP_TIMEOUT = 11.0  # Seconds of silence after which a connection is lost, unless a pool sets another time.
KEEPALIVE_PROBES = 3  # that remain without an answer before a connection is lost on which nothing is sent

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


def frame(message: Message, seal: Seal | None = None, flags: int = 0) -> bytes:
    """A message as it travels; `seal`: with a tag at its end."""
    kind, order, header, data, is_file = message
    parts = struct.pack(PREFIX, kind, flags | is_file, *order, len(header), len(data)), header, data
    return b"".join(parts if seal is None else (*parts, seal.tag(parts)))


def cut_message(message: Message) -> Iterator[Message]:
    """Yield the header and the data of a message in chunks, each as a message, without copying the data."""
    header, data = memoryview(message.header), memoryview(message.data)
    for start in range(0, len(header), CHUNK_BYTES):
        yield message._replace(header=bytes(header[start : start + CHUNK_BYTES]), data=b"")
    for start in range(0, len(data), CHUNK_BYTES):
        yield message._replace(header=b"", data=data[start : start + CHUNK_BYTES])


class Frames:
    """The messages in a stream of bytes, as they become complete.

    A long message comes in several frames. If another message begins before the last of them, the sender has
    cancelled it, and what has come of it is discarded.

    seal : of their tags; None if they have none.

    >>> frames = Frames()
    >>> sent = frame(Message(END, (1, 2, 0), b"header", b"data"))
    >>> list(frames.of(sent[:9])), [message.order for message in frames.of(sent[9:])]
    ([], [(1, 2, 0)])
    """

    def __init__(self, seal: Seal | None = None) -> None:
        self._bytes, self._seal = bytearray(), seal
        self._begun: Message | None = None  # a message of which more frames follow

    def of(self, received: bytes) -> Iterator[Message]:
        """Those that are complete with these bytes; FrameError if they are none."""
        self._bytes += received
        tag_bytes = 0 if self._seal is None else TAG_BYTES
        while len(self._bytes) >= PREFIX_BYTES:
            kind, flags, number, task, attempt, header, data = struct.unpack_from(PREFIX, self._bytes)
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
            message = Message(
                kind, order, self._bytes[PREFIX_BYTES:start], self._bytes[start:end], bool(flags & IS_FILE)
            )
            del self._bytes[: end + tag_bytes]
            if flags & IS_CONTINUED:
                message = self._continued(message)
            self._begun = message if flags & HAS_MORE else None
            if self._begun is None:
                yield message

    def _continued(self, rest: Message) -> Message:
        """Return the message that was begun with this frame at its end; FrameError if it is of another."""
        begun = self._begun
        if begun is None or begun[:2] != rest[:2]:
            raise FrameError(f"a frame continues a message {rest.kind!r} that was not begun")
        assert isinstance(begun.header, bytearray) and isinstance(begun.data, bytearray)
        begun.header.extend(rest.header)
        begun.data.extend(rest.data)
        if len(begun.header) > HEADER_BYTES or len(begun.data) > DATA_BYTES:
            raise FrameError(f"a message {rest.kind!r} of {len(begun.header)} and {len(begun.data)} bytes")
        return begun


class Stream:
    """One end of a stream socket over which messages travel. Nothing that is sent waits for the other end.

    A message that the socket does not take at once waits in a queue. Its bytes are framed, sealed and copied
    one chunk at a time as they are written, so that what waits is a reference to the data of its sender.

    Parameters
    ----------
    seals : of the two directions; None where nobody else can write to it.
    timeout : seconds without a byte being written after which the other end counts as lost.

    Attributes
    ----------
    has_unsent : bool
        Whether messages wait, so that `flush` is to be called once the socket is writable.
    failure : OSError or None
        The error by which the connection has failed; None if the other end has closed it, or nobody has.
    """

    has_unsent = False
    failure: OSError | None = None

    def __init__(
        self, connection: socket.socket, seals: Seals | None = None, timeout: float = TCP_TIMEOUT
    ) -> None:
        connection.setblocking(False)
        self._connection, self._timeout, self._poll = connection, timeout, Poll()
        self._poll.register(connection, POLLIN)
        self._seal, self._frames = seals and seals.sent, Frames(seals and seals.heard)
        self._frame = memoryview(b"")  # bytes that are framed, and have to be written whole
        self._queue = deque[Message]()
        self._chunks: Iterator[Message] = iter(())  # of the message that is being written
        self._flags = 0  # of its next frame
        self._writing: Message | None = None  # that message, until all of it is framed
        self._moved = 0.0  # when a byte was written last, or the first message began to wait

    def fileno(self) -> int:
        """The socket's descriptor, which is readable when the other end has said something or is gone."""
        return self._connection.fileno()

    def send(self, *messages: Message) -> bool:
        """Write what the socket takes of these messages, and queue the rest. Return False if it is broken."""
        data, may_write = b"", not self.has_unsent
        for one in messages:
            if may_write and len(one.header) <= CHUNK_BYTES and len(one.data) <= CHUNK_BYTES:
                data += frame(one, self._seal)
            else:
                may_write = False
                self._queue.append(one)
        if data:
            try:
                sent = self._connection.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                return False
            if may_write and sent == len(data):
                return True
            self._frame = memoryview(data)[sent:]
        if not self.has_unsent:
            self._moved, self.has_unsent = time.monotonic(), True
        return self.flush()

    def flush(self) -> bool:
        """Write what the socket takes of the messages that wait. Return False if the connection is broken."""
        written = 0
        try:
            while written < WRITE_BYTES and (len(self._frame) or self._frame_next()):
                sent = self._connection.send(self._frame)
                self._frame, written = self._frame[sent:], written + sent
        except BlockingIOError:
            pass
        except OSError as error:
            self.failure = error
            return False
        if written:
            self._moved = time.monotonic()
        self.has_unsent = bool(len(self._frame) or self._writing or self._queue)
        return True

    def _frame_next(self) -> bool:
        """Frame the next bytes to write. Return False if no message waits."""
        if self._writing is None:
            if not self._queue:
                return False
            first = self._queue.popleft()
            if len(first.header) <= CHUNK_BYTES and len(first.data) <= CHUNK_BYTES:
                self._frame = memoryview(frame(first, self._seal))
                return True
            self._writing, self._chunks, self._flags = first, cut_message(first), HAS_MORE
        chunk = next(self._chunks, None)
        if chunk is None:  # the last frame is empty, so that nobody has to look ahead
            chunk, self._writing = self._writing._replace(header=b"", data=b""), None
            self._flags &= ~HAS_MORE
        self._frame = memoryview(frame(chunk, self._seal, self._flags))
        self._flags |= IS_CONTINUED
        return True

    def drop_unsent(self) -> list[Message]:
        """Remove the messages of which the last byte is not framed, and return them; a CANCEL stays."""
        dropped = [one for one in self._queue if one.kind != CANCEL]
        self._queue = deque(one for one in self._queue if one.kind == CANCEL)
        if self._writing is not None and self._writing.kind != CANCEL:
            dropped.insert(0, self._writing)
            self._writing, self._chunks = None, iter(())
        self.has_unsent = bool(len(self._frame) or self._writing or self._queue)
        return dropped

    def is_stalled(self) -> bool:
        """Return whether messages wait of which no byte could be written for the time of the timeout."""
        return self.has_unsent and time.monotonic() > self._moved + self._timeout

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


class BlockingStream(Stream):
    """One end of a socket whose owner waits until all that it sends is written, as long as that takes."""

    def send(self, *messages: Message) -> bool:
        """Block until these messages are written. Return False if the connection is broken."""
        is_there = super().send(*messages)
        while is_there and self.has_unsent:
            ready([self._connection], POLLOUT, None)
            is_there = self.flush()
        return is_there


def worker_stream(connection: socket.socket, seals: Seals | None = None) -> BlockingStream:
    """A worker's end. A process that is forked of this one, as by f, does not hold or use it."""
    found = weakref.ref(connection)

    def close() -> None:
        ours = found()
        if ours is not None:
            ours.close()

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=close)
    return BlockingStream(connection, seals)


# --- TCP connections of workers elsewhere: both sides prove that they have a key -------------------


def connected(
    endpoints: Iterable[Endpoint], key: bytes, number: int, timeout: float = TCP_TIMEOUT
) -> Stream | None:
    """A channel to the first of the driver's addresses that answers and has the key; None if none does."""
    for endpoint in endpoints:
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            connection = stack.enter_context(socket.create_connection(endpoint, CONNECT_SECONDS))
            stay_awake(connection, timeout)
            seals = admit_driver(connection, key, number)
            stack.pop_all()
            return worker_stream(connection, seals)
    return None


def stay_awake(connection: socket.socket, timeout: float = TCP_TIMEOUT) -> None:
    """Let small messages go at once, and let the system notice within `timeout` seconds that nobody answers.

    Keepalive probes notice it while nothing is sent. While data are on their way the system sends these
    again instead, for many minutes unless another option limits that.
    """
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in tcp_options(timeout, sys.platform).items():
        with contextlib.suppress(OSError):  # a system that does not know this option, or a local socket
            connection.setsockopt(socket.IPPROTO_TCP, option, value)


def tcp_options(timeout: float, system: str) -> dict[int, int]:
    """Return the TCP options of a connection that is lost after `timeout` seconds of silence.

    system : as `sys.platform` names it. Python has no names for some of the options.

    >>> tcp_options(11.0, "win32") == {3: 5, 17: 2, 16: 3, 5: 11}  # TCP_MAXRT = 5, in seconds
    True
    """
    idle = max(1, round(timeout * 5 / 11))
    interval = max(1, round((timeout - idle) / KEEPALIVE_PROBES))
    seconds = max(1, round(timeout))
    if system == "win32":  # TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT, TCP_MAXRT
        return {3: idle, 17: interval, 16: KEEPALIVE_PROBES, 5: seconds}
    if (
        system == "darwin"
    ):  # TCP_KEEPALIVE, TCP_KEEPINTVL, TCP_KEEPCNT, TCP_RXT_CONNDROPTIME, TCP_NOTSENT_LOWAT
        return {0x10: idle, 0x101: interval, 0x102: KEEPALIVE_PROBES, 0x80: seconds, 0x201: UNSENT_BYTES}
    if system == "linux":  # TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT, TCP_USER_TIMEOUT, TCP_NOTSENT_LOWAT
        return {4: idle, 5: interval, 6: KEEPALIVE_PROBES, 18: round(1000 * timeout), 25: UNSENT_BYTES}
    return {}


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
