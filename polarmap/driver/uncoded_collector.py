"""The first result of each task, as it is: all that a map without a code needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import inf
from typing import Any

from polarmap.driver.batches import BatchPolicy
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
from polarmap.executors.interface import Function, JobSpec, Outcome, TaskBlocks
from polarmap.worker.pytree import Array
from polarmap.worker.task_records import OutputSpec

OnResults = Callable[[Sequence[tuple[int, bytes | Array]]], None]


class UncodedCollector(EveryTaskCollector):
    """Over when each task has an outcome that counts: that of the attempt which returned first.

    Parameters
    ----------
    on_outcome : is told of each outcome that counts.
    accept_failures : whether the failure of a task that is not tried again counts as its outcome, or ends the
        map.
    label_task : how the caller of the map calls a task, in what is said of an exception.
    """

    def __init__(
        self,
        on_outcome: Callable[[Outcome], None],
        accept_failures: bool,
        label_task: Callable[[int], str],
        task_table: TaskTable,
        timer: JobTimer,
    ) -> None:
        super().__init__(task_table, timer)
        self._on_outcome, self._accept_failures, self._label_task = on_outcome, accept_failures, label_task
        self._finished: set[int] = set()

    def add_outcome(self, outcome: Outcome) -> None:
        """Take in what became of an attempt."""
        if outcome.failure is None and outcome.task not in self._finished:
            self._finish_task(outcome)

    def _finish_task(self, outcome: Outcome) -> None:
        self._finished.add(outcome.task)
        self._on_outcome(outcome)

    @property
    def n_results(self) -> int:
        """How many there are, failures that count among them."""
        return len(self._finished)

    @property
    def has_sufficient_results(self) -> bool:
        """Whether there is an outcome of every task."""
        return self.n_results == len(self.task_table)

    def raise_if_f_always_fails(self) -> None:
        """Raise what f raises if it does so everywhere, unless failures count."""
        if not self._accept_failures:
            super().raise_if_f_always_fails()

    def poll_interval(self) -> float:
        """Nothing else is waited for; and nothing at all where failures have completed the outcomes."""
        return 0.0 if self.has_sufficient_results else inf

    def on_tasks_exhausted(self) -> None:
        """Failures count, or the first ends the map: what f raised, or that a worker was lost."""
        for task_index in sorted(self.task_table.failed):
            record, caller_index = self.task_table[task_index], self._to_caller_task_index(task_index)
            failure = record.last_raised_failure or record.last_failure
            if self._accept_failures:
                self.task_table.failed.discard(task_index)
                self._finish_task(Outcome(caller_index, record.n_attempts - 1, [], (), failure, 0.0))
            elif failure is not None and failure.cause is not None:
                error = build_failure_exception(self._label_task(caller_index), failure)
                raise add_other_failures_note(error, failure, self.make_report_table_builder()())
        if self.task_table.failed:
            reported_tasks = self.make_report_table_builder()()
            raise NotDecodableError(
                format_too_few_results_message(reported_tasks, self.recovery_threshold)
            ) from reported_tasks.first_exception

    def _to_caller_task_index(self, task_index: int) -> int:
        """The number of a task as the caller of the map counts."""
        return task_index


class BatchCollector(UncodedCollector):
    """The same of items, of which a task may be several.

    batch_policy : policy and blocks of the map.
    n_items : how many items there are.
    on_results : is told what some have given that had given nothing before, by number.
    """

    def __init__(
        self, batch_policy: BatchPolicy, n_items: int, on_results: OnResults, *collector_arguments: Any
    ) -> None:
        super().__init__(*collector_arguments)
        self._batch_policy, self._n_items, self._on_results = batch_policy, n_items, on_results

    def add_outcome(self, outcome: Outcome) -> None:
        """Take in what became of the items of an attempt; those that failed are tried again alone."""
        batch_outcome = self._batch_policy.split_outcome_by_item(self.task_table, outcome)
        if batch_outcome is None:
            return
        _, results, failures = batch_outcome
        new_results = [result for result in results if result[0] not in self._finished]
        self._finished.update(item_index for item_index, _ in new_results)
        self._on_results(new_results)
        for item_index, failure in failures if outcome.failure is None else ():
            self._batch_policy.split_off_item(self.task_table, outcome.task, item_index, failure)

    @property
    def recovery_threshold(self) -> int:
        """How many items there are."""
        return self._n_items

    @property
    def has_sufficient_results(self) -> bool:
        """Whether there is an outcome of every item."""
        return self.n_results == self._n_items

    def poll_interval(self) -> float:
        """At first not at all: the policy is still to say what starts."""
        return super().poll_interval() if len(self.task_table) else 0.0

    def make_report_table_builder(self) -> Callable[[], TaskTable]:
        """Each item as a task."""
        items_by_task = {
            task_index: item_indices
            for task_index, (_, item_indices) in self._batch_policy.batches.copy().items()
        }
        return partial(self.task_table.build_item_table, items_by_task, self._n_items)

    def _to_caller_task_index(self, task_index: int) -> int:
        return self._batch_policy.batches[task_index][1][0]


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
    """Let `on_outcome` be told of the first result of f on every block, whatever it is; how they came about.

    `label_task` is how the caller calls a task; `max_backups`: that a late one may get; with
    `accept_failures` `on_outcome` is told of failures, too, that count in the place of results.
    """
    execution.check_backend_limits(blocks)
    job_spec = JobSpec(f, blocks, output_spec=output)
    make_collector = partial(UncodedCollector, on_outcome, accept_failures, label_task)
    policy = make_backup_policy(blocks.n, max_backups)
    return execution.execute(job_spec, policy, options, make_collector, context)[1]
