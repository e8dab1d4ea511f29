"""The calls of an executor as tasks of its runs, which come while a schedule runs."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import CancelledError, Future, InvalidStateError
from math import inf
from typing import Any, NamedTuple

from polarmap.blocks.coded import WholeBlocks
from polarmap.errors import WorkerLostError, hide_our_frames
from polarmap.executors.base import Attempt, Outcome, Run, read_only
from polarmap.run.lateness import BACKUP_SECONDS, LateAttempts, LatenessRule
from polarmap.run.loop import Policy
from polarmap.run.need import Need, Stopwatch
from polarmap.run.policies import Backups
from polarmap.run.tasks import TaskTable
from polarmap.worker.parts import MESSAGE
from polarmap.worker.pytree import Array, from_block

LINGER_SECONDS = 0.05  # without calls, before a run is closed
ENDLESS = LatenessRule(1, min_seconds=BACKUP_SECONDS)  # no call is late before


class Call(NamedTuple):
    """A call, and the future of what it gives.

    function : what tells calls of one function from those of others.
    block : the call as it travels.
    file : with the function that several calls share, kept as long as any of them.
    """

    future: Future[Any]
    function: Hashable
    block: Array
    file: Any = None

    def begins(self) -> bool:
        """Whether it may begin, or has: nobody has cancelled it, and nobody can any more."""
        return self.future.running() or self.future.set_running_or_notify_cancel()

    def return_(self, outcome: Outcome) -> None:
        """Its result is there."""
        try:
            assert outcome.leaves is not None
            value = from_block(outcome.leaves[0])
        except BaseException as error:
            self.fail(error)
            return
        with contextlib.suppress(InvalidStateError):  # somebody else has set it
            self.future.set_result(value)

    def fail(self, error: BaseException, is_of_f: bool = False) -> None:
        """It has none; `is_of_f`: the error is what f raised."""
        hide_our_frames(error, is_of_f)
        with contextlib.suppress(InvalidStateError):
            self.future.set_exception(error)


class Calls(WholeBlocks, Need, Policy):
    """The calls of an executor: what its schedules start and need, and the blocks of its runs.

    Its watch begins when a run is open. Numbers of calls go on from run to run.

    Parameters
    ----------
    most : int
        That a run is given at a time.
    backups : int
        That a late call may get.
    retries : int
        Of one whose worker was lost.
    """

    structure, source = ("array",), MESSAGE

    def __init__(self, most: int, backups: int, retries: int) -> None:
        Need.__init__(self, TaskTable(0), Stopwatch(time.monotonic))
        self.retries = retries
        self._most, self._backups = most, Backups(0, ENDLESS, backups)
        self.late = self._backups.late
        self.first = ()  # all are due after a run is open
        self._kinds: dict[Hashable, LateAttempts[Attempt]] = {}  # of each function
        self._waiting = deque[Call]()
        self._given: dict[int, Call] = {}  # to the run, and not over
        self._lock = threading.Lock()  # one call is not to begin while another thread cancels it
        self._run: Run | None = None

    @property
    def is_idle(self) -> bool:
        """Whether no call waits or is under way."""
        return not (self._waiting or self._given)

    def put(self, call: Call) -> None:
        """There is one more. Any thread may say so, and call `wake` and `cancel`."""
        with self._lock:
            if self.is_idle:
                call.begins()  # nothing stands between it and a worker
            self._waiting.append(call)
        self.wake()

    def wake(self) -> None:
        """Let the run look up, if one is open."""
        run = self._run
        if run is not None:
            run.wake()

    def cancel(self) -> None:
        """Cancel those that no worker was given, and tell who waits for them."""
        with self._lock:
            found = self._taken_back()
        for call in found:
            if call.future.cancel():
                call.future.set_running_or_notify_cancel()

    def opened(self, run: Run) -> None:
        """A run is to do them from now on."""
        self._run, self.watch = run, Stopwatch(run.now)

    def failed_by(self, error: BaseException) -> None:
        """An error has ended the run, and with it the calls that have begun; all if it was never open."""
        with self._lock:
            left = self._taken_back()
            calls, self._given = [*self._given.values()], {}
            if self._run is None:
                calls, left = [*self._waiting, *left], []
            self._waiting = deque(left)
        for call in calls:
            if call.begins():
                call.fail(error)

    def closed(self) -> None:
        """The run is over."""
        self._run = None
        for task in list(self.tasks.running | self.tasks.held_back | self.tasks.failed):
            self._end(task)

    def _taken_back(self) -> list[Call]:
        """All that no worker was given."""
        tasks = [task for task, call in list(self._given.items()) if not call.future.running()]
        calls = [*map(self._given.pop, tasks), *self._waiting]
        self._waiting = deque(call for call in calls if call.future.running())  # the first one of all
        return [call for call in calls if not call.future.running()]

    # -- as the blocks of a run ----------------------------------------------------------------

    @property
    def n(self) -> int:
        """How many there are now."""
        return len(self.tasks)

    def leaves(self, index: int) -> list[Array]:
        """The call as it travels to the worker that is given it; CancelledError if nobody waits for it."""
        with self._lock:
            call = self._given.get(index)
            if call is None or not call.begins():
                self._given.pop(index, None)
                raise CancelledError
        return [read_only(call.block)]

    # -- as the policy of a schedule -----------------------------------------------------------

    def due(self, tasks: TaskTable, need: Need, now: float) -> Sequence[int]:
        """Calls that have come; late ones, if none waits for a worker that a backup would take."""
        with self._lock:
            while self._waiting and len(self._given) < self._most:
                call, task = self._waiting.popleft(), tasks.add()
                self._given[task] = call
                kind = self._kinds.setdefault(call.function, LateAttempts(ENDLESS, is_endless=True))
                self._backups.late.add(task, kind)
        if tasks.held_back or self._waiting or tasks.unbegun:
            return sorted(tasks.held_back)
        return self._backups.due(tasks, need, now)

    def wait_seconds(self, tasks: TaskTable, now: float) -> float:
        """Until a call may be late."""
        return self._backups.wait_seconds(tasks, now)

    # -- as its need ---------------------------------------------------------------------------

    def add(self, outcome: Outcome) -> None:
        """The first attempt that returns or raises is the end of a call."""
        call, failure = self._given.get(outcome.task), outcome.failure
        if call is None or failure is None or failure.kind == "raised":
            self._end(outcome.task)
        if call is not None and failure is None:
            call.return_(outcome)
        elif call is not None and failure is not None and failure.kind == "raised":
            call.fail(failure.cause or RuntimeError(str(failure)), is_of_f=True)

    def step(self) -> bool:
        """Whether no call is under way, once those have failed that were lost too often."""
        for index in self.failed():
            task = self.tasks[index]
            if task.attempts > self.retries and task.last_failure is not None:
                text = f"a call was lost {task.attempts} times, with its worker: {task.last_failure.message}"
                self._given[index].fail(WorkerLostError(text))
                self._end(index)
        return self.is_idle

    def _end(self, index: int) -> None:
        """Nothing more is wanted of a call: neither of other attempts at it."""
        running = self.tasks[index].running if index in self.tasks.running else ()
        self._given.pop(index, None)
        self.tasks.forget(index)
        self._backups.forget(index)
        if running and self._run is not None:
            self._run.withdraw([(index, attempt) for attempt in running])

    @property
    def is_met(self) -> bool:
        """Whether no call has to be started again, as its worker was lost."""
        return not self.tasks.failed

    def look_seconds(self) -> float:
        """Nothing else is waited for; for other calls not for long while none is under way."""
        if self._given:
            return inf
        return 0.0 if self._waiting else LINGER_SECONDS

    def settle_for_less(self, nothing_can_come: bool) -> None:
        """Each call has had its end when its outcome was noted."""


def function_of(f: Callable[..., Any]) -> Hashable:
    """What is the same for calls of one function: the code of what is written in Python.

    >>> function_of(min) == function_of(max), function_of("a".join) == function_of("b".join)
    (False, True)
    """
    inner: Any = getattr(f, "func", f)  # of a partial
    code = getattr(getattr(inner, "__func__", inner), "__code__", None)
    if code is not None:
        return id(code)
    named = inner if hasattr(inner, "__qualname__") else type(inner)
    return getattr(named, "__module__", None), named.__qualname__
