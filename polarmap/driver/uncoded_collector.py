"""Collect the results of maps without redundancy, in which every task has to return.

A task may have several attempts (runs), because of backups and retries. Its first result is used.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from math import inf

from polarmap.driver.collector import EveryTaskCollector, JobTimer
from polarmap.driver.events import JobContext
from polarmap.driver.failure_messages import (
    add_other_failures_note,
    build_failure_exception,
    format_too_few_results_message,
)
from polarmap.driver.map_execution import MapExecution
from polarmap.driver.options import MapOptions
from polarmap.driver.policies import make_backup_policy
from polarmap.driver.results import LazyReport
from polarmap.driver.task_table import TaskTable
from polarmap.errors import NotDecodableError
from polarmap.executors.interface import Failure, Function, JobSpec, Outcome, TaskBlocks
from polarmap.worker.task_records import OutputSpec


class FirstResultCollector(EveryTaskCollector):
    """Base class of collectors that use the first result of every task and do no decoding.

    Parameters
    ----------
    accept_failures : bool
        Whether a task may fail after all its retries. If not, such a failure ends the map.
    task_table : TaskTable
        The state of the map's tasks.
    timer : JobTimer
        The time since the start of the map.
    """

    def __init__(self, accept_failures: bool, task_table: TaskTable, timer: JobTimer) -> None:
        super().__init__(task_table, timer)
        self._accept_failures = accept_failures

    def raise_if_f_always_fails(self) -> None:
        """Raise the mapped function's exception if it fails for all tasks, unless failures are accepted."""
        if not self._accept_failures:
            super().raise_if_f_always_fails()

    def poll_interval(self) -> float:
        """Return the seconds until the next poll: 0 if the map is complete, otherwise inf."""
        return 0.0 if self.has_sufficient_results else inf

    def on_tasks_exhausted(self) -> None:
        """Accept the remaining task failures, or raise the first one if failures are not accepted."""
        for task_index in sorted(self.task_table.failed):
            record = self.task_table[task_index]
            failure = record.last_raised_failure or record.last_failure
            assert failure is not None
            if self._accept_failures:
                self.task_table.failed.discard(task_index)
                self._accept_failure(task_index, failure)
            elif failure.cause is not None:
                error = build_failure_exception(self._label_failure(task_index, failure), failure)
                raise add_other_failures_note(error, failure, self.make_report_table_builder()())
        if self.task_table.failed:
            reported_tasks = self.make_report_table_builder()()
            raise NotDecodableError(
                format_too_few_results_message(reported_tasks, self.recovery_threshold)
            ) from reported_tasks.first_exception

    @abstractmethod
    def _accept_failure(self, task_index: int, failure: Failure) -> None:
        """Record `failure` as the outcome of a task, or of all items in it without an outcome."""

    @abstractmethod
    def _label_failure(self, task_index: int, failure: Failure) -> str:
        """Return a label for the task, or its failed items, for use in an exception message."""


class UncodedCollector(FirstResultCollector):
    """A collector that passes the first result of each task to a callback. Tasks are not batches of items.

    Parameters
    ----------
    on_outcome : callable
        Called once with the outcome of each task.
    label_task : callable
        Called with a task index to get the label of the task for exception messages.
    accept_failures : bool
        Whether a task may fail after all its retries. If not, such a failure ends the map.
    task_table : TaskTable
        The state of the map's tasks.
    timer : JobTimer
        The time since the start of the map.
    """

    def __init__(
        self,
        on_outcome: Callable[[Outcome], None],
        label_task: Callable[[int], str],
        accept_failures: bool,
        task_table: TaskTable,
        timer: JobTimer,
    ) -> None:
        super().__init__(accept_failures, task_table, timer)
        self._on_outcome, self._label_task = on_outcome, label_task
        self._finished: set[int] = set()

    @property
    def n_results(self) -> int:
        """The number of tasks with a final outcome, including accepted failures."""
        return len(self._finished)

    def add_outcome(self, outcome: Outcome) -> None:
        """Pass the outcome of an attempt to `on_outcome` if it is the first result of its task."""
        if outcome.failure is None and outcome.task not in self._finished:
            self._finish_task(outcome)

    def _finish_task(self, outcome: Outcome) -> None:
        self._finished.add(outcome.task)
        self._on_outcome(outcome)

    @property
    def has_sufficient_results(self) -> bool:
        """Whether every task has a final outcome."""
        return len(self._finished) == len(self.task_table)

    def _accept_failure(self, task_index: int, failure: Failure) -> None:
        n_attempts = self.task_table[task_index].n_attempts
        self._finish_task(Outcome(task_index, n_attempts - 1, [], (), failure, 0.0))

    def _label_failure(self, task_index: int, failure: Failure) -> str:
        return self._label_task(task_index)


def execute_uncoded(
    execution: MapExecution,
    f: Function,
    blocks: TaskBlocks,
    options: MapOptions,
    context: JobContext,
    on_outcome: Callable[[Outcome], None],
    label_task: Callable[[int], str] = "task {}".format,
    *,
    max_backups: int = 0,
    output: OutputSpec | None = None,
    accept_failures: bool = False,
) -> LazyReport:
    """Run f on every block and return the report.

    Parameters
    ----------
    execution : MapExecution
        The job to run.
    f : callable
        The function that workers call on each block.
    blocks : TaskBlocks
        The input blocks of the tasks.
    options : MapOptions
        The options of the map.
    context : JobContext
        The observers of the map, and the means to cancel it.
    on_outcome : callable
        Called with the outcome of the first attempt of each task that returns.
    label_task : callable
        Called with a task index to get the label of the task for exception messages.
    max_backups : int
        The maximum number of backups of a late task.
    output : OutputSpec, optional
        Where workers store the results.
    accept_failures : bool
        Whether a task may fail. `on_outcome` is then called with the failure.
    """
    execution.check_backend_limits(blocks)
    job_spec = JobSpec(f, blocks, output_spec=output, name=execution.job_name)
    make_collector = partial(UncodedCollector, on_outcome, label_task, accept_failures)
    policy = make_backup_policy(blocks.n, max_backups)
    return execution.execute(job_spec, policy, options, make_collector, context)[1]
