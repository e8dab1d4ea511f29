"""Build the object that a map returns: its results and a report about the run.

The report is built when it is first read, so maps whose report is never read do not pay for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from logging import getLogger
from typing import Any, TypeVar, overload

from polarmap.blocks.equal import concatenate_results
from polarmap.clouds.limits import WorkerSpec
from polarmap.clouds.prices import Cost, PersistentUsage, estimate_map_cost, estimate_persistent_cost
from polarmap.driver.task_table import TaskRecord, TaskTable
from polarmap.report import Report, TaskReport, TaskState, format_machine_overload_message
from polarmap.worker.processes import LIVENESS_INTERVAL

LOG = getLogger("polarmap")

T = TypeVar("T")


class LazyReport:
    """A wrapper around a report that is built when it is first read or pickled.

    Parameters
    ----------
    build_report : callable
        Called once without arguments to build the report.
    """

    def __init__(self, build_report: Callable[[], Report]) -> None:
        self._build_report = build_report

    @cached_property
    def report(self) -> Report:
        """The report, which is built on first access."""
        return self._build_report()

    def __getstate__(self) -> dict[str, Report]:
        return {"report": self.report}


class CodedResult(Sequence[T]):
    """The k results of a coded map, as a sequence in the order of the blocks.

    Parameters
    ----------
    results : sequence
        The results.
    lazy_report : LazyReport
        The report of the map, which is built when `report` is first read.
    """

    def __init__(self, results: Sequence[T], lazy_report: LazyReport) -> None:
        self._results, self._lazy_report = list(results), lazy_report

    @property
    def report(self) -> Report:
        """The report of the map, with task times, decoded blocks and their accuracy."""
        return self._lazy_report.report

    def __len__(self) -> int:
        return len(self._results)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        return self._results[index]

    def __iter__(self) -> Iterator[T]:
        return iter(self._results)

    def __repr__(self) -> str:
        return f"<CodedResult of {len(self)} blocks, {len(self.report.recovered)} decoded>"

    def concatenate(self, axis: int = 0) -> Any:
        """Return the results joined into one array.

        Parameters
        ----------
        axis : int
            The axis along which to join the results. Scalars are stacked.

        Raises
        ------
        CodeError
            If the results are containers rather than arrays, or if their shapes do not match.
        """
        return concatenate_results(self._results, axis)


def build_interim_report(
    report_fields: Mapping[str, Any], task_table: TaskTable, worker_spec: WorkerSpec | None = None
) -> Report:
    """Return the report of a running map, including its estimated cost if it ended now.

    report_fields : all report fields except the tasks and the cost.
    worker_spec : the platform of workers that are billed for each task, or None if the cost is unknown.
    """
    task_reports, cost = _build_task_reports(task_table), None
    if worker_spec is not None:
        cost = estimate_cost(worker_spec, task_reports, report_fields["seconds"], None)
    return Report(**report_fields, tasks=task_reports, cost=cost, is_final=False)


def build_final_report(
    report_fields: Mapping[str, Any],
    make_task_table: Callable[[], TaskTable],
    worker_spec: WorkerSpec | None,
    usage: PersistentUsage | None,
) -> Report:
    """Return the final report of a map, including its estimated cost.

    Parameters
    ----------
    report_fields : mapping
        All report fields except the tasks and the cost.
    make_task_table : callable
        Called with no arguments to build the task table.
    worker_spec : WorkerSpec or None
        The workers' platform, memory and cores, or None if their price is unknown.
    usage : PersistentUsage or None
        The billed time of persistent workers, or None if each task is billed separately.
    """
    task_reports = _build_task_reports(make_task_table())
    cost = None
    if worker_spec is not None:
        cost = estimate_cost(worker_spec, task_reports, report_fields["seconds"], usage)
    return Report(**report_fields, tasks=task_reports, cost=cost)


def _build_task_reports(task_table: TaskTable) -> tuple[TaskReport, ...]:
    """Return the report of each task. Safe to call while another thread is running the map."""
    return tuple(_build_task_report(task_index, record) for task_index, record in enumerate(task_table))


def _build_task_report(task_index: int, record: TaskRecord) -> TaskReport:
    state = record.state
    has_result = state in (TaskState.ARRIVED, TaskState.SURPLUS)
    return TaskReport(
        index=task_index,
        state=str(state),
        arrived=record.arrived_at if has_result else None,
        seconds=record.worker_seconds if has_result else None,
        attempts=len(record.submitted_at),
        failures=tuple(dict.fromkeys(map(str, tuple(record.failures)))),
        launched=record.submitted_at[0] if record.submitted_at else None,
        started=record.first_started_at,
        host=record.host,
        failed=record.ended_at if state is TaskState.FAILED else None,
    )


def warn_if_machine_overloaded(task_table: TaskTable, n: int, k: int) -> None:
    """Log a warning if one machine ran more tasks than the map could have lost.

    Each distinct warning is logged only once per process.
    """
    if len(task_table) != n:
        return
    warning_text = format_machine_overload_message([task.host for task in task_table], n, k)
    if warning_text:
        _log_warning_once(warning_text)


@lru_cache(256)
def _log_warning_once(message: str) -> None:
    LOG.warning("%s", message)


def estimate_cost(
    worker_spec: WorkerSpec, task_reports: Sequence[TaskReport], seconds: float, usage: PersistentUsage | None
) -> Cost | None:
    """Return the estimated cost of a map that took `seconds`, or None if the price is unknown.

    Persistent workers are billed for their whole run time, given by `usage`. Otherwise, each attempt (run of
    a task) is billed. An attempt whose result never arrived is billed until its worker notices the end of the
    map.
    """
    if usage is not None:
        return estimate_persistent_cost(worker_spec, usage)
    detected_at = seconds + LIVENESS_INTERVAL
    billed_seconds = [
        task.seconds or detected_at - (task.launched or 0.0)
        for task in task_reports
        for _ in range(task.attempts)
    ]
    return estimate_map_cost(worker_spec, billed_seconds, seconds)
