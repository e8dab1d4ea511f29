"""A file descriptor with which one thread wakes another that waits in `select` or `poll`."""

from __future__ import annotations

import contextlib
import socket

from polarmap.errors import ExecutorError

# Without this flag, sending to a closed socket kills a process in which SIGPIPE has its default action.
MSG_NOSIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)


class WakeSignal:
    """An event like `threading.Event` for which a thread can wait with `select` or `poll`.

    The thread can thereby wait for the event and for sockets at the same time. The object has a file
    descriptor that is readable from `set()` until `clear()`.

    >>> signal = WakeSignal()
    >>> signal.set(), signal.clear(), signal.clear(), signal.close(), signal.set()
    (None, True, False, None, None)
    """

    def __init__(self) -> None:
        try:
            self._read_socket, write_socket = socket.socketpair()
        except OSError as error:
            raise ExecutorError(f"this process cannot open a descriptor for a map: {error}") from error
        self._write_socket: _SendSocket | None = _SendSocket(fileno=write_socket.detach())
        for each_socket in (self._read_socket, self._write_socket):
            each_socket.setblocking(False)

    def fileno(self) -> int:
        """Return the file descriptor to pass to `select` or `poll`, or -1 after `close`."""
        return self._read_socket.fileno()

    def set(self) -> None:
        """Make the file descriptor readable, which wakes a thread that polls it.

        Any thread may call this method, even after `close`.
        """
        # Keep a reference to the socket, so that another thread cannot close it during the call.
        write_socket = self._write_socket
        if write_socket is not None:
            # Ignore errors. If the other end is closed, no thread waits. If the socket's buffer is full of
            # earlier signals, the descriptor is readable already.
            with contextlib.suppress(OSError):
                write_socket.send(b".", MSG_NOSIGNAL)

    def clear(self) -> bool:
        """Reset the signal. Return True if it was set since the last call."""
        try:
            # Each `set` has sent one byte. If there are more than 4096 bytes, the rest only makes the next
            # poll return immediately, which is harmless.
            return bool(self._read_socket.recv(4096))
        except OSError:  # There is nothing to receive, so the signal was not set.
            return False

    def close(self) -> None:
        """Close the file descriptor. Safe to call twice.

        Copies of the descriptor in forked processes stay open.
        """
        self._write_socket = None
        self._read_socket.close()

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # If `__init__` has failed, there are no sockets.
            self.close()


class _SendSocket(socket.socket):
    """A socket that is closed only when the last reference to it is deleted.

    Closing the socket while another thread is sending would be unsafe. The system could reuse its descriptor
    for a new file, and the thread would write to this file.
    """

    __del__ = socket.socket.close
