"""Sockets over which the messages between a driver and its workers travel.

Runs on workers too: imports the standard library only.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
import weakref
from collections import deque
from collections.abc import Iterator

from polarmap.worker.messages import (
    CONTINUATION_FLAG,
    MAX_CHUNK_BYTES,
    MORE_FRAMES_FLAG,
    ChannelAuthenticators,
    FrameDecoder,
    Message,
    MessageKind,
    encode_frame,
    split_message,
)
from polarmap.worker.polling import POLL_HANGUP, POLLIN, POLLOUT, Poll, wait_until_ready

# Read at a time; at first as much as most messages are, for which there is room where f has limited memory.
FIRST_READ_BYTES, MAX_READ_BYTES = 1 << 14, 1 << 18
MAX_WRITE_BYTES = 1 << 22  # Most bytes that are written to a socket before its owner looks at others again.
MAX_UNSENT_BYTES = 1 << 17  # Most bytes that wait in the kernel of the driver: they cannot be taken back.
TCP_TIMEOUT = 11.0  # Seconds of silence after which a connection is lost, unless a pool sets another time.
MAX_KEEPALIVE_PROBES = 3  # that remain without an answer before a connection is lost on which nothing is sent


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
        self._authenticator = authenticators and authenticators.outgoing
        self._decoder = FrameDecoder(authenticators and authenticators.incoming)
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
            self._current_message = message
            self._remaining_chunks = split_message(message)
            self._next_flags = MORE_FRAMES_FLAG
        chunk = next(self._remaining_chunks, None)
        if chunk is None:  # the last frame is empty, so that nobody has to look ahead
            chunk, self._current_message = self._current_message._replace(header=b"", data=b""), None
            self._next_flags &= ~MORE_FRAMES_FLAG
        self._unsent_bytes = memoryview(encode_frame(chunk, self._authenticator, self._next_flags))
        self._next_flags |= CONTINUATION_FLAG
        return True

    def drop_unsent(self) -> list[Message]:
        """Remove the messages of which the last byte is not framed, and return them, except a CANCEL."""
        dropped = [message for message in self._send_queue if message.kind != MessageKind.CANCEL]
        self._send_queue = deque(
            message for message in self._send_queue if message.kind == MessageKind.CANCEL
        )
        if self._current_message is not None and self._current_message.kind != MessageKind.CANCEL:
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

    def keep_alive(self) -> None:
        """Do nothing: the system sends keepalive probes."""

    def is_peer_closed(self) -> bool:
        """Return whether the other end is closed, whatever can still be read, where the system tells that."""
        if not wait_until_ready([self._connection], POLL_HANGUP, 0.0):
            return False
        return POLL_HANGUP != POLLIN or self._has_reached_eof()

    def _has_reached_eof(self) -> bool:
        """Return whether all is read, and nothing will come. Nothing is taken off the socket."""
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
