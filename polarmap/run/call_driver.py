"""The thread that drives the calls of an executor: a run is open while there is work, and no longer."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable

from polarmap.executors.base import MapExecutor
from polarmap.run.calls import Call, Calls
from polarmap.run.map_threads import call_before_exit


class CallDriver:
    """Lets a thread serve calls by runs of an executor, for as long as there are any.

    Parameters
    ----------
    executor : MapExecutor
    new_calls : callable
        Makes the calls of a process, before there are any.
    close : callable
        Called once, when it was shut down and all calls have ended.
    """

    def __init__(
        self, executor: MapExecutor, new_calls: Callable[[], Calls], close: Callable[[], None]
    ) -> None:
        self._executor, self._new_calls, self._close = executor, new_calls, close
        self._is_shut_down = False
        self.forget()
        _drivers.add(self)

    def forget(self) -> None:
        """Begin anew, in a process that was forked of the one that has the thread."""
        self._lock = threading.RLock()  # an executor that is dropped may be shut down at any moment
        self._calls = self._new_calls()
        self._thread: threading.Thread | None = None  # the latest
        self._is_serving = self._is_closed = False

    def add(self, call: Call) -> None:
        """Let it be done; RuntimeError after `shut_down`."""
        with self._lock:
            self.check_open()
            self._calls.put(call)
            if not self._is_serving:
                self._thread = threading.Thread(target=self._drive, name="polarmap-executor", daemon=True)
                self._thread.start()
                self._is_serving = True

    def check_open(self) -> None:
        """RuntimeError after `shut_down`."""
        if self._is_shut_down:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if _is_exiting:
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    def shut_down(self, cancel_futures: bool = False) -> None:
        """Take no more calls; `cancel_futures`: nor do those that no worker was given."""
        with self._lock:
            self._is_shut_down = True
        if cancel_futures:
            self._calls.cancel()
        self._calls.wake()
        self._close_if_over()

    def join(self) -> None:
        """Wait until all calls have ended."""
        self._calls.wake()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _drive(self) -> None:
        """The life of the thread."""
        is_serving = True
        while is_serving:
            self._calls.serve(self._executor)
            with self._lock:
                is_serving = self._is_serving = not self._calls.is_idle
        self._close_if_over()

    def _close_if_over(self) -> None:
        with self._lock:
            is_over = self._is_shut_down and not (self._is_serving or self._is_closed)
            self._is_closed |= is_over
        if is_over:
            self._close()


_drivers: weakref.WeakSet[CallDriver] = weakref.WeakSet()
_is_exiting = False


def _finish_all() -> None:
    """At exit: all calls come to their end, as those of other executors do."""
    global _is_exiting
    _is_exiting = True
    for driver in list(_drivers):
        driver.join()


def _forget_all() -> None:
    for driver in list(_drivers):
        driver.forget()


call_before_exit(_finish_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
