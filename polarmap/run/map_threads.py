"""The threads that run the maps of futures: a few, however many futures there are."""

from __future__ import annotations

import atexit
import os
import threading
from collections import deque
from collections.abc import Callable

from polarmap.worker.blas_threads import run_in_daemon_thread

MOST_THREADS = 32  # maps that are under way at a time; later ones wait for their turn


class MapThreads:
    """Calls on daemon threads, in the order in which they come, so many at a time.

    Parameters
    ----------
    most : calls at a time.

    Examples
    --------
    >>> done = threading.Event()
    >>> MapThreads(2).start(done.set)
    >>> done.wait(10.0)
    True
    """

    def __init__(self, most: int = MOST_THREADS) -> None:
        self._most = most
        self.forget()

    def forget(self) -> None:
        """Begin anew, in a process that was forked of the one that has the threads."""
        self._calls = deque[Callable[[], None]]()
        self._lock = threading.Lock()
        self._threads = 0

    def start(self, call: Callable[[], None]) -> None:
        """Let a thread run a call that raises nothing, as soon as it is its turn."""
        with self._lock:
            self._calls.append(call)
            if self._threads == self._most:
                return
            self._threads += 1
        try:
            run_in_daemon_thread(self._run_calls)
        except BaseException:
            with self._lock:
                self._threads -= 1
            raise

    def _run_calls(self) -> None:
        while (call := self._next()) is not None:
            call()
            del call  # nothing that it held is to stay

    def _next(self) -> Callable[[], None] | None:
        """The next call; None if there is none."""
        with self._lock:
            if self._calls:
                return self._calls.popleft()
            self._threads -= 1
            return None


MAP_THREADS = MapThreads()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=MAP_THREADS.forget)


def call_before_exit(call: Callable[[], None]) -> None:
    """Let a call be made when the interpreter is about to exit, while pools of threads still work."""
    before_threads_are_joined = getattr(threading, "_register_atexit", None)
    (before_threads_are_joined or atexit.register)(call)
