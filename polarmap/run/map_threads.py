"""The threads that run the maps of futures: a few, however many futures there are."""

from __future__ import annotations

import atexit
import os
import threading
from collections import deque
from collections.abc import Callable

MOST_THREADS = 32  # maps that are under way at a time; later ones wait for their turn
IDLE_SECONDS = 5.0  # after which a thread without a map ends

Call = Callable[[], None]


class MapThreads:
    """Daemon threads that take calls in the order in which they come.

    Parameters
    ----------
    most : int
        Threads at a time.
    idle : float
        Seconds after which one that has nothing to do ends.

    Examples
    --------
    >>> done = threading.Event()
    >>> MapThreads(2).start(done.set)
    >>> done.wait(10.0)
    True
    """

    def __init__(self, most: int = MOST_THREADS, idle: float = IDLE_SECONDS) -> None:
        self._most, self._idle_seconds = most, idle
        self.forget()

    def forget(self) -> None:
        """Begin anew, in a process that was forked of the one that has the threads."""
        self._calls = deque[Call]()
        self._changed = threading.Condition()
        self._threads = self._idle = 0

    def start(self, call: Call) -> None:
        """Let a thread run a call that raises nothing, as soon as one is free."""
        with self._changed:
            self._calls.append(call)
            if self._idle >= len(self._calls) or self._threads == self._most:
                self._changed.notify()
                return
            self._threads += 1
        try:
            threading.Thread(target=self._run_calls, name="polarmap-map", daemon=True).start()
        except BaseException:
            with self._changed:
                self._threads -= 1
            raise

    def _run_calls(self) -> None:
        while (call := self._next()) is not None:
            call()
            del call  # nothing that it held is to stay

    def _next(self) -> Call | None:
        """The next call; None if there is none for long enough."""
        with self._changed:
            self._idle += 1
            self._changed.wait_for(lambda: self._calls, self._idle_seconds)
            self._idle -= 1
            if self._calls:
                return self._calls.popleft()
            self._threads -= 1
            return None


MAP_THREADS = MapThreads()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=MAP_THREADS.forget)


def call_before_exit(call: Call) -> None:
    """Let a call be made when the interpreter is about to exit, while pools of threads still work."""
    before_threads_are_joined = getattr(threading, "_register_atexit", None)
    (before_threads_are_joined or atexit.register)(call)
