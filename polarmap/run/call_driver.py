"""The thread that drives the calls of an executor: runs are open while there is work, and no longer."""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import closing
from functools import partial

from polarmap.executors.base import MapExecutor, Payload, Run
from polarmap.run.calls import REMEMBERED, Call, Calls, Durations, Limits
from polarmap.run.loop import schedule
from polarmap.run.map_threads import call_before_exit
from polarmap.run.need import Stopwatch
from polarmap.worker.block_functions import run_call

LINGER_SECONDS = 0.05  # without calls, before a run is closed and its thread ends
FIRST_SECONDS = 0.1  # that the first call waits to be taken: later ones may be cancelled


class CallDriver:
    """Calls in the order in which they came, and the thread that gives them to a run of an executor.

    There are several threads only while calls of earlier runs have not come to their end: a run whose
    workers are still at what others have done gets no further calls.

    Parameters
    ----------
    executor : MapExecutor
    limits : Limits
    close : callable
        Called once, when it was shut down and all calls have ended.
    """

    def __init__(self, executor: MapExecutor, limits: Limits, close: Callable[[], None]) -> None:
        self._executor, self._limits, self._close = executor, limits, close
        self._durations = Durations(partial(deque, maxlen=REMEMBERED))
        self._is_shut_down = False
        self.forget()
        _drivers.add(self)

    def forget(self) -> None:
        """Begin anew, in a process that was forked of the one that has the threads."""
        self._changed = threading.Condition()
        self._pending = deque[Call]()
        self._threads = set[threading.Thread]()
        self._latest: threading.Thread | None = None  # that takes calls
        self._wake: Callable[[], None] | None = None  # it from its wait; None: its run is not open yet
        self._has_room = self._is_closed = False

    def add(self, call: Call) -> None:
        """Let it be done; RuntimeError after `shut_down`."""
        with self._changed:
            self.check_open()
            self._pending.append(call)
            self._call_thread()

    def check_open(self) -> None:
        """RuntimeError after `shut_down`."""
        if self._is_shut_down:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if _is_exiting:
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    def shut_down(self, cancel_futures: bool = False) -> None:
        """Take no more calls; `cancel_futures`: nor do those that no worker was given."""
        with self._changed:
            self._is_shut_down = True
            cancelled = list(self._pending) if cancel_futures else []
            if cancelled:
                self._pending.clear()
            self._changed.notify_all()
            is_over = self._is_over()
        for call in cancelled:
            if call.future.cancel():
                call.future.set_running_or_notify_cancel()  # for those who wait
        if is_over:
            self._close()

    def join(self) -> None:
        """Wait until all calls have ended."""
        while True:
            with self._changed:
                threads = self._threads - {threading.current_thread()}
            if not threads:
                return
            for thread in threads:
                thread.join()

    def _call_thread(self) -> None:
        """Let a thread see that something is to be done."""
        if self._latest is None:
            thread = threading.Thread(target=self._drive, name="polarmap-executor", daemon=True)
            thread.start()
            self._latest = thread
            self._threads.add(thread)
            self._changed.wait_for(lambda: not self._pending, FIRST_SECONDS)
        elif self._has_room and self._wake is not None:
            self._wake()
        self._changed.notify_all()

    def _drive(self) -> None:
        """The life of a thread: serves calls until there are none, or others take them."""
        owner = os.getpid()
        while self._has_calls(0.0, ends=True):
            self._serve()
        with self._changed:
            self._threads.discard(threading.current_thread())
            is_over = self._is_over()
        if is_over and os.getpid() == owner:
            self._close()

    def _has_calls(self, seconds: float, ends: bool = False) -> bool:
        """Whether there are calls for this thread, or come in so many seconds; `ends`: it does, if not."""
        with self._changed:
            if self._latest is not threading.current_thread():
                return False
            self._changed.wait_for(lambda: self._pending or self._is_shut_down or _is_exiting, seconds)
            if not self._pending:
                self._wake = None
                self._latest = None if ends else self._latest
            return bool(self._pending)

    def _is_over(self) -> bool:
        """Whether it is time to close, once."""
        is_over = self._is_shut_down and not (self._threads or self._pending or self._is_closed)
        self._is_closed |= is_over
        return is_over

    def _serve(self) -> None:
        """Open a run for the calls that wait, and serve it until none are left for this thread."""
        run: Run | None = None
        calls = Calls(self._limits, self._durations, self._taken)
        calls.take()
        try:
            with closing(self._executor.open(Payload(run_call, calls.blocks))) as run:
                self._wake = run.wake
                calls.take()  # those that have come since
                calls.watch = Stopwatch(run.now)
                for outcomes in schedule(run, calls, self._limits.retries, calls):
                    calls.note(outcomes)
                    if calls.is_worn(calls.watch.elapsed):
                        self._hand_over()
                    if calls.is_idle and not self._has_calls(LINGER_SECONDS):
                        break
        except BaseException as error:
            calls.fail(error)
            for call in self._taken(sys.maxsize)[0] if run is None else ():
                call.fail(error)

    def _taken(self, room: int) -> tuple[list[Call], bool]:
        """So many calls, at most, that are about to be given to a run, and whether others are left."""
        if self._latest is not threading.current_thread():
            return [], False
        with self._changed:
            taken = [self._pending.popleft() for _ in range(min(room, len(self._pending)))]
            self._has_room = len(taken) < room  # else it looks by itself
            self._changed.notify_all()
            is_left = bool(self._pending)
        return [call for call in taken if call.future.set_running_or_notify_cancel()], is_left

    def _hand_over(self) -> None:
        """Let another thread and run take the calls that come from now on."""
        with self._changed:
            if self._latest is threading.current_thread():
                self._latest = self._wake = None
                if self._pending:
                    self._call_thread()


_drivers: weakref.WeakSet[CallDriver] = weakref.WeakSet()
_is_exiting = False


def _finish_all() -> None:
    """At exit: all calls come to their end, as those of other executors do."""
    global _is_exiting
    _is_exiting = True
    for driver in list(_drivers):
        with driver._changed:
            driver._changed.notify_all()
        driver.join()


def _forget_all() -> None:
    for driver in list(_drivers):
        driver.forget()


call_before_exit(_finish_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
