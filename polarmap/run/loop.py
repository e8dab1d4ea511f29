"""The loop of a map: starts tasks, waits, tells what ended, starts more. Knows no codes and no results.

Which tasks start at once and which later is a `Policy`, here or in `policies`; what is still
needed is known to whoever makes something of the outcomes (`Need`); how tasks run to the executor's `Run`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf

from polarmap.executors.base import Attempt, Event, Outcome, Run
from polarmap.run.lateness import LateAttempts
from polarmap.run.need import Need
from polarmap.run.running_map import Observers
from polarmap.run.tasks import TaskTable

STALL_SECONDS = 1.0  # without news, before failed tasks are started again
LOOK_SECONDS = 5.0  # the longest the loop looks away; what is due is known without: this is against mistakes


class Policy:
    """Which tasks start at once, and which later: decisions only, clocks and counts passed in.

    This one starts all of them at once.
    """

    late: LateAttempts[Attempt] | None = None  # what is to be told when attempts begin and end

    def __init__(self, n: int) -> None:
        self.first: Sequence[int] = range(n)

    def due(self, tasks: TaskTable, need: Need, now: float) -> Sequence[int]:
        """The tasks to start now, for the first time or once more."""
        return ()

    def wait_seconds(self, tasks: TaskTable, now: float) -> float:
        """Seconds until the next task may be due, if nothing happens before; inf if none may."""
        return inf


def schedule(
    run: Run,
    policy: Policy,
    retries: int,
    need: Need,
    observers: Observers = (),
) -> Iterator[list[Outcome]]:
    """What ended, as soon as anything did; an empty list when it is time to look at other things.

    Goes on for as long as it is asked: whoever has what it needs stops asking. In between it starts
    what the policy says, then what failed and may be tried again. Raises what `need` does when the time of
    the watch is over, or what it needs is out of reach.
    """
    tasks, watch = need.tasks, need.watch
    last_news, looked, may_stall = 0.0, 0.0, False
    tick = min(LOOK_SECONDS, *(one.tick for one in observers), inf)

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
            elif policy.late is not None:
                tasks.note_began(event.task, event.attempt, event.when - watch.began)
        return outcomes

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
        if now >= watch.limit:
            need.time_is_over()
        may_stall = False
        if need.is_met:
            continue
        is_over = not tasks.running and not (tasks.held_back and need.is_protected)
        is_stuck = is_over
        if tasks.failed:
            need.check_failures()
            is_stuck = is_over or not need.is_within_reach()
        again = sorted(index for index in tasks.failed if tasks[index].attempts <= retries)
        may_stall = bool(again) and not tasks.held_back  # failed tasks start again while others are late
        is_idle = may_stall and now >= last_news + STALL_SECONDS
        if again and (is_stuck or is_idle):
            start(again)
        elif is_stuck:
            need.settle_for_less()
