"""A map that runs: its report so far, and those who are told what happens to it. A plain map has none."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from math import inf
from typing import Any

from polarmap.executors.base import Outcome, Run
from polarmap.report import Report, TaskReport
from polarmap.run.need import Need
from polarmap.run.tasks import TaskTable


class RunningMap:
    """A map, as those see it who look on. Any thread may wake it, or ask for its report.

    Parameters
    ----------
    blank : Report
        Before anything has happened.
    tasks : TaskTable

    Attributes
    ----------
    need : Need or None
        What is known of its results, once it is opened.
    """

    def __init__(self, blank: Report, tasks: TaskTable) -> None:
        self.blank, self.tasks = blank, tasks
        self._run: Run | None = None
        self._began = 0.0
        self.need: Need | None = None

    def opened(self, run: Run, began: float, need: Need) -> None:
        """It has begun, in this second on the clock of its run."""
        self._began, self._run, self.need = began, run, need

    def wake(self) -> None:
        """Let it look up at once."""
        if self._run is not None:
            self._run.wake()

    def report(self) -> Report:
        """So far."""
        if self._run is None or self.need is None:
            return self.blank
        reports = task_reports(self.tasks, self.need.arrived, is_final=False)
        return replace(self.blank, seconds=self._run.now() - self._began, tasks=reports)


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

    def opened(self) -> None:
        """It is open, and its first tasks are about to be started."""

    def started(self, indices: Collection[int], elapsed: float) -> None:
        """Tasks were started after the first ones: parity on demand, backups, failed ones again."""

    def ended(self, outcome: Outcome, elapsed: float) -> None:
        """An attempt has ended."""

    def arrived(self, index: int, result: Callable[[], Any]) -> None:
        """The result of an item is here, before those of the others."""

    def looked(self, arrived: int) -> None:
        """The map has looked up: so many results are here."""

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


def blank_report(n: int, k: int, needed: int, code: str, executor: str, **known: Any) -> Report:
    """The report of a map before anything of it has happened.

    >>> blank_report(4, 3, 3, "rotation", "replay")
    0 of 4 results have arrived, 3 are needed, 0.00 s so far (replay, rotation)
    """
    return Report(n, k, code, executor, _not_started(n), needed, is_final=False, **known)


@lru_cache(maxsize=8)
def _not_started(n: int) -> tuple[TaskReport, ...]:
    return tuple(TaskReport(index, "not started", None, None, 0, (), None) for index in range(n))


def task_reports(
    tasks: TaskTable, arrived: Mapping[int, float], surplus: Iterable[int] = (), is_final: bool = True
) -> tuple[TaskReport, ...]:
    """What has become of each task; of a map that goes on, another thread may be noting more.

    surplus : tasks whose results were of no use.
    """
    running, here = set(tasks.running), dict(arrived)
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
