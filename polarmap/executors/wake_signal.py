"""A file descriptor with which one thread wakes another that waits in `select` or `poll`."""

from __future__ import annotations

import contextlib
import socket

from polarmap.errors import ExecutorError

# Without this flag, sending to a closed socket kills a process in which SIGPIPE has its default action.
MSG_NOSIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)


class WakeSignal:
    """An event like `threading.Event` for which a thread can wait with `select` or `poll`.

    The file descriptor is readable from `set()` until `clear()`.

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
        """Make the descriptor readable, which wakes the thread that polls it.

        Any thread may call this, even after `close`.
        """
        write_socket = self._write_socket  # This reference keeps the socket open during the call.
        if write_socket is not None:
            # The socket may be closed, or its buffer may be full of earlier signals.
            with contextlib.suppress(OSError):
                write_socket.send(b".", MSG_NOSIGNAL)

    def clear(self) -> bool:
        """Reset the signal. Return True if it was set since the last call."""
        try:
            # If more signals are left, the descriptor stays readable, so the next poll returns at once.
            return bool(self._read_socket.recv(4096))
        except OSError:  # The buffer is empty, so the signal was not set.
            return False

    def close(self) -> None:
        """Close the descriptor. Its copies in forked processes stay open. Safe to call twice."""
        self._write_socket = None
        self._read_socket.close()

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # If `__init__` has failed, there are no sockets.
            self.close()


class _SendSocket(socket.socket):
    """A socket that is closed when the last reference to it is deleted.

    Closing the socket earlier would be unsafe. The system could reuse its descriptor for a new file, and a
    thread that is still sending would write to this file.
    """

    __del__ = socket.socket.close
