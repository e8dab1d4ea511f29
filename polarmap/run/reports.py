"""The report of a map, made of what was noted while it ran, when somebody reads it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from typing import Any

from polarmap.clouds.limits import Worker
from polarmap.clouds.prices import Cost, Stay, cost, cost_of_stay
from polarmap.report import Report, TaskReport
from polarmap.run.tasks import TaskTable
from polarmap.worker.processes import LIVENESS_SECONDS


class LazyReport:
    """A report that is made when it is read for the first time; pickled as it is then."""

    def __init__(self, make: Callable[[], Report]) -> None:
        self._make = make

    @cached_property
    def made(self) -> Report:
        """The report."""
        return self._make()

    def __getstate__(self) -> dict[str, Report]:
        return {"made": self.made}


def report_so_far(facts: Mapping[str, Any], tasks: TaskTable) -> Report:
    """That of a map which goes on, or has not begun; `facts`: the other fields."""
    return Report(**facts, tasks=_task_reports(tasks, (), "arrived", "running"), is_final=False)


def final_report(
    facts: Mapping[str, Any],
    table: Callable[[], TaskTable],
    surplus: Collection[int],
    worker: Worker | None,
    stay: Stay | None,
) -> Report:
    """That of a map which is over.

    table : makes that of its tasks.
    surplus : tasks whose results were of no use.
    worker, stay : what tasks were given, and what workers that stay have cost, if that is known.
    """
    reports = _task_reports(table(), surplus, "used", "abandoned")
    paid = None if worker is None else cost_of(worker, reports, facts["seconds"], stay)
    return Report(**facts, tasks=reports, cost=paid)


def _task_reports(tasks: TaskTable, surplus: Collection[int], came: str, runs: str) -> tuple[TaskReport, ...]:
    """What has become of each task; of a map that goes on, another thread may be noting more.

    came, runs : the states of tasks whose results came, but for `surplus`, and of those that still run.
    """
    running, here = set(tasks.running), dict(tasks.arrived)
    states = dict.fromkeys(running, runs) | dict.fromkeys(here, came)
    states |= dict.fromkeys(here.keys() & surplus, "surplus")
    return tuple(
        TaskReport(
            index=index,
            state=states.get(index, "failed" if task.submitted else "not started"),
            arrived=here.get(index),
            seconds=task.seconds if index in here else None,
            attempts=len(task.submitted),
            failures=tuple(dict.fromkeys(map(str, tuple(task.failures)))),
            launched=task.submitted[0] if task.submitted else None,
        )
        for index, task in enumerate(tasks)
    )


def cost_of(worker: Worker, tasks: Sequence[TaskReport], seconds: float, stay: Stay | None) -> Cost | None:
    """Workers that stay are paid whatever they do; else every attempt is, of a map of so many seconds.

    One that never reported is paid until its worker sees that nobody waits.
    """
    if stay is not None:
        return cost_of_stay(worker, stay)
    unheard = seconds + LIVENESS_SECONDS
    paid = [task.seconds or unheard - (task.launched or 0.0) for task in tasks for _ in range(task.attempts)]
    return cost(worker, paid, seconds)
