"""The calls of an executor as tasks of its runs, which come while a schedule runs, and the thread of both."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import CancelledError, Future, InvalidStateError
from contextlib import closing, suppress
from math import inf
from typing import Any, NamedTuple

from polarmap.errors import WorkerLostError, hide_our_frames
from polarmap.executors.base import Attempt, Coded, MapExecutor, Outcome, Payload, Run, read_only
from polarmap.run.batches import InBatches
from polarmap.run.lateness import BACKUP_SECONDS, LateAttempts, LatenessRule
from polarmap.run.loop import Need, Policy, Stopwatch, schedule
from polarmap.run.map_threads import call_before_exit
from polarmap.run.policies import Backups
from polarmap.run.tasks import TaskTable
from polarmap.worker.block_functions import run_call
from polarmap.worker.parts import MESSAGE
from polarmap.worker.pytree import Array, from_block

LINGER_SECONDS = 0.05  # without calls, before a run is closed
MOST_KINDS = 64  # functions without a call under way of which it is remembered what calls took
ENDLESS = LatenessRule(1, min_seconds=BACKUP_SECONDS)  # no call is late before


class Call(NamedTuple):
    """A call, and the future of what it gives.

    function : what tells calls of one function from those of others.
    block : the call as it travels.
    shared : that is kept as long as any of several calls.
    may_join : whether a worker may be given others of its function with it.
    """

    future: Future[Any]
    function: Hashable
    block: Array
    shared: object = None
    may_join: bool = False

    def begins(self) -> bool:
        """Whether it may begin, or has: nobody has cancelled it, and nobody can any more."""
        return self.future.running() or self.future.set_running_or_notify_cancel()

    def return_(self, outcome: Outcome) -> None:
        """Its result is there."""
        try:
            value = from_block(outcome.leaves[0])
        except BaseException as error:
            self.fail(error)
            return
        with suppress(InvalidStateError):  # somebody else has set it
            self.future.set_result(value)

    def fail(self, error: BaseException, is_of_f: bool = False) -> None:
        """It has none; `is_of_f`: the error is what f raised."""
        hide_our_frames(error, is_of_f)
        with suppress(InvalidStateError):
            self.future.set_exception(error)


class Calls(Coded, Need, Policy):
    """The calls of an executor: what its schedules start and need, the blocks of its runs, and its thread.

    A run is open while there are calls, and no longer; the watch is that of the run. Numbers of calls go on
    from run to run.

    Parameters
    ----------
    executor : MapExecutor
    close : called once, when it was shut down and all calls have ended.
    most : calls that a run is given at a time.
    backups : that a late call may get.
    retries : of one whose worker was lost.
    """

    structure, source = ("array",), MESSAGE

    def __init__(
        self, executor: MapExecutor, close: Callable[[], None], most: int, backups: int, retries: int
    ) -> None:
        self._executor, self._close = executor, close
        self._most, self._most_backups, self._retries = most, backups, retries
        self._is_shut_down = False
        self.forget()
        _of_executors.add(self)

    def forget(self) -> None:
        """Begin anew, in a process that was forked of the one that has the thread."""
        Need.__init__(self, TaskTable(0), Stopwatch(time.monotonic))
        Policy.__init__(self, 0)
        self._backups = Backups(0, ENDLESS, self._most_backups)
        self.late = self._backups.late
        # The attempts at calls of each function, as long as there is a call, or it is among the latest.
        self._kinds = weakref.WeakValueDictionary[Hashable, LateAttempts[Attempt]]()
        self._latest = deque[LateAttempts[Attempt]](maxlen=MOST_KINDS)
        self._calls: dict[int, Call] = {}  # that are not over
        self._count = self._next = 0  # the number of the next one to come, and to be given to the run
        # One call is not to begin while another thread cancels it; an executor may be dropped at any moment.
        self._lock = threading.RLock()
        self._run: Run | None = None
        self._thread: threading.Thread | None = None  # the latest
        self._is_served = False

    # -- by any thread -------------------------------------------------------------------------

    def put(self, call: Call) -> None:
        """There is one more; RuntimeError after `shut_down`."""
        with self._lock:
            self.check_open()
            if not self._calls:
                call.begins()  # nothing stands between it and a worker
            self._calls[self._count] = call
            is_awaited = self._next == self._count  # else the run looks up as soon as there is room for more
            self._count += 1
            if not self._is_served:
                self._thread = threading.Thread(target=self._drive, name="polarmap-executor", daemon=True)
                self._thread.start()
                self._is_served = True
        if is_awaited:
            self._wake()

    def check_open(self) -> None:
        """RuntimeError after `shut_down`."""
        if self._is_shut_down:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if _is_exiting:
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    def shut_down(self, cancel_futures: bool = False) -> None:
        """Take no more calls; `cancel_futures`: cancel those that no worker was given."""
        self._is_shut_down = True
        if cancel_futures:
            for call in self._taken(lambda call: not call.future.running()):
                if call.future.cancel():
                    call.future.set_running_or_notify_cancel()  # which tells who waits for it
        self._wake()
        self._close_if_over()

    def join(self) -> None:
        """Wait until all calls have ended."""
        self._wake()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _wake(self) -> None:
        """Let the run look up, if one is open."""
        run = self._run
        if run is not None:
            run.wake()

    def _taken(self, is_meant: Callable[[Call], bool]) -> list[Call]:
        """Calls that are over with this, of those that are not over."""
        with self._lock:
            numbers = [number for number, call in list(self._calls.items()) if is_meant(call)]
            return [self._calls.pop(number) for number in numbers]

    def _close_if_over(self) -> None:
        with self._lock:
            if self._is_served or not self._is_shut_down:
                return
            close, self._close = self._close, lambda: None
        close()

    # -- on its thread -------------------------------------------------------------------------

    def _drive(self) -> None:
        """The life of the thread: runs, until one has ended and no call has come."""
        is_served = True
        while is_served:
            self._serve()
            with self._lock:
                is_served = self._is_served = bool(self._calls)
        self._close_if_over()

    def _serve(self) -> None:
        """Do calls on a run of the executor, until none has come for a while."""
        try:
            executor = InBatches(self._executor, self._kind_in_batch)
            with closing(executor.open(Payload(run_call, self))) as run:
                self._run, self.watch = run, Stopwatch(run.now)
                for outcomes in schedule(run, self, self._retries, self):
                    is_news = bool(outcomes)
                    while outcomes:  # nothing of them is kept
                        self.add(outcomes.pop(0))
                    if self.step() and not is_news:
                        break
        except BaseException as error:  # it ends the calls that have begun, or all
            for call in self._taken(lambda call: call.future.running()) or self._taken(lambda call: True):
                if not call.future.cancelled() or call.begins():  # which tells who waits for it
                    call.fail(error)
        finally:
            self._run = None
            for task in self.tasks.known():
                self.tasks.forget(task)
            with self._lock:  # others may come in this moment
                self._next = next(iter(self._calls), self._count)

    # -- as the blocks of a run ----------------------------------------------------------------

    @property
    def n(self) -> int:  # type: ignore[override]
        """How many there are now."""
        return len(self.tasks)

    def leaves(self, index: int) -> list[Array]:
        """The call as it travels to the worker that is given it; CancelledError if nobody waits for it."""
        with self._lock:
            call = self._calls.get(index)
            if call is None or not call.begins():
                self._calls.pop(index, None)
                raise CancelledError
        return [read_only(call.block)]

    def _kind_in_batch(self, index: int) -> Hashable:
        """The function of a call that may go with others; not where one that is lost with these fails."""
        call = self._calls.get(index)
        goes = call is not None and call.may_join and self._retries and self._most_backups
        return call.function if call is not None and goes else None

    # -- as the policy of a schedule -----------------------------------------------------------

    def due(self, tasks: TaskTable, need: Need, now: float) -> Sequence[int]:
        """Calls that have come; late ones, if none waits for a worker that a backup would take."""
        while self._next < self._count and len(tasks) < self._most:
            call = self._calls.get(self._next)
            if call is not None:  # it was not cancelled
                tasks.add(self._next, self._kind_of(call.function))
            self._next += 1
        if tasks.held_back or tasks.unbegun or self._next < self._count:
            return sorted(tasks.held_back)
        return self._backups.due(tasks, need, now)

    def _kind_of(self, function: Hashable) -> LateAttempts[Attempt]:
        """The attempts at calls of a function, which is the latest now."""
        kind = self._kinds.get(function)
        if kind is None:
            kind = self._kinds[function] = LateAttempts(ENDLESS, is_endless=True)
            self._backups.add(kind)
        if kind in self._latest:
            self._latest.remove(kind)
        self._latest.append(kind)
        return kind

    def wait_seconds(self, tasks: TaskTable, now: float) -> float:
        """Until a call may be late; none is while it is not known that all run, which it soon may be."""
        return BACKUP_SECONDS if tasks.unbegun else self._backups.wait_seconds(tasks, now)

    # -- as its need ---------------------------------------------------------------------------

    def add(self, outcome: Outcome) -> None:
        """The first attempt that returns or raises is the end of a call."""
        call, failure = self._calls.get(outcome.task), outcome.failure
        if call is None or failure is None or failure.kind == "raised":
            self._let_go(outcome.task)
        if call is not None and failure is None:
            call.return_(outcome)
        elif call is not None and failure is not None and failure.kind == "raised":
            call.fail(failure.cause or RuntimeError(str(failure)), is_of_f=True)

    def step(self) -> bool:
        """Whether no call is under way, once those have failed that were lost too often."""
        for index in sorted(self.tasks.failed):
            task = self.tasks[index]
            if task.attempts > self._retries and task.last_failure is not None:
                text = f"a call was lost {task.attempts} times, with its worker: {task.last_failure.message}"
                self._let_go(index, WorkerLostError(text))
        return not self._calls

    def _let_go(self, index: int, error: BaseException | None = None) -> None:
        """Nothing more is wanted of a call, neither of other attempts at it; `error`: what it ends with."""
        call = self._calls.pop(index, None)
        running = self.tasks.running.get(index, ())
        self.tasks.forget(index)
        if running and self._run is not None:
            self._run.withdraw([(index, attempt) for attempt in running])
        if call is not None and error is not None:
            call.fail(error)

    @property
    def is_met(self) -> bool:
        """Whether no call has to be started again, as its worker was lost."""
        return not self.tasks.failed

    def look_seconds(self) -> float:
        """Nothing else is waited for; for other calls not for long while none is under way."""
        if not self._calls:
            return LINGER_SECONDS
        return inf if len(self.tasks) else 0.0

    def settle_for_less(self) -> None:
        """Each call has had its end when its outcome was noted."""


def function_of(f: Callable[..., Any]) -> Hashable:
    """What is the same for calls of one function: the code of what is written in Python.

    >>> function_of(min) == function_of(max), function_of("a".join) == function_of("b".join)
    (False, True)
    """
    inner: Any = getattr(f, "func", f)  # of a partial
    code = getattr(getattr(inner, "__func__", inner), "__code__", None)
    if code is not None:
        return code  # type: ignore[no-any-return]
    named = inner if hasattr(inner, "__qualname__") else type(inner)
    return getattr(named, "__module__", None), named.__qualname__


_of_executors: weakref.WeakSet[Calls] = weakref.WeakSet()
_is_exiting = False


def _finish_all() -> None:
    """At exit: all calls come to their end, as those of other executors do."""
    global _is_exiting
    _is_exiting = True
    for calls in list(_of_executors):
        calls.join()


def _forget_all() -> None:
    for calls in list(_of_executors):
        calls.forget()


call_before_exit(_finish_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
