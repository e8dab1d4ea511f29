"""Exchange messages between a driver and its workers over stream sockets.

The driver's channels never block: messages that a socket does not accept wait in a queue, and the driver
calls `flush` when the socket is writable. A worker's channel blocks until its messages are written. This
module also runs on workers, so it imports only the standard library.
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

# The number of bytes to request in the first read and in later reads. Most messages fit into the first read,
# which is small enough to succeed even if the user's function has left little memory.
FIRST_READ_BYTES, MAX_READ_BYTES = 1 << 14, 1 << 18
MAX_WRITE_BYTES = 1 << 22  # maximum bytes written by one `flush`, so that other sockets get their turn

# Maximum number of bytes that wait in the kernel to be sent. It is small, because `drop_unsent_messages`
# cannot remove these bytes.
MAX_UNSENT_BYTES = 1 << 17
TCP_TIMEOUT = 11.0  # default number of seconds without a response until a connection counts as lost
MAX_KEEPALIVE_PROBES = 3  # number of unanswered probes until an idle connection counts as lost


class SocketChannel:
    """A non-blocking channel for messages over a socket.

    Messages that the socket cannot accept immediately wait in a queue until `flush` is called. The queue does
    not copy the data of messages. Long messages are encoded piece by piece, when they are written.

    Parameters
    ----------
    connection : socket
        The connected socket. The channel sets it to non-blocking mode.
    authenticators : ChannelAuthenticators, optional
        Used to authenticate messages in both directions. By default, messages are not authenticated, which is
        sufficient for a socket pair on one machine.
    send_timeout : float
        `is_stalled` returns True after this many seconds without write progress.

    Attributes
    ----------
    has_unsent : bool
        Whether messages are waiting in the queue. If so, call `flush` once the socket is writable.
    failure : OSError or None
        The error that broke the connection. None if the connection is open or was closed normally.
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
        self._unsent_bytes = memoryview(b"")  # encoded bytes that the socket has not accepted yet
        self._send_queue = deque[Message]()
        self._current_message: Message | None = None  # a long message that is partly encoded
        self._remaining_chunks: Iterator[Message] = iter(())  # unencoded parts of `_current_message`
        self._next_flags = 0  # the flags of the next frame of `_current_message`

        # The value of `time.monotonic()` when bytes were last written, or when the queue became non-empty.
        self._last_progress_at = 0.0

    def fileno(self) -> int:
        """Return the socket's file descriptor, so that `select` and `poll` accept the channel."""
        return self._connection.fileno()

    def send(self, *messages: Message) -> bool:
        """Send messages without blocking: write what the socket accepts, and queue the rest.

        Return False if the connection is broken.
        """
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
        """Write as many queued messages as the socket accepts. Return False if the connection is broken."""
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
        """Encode the next frame to write. Return False if no message is queued."""
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
        # Mark the end of a long message by an empty frame, because it is not known in advance which chunk is
        # the last.
        if chunk is None:
            chunk, self._current_message = self._current_message._replace(header=b"", data=b""), None
            self._next_flags &= ~MORE_FRAMES_FLAG
        self._unsent_bytes = memoryview(encode_frame(chunk, self._authenticator, self._next_flags))
        self._next_flags |= CONTINUATION_FLAG
        return True

    def drop_unsent_messages(self) -> list[Message]:
        """Remove queued messages that are not fully encoded yet, and return them.

        CANCEL messages stay in the queue.
        """
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
        """Return whether messages are queued, but no byte has been written for `send_timeout` seconds."""
        return self.has_unsent and time.monotonic() > self._last_progress_at + self._send_timeout

    def receive(self, timeout: float | None = 0.0) -> tuple[list[Message], bool]:
        """Return the messages that have arrived, and whether the connection is open.

        Parameters
        ----------
        timeout : float or None
            How many seconds to wait if nothing has arrived; None to wait indefinitely.
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
            self.disconnect()  # After invalid bytes, there is no way to find the start of the next message.
            return messages, False

    def keep_alive(self) -> None:
        """Do nothing, because the operating system sends keepalive probes."""

    def is_peer_closed(self) -> bool:
        """Return whether the peer has closed its end of the connection.

        On systems without POLLRDHUP, this is detected only after all received messages have been read.
        """
        if not wait_until_ready([self._connection], POLL_HANGUP, 0.0):
            return False
        return POLL_HANGUP != POLLIN or self._has_reached_eof()

    def _has_reached_eof(self) -> bool:
        """Return whether the peer has closed its end and all its bytes have been read.

        No bytes are consumed from the socket.
        """
        try:
            return not self._connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def disconnect(self) -> None:
        """Shut down the connection in both directions, so that both ends see that it is closed.

        The file descriptor remains open until `close` is called.
        """
        shutdown_socket(self._connection)

    def close(self) -> None:
        """Close the socket."""
        self._connection.close()


def shutdown_socket(connection: socket.socket) -> None:
    """Shut down the connection of a socket in both directions. Do nothing if it is already closed."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class BlockingSocketChannel(SocketChannel):
    """A socket channel whose `send` method blocks until all messages are written."""

    def send(self, *messages: Message) -> bool:
        """Send messages, and block until they are written. Return False if the connection is broken."""
        is_connected = super().send(*messages)
        while is_connected and self.has_unsent:
            wait_until_ready([self._connection], POLLOUT, None)
            is_connected = self.flush()
        return is_connected


def make_worker_channel(
    connection: socket.socket, authenticators: ChannelAuthenticators | None = None
) -> BlockingSocketChannel:
    """Return the channel over which a worker exchanges messages with its driver.

    If the user's function forks the worker process, the child process closes the socket.
    """
    connection_ref = weakref.ref(connection)

    def close() -> None:
        live_connection = connection_ref()
        if live_connection is not None:
            live_connection.close()

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=close)
    return BlockingSocketChannel(connection, authenticators)


def configure_tcp(connection: socket.socket, timeout: float = TCP_TIMEOUT) -> None:
    """Set up a TCP socket to send small messages immediately and to detect lost connections.

    The connection counts as lost after `timeout` seconds without a response. Two cases need separate options.
    On an idle connection, the system sends keepalive probes. If sent data are not acknowledged, the system
    retransmits them, by default for many minutes. TCP_USER_TIMEOUT (on Linux) limits that time.
    """
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in get_tcp_options(timeout, sys.platform).items():
        # The system may lack an option, and local sockets (AF_UNIX) have none of them.
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, option, value)


def get_tcp_options(timeout: float, platform: str) -> dict[int, int]:
    """Return TCP options that end a connection after `timeout` seconds without a response.

    The keys are the operating system's option numbers, because Python lacks names for some of them.

    Parameters
    ----------
    timeout : float
        The number of seconds.
    platform : str
        The operating system, as `sys.platform` names it.

    Examples
    --------
    >>> get_tcp_options(11.0, "win32") == {3: 5, 17: 2, 16: 3, 5: 11}  # TCP_MAXRT = 5, in seconds
    True
    """
    idle_seconds = max(1, round(timeout * 5 / 11))
    probe_interval = max(1, round((timeout - idle_seconds) / MAX_KEEPALIVE_PROBES))
    timeout_seconds = max(1, round(timeout))
    # The numbers stand for TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT and TCP_MAXRT.
    if platform == "win32":
        return {3: idle_seconds, 17: probe_interval, 16: MAX_KEEPALIVE_PROBES, 5: timeout_seconds}
    # The numbers stand for TCP_KEEPALIVE, TCP_KEEPINTVL, TCP_KEEPCNT, TCP_RXT_CONNDROPTIME and
    # TCP_NOTSENT_LOWAT.
    if platform == "darwin":
        return {
            0x10: idle_seconds,
            0x101: probe_interval,
            0x102: MAX_KEEPALIVE_PROBES,
            0x80: timeout_seconds,
            0x201: MAX_UNSENT_BYTES,
        }
    # The numbers stand for TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT, TCP_USER_TIMEOUT and TCP_NOTSENT_LOWAT.
    if platform == "linux":
        return {
            4: idle_seconds,
            5: probe_interval,
            6: MAX_KEEPALIVE_PROBES,
            18: round(1000 * timeout),
            25: MAX_UNSENT_BYTES,
        }
    return {}
