"""The threads that run the maps of futures: a few, however many futures there are."""

from __future__ import annotations

import atexit
import os
import threading
from collections import deque
from collections.abc import Callable

from polarmap.worker.daemon_threads import run_in_daemon_thread

MAX_THREADS = 32  # maps that are under way at a time; later ones wait for their turn


class DaemonThreadPool:
    """Calls on daemon threads, in the order in which they come, so many at a time.

    Parameters
    ----------
    max_threads : calls at a time.

    Examples
    --------
    >>> done = threading.Event()
    >>> DaemonThreadPool(2).submit(done.set)
    >>> done.wait(10.0)
    True
    """

    def __init__(self, max_threads: int = MAX_THREADS) -> None:
        self._max_threads = max_threads
        self.after_fork()

    def after_fork(self) -> None:
        """Begin anew, in a process that was forked of the one that has the threads."""
        self._queue = deque[Callable[[], None]]()
        self._lock = threading.Lock()
        self._n_threads = 0

    def submit(self, call: Callable[[], None]) -> None:
        """Let a thread run a call that raises nothing, as soon as it is its turn."""
        with self._lock:
            self._queue.append(call)
            if self._n_threads == self._max_threads:
                return
            self._n_threads += 1
        try:
            run_in_daemon_thread(self._run_calls)
        except BaseException:
            with self._lock:
                self._n_threads -= 1
            raise

    def _run_calls(self) -> None:
        while (call := self._pop_call()) is not None:
            call()
            del call  # nothing that it held is to stay

    def _pop_call(self) -> Callable[[], None] | None:
        """The next call; None if there is none."""
        with self._lock:
            if self._queue:
                return self._queue.popleft()
            self._n_threads -= 1
            return None


BACKGROUND_THREADS = DaemonThreadPool()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=BACKGROUND_THREADS.after_fork)


def register_before_exit(callback: Callable[[], None]) -> None:
    """Let a call be made when the interpreter is about to exit, while pools of threads still work."""
    register_in_threading = getattr(threading, "_register_atexit", None)
    (register_in_threading or atexit.register)(callback)
