"""Collect the results of items that are sent to workers in batches.

An item is one call of the mapped function. It may be run more than once, because late items get backups
(second attempts) and failed items are retried. The first result of an item is used.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial

from polarmap.driver.batch_policy import BatchPolicy
from polarmap.driver.batches import BatchBlocks, BatchOutcome, split_outcome_by_item
from polarmap.driver.collector import JobTimer
from polarmap.driver.item_results import ItemResults
from polarmap.driver.task_table import TaskTable
from polarmap.driver.uncoded_collector import FirstResultCollector
from polarmap.executors.interface import Failure, Outcome


class BatchCollector(FirstResultCollector):
    """Base class of collectors for maps over many small items, several of which may share a task.

    Parameters
    ----------
    blocks : BatchBlocks
        The batch of each task.
    results : ItemResults
        Receives the result of each item. If it keeps exceptions, it also receives the failures of items that
        are not retried. Otherwise such a failure ends the map.
    task_table : TaskTable
        The state of the map's tasks.
    timer : JobTimer
        The time since the start of the map.
    """

    def __init__(
        self, blocks: BatchBlocks, results: ItemResults, task_table: TaskTable, timer: JobTimer
    ) -> None:
        super().__init__(results.keep_exceptions, task_table, timer)
        self._blocks, self._results = blocks, results
        # Item index -> failure, for items that failed while other items of their batch returned.
        self._failure_by_item: dict[int, Failure] = {}

    def add_outcome(self, outcome: Outcome) -> None:
        """Store the result of each item that has none yet, and schedule a retry of each item that failed."""
        batch_outcome = self._split_outcome(outcome)
        if batch_outcome is None:
            return
        self._results.add_results(batch_outcome.results)
        if outcome.failure is None:
            self._retry_items(outcome, batch_outcome.failures)

    @abstractmethod
    def _split_outcome(self, outcome: Outcome) -> BatchOutcome | None:
        """Return the outcome of each item of a task, or None if the task is no longer needed."""

    @abstractmethod
    def _retry_items(self, outcome: Outcome, failures: Sequence[tuple[int, Failure]]) -> None:
        """Schedule a retry of the items that failed in a batch whose other items returned."""

    @property
    def has_sufficient_results(self) -> bool:
        """Whether every item has a result, or has failed after all its retries."""
        return self._results.is_complete

    def raise_if_f_always_fails(self) -> None:
        """Raise the mapped function's exception if it fails in every task and no item is finished yet."""
        if not self._results.values:
            super().raise_if_f_always_fails()

    def _get_unfinished_items(self, task_index: int) -> list[int]:
        return [item for item in self._blocks.batches[task_index].indices if item not in self._results.values]

    def _accept_failure(self, task_index: int, failure: Failure) -> None:
        """Store a failure for each unfinished item of a task: the item's own failure, or else `failure`."""
        for item_index in self._get_unfinished_items(task_index):
            if (item_failure := self._failure_by_item.get(item_index)) is not None:
                self._results.add_failure([item_index], item_failure)
        if remaining_items := self._get_unfinished_items(task_index):
            self._results.add_failure(remaining_items, failure)

    def _label_failure(self, task_index: int, failure: Failure) -> str:
        """Return a label that names the items with this failure, for use in an exception message."""
        item_indices = self._blocks.batches[task_index].indices
        failed_items = [index for index in item_indices if self._failure_by_item.get(index) is failure]
        return self._results.label_items(failed_items or item_indices)


class FixedBatchCollector(BatchCollector):
    """A collector for batches of items that are formed before the map starts.

    If an item fails, its whole batch is retried.
    """

    _n_failed_tasks = 0

    @property
    def n_results(self) -> int:
        """The number of tasks whose items all have a result, or have failed after all their retries."""
        return len(self.task_table.arrived) + self._n_failed_tasks

    def _split_outcome(self, outcome: Outcome) -> BatchOutcome:
        return split_outcome_by_item(self._blocks.batches[outcome.task], outcome)

    def _retry_items(self, outcome: Outcome, failures: Sequence[tuple[int, Failure]]) -> None:
        """Retry the whole task, unless each of its items has a result by now.

        Another attempt of the same task may have returned the results that are missing here.
        """
        task_index, record = outcome.task, self.task_table[outcome.task]
        if record.has_result and record.result_attempt == outcome.attempt:
            pending_failures = [failure for failure in failures if failure[0] not in self._results.values]
            if pending_failures:
                self._failure_by_item.update(pending_failures)
                self.task_table.reject_result(task_index, pending_failures[0][1])
        elif not record.has_result and not self._get_unfinished_items(task_index):
            self.task_table.restore_result(task_index)

    def _accept_failure(self, task_index: int, failure: Failure) -> None:
        super()._accept_failure(task_index, failure)
        self._n_failed_tasks += 1


class QueuedBatchCollector(BatchCollector):
    """A collector for batches that a `BatchPolicy` forms while the map runs.

    An item that fails while other items of its batch return becomes a separate task. In reports, each item
    counts as a task.

    Parameters
    ----------
    policy : BatchPolicy
        Forms the batches.
    blocks, results, task_table, timer
        As for `BatchCollector`.
    """

    def __init__(
        self,
        policy: BatchPolicy,
        blocks: BatchBlocks,
        results: ItemResults,
        task_table: TaskTable,
        timer: JobTimer,
    ) -> None:
        super().__init__(blocks, results, task_table, timer)
        self._policy = policy

    @property
    def n_results(self) -> int:
        """The number of items that have a result, or have failed after all their retries."""
        return len(self._results.values)

    @property
    def recovery_threshold(self) -> int:
        """The number of required results: one per item."""
        return self._results.n_items

    def poll_interval(self) -> float:
        """Return the seconds until the next poll.

        This is 0 if no task has been formed yet or if the map is complete. Otherwise it is inf, because
        there is nothing to do before a task finishes.
        """
        return super().poll_interval() if len(self.task_table) else 0.0

    def make_report_table_builder(self) -> Callable[[], TaskTable]:
        """Return a function that builds a task table in which each item counts as a task."""
        items_by_task = {task: batch.indices for task, batch in self._blocks.batches.copy().items()}
        return partial(self.task_table.build_item_table, items_by_task, self._results.n_items)

    def _split_outcome(self, outcome: Outcome) -> BatchOutcome | None:
        return self._policy.split_outcome(self.task_table, outcome)

    def _retry_items(self, outcome: Outcome, failures: Sequence[tuple[int, Failure]]) -> None:
        for item_index, failure in failures:
            self._policy.split_off_item(self.task_table, outcome.task, item_index, failure)
