"""The loop of a map: starts tasks, waits, tells what ended, starts more. Knows no codes and no results.

Which tasks start at once and which later is a `Policy`, here or in `policies`; what is still needed is known
to whoever makes something of the outcomes, which is a `Need`; how tasks run to the executor's `Session`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from math import inf
from typing import Any

from polarmap.errors import CodedTimeoutError
from polarmap.executors.interface import AttemptId, BlockSendingSession, Event, NoWorkers, Outcome, Session
from polarmap.run.lateness import LateAttempts
from polarmap.run.shortfall import late, raised_everywhere
from polarmap.run.tasks import TaskTable

STALL_SECONDS = 1.0  # without news, before failed tasks are started again
LOOK_SECONDS = 5.0  # the longest the loop looks away; what is due is known without: this is against mistakes


class Stopwatch:
    """Seconds since it was made, on a clock that is passed in, and how many are left of so many.

    >>> hand = iter([10.0, 12.0, 12.5])
    >>> watch = Stopwatch(lambda: next(hand), 3.0)
    >>> watch.elapsed, watch.remaining
    (2.0, 0.5)
    """

    def __init__(self, now: Callable[[], float], limit: float = inf) -> None:
        self._now, self.limit = now, limit
        self.began = now()  # by that clock

    @property
    def elapsed(self) -> float:
        """Seconds so far."""
        return self._now() - self.began

    def since(self, moment: float) -> float:
        """Seconds since an earlier moment; since it was made, where its clock is a virtual one."""
        return self._now() - min(moment, self.began)

    @property
    def remaining(self) -> float:
        """Seconds that are left, below 0 when they are over; inf without a limit."""
        return inf if self.limit == inf else self.limit - self.elapsed


class Need(ABC):
    """What a map makes of what becomes of its tasks, and what it needs of them still."""

    def __init__(self, tasks: TaskTable, watch: Stopwatch) -> None:
        self.tasks, self.watch = tasks, watch

    @abstractmethod
    def add(self, outcome: Outcome) -> None:
        """Take in what became of an attempt, which the table of tasks knows already."""

    @property
    @abstractmethod
    def is_met(self) -> bool:
        """Whether the results that arrived suffice, so that no further task has to be started."""

    @abstractmethod
    def settle_for_less(self) -> None:
        """Take what there is or raise, where what is needed is out of reach and no task is tried again."""

    # -- as it is where every task is wanted, and its first result as it is -----------------

    @property
    def threshold(self) -> int:
        """How many results suffice at the least."""
        return len(self.tasks)

    @property
    def outcomes(self) -> int:
        """How many tasks have a result that counts."""
        return len(self.tasks.arrived)

    @property
    def counted(self) -> Collection[int]:
        """The tasks whose results count towards what is needed."""
        return self.tasks.arrived.keys()

    @property
    def is_protected(self) -> bool:
        """Whether tasks that are held back would help."""
        return True

    def would_be_met(self, tasks: Collection[int]) -> bool:
        """Whether results of these tasks would suffice."""
        return len(set(tasks)) == len(self.tasks)

    def is_within_reach(self) -> bool:
        """Whether what arrived, runs and is held back would; without failures it would."""
        tasks = self.tasks
        return self.would_be_met(tasks.arrived.keys() | tasks.running.keys() | tasks.held_back)

    def look_seconds(self) -> float:
        """How long the loop may look away, because something else than a task is waited for."""
        return inf

    @property
    def awaited_task(self) -> int | None:
        """The task whose own result is needed while all others are determined; None if there is none."""
        return None

    def worth_retrying(self, failed: Collection[int]) -> Collection[int]:
        """Return which failed tasks may be started again."""
        return failed

    def check_failures(self) -> None:
        """Raise what f raises, if it is found to do so everywhere."""
        error = raised_everywhere(self.tasks, self.threshold)
        if error is not None:
            raise error

    def time_is_over(self, n_receiving: int = 0) -> None:
        """Raise CodedTimeoutError, which tells how many workers are still being sent their block."""
        tasks = self.as_told()()
        told = late(tasks, self.threshold, self.watch.limit, n_receiving=n_receiving)
        raise CodedTimeoutError(told) from tasks.first_cause

    def step(self) -> bool:
        """Whether the map is over, after another look at the results."""
        return self.is_met

    def early_result(self, task: int) -> Callable[[], Any] | None:
        """What makes the result of a data block that this task has returned, before the others are there."""
        return None

    def as_told(self) -> Callable[[], TaskTable]:
        """What makes a table of the tasks as the caller of the map counts them."""
        tasks = self.tasks
        return lambda: tasks

    @property
    def surplus(self) -> Collection[int]:
        """Tasks whose results were of no use."""
        return ()

    def told(self, ended: float) -> dict[str, Any]:
        """Fields of the report of a map that was over in second `ended`."""
        return {"verified": "not needed"}


class Policy:
    """Which tasks start at once, and which later: decisions only, clocks and counts passed in.

    This one starts all of them at once.
    """

    late: LateAttempts[AttemptId] | None = None  # what is to be told when attempts begin and end

    def __init__(self, n: int) -> None:
        self.first: Sequence[int] = range(n)

    def due(self, tasks: TaskTable, need: Need, now: float) -> Sequence[int]:
        """The tasks to start now, for the first time or once more."""
        return ()

    def wait_seconds(self, tasks: TaskTable, now: float) -> float:
        """Seconds until the next task may be due, if nothing happens before; inf if none may."""
        return inf


def schedule(
    run: Session,
    policy: Policy,
    retries: int,
    need: Need,
    tick: float = inf,
    tell_started: Callable[[Sequence[int], float], None] = lambda indices, elapsed: None,
) -> Iterator[list[Outcome]]:
    """What ended, as soon as anything did; an empty list when it is time to look at other things.

    Goes on for as long as it is asked: whoever has what it needs stops asking. In between it starts
    what the policy says, then what failed and may be tried again. Raises what `need` does when the time of
    the watch is over, or what it needs is out of reach.

    tick : seconds after which it is time to look, whatever happens.
    tell_started : is told of tasks that were started after the first ones, and in which second.
    """
    tasks, watch = need.tasks, need.watch
    last_news, looked, may_stall = 0.0, 0.0, False
    tick = min(LOOK_SECONDS, tick)

    def start(indices: Sequence[int]) -> None:
        nonlocal last_news
        last_news = watch.elapsed
        run.submit(tasks.start(indices, last_news))
        tell_started(indices, last_news)

    def note(events: Sequence[Event]) -> list[Outcome]:
        nonlocal last_news
        now, outcomes, tasks.shortage = watch.elapsed, [], ""
        for event in events:
            if isinstance(event, Outcome):
                last_news = now
                outcomes.append(event)
                tasks.note(event, now)
            elif isinstance(event, NoWorkers):
                tasks.shortage = event.reason
            else:
                when = event.started_at - watch.began
                tasks.note_began(event.task, event.attempt, when, event.is_confirmed, event.host)
        return outcomes

    if watch.limit < inf and isinstance(run, BlockSendingSession):
        run.deadline = run.now() + watch.remaining
    run.submit(tasks.start(policy.first, 0.0))
    while True:
        wait = min(tick, need.look_seconds(), watch.remaining)
        if need.is_protected:  # of the moment for which it was asked what is due: none between is missed
            wait = min(wait, policy.wait_seconds(tasks, looked))
        if may_stall:
            wait = min(wait, last_news + STALL_SECONDS - watch.elapsed)
        yield note(run.wait(max(0.0, wait)))  # and keeps none of it
        looked = now = watch.elapsed
        due = policy.due(tasks, need, now)
        if due:
            start(due)
        if tasks.unwanted:
            run.cancel(tasks.unwanted)
            tasks.unwanted = []
        if now >= watch.limit:
            need.time_is_over(run.count_receiving_workers() if isinstance(run, BlockSendingSession) else 0)
        may_stall = False
        if need.is_met:
            continue
        is_over = not tasks.running and not (tasks.held_back and need.is_protected)
        is_stuck = is_over
        if tasks.failed:
            need.check_failures()
            is_stuck = is_over or not need.is_within_reach()
        again = sorted(one for one in need.worth_retrying(tasks.failed) if tasks[one].own_attempts <= retries)
        may_stall = bool(again) and not tasks.held_back  # failed tasks start again while others are late
        is_idle = may_stall and now >= last_news + STALL_SECONDS
        if again and (is_stuck or is_idle):
            start(again)
        elif is_stuck:
            need.settle_for_less()
