"""A small pool of daemon threads on which `submit` runs maps in the background."""

from __future__ import annotations

import atexit
import os
import threading
from collections import deque
from collections.abc import Callable

from polarmap.worker.daemon_threads import run_in_daemon_thread

MAX_THREADS = 32  # the maximum number of maps that run in the background at the same time


class DaemonThreadPool:
    """A thread pool whose daemon threads run calls in submission order.

    Parameters
    ----------
    max_threads : int
        The maximum number of threads. Further calls are queued.

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
        """Reset the pool in a forked process, where its threads do not exist."""
        self._queue = deque[Callable[[], None]]()
        self._lock = threading.Lock()
        self._n_threads = 0

    def submit(self, call: Callable[[], None]) -> None:
        """Queue `call`, which must not raise. A thread calls it without arguments as soon as one is free."""
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
            del call  # Release the objects that it references before waiting for the next call.

    def _pop_call(self) -> Callable[[], None] | None:
        """Return the next queued call, or None if the queue is empty and the thread must exit."""
        with self._lock:
            if self._queue:
                return self._queue.popleft()
            self._n_threads -= 1
            return None


BACKGROUND_THREADS = DaemonThreadPool()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=BACKGROUND_THREADS.after_fork)


def register_before_exit(callback: Callable[[], None]) -> None:
    """Register `callback` to be called without arguments at exit, before thread pools are shut down."""
    register_in_threading = getattr(threading, "_register_atexit", None)
    (register_in_threading or atexit.register)(callback)
