"""A map that runs: its report so far, and those who are told what happens to it. A plain map has none."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from math import inf
from typing import Any

from polarmap.clouds.limits import Worker
from polarmap.clouds.prices import Cost, Stay, cost, cost_of_stay
from polarmap.code.linear import LinearCode
from polarmap.executors import executor_of
from polarmap.executors.base import MapExecutor, Outcome, Run
from polarmap.report import Report, TaskReport
from polarmap.run.need import Need
from polarmap.run.tasks import TaskTable
from polarmap.worker.processes import LIVENESS_SECONDS


class RunningMap:
    """A map on an executor, from when it is called. Any thread may wake it, or ask for its report.

    Parameters
    ----------
    executor : optional
        What the caller of the map chose.

    Attributes
    ----------
    blank : Report
        Before anything has happened, once it is known what it is of.
    run : Run or None
        While it is open. When it is over nothing of it is kept, exceptions of its tasks neither.
    need : Need or None
        What is known of its results then.
    """

    blank: Report

    def __init__(self, executor: Any) -> None:
        self._began = time.monotonic()
        self.executor: MapExecutor = executor_of(executor)
        self.run: Run | None = None
        self.need: Need | None = None

    def expect(self, code: LinearCode, **known: Any) -> None:
        """Be of as many tasks as a code has."""
        name, tasks = self.executor.name, _not_started(code.n)
        needed = code.recovery_threshold
        self.blank = Report(code.n, code.k, code.name, name, tasks, needed, is_final=False, **known)

    def wake(self) -> None:
        """Let it look up at once."""
        run = self.run
        if run is not None:
            run.wake()

    def report(self) -> Report:
        """What has become of its tasks so far; any thread may ask."""
        need = self.need
        if need is None:
            return self.blank
        reports = task_reports(need.tasks, is_final=False)
        return replace(self.blank, seconds=need.watch.since(self._began), tasks=reports)

    def final_report(self, told: dict[str, Any], stay: Stay | None) -> Report:
        """That of the map, which is over: with what its need told, and workers that stay have cost."""
        assert self.need is not None
        reports = task_reports(self.need.tasks, self.need.surplus)
        seconds, worker = self.need.watch.since(self._began), self.executor.worker
        paid = None if worker is None else cost_of(worker, reports, seconds, stay)
        name = self.executor.name  # with the channel that was used
        return replace(
            self.blank, executor=name, tasks=reports, seconds=seconds, cost=paid, is_final=True, **told
        )


class Observer:
    """Is told what happens to a map, on the thread that runs it. This one takes no notice.

    Attributes
    ----------
    tick : float
        Seconds after which it wants to look, whatever happens.
    """

    tick = inf

    def began(self, running: RunningMap) -> None:
        """A map is about to be opened."""

    def started(self, indices: Collection[int], elapsed: float) -> None:
        """Tasks were started after the first ones: parity on demand, backups, failed ones again."""

    def ended(self, outcome: Outcome, elapsed: float) -> None:
        """An attempt has ended."""

    def arrived(self, index: int, result: Callable[[], Any]) -> None:
        """The result of an item is here, before those of the others."""

    def looked(self, arrived: int) -> None:
        """The map has looked up, for the first time when it is open: so many results are here."""

    def counted(self, done: int, total: int) -> None:
        """So many of so many stripes are done, of data that is encoded here."""

    def finished(self, end: Report | BaseException | None) -> None:
        """The map has returned, or raised, perhaps before it began; None: stripes were counted."""


Observers = tuple[Observer, ...]


@contextmanager
def counting(observers: Observers, total: int) -> Iterator[Callable[[int], None]]:
    """A function that is told how many of so many stripes are done."""

    def show(done: int) -> None:
        for one in observers:
            one.counted(done, total)

    try:
        show(0)
        yield show
    finally:
        for one in observers:
            one.finished(None)


@lru_cache(maxsize=8)
def _not_started(n: int) -> tuple[TaskReport, ...]:
    return tuple(TaskReport(index, "not started", None, None, 0, (), None) for index in range(n))


def task_reports(
    tasks: TaskTable, surplus: Iterable[int] = (), is_final: bool = True
) -> tuple[TaskReport, ...]:
    """What has become of each task; of a map that goes on, another thread may be noting more.

    surplus : tasks whose results were of no use.
    """
    running, here = set(tasks.running), dict(tasks.arrived)
    states = dict.fromkeys(here, "used" if is_final else "arrived") | dict.fromkeys(surplus, "surplus")
    still = "abandoned" if is_final else "running"
    reports = []
    for index, task in enumerate(tasks):
        came = here.get(index)
        if came is not None:
            state = states[index]
        else:
            state = still if index in running else "failed" if task.submitted else "not started"
        reports.append(
            TaskReport(
                index=index,
                state=state,
                arrived=came,
                seconds=None if came is None else task.seconds,
                attempts=len(task.submitted),
                failures=tuple(dict.fromkeys(map(str, tuple(task.failures)))) if task.failures else (),
                launched=task.submitted[0] if task.submitted else None,
            )
        )
    return tuple(reports)


def cost_of(worker: Worker, tasks: Sequence[TaskReport], seconds: float, stay: Stay | None) -> Cost | None:
    """Workers that stay are paid whatever they do; else every attempt is, of a map of so many seconds.

    One that never reported is paid until its worker sees that nobody waits.
    """
    if stay is not None:
        return cost_of_stay(worker, stay)
    unheard = seconds + LIVENESS_SECONDS
    paid = [task.seconds or unheard - (task.launched or 0.0) for task in tasks for _ in range(task.attempts)]
    return cost(worker, paid, seconds)
