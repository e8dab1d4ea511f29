"""A descriptor by which one thread wakes another that polls."""

from __future__ import annotations

import contextlib
import socket

from polarmap.errors import ExecutorError

# Without this flag, a process in which SIGPIPE has its default action dies when it sends to a closed socket.
MSG_NOSIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)


class WakeSignal:
    """A descriptor by which one thread ends the `wait` of another: readable from `set` to `clear`.

    >>> signal = WakeSignal()
    >>> signal.set(), signal.clear(), signal.clear(), signal.close(), signal.set()
    (None, True, False, None, None)
    """

    def __init__(self) -> None:
        try:
            self._read_socket, write_socket = socket.socketpair()
        except OSError as error:
            raise ExecutorError(f"this process can open no descriptor for a map: {error}") from error
        self._write_socket: _SendSocket | None = _SendSocket(fileno=write_socket.detach())
        for each_socket in (self._read_socket, self._write_socket):
            each_socket.setblocking(False)

    def fileno(self) -> int:
        """The descriptor to poll; -1 once it is closed."""
        return self._read_socket.fileno()

    def set(self) -> None:
        """Let it be readable; nothing once it is closed. Any thread may do so at any time."""
        write_socket = self._write_socket  # which stays open as long as this thread has it
        if write_socket is not None:
            with contextlib.suppress(OSError):  # closed, or set so often that no more fits
                write_socket.send(b".", MSG_NOSIGNAL)

    def clear(self) -> bool:
        """Clear the descriptor; whether it was set."""
        was_set = False
        with contextlib.suppress(OSError):  # no more is there
            while self._read_socket.recv(4096):
                was_set = True
        return was_set

    def close(self) -> None:
        """Close the descriptor, that of this process where it was forked. Safe to call twice."""
        self._write_socket = None
        self._read_socket.close()

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # there were none to be had
            self.close()


class _SendSocket(socket.socket):
    """A socket that is closed when no thread has it: one that still sends would send to what opens next."""

    __del__ = socket.socket.close
