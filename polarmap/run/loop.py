"""The loop of a map: starts tasks, waits, tells what ended, starts more. Knows no codes and no results.

Which tasks start at once and which later is a policy (`Upfront`, or one of `policies`); what is still
needed is known to whoever makes something of the outcomes (`Need`); how tasks run to the executor's `Run`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from math import inf
from typing import Protocol

from polarmap.errors import CodedTimeoutError
from polarmap.executors.base import Event, Outcome, Run
from polarmap.run.running_map import Observers
from polarmap.run.tasks import TaskTable

STALL_SECONDS = 1.0  # without news, before failed tasks are started again
LOOK_SECONDS = 5.0  # the longest the loop looks away; what is due is known without: this is against mistakes


class Stopwatch:
    """Seconds since it was made, on a clock that is passed in.

    After `timeout` seconds a map fails; after `deadline` it hands out what there is.

    >>> hand = iter([10.0, 12.0, 12.5])
    >>> watch = Stopwatch(lambda: next(hand), timeout=3.0)
    >>> watch.elapsed, watch.remaining
    (2.0, 0.5)
    """

    def __init__(
        self, now: Callable[[], float], timeout: float | None = None, deadline: float | None = None
    ) -> None:
        self._now, self.timeout, self.deadline = now, timeout, deadline
        self._limit = inf if timeout is None else timeout
        self._began = now()

    @property
    def elapsed(self) -> float:
        """Seconds so far."""
        return self._now() - self._began

    def at(self, moment: float) -> float:
        """The second in which its clock shows this."""
        return moment - self._began

    @property
    def until_limit(self) -> float:
        """Seconds until the deadline or the timeout, whichever comes first."""
        limit = self._limit if self.deadline is None else min(self.deadline, self._limit)
        return inf if limit == inf else limit - self.elapsed

    @property
    def is_past_deadline(self) -> bool:
        """Whether results are to be handed out as they are."""
        return self.deadline is not None and self.elapsed >= self.deadline

    @property
    def remaining(self) -> float:
        """Seconds until the timeout; inf without one, below 0 when it has passed."""
        return self._limit - self.elapsed


class Need(Protocol):
    """What is still needed of a map's tasks, after the outcomes that were yielded last."""

    @property
    def is_met(self) -> bool:
        """Whether the results that arrived suffice, so that no further task has to be started."""
        ...

    @property
    def received(self) -> Collection[int]:
        """The tasks whose results count."""
        ...

    @property
    def is_protected(self) -> bool:
        """Whether tasks that are held back would help."""
        ...

    def failed(self) -> list[int]:
        """Tasks that were started, do not run and gave nothing that can be used, where that is needed."""
        ...

    def would_be_met(self, tasks: Collection[int]) -> bool:
        """Whether results of these tasks would suffice."""
        ...

    def is_out_of_reach(self) -> bool:
        """Whether what arrived, runs and is held back cannot suffice."""
        ...

    def look_seconds(self) -> float:
        """How long the loop may look away, because something else than a task is waited for."""
        ...

    def settle_for_less(self, nothing_can_come: bool) -> None:
        """Where no further result can come or is worth the wait, take what there is or raise."""
        ...

    def timed_out(self, timeout: float) -> tuple[str, BaseException | None]:
        """What to say when the timeout has passed, and the exception behind it."""
        ...


class Policy(Protocol):
    """Which tasks start at once, and which later: decisions only, clocks and counts passed in."""

    @property
    def first(self) -> Sequence[int]:
        """The tasks that start at once."""
        ...

    @property
    def watches_starts(self) -> bool:
        """Whether it is to be told when tasks begin to run."""
        ...

    def due(self, tasks: TaskTable, need: Need, now: float) -> Sequence[int]:
        """The tasks to start now, for the first time or once more."""
        ...

    def wait_seconds(self, tasks: TaskTable, now: float) -> float:
        """Seconds until the next task may be due, if nothing happens before; inf if none may."""
        ...


class Upfront:
    """All tasks start at once."""

    watches_starts = False

    def __init__(self, n: int) -> None:
        self.first: Sequence[int] = range(n)

    def due(self, tasks: TaskTable, need: Need, now: float) -> Sequence[int]:
        """Nothing is left to start."""
        return ()

    def wait_seconds(self, tasks: TaskTable, now: float) -> float:
        """Nothing will be due."""
        return inf


def schedule(
    run: Run,
    policy: Policy,
    retries: int,
    tasks: TaskTable,
    need: Need,
    watch: Stopwatch,
    observers: Observers = (),
) -> Iterator[list[Outcome]]:
    """What ended, as soon as anything did; an empty list when it is time to look at other things.

    Goes on for as long as it is asked: whoever has what it needs stops asking. In between it starts
    what the policy says, then what failed and may be tried again. Raises CodedTimeoutError when the
    time of the watch is over, and what `need` raises when nothing can come any more.
    """
    last_news, looked, may_stall = 0.0, 0.0, False
    tick = min(LOOK_SECONDS, *(one.tick for one in observers), inf)
    offset = watch.at(0.0)  # from the clock of the run to that of the watch

    def start(indices: Sequence[int]) -> None:
        nonlocal last_news
        last_news = watch.elapsed
        run.submit(tasks.start(indices, last_news))
        for one in observers:
            one.started(indices, last_news)

    def note(events: Sequence[Event]) -> list[Outcome]:
        nonlocal last_news
        now, outcomes = watch.elapsed, []
        for event in events:
            if isinstance(event, Outcome):
                last_news = now
                outcomes.append(event)
                tasks.note(event, now)
            elif policy.watches_starts:
                tasks.note_began(event.task, event.attempt, event.when + offset)
        return outcomes

    run.submit(tasks.start(policy.first, 0.0))
    while True:
        wait = min(tick, need.look_seconds(), watch.until_limit)
        if need.is_protected:  # of the moment for which it was asked what is due: none between is missed
            wait = min(wait, policy.wait_seconds(tasks, looked))
        if may_stall:
            wait = min(wait, last_news + STALL_SECONDS - watch.elapsed)
        yield note(run.wait(max(0.0, wait)))  # and keeps none of it
        looked = now = watch.elapsed
        due = policy.due(tasks, need, now)
        if due:
            start(due)
        if watch.timeout is not None and now >= watch.timeout:
            message, cause = need.timed_out(watch.timeout)
            raise CodedTimeoutError(message) from cause
        may_stall = False
        if need.is_met:
            continue
        is_over = not tasks.running and not (tasks.held_back and need.is_protected)
        again = [index for index in need.failed() if tasks[index].attempts <= retries]
        may_stall = bool(again) and not tasks.held_back  # failed tasks start again while others are late
        is_idle = may_stall and now >= last_news + STALL_SECONDS
        if again and (is_over or is_idle or need.is_out_of_reach()):
            start(again)
        else:
            need.settle_for_less(is_over)
