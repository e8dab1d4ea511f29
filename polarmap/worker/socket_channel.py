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

from polarmap.worker.polling import POLL_HANGUP, POLLIN, POLLOUT, Poll, wait_until_ready

FRAME_PREFIX = ">cBqqqQQ"  # as struct writes what precedes header and data, whose lengths come last
FRAME_PREFIX_BYTES = struct.calcsize(FRAME_PREFIX)
MAX_HEADER_BYTES = 1 << 30  # more than any header has: what claims more is not a message
MAX_DATA_BYTES = 1 << 40  # the same of data
# Flags of a frame: its data name a file; another frame of its message follows; an earlier one precedes it.
FILE_FLAG, MORE_FRAMES_FLAG, CONTINUATION_FLAG = 1, 2, 4
MAC_BYTES = 32
MAX_INLINE_BYTES = 1 << 17  # of data: larger ones are a file or an object of their own, where there are some
# Read at a time; at first as much as most messages are, for which there is room where f has limited memory.
FIRST_READ_BYTES, MAX_READ_BYTES = 1 << 14, 1 << 18
MAX_CHUNK_BYTES = 1 << 17  # Most bytes of a longer message that are framed at once: only these are copied.
MAX_WRITE_BYTES = 1 << 22  # Most bytes that are written to a socket before its owner looks at others again.
MAX_UNSENT_BYTES = 1 << 17  # Most bytes that wait in the kernel of the driver: they cannot be taken back.
PROOF_TIMEOUT = 5.0  # in which whoever connects has to prove that it has the key
NONCE_BYTES = 32
WORKER_ID_BYTES = 8
PROOF_BYTES = NONCE_BYTES + WORKER_ID_BYTES + MAC_BYTES  # that a worker sends to prove that it has the key
CONNECT_TIMEOUT = 2.0  # in which one of the driver's addresses answers, or is not reached from here
TCP_TIMEOUT = 11.0  # Seconds of silence after which a connection is lost, unless a pool sets another time.
MAX_KEEPALIVE_PROBES = 3  # that remain without an answer before a connection is lost on which nothing is sent

Endpoint = tuple[str, int]  # host and port

# Of a driver: modules that functions need; what the tasks of a map have in common; a task; that a map is
# over, so that nobody waits for its tasks; a part of a block that was asked for.
MODULES, JOB, TASK, CANCEL, SEGMENT = b"s", b"m", b"c", b"x", b"d"
# Of a worker: its process; a part of a block that it needs; that it has left a task that nobody waits for;
# that it is not fit for one; the end of a task; the same, of a worker that is not fit for another.
HELLO, FETCH, CANCELLED, UNUSABLE, TASK_REPLY, FINAL_REPLY = b"p", b"n", b"l", b"u", b"e", b"z"
MESSAGE_KINDS = {
    MODULES,
    JOB,
    TASK,
    CANCEL,
    SEGMENT,
    HELLO,
    FETCH,
    CANCELLED,
    UNUSABLE,
    TASK_REPLY,
    FINAL_REPLY,
}
TASK_END_KINDS = {CANCELLED, UNUSABLE, TASK_REPLY, FINAL_REPLY}  # each ends a call
EXIT_KINDS = {UNUSABLE, FINAL_REPLY}  # after these a worker ends itself

# Between a driver and the process that forks its workers: what to do with which of them, and what that says
# when it is there, and of a worker that has ended by itself, and how, as the kernel tells it.
FORK_SERVER_REQUEST, WORKER_EXIT_EVENT = struct.Struct(">cQ"), struct.Struct(">Qi")
FORK_COMMAND, KILL_COMMAND, SERVER_READY = b"f", b"k", b"r"


class FrameError(ConnectionError):
    """Bytes that are no message, or not of one who has the key."""


class Message(NamedTuple):
    """What either side says.

    attempt_key : number of the map, task and attempt that it is about.
    is_file : whether `data` names a file that holds the data.
    """

    kind: bytes
    attempt_key: tuple[int, int, int] = (-1, -1, -1)
    header: bytes | bytearray = b""
    data: bytes | bytearray | memoryview = b""
    is_file: bool = False


class MessageAuthenticator:
    """Tags of the messages that travel in one direction: of each and its place in the sequence."""

    def __init__(self, key: bytes) -> None:
        self._key, self._n_tagged = key, 0

    def compute_tag(self, buffers: Iterable[bytes | bytearray | memoryview]) -> bytes:
        """The tag of the next message, whose bytes are these in a row."""
        numbered_buffers = self._n_tagged.to_bytes(8, "big"), *buffers
        self._n_tagged += 1
        # else it is as slow, copies all, and refuses 2 GiB
        if sum(map(len, numbered_buffers)) < MAX_INLINE_BYTES:
            return hmac.digest(self._key, b"".join(numbered_buffers), "sha256")
        mac = hmac.new(self._key, digestmod="sha256")
        for buffer in numbered_buffers:
            mac.update(buffer)
        return mac.digest()


class ChannelAuthenticators(NamedTuple):
    """The seal of what one end of a connection sends, and that of what it hears."""

    outgoing: MessageAuthenticator
    incoming: MessageAuthenticator


def encode_frame(
    message: Message, authenticator: MessageAuthenticator | None = None, flags: int = 0
) -> bytes:
    """A message as it travels; `authenticator`: with a tag at its end."""
    kind, attempt_key, header, data, is_file = message
    buffers = (
        struct.pack(FRAME_PREFIX, kind, flags | is_file, *attempt_key, len(header), len(data)),
        header,
        data,
    )
    return b"".join(buffers if authenticator is None else (*buffers, authenticator.compute_tag(buffers)))


def split_message(message: Message) -> Iterator[Message]:
    """Yield the header and the data of a message in chunks, each as a message, without copying the data."""
    header, data = memoryview(message.header), memoryview(message.data)
    for start in range(0, len(header), MAX_CHUNK_BYTES):
        yield message._replace(header=bytes(header[start : start + MAX_CHUNK_BYTES]), data=b"")
    for start in range(0, len(data), MAX_CHUNK_BYTES):
        yield message._replace(header=b"", data=data[start : start + MAX_CHUNK_BYTES])


class FrameDecoder:
    """The messages in a stream of bytes, as they become complete.

    A long message comes in several frames. If another message begins before the last of them, the sender has
    cancelled it, and what has come of it is discarded.

    authenticator : of their tags; None if they have none.

    >>> frames = FrameDecoder()
    >>> sent = encode_frame(Message(TASK_REPLY, (1, 2, 0), b"header", b"data"))
    >>> list(frames.feed(sent[:9])), [message.attempt_key for message in frames.feed(sent[9:])]
    ([], [(1, 2, 0)])
    """

    def __init__(self, authenticator: MessageAuthenticator | None = None) -> None:
        self._buffer, self._authenticator = bytearray(), authenticator
        self._partial_message: Message | None = None  # a message of which more frames follow

    def feed(self, received_bytes: bytes) -> Iterator[Message]:
        """Those that are complete with these bytes; FrameError if they are none."""
        self._buffer += received_bytes
        tag_bytes = 0 if self._authenticator is None else MAC_BYTES
        while len(self._buffer) >= FRAME_PREFIX_BYTES:
            kind, flags, job_id, task, attempt, header_size, data_size = struct.unpack_from(
                FRAME_PREFIX, self._buffer
            )
            if kind not in MESSAGE_KINDS or header_size > MAX_HEADER_BYTES or data_size > MAX_DATA_BYTES:
                raise FrameError(f"a message {kind!r} of {header_size} and {data_size} bytes")
            start, end = FRAME_PREFIX_BYTES + header_size, FRAME_PREFIX_BYTES + header_size + data_size
            if len(self._buffer) < end + tag_bytes:
                return
            if self._authenticator is not None:
                # Released here, whoever still holds them, as profilers do that look into frames of threads.
                with (
                    memoryview(self._buffer) as view,
                    view[:end] as tagged_bytes,
                    view[end : end + MAC_BYTES] as tag,
                ):
                    if not hmac.compare_digest(self._authenticator.compute_tag((tagged_bytes,)), tag):
                        raise FrameError("a message was changed on its way")
            attempt_key = job_id, task, attempt
            message = Message(
                kind,
                attempt_key,
                self._buffer[FRAME_PREFIX_BYTES:start],
                self._buffer[start:end],
                bool(flags & FILE_FLAG),
            )
            del self._buffer[: end + tag_bytes]
            if flags & CONTINUATION_FLAG:
                message = self._append_frame(message)
            self._partial_message = message if flags & MORE_FRAMES_FLAG else None
            if self._partial_message is None:
                yield message

    def _append_frame(self, next_frame: Message) -> Message:
        """Return the message that was begun with this frame at its end; FrameError if it is of another."""
        partial_message = self._partial_message
        if partial_message is None or partial_message[:2] != next_frame[:2]:
            raise FrameError(f"a frame continues a message {next_frame.kind!r} that was not begun")
        assert isinstance(partial_message.header, bytearray) and isinstance(partial_message.data, bytearray)
        partial_message.header.extend(next_frame.header)
        partial_message.data.extend(next_frame.data)
        if len(partial_message.header) > MAX_HEADER_BYTES or len(partial_message.data) > MAX_DATA_BYTES:
            raise FrameError(
                f"a message {next_frame.kind!r} of {len(partial_message.header)} "
                f"and {len(partial_message.data)} bytes"
            )
        return partial_message


class SocketChannel:
    """One end of a stream socket over which messages travel. Nothing that is sent waits for the other end.

    A message that the socket does not take at once waits in a queue. Its bytes are framed, sealed and copied
    one chunk at a time as they are written, so that what waits is a reference to the data of its sender.

    Parameters
    ----------
    authenticators : of the two directions; None where nobody else can write to it.
    send_timeout : seconds without a byte being written after which the other end counts as lost.

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
        self,
        connection: socket.socket,
        authenticators: ChannelAuthenticators | None = None,
        send_timeout: float = TCP_TIMEOUT,
    ) -> None:
        connection.setblocking(False)
        self._connection, self._send_timeout, self._poll = connection, send_timeout, Poll()
        self._poll.register(connection, POLLIN)
        self._authenticator, self._decoder = (
            authenticators and authenticators.outgoing,
            FrameDecoder(authenticators and authenticators.incoming),
        )
        self._unsent_bytes = memoryview(b"")  # bytes that are framed, and have to be written whole
        self._send_queue = deque[Message]()
        self._remaining_chunks: Iterator[Message] = iter(())  # of the message that is being written
        self._next_flags = 0  # of its next frame
        self._current_message: Message | None = None  # that message, until all of it is framed
        self._last_progress_at = 0.0  # when a byte was written last, or the first message began to wait

    def fileno(self) -> int:
        """The socket's descriptor, which is readable when the other end has said something or is gone."""
        return self._connection.fileno()

    def send(self, *messages: Message) -> bool:
        """Write what the socket takes of these messages, and queue the rest. Return False if it is broken."""
        data, may_write = b"", not self.has_unsent
        for message in messages:
            if may_write and len(message.header) <= MAX_CHUNK_BYTES and len(message.data) <= MAX_CHUNK_BYTES:
                data += encode_frame(message, self._authenticator)
            else:
                may_write = False
                self._send_queue.append(message)
        if data:
            try:
                n_sent = self._connection.send(data)
            except BlockingIOError:
                n_sent = 0
            except OSError:
                return False
            if may_write and n_sent == len(data):
                return True
            self._unsent_bytes = memoryview(data)[n_sent:]
        if not self.has_unsent:
            self._last_progress_at, self.has_unsent = time.monotonic(), True
        return self.flush()

    def flush(self) -> bool:
        """Write what the socket takes of the messages that wait. Return False if the connection is broken."""
        n_written = 0
        try:
            while n_written < MAX_WRITE_BYTES and (len(self._unsent_bytes) or self._encode_next_frame()):
                n_sent = self._connection.send(self._unsent_bytes)
                self._unsent_bytes, n_written = self._unsent_bytes[n_sent:], n_written + n_sent
        except BlockingIOError:
            pass
        except OSError as error:
            self.failure = error
            return False
        if n_written:
            self._last_progress_at = time.monotonic()
        self.has_unsent = bool(len(self._unsent_bytes) or self._current_message or self._send_queue)
        return True

    def _encode_next_frame(self) -> bool:
        """Frame the next bytes to write. Return False if no message waits."""
        if self._current_message is None:
            if not self._send_queue:
                return False
            message = self._send_queue.popleft()
            if len(message.header) <= MAX_CHUNK_BYTES and len(message.data) <= MAX_CHUNK_BYTES:
                self._unsent_bytes = memoryview(encode_frame(message, self._authenticator))
                return True
            self._current_message, self._remaining_chunks, self._next_flags = (
                message,
                split_message(message),
                MORE_FRAMES_FLAG,
            )
        chunk = next(self._remaining_chunks, None)
        if chunk is None:  # the last frame is empty, so that nobody has to look ahead
            chunk, self._current_message = self._current_message._replace(header=b"", data=b""), None
            self._next_flags &= ~MORE_FRAMES_FLAG
        self._unsent_bytes = memoryview(encode_frame(chunk, self._authenticator, self._next_flags))
        self._next_flags |= CONTINUATION_FLAG
        return True

    def drop_unsent(self) -> list[Message]:
        """Remove the messages of which the last byte is not framed, and return them; a CANCEL stays."""
        dropped = [message for message in self._send_queue if message.kind != CANCEL]
        self._send_queue = deque(message for message in self._send_queue if message.kind == CANCEL)
        if self._current_message is not None and self._current_message.kind != CANCEL:
            dropped.insert(0, self._current_message)
            self._current_message, self._remaining_chunks = None, iter(())
        self.has_unsent = bool(len(self._unsent_bytes) or self._current_message or self._send_queue)
        return dropped

    def is_stalled(self) -> bool:
        """Return whether messages wait of which no byte could be written for the time of the timeout."""
        return self.has_unsent and time.monotonic() > self._last_progress_at + self._send_timeout

    def receive(self, timeout: float | None = 0.0) -> tuple[list[Message], bool]:
        """What the other end has said since the last time, and whether it will say more.

        timeout : seconds to wait for something to come; None: as long as it takes.
        """
        if timeout != 0.0:
            self._poll.poll(timeout and 1000 * max(0.0, timeout))
        messages: list[Message] = []
        read_size = FIRST_READ_BYTES
        try:
            while True:
                data = self._connection.recv(read_size)
                messages += self._decoder.feed(data)
                if len(data) < read_size:
                    return messages, bool(data)
                read_size = MAX_READ_BYTES
        except BlockingIOError:
            return messages, True
        except OSError as error:
            self.failure = error
            self.disconnect()  # what follows nonsense is none of our messages
            return messages, False

    def is_peer_closed(self) -> bool:
        """Whether the other end is closed, whatever can still be read, where the system tells that."""
        if not wait_until_ready([self._connection], POLL_HANGUP, 0.0):
            return False
        return POLL_HANGUP != POLLIN or self._has_reached_eof()

    def _has_reached_eof(self) -> bool:
        """Whether all is read, and nothing will come."""
        try:
            return not self._connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def disconnect(self) -> None:
        """The other end is gone, or is to go: whoever waits at either sees that. The descriptor stays."""
        shutdown_socket(self._connection)

    def close(self) -> None:
        """Say nothing more, hear nothing more."""
        self._connection.close()


def shutdown_socket(connection: socket.socket) -> None:
    """End what is said on a socket, in both directions; whether its other end is there or not."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class BlockingSocketChannel(SocketChannel):
    """One end of a socket whose owner waits until all that it sends is written, as long as that takes."""

    def send(self, *messages: Message) -> bool:
        """Block until these messages are written. Return False if the connection is broken."""
        is_connected = super().send(*messages)
        while is_connected and self.has_unsent:
            wait_until_ready([self._connection], POLLOUT, None)
            is_connected = self.flush()
        return is_connected


def make_worker_channel(
    connection: socket.socket, authenticators: ChannelAuthenticators | None = None
) -> BlockingSocketChannel:
    """A worker's end. A process that is forked of this one, as by f, does not hold or use it."""
    connection_ref = weakref.ref(connection)

    def close() -> None:
        live_connection = connection_ref()
        if live_connection is not None:
            live_connection.close()

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=close)
    return BlockingSocketChannel(connection, authenticators)


# --- TCP connections of workers elsewhere: both sides prove that they have a key -------------------


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


def configure_tcp(connection: socket.socket, timeout: float = TCP_TIMEOUT) -> None:
    """Let small messages go at once, and let the system notice within `timeout` seconds that nobody answers.

    Keepalive probes notice it while nothing is sent. While data are on their way the system sends these
    again instead, for many minutes unless another option limits that.
    """
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in get_tcp_options(timeout, sys.platform).items():
        with contextlib.suppress(OSError):  # a system that does not know this option, or a local socket
            connection.setsockopt(socket.IPPROTO_TCP, option, value)


def get_tcp_options(timeout: float, platform: str) -> dict[int, int]:
    """Return the TCP options of a connection that is lost after `timeout` seconds of silence.

    platform : as `sys.platform` names it. Python has no names for some of the options.

    >>> get_tcp_options(11.0, "win32") == {3: 5, 17: 2, 16: 3, 5: 11}  # TCP_MAXRT = 5, in seconds
    True
    """
    idle_seconds = max(1, round(timeout * 5 / 11))
    probe_interval = max(1, round((timeout - idle_seconds) / MAX_KEEPALIVE_PROBES))
    timeout_seconds = max(1, round(timeout))
    if platform == "win32":  # TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT, TCP_MAXRT
        return {3: idle_seconds, 17: probe_interval, 16: MAX_KEEPALIVE_PROBES, 5: timeout_seconds}
    # TCP_KEEPALIVE, TCP_KEEPINTVL, TCP_KEEPCNT, TCP_RXT_CONNDROPTIME, TCP_NOTSENT_LOWAT
    if platform == "darwin":
        return {
            0x10: idle_seconds,
            0x101: probe_interval,
            0x102: MAX_KEEPALIVE_PROBES,
            0x80: timeout_seconds,
            0x201: MAX_UNSENT_BYTES,
        }
    if platform == "linux":  # TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT, TCP_USER_TIMEOUT, TCP_NOTSENT_LOWAT
        return {
            4: idle_seconds,
            5: probe_interval,
            6: MAX_KEEPALIVE_PROBES,
            18: round(1000 * timeout),
            25: MAX_UNSENT_BYTES,
        }
    return {}


def authenticate_worker(connection: socket.socket, key: bytes) -> tuple[int, ChannelAuthenticators]:
    """The driver's side of a connection: the number of a worker that proves that it has the key, and seals.

    Each side makes a nonce, so that nothing of an earlier connection is of use.
    """
    driver_nonce = os.urandom(NONCE_BYTES)
    connection.sendall(driver_nonce)
    response = _receive_exactly(connection, PROOF_BYTES, PROOF_TIMEOUT)
    worker_nonce, worker_id_bytes, proof = (
        response[:NONCE_BYTES],
        response[NONCE_BYTES:-MAC_BYTES],
        response[-MAC_BYTES:],
    )
    if not hmac.compare_digest(
        _compute_hmac(key, b"worker", driver_nonce + worker_nonce + worker_id_bytes), proof
    ):
        raise FrameError("a worker without the key")
    connection.sendall(_compute_hmac(key, b"driver", driver_nonce + worker_nonce + worker_id_bytes))
    return int.from_bytes(worker_id_bytes, "big"), ChannelAuthenticators(
        *_derive_authenticators(key, driver_nonce + worker_nonce)
    )


def authenticate_driver(connection: socket.socket, key: bytes, worker_id: int) -> ChannelAuthenticators:
    """The worker's side: it proves that it has the key, and so has the driver at the other end."""
    driver_nonce = _receive_exactly(connection, NONCE_BYTES, CONNECT_TIMEOUT)
    worker_nonce, worker_id_bytes = os.urandom(NONCE_BYTES), worker_id.to_bytes(WORKER_ID_BYTES, "big")
    connection.sendall(
        worker_nonce
        + worker_id_bytes
        + _compute_hmac(key, b"worker", driver_nonce + worker_nonce + worker_id_bytes)
    )
    proof = _receive_exactly(connection, MAC_BYTES, CONNECT_TIMEOUT)
    if not hmac.compare_digest(
        _compute_hmac(key, b"driver", driver_nonce + worker_nonce + worker_id_bytes), proof
    ):
        raise FrameError("a driver without the key")
    return ChannelAuthenticators(*reversed(_derive_authenticators(key, driver_nonce + worker_nonce)))


def _derive_authenticators(key: bytes, nonces: bytes) -> tuple[MessageAuthenticator, MessageAuthenticator]:
    """The seal of messages to the worker, and that of messages to the driver."""
    return MessageAuthenticator(_compute_hmac(key, b"to worker", nonces)), MessageAuthenticator(
        _compute_hmac(key, b"to driver", nonces)
    )


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
