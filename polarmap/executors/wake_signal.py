"""A descriptor by which one thread ends the wait of another."""

from __future__ import annotations

import os
import sys
import threading

from polarmap.errors import ExecutorError

ONE = (1).to_bytes(8, sys.byteorder)  # as an eventfd takes it; a pipe takes anything


class WakeSignal:
    """Readable from `set` to `clear`. Any thread may set it, at any time.

    >>> signal = WakeSignal()
    >>> signal.set(), signal.clear(), signal.clear(), signal.close(), signal.set()
    (None, True, False, None, None)
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a destructor may set it while its own thread does
        self._is_set = False
        self._read = self._write = -1
        try:
            if hasattr(os, "eventfd"):
                self._read = self._write = os.eventfd(0)
            else:
                self._read, self._write = os.pipe()
        except OSError as error:
            raise ExecutorError(f"this process can open no descriptor for a map: {error}") from error

    def fileno(self) -> int:
        """Of the descriptor to poll; -1 once it is closed."""
        return self._read

    def set(self) -> None:
        """Let it be readable; nothing once it is closed."""
        with self._lock:
            if self._write != -1 and not self._is_set:
                self._is_set = True
                os.write(self._write, ONE)

    def clear(self) -> bool:
        """Whether it was set."""
        with self._lock:
            if self._is_set and self._read != -1:
                os.read(self._read, len(ONE))
            was_set, self._is_set = self._is_set, False
            return was_set

    def close(self) -> None:
        """Close the descriptor. Safe to call twice."""
        with self._lock:
            self._close()

    def __del__(self) -> None:
        self._close()  # without the lock, which a thread may have held when this process was forked

    def _close(self) -> None:
        descriptors = {self._read, self._write} - {-1}
        self._read = self._write = -1
        for descriptor in descriptors:
            os.close(descriptor)
