"""The report of a map, made of what was noted while it ran, when somebody reads it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache
from logging import getLogger
from typing import Any

from polarmap.clouds.limits import WorkerSpec
from polarmap.clouds.prices import Cost, PersistentUsage, estimate_map_cost, estimate_persistent_cost
from polarmap.report import Report, TaskReport, TaskState, too_many_on_machine
from polarmap.run.tasks import Task, TaskTable
from polarmap.worker.processes import LIVENESS_INTERVAL

LOG = getLogger("polarmap")


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
    return Report(**facts, tasks=_task_reports(tasks), is_final=False)


def final_report(
    facts: Mapping[str, Any],
    table: Callable[[], TaskTable],
    worker: WorkerSpec | None,
    stay: PersistentUsage | None,
) -> Report:
    """That of a map which is over.

    table : makes that of its tasks.
    worker, stay : what tasks were given, and what workers that stay have cost, if that is known.
    """
    reports = _task_reports(table())
    paid = None if worker is None else cost_of(worker, reports, facts["seconds"], stay)
    return Report(**facts, tasks=reports, cost=paid)


def _task_reports(tasks: TaskTable) -> tuple[TaskReport, ...]:
    """Return what has become of each task. While a map runs, its thread may be changing the table."""
    return tuple(_task_report(index, task) for index, task in enumerate(tasks))


def _task_report(index: int, task: Task) -> TaskReport:
    state = task.state
    has_result = state in (TaskState.ARRIVED, TaskState.SURPLUS)
    return TaskReport(
        index=index,
        state=str(state),
        arrived=task.came if has_result else None,
        seconds=task.seconds if has_result else None,
        attempts=len(task.submitted),
        failures=tuple(dict.fromkeys(map(str, tuple(task.failures)))),
        launched=task.submitted[0] if task.submitted else None,
        began=task.first_start,
        host=task.host,
    )


def warn_of_machine(tasks: TaskTable, n: int, k: int) -> None:
    """Log that a machine runs more tasks of a map than may be missing, once in this process for each text."""
    found = too_many_on_machine([task.host for task in tasks], n, k) if len(tasks) == n else ""
    if found:
        _warn_once(found)


@lru_cache(256)
def _warn_once(text: str) -> None:
    LOG.warning("%s", text)


def cost_of(
    worker: WorkerSpec, tasks: Sequence[TaskReport], seconds: float, stay: PersistentUsage | None
) -> Cost | None:
    """Workers that stay are paid whatever they do; else every attempt is, of a map of so many seconds.

    One that never reported is paid until its worker sees that nobody waits.
    """
    if stay is not None:
        return estimate_persistent_cost(worker, stay)
    unheard = seconds + LIVENESS_INTERVAL
    paid = [task.seconds or unheard - (task.launched or 0.0) for task in tasks for _ in range(task.attempts)]
    return estimate_map_cost(worker, paid, seconds)
