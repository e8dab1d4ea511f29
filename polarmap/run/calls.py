"""The calls of an executor as tasks of one run, which come while its schedule runs."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, InvalidStateError
from math import inf
from typing import Any, NamedTuple

from polarmap.blocks.uneven import PartBlocks
from polarmap.errors import WorkerLostError, hide_our_frames
from polarmap.executors.base import Attempt, Outcome, read_only
from polarmap.executors.worker_table import GRACE_SECONDS
from polarmap.run.lateness import LateAttempts, LatenessRule
from polarmap.run.loop import Policy
from polarmap.run.need import Need, Stopwatch
from polarmap.run.policies import Backups
from polarmap.run.tasks import TaskTable
from polarmap.worker.parts import MESSAGE
from polarmap.worker.pytree import Array, from_block

START_SECONDS = 0.02  # the longest a wait for outcomes lasts while calls wait for workers whose number grows
MOST_CALLS = 4096  # of a run, which keeps a little of each
ENDLESS = LatenessRule(1, min_seconds=0.1)  # no call is late before
REMEMBERED = 256  # durations of each function

Durations = defaultdict[Hashable, deque[float]]  # of the latest calls of each function


class Limits(NamedTuple):
    """What an executor does with its calls.

    most : calls that are given to its run at a time; None: all.
    grows : whether as many more are given to it as it seems to have room for.
    backups : that a late call may get.
    retries : of one whose worker was lost.
    """

    most: int | None
    grows: bool
    backups: int
    retries: int

    def room(self, given: int, running: int) -> int:
        """How many more calls a run gets that has been given so many, of which some run."""
        if self.most is None:
            return 1 << 30
        most = max(self.most, running + max(self.most, running) // 2) if self.grows else self.most
        return max(0, most - given)


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


class Calls(Need, Policy):
    """Calls on a run, which are taken as they come: the `Policy` of its schedule, and its `Need`.

    Its watch begins when the run is open; calls may be taken before.

    Parameters
    ----------
    limits : Limits
    durations : dict
        What earlier calls took; those of new ones are added.
    take : callable
        Gives so many calls at most, and says whether others are left.
    """

    def __init__(
        self, limits: Limits, durations: Durations, take: Callable[[int], tuple[list[Call], bool]]
    ) -> None:
        super().__init__(TaskTable(0), Stopwatch(time.monotonic))
        self.sent: dict[int, list[Array]] = {}  # the bytes of each call, while anybody may ask for them
        self.blocks = PartBlocks(self.sent, ("array",), MESSAGE)  # they travel with its ticket
        self._limits, self._durations, self._take = limits, durations, take
        self._calls: dict[int, Call] = {}  # that are under way
        self._kinds: dict[Hashable, LateAttempts[Attempt]] = {}  # of each function
        self._backups = Backups(0, ENDLESS, limits.backups)
        self.late = self._backups.late
        self._ghosts: dict[int, float] = {}  # tasks that run although their call is done: since when
        self._others_wait = False
        self.first: Sequence[int] = ()  # calls that have been taken and not been started

    @property
    def is_idle(self) -> bool:
        """Whether no call is under way."""
        return not self._calls

    def is_worn(self, now: float) -> bool:
        """Whether further calls are better given to another run."""
        return len(self.tasks) >= MOST_CALLS or (bool(self._ghosts) and self._worn_at <= now)

    @property
    def _worn_at(self) -> float:
        """When the oldest ghost will have been one for too long; inf if there is none."""
        return next(iter(self._ghosts.values()), inf) + GRACE_SECONDS

    def take(self) -> None:
        """Take as many calls as there is room for."""
        running = len(self.tasks.running) - len(self.tasks.unbegun)
        found, self._others_wait = self._take(self._limits.room(len(self._calls), running))
        for call in found:
            kind = self._kinds.get(call.function) or self._late_calls(call.function)
            task = self.tasks.add(kind)
            self._calls[task], self.sent[task] = call, [read_only(call.block)]
            self._backups.add(kind)
        self.first = sorted(self.tasks.held_back)

    def _late_calls(self, function: Hashable) -> LateAttempts[Attempt]:
        """The attempts at calls of a new function, given what earlier ones took."""
        found = self._kinds[function] = LateAttempts(ENDLESS, is_endless=True)
        for took in list(self._durations[function]):
            found.learn(took)
        return found

    def due(self, tasks: TaskTable, need: Need, now: float) -> Sequence[int]:
        """Calls that have come; late ones, if none waits for a worker that a backup would take."""
        self.take()
        return self.first if self._others_wait else [*self.first, *self._backups.due(tasks, need, now)]

    def wait_seconds(self, tasks: TaskTable, now: float) -> float:
        """Until a call may be late, or calls that wait are better given to others."""
        if not self._others_wait:
            return self._backups.wait_seconds(tasks, now)
        return START_SECONDS if self._limits.grows else max(0.0, self._worn_at - now)

    def note(self, outcomes: list[Outcome]) -> None:
        """What became of attempts, of which nothing is kept."""
        for outcome in outcomes:
            self.add(outcome)
        outcomes.clear()
        for index in sorted(self.tasks.failed):
            task = self.tasks[index]
            if task.attempts > self._limits.retries and task.last_failure is not None:
                text = f"a call was lost {task.attempts} times, with its worker: {task.last_failure.message}"
                self._give_up(index, WorkerLostError(text))

    def add(self, outcome: Outcome) -> None:
        """The first attempt that returns or raises is the end of a call."""
        failure, call = outcome.failure, self._calls.get(outcome.task)
        if call is not None and failure is None:
            del self._calls[outcome.task]
            self._durations[call.function].append(self.tasks[outcome.task].took or 0.0)
            call.return_(outcome)
        elif call is not None and failure is not None and failure.kind == "raised":
            self._give_up(outcome.task, failure.cause or RuntimeError(str(failure)), is_of_f=True)
        self._let_go(outcome.task)

    def _give_up(self, index: int, error: BaseException, is_of_f: bool = False) -> None:
        self.tasks.give_up(index)
        self._calls.pop(index).fail(error, is_of_f)
        self._let_go(index)

    def _let_go(self, index: int) -> None:
        """Forget a call that is over, unless an attempt at it runs on."""
        if index in self._calls:
            return
        if index in self.tasks.running:
            self._ghosts.setdefault(index, self.watch.elapsed)
        else:
            self._ghosts.pop(index, None)
            self.sent.pop(index, None)

    def fail(self, error: BaseException) -> None:
        """The run has failed: so have all calls that are under way."""
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call.fail(error)

    @property
    def is_met(self) -> bool:
        """Whether no call has to be started again, as its worker was lost."""
        return not self.tasks.failed

    def look_seconds(self) -> float:
        """Nothing else is waited for, and nothing at all while no call is under way."""
        return inf if self._calls else 0.0

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
        return id(code)
    named = inner if hasattr(inner, "__qualname__") else type(inner)
    return getattr(named, "__module__", None), named.__qualname__
