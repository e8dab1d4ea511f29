"""Group short items into batches, each of which is one task, and split a batch that is late or lost."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from itertools import groupby
from math import inf

from polarmap.driver.batches import (
    Batch,
    BatchOutcome,
    ItemSequence,
    QueuedBatchBlocks,
    split_outcome_by_item,
)
from polarmap.driver.collector import Collector
from polarmap.driver.lateness import MIN_BACKUP_SECONDS, LatenessRule, LateTracker
from polarmap.driver.policies import BackupPolicy, SchedulingPolicy
from polarmap.driver.task_table import TaskTable
from polarmap.executors.interface import AttemptId, Failure, Outcome
from polarmap.executors.resolved import NO_FAULTS, ResolvedExecutor
from polarmap.worker.environment import count_available_cores
from polarmap.worker.task_functions import MAX_BATCH_SECONDS
from polarmap.worker.task_records import Fault

# Keep at most this many batches in flight (submitted but not finished). The remaining items stay in the queue
# and can be grouped into larger batches if items turn out to be short.
MAX_BATCHES = 128
# The maximum number of batches in flight before a worker has started any. Each running batch allows two more.
N_INITIAL_BATCHES = 8
# A batch has at most as many items as are expected to finish within this time.
TARGET_BATCH_SECONDS = 0.02
# A batch should run for at least this long, which is about ten times the time it takes to send it.
MIN_BATCH_SECONDS = 0.002
# A batch that has run for this long is cancelled, and its items become separate tasks.
LATE_BATCH_SECONDS = 4 * MAX_BATCH_SECONDS
# The maximum number of items in a batch. Each item waits for the items before it in the batch, so in a large
# batch one slow item delays many others.
MAX_BATCH_ITEMS = 1024
# Remember the run times of at most this many item classes. Items of the same class run about equally long.
MAX_ITEM_CLASSES = 64
# Divide the queued items into at least this many batches per core, unless the batches become too short.
BATCHES_PER_CORE = 4
# Injected faults (for tests) that affect a single item rather than its whole batch.
SINGLE_ITEM_FAULTS = "raise", "garbage"
# Defines when an item is late. The first argument is the number of items, which is not known in advance:
# `LateTracker` replaces the 1 with the number of items seen so far.
OPEN_ENDED_RULE = LatenessRule(1, min_seconds=MIN_BACKUP_SECONDS)


class BatchPolicy(SchedulingPolicy):
    """A scheduling policy for many items (calls of f) that groups short items into batches, one per task.

    The run time of an item is estimated from earlier items of the same class. The first items of a class run
    alone, i.e. each is a task. If the worker of a batch is lost, each item of the batch is retried alone. The
    loss does not count against the retries of an item, because any of the items may have killed the worker.
    A batch that runs for too long is cancelled, and its items are run alone, so that no item waits for an
    item that sleeps or is blocked. Once no item is queued, late items get backups (second attempts).

    Parameters
    ----------
    blocks : QueuedBatchBlocks
        Stores the batch of each task that the policy forms.
    allow_batches : bool
        Whether short items may share a task.
    max_in_flight : int
        The maximum number of tasks in flight. Used only if items may not share tasks.
    max_backups : int
        The number of backups that a late item may get.
    faults : mapping from int to Fault
        The faults to inject, for tests, by the position of the item in the order of submission.
    """

    def __init__(
        self,
        blocks: QueuedBatchBlocks,
        allow_batches: bool,
        max_in_flight: int,
        max_backups: int,
        faults: Mapping[int, Fault] = NO_FAULTS,
    ) -> None:
        super().__init__(range(0))
        self._blocks, self._allow_batches = blocks, allow_batches
        self._n_submitted = 0
        self._unbatchable_submissions = {
            submission_index for submission_index, fault in faults.items() if fault.kind in SINGLE_ITEM_FAULTS
        }
        self._max_in_flight = MAX_BATCHES if allow_batches else max_in_flight
        self._queue = deque[Batch]()
        self._single_items = deque[Batch]()  # the items of late batches, which start before the queue
        self._multi_item_tasks = set[int]()  # unfinished tasks with several items
        self._seconds_by_class: dict[Hashable, float] = {}  # item class -> estimated run time of an item
        self._backup_policy = BackupPolicy(0, OPEN_ENDED_RULE, max_backups)
        self.late_tracker = self._backup_policy.late_tracker
        # The references are weak, so a tracker lives only while it is in use or among the most recent ones.
        self._trackers_by_class = weakref.WeakValueDictionary[Hashable, LateTracker[AttemptId]]()
        self._recent_trackers = deque[LateTracker[AttemptId]](maxlen=MAX_ITEM_CLASSES)

    # -- the queue: any thread ---------------------------------------------------------------------

    @property
    def has_queued_items(self) -> bool:
        """Whether the queue contains items. Items of late batches are in another queue and do not count."""
        return bool(self._queue)

    @property
    def has_items(self) -> bool:
        """Whether any item is queued or belongs to a task."""
        with self._blocks.lock:
            return bool(self._queue or self._single_items) or self._blocks.has_items

    def count_items(self) -> int:
        """Return the number of items that are queued or belong to a task."""
        with self._blocks.lock:
            batches = [*self._blocks.batches.values(), *self._single_items, *self._queue]
        return sum(len(batch.indices) for batch in batches)

    def limit_in_flight(self, max_in_flight: int) -> None:
        """Keep at most this many tasks submitted but unfinished from now on, not counting backups."""
        self._max_in_flight = min(self._max_in_flight, max_in_flight)

    def collect_sequences(self) -> list[ItemSequence]:
        """Return all item sequences with items that are queued or belong to a task."""
        with self._blocks.lock:
            batches = [*self._blocks.batches.values(), *self._single_items, *self._queue]
        return list(dict.fromkeys(batch.items for batch in batches))

    def enqueue_items(self, items: ItemSequence, item_indices: Sequence[int]) -> None:
        """Append the given items to the queue."""
        items.record_submission(item_indices, self._n_submitted)
        self._n_submitted += item_indices[-1] + 1 - item_indices[0]

        def is_batchable(item_index: int) -> bool:
            return isinstance(items.blocks[item_index], bytes)

        if all(map(is_batchable, item_indices)):  # Keep a range, which is fast to slice.
            self._append_to_queue(items, item_indices)
            return
        for is_group_batchable, group in groupby(item_indices, is_batchable):
            group_indices = list(group)
            chunks = [group_indices] if is_group_batchable else [[index] for index in group_indices]
            self._queue.extend(Batch(items, chunk) for chunk in chunks)

    def _append_to_queue(self, items: ItemSequence, item_indices: Sequence[int]) -> None:
        """Append items that may share a task to the queue.

        If their indices continue the last range in the queue, that range is extended.
        """
        if self._queue and self._queue[-1].items is items and isinstance(item_indices, range):
            last_indices = self._queue[-1].indices
            if isinstance(last_indices, range) and last_indices.stop == item_indices.start:
                self._queue.pop()
                item_indices = range(last_indices.start, item_indices.stop)
        self._queue.append(Batch(items, item_indices))

    def remove_queued_items(
        self, select_items: Callable[[ItemSequence, Sequence[int]], Collection[int]]
    ) -> list[Batch]:
        """Remove the selected items from the queue and return them in batches.

        select_items : called as `select_items(items, item_indices)` for each queued batch; returns the
            indices of the items to remove.
        """
        removed_batches, queued_batches, self._queue = list[Batch](), self._queue, deque()
        for items, item_indices in queued_batches:
            removed_indices = select_items(items, item_indices)
            if removed_indices:
                removed_batches.append(Batch(items, list(removed_indices)))
            if len(removed_indices) < len(item_indices):
                kept_indices = [index for index in item_indices if index not in removed_indices]
                self._queue.append(Batch(items, kept_indices))
        return removed_batches

    def requeue_all_items(self, task_table: TaskTable) -> None:
        """Discard all tasks and put their items back at the front of the queue."""
        batches = [*self._blocks.batches.values(), *self._single_items]
        self._queue.extendleft(reversed([batch for batch in batches if batch.indices]))
        self._single_items.clear()
        for task_index in task_table.task_indices():
            self.discard_task(task_table, task_index)

    # -- what starts ---------------------------------------------------------------------------

    def choose_tasks_to_start(
        self, task_table: TaskTable, collector: Collector, elapsed_seconds: float
    ) -> Sequence[int]:
        """Return the tasks to start now: new tasks made of queued items, or else backups of late tasks."""
        with self._blocks.lock:
            late_batches = [
                task
                for task in sorted(self._multi_item_tasks)
                if self._compute_batch_late_time(task_table, task) <= elapsed_seconds
            ]
            for task in late_batches:
                self._split_late_batch(task_table, task)
            while batch := self._pop_next_batch(task_table):
                self._add_task(task_table, batch)
            has_waiting_items = bool(self._queue or self._single_items)
        if task_table.held_back or task_table.queued or has_waiting_items:
            return sorted(task_table.held_back)
        return self._backup_policy.choose_tasks_to_start(task_table, collector, elapsed_seconds)

    def seconds_until_next_start(self, task_table: TaskTable, elapsed_seconds: float) -> float:
        """Return the seconds until a running task may become late, so that its batch is split or backed up.

        While a submitted task still waits for a worker, no backups are started. As this task may start at any
        moment, the result is then at most `MIN_BACKUP_SECONDS`.
        """
        late_times = (self._compute_batch_late_time(task_table, task) for task in self._multi_item_tasks)
        seconds_until_late = min(late_times, default=inf) - elapsed_seconds
        if task_table.queued:
            return min(seconds_until_late, MIN_BACKUP_SECONDS)
        backup_seconds = self._backup_policy.seconds_until_next_start(task_table, elapsed_seconds)
        return min(seconds_until_late, backup_seconds)

    def _add_task(self, task_table: TaskTable, batch: Batch) -> None:
        task_index, is_single = self._blocks.add_batch(batch), len(batch.indices) == 1
        if not is_single:
            self._multi_item_tasks.add(task_index)
        task_table.add_task(task_index, self._get_late_tracker(batch.items) if is_single else None)

    def _compute_batch_late_time(self, task_table: TaskTable, task_index: int) -> float:
        """Return the time at which a batch becomes late, or inf while no worker has started it."""
        return min(task_table[task_index].dispatched_at.values(), default=inf) + LATE_BATCH_SECONDS

    def _split_late_batch(self, task_table: TaskTable, task_index: int) -> None:
        """Cancel the task of a batch that has run for too long, and queue each of its items separately."""
        items, item_indices = self._blocks.batches[task_index]
        if item_indices:
            self._record_run_time(items.item_class, LATE_BATCH_SECONDS / len(item_indices))
        self._single_items.extend(Batch(items, [item_index]) for item_index in item_indices)
        self.discard_task(task_table, task_index)

    def _pop_next_batch(self, task_table: TaskTable) -> Batch | None:
        """Remove and return the items of the next task.

        Returns None if no item is queued, or if enough tasks are in flight (submitted but not finished). An
        item that gets its own task also waits until no batch is running. Otherwise it could start before the
        remaining items of a batch that is split, although it may depend on one of them.
        """
        queue = self._single_items or self._queue
        if not queue:
            return None
        items, item_indices = queue[0]
        max_items = self._compute_max_batch_size(items, item_indices)
        max_in_flight, n_running = self._max_in_flight, len(task_table.in_flight) - len(task_table.queued)
        # If items are or may be short, submit only a few batches at first, so that later ones can be larger.
        if self._allow_batches and (max_items > 1 or items.item_class not in self._seconds_by_class):
            max_in_flight = min(max_in_flight, 2 * n_running + N_INITIAL_BATCHES)
        n_open_tasks = len(task_table.in_flight) + len(task_table.held_back)
        if n_open_tasks >= max_in_flight:
            return None
        if self._multi_item_tasks and max_items == 1:
            return None
        queue.popleft()
        if self._unbatchable_submissions:
            max_items = self._count_items_before_fault(items, item_indices[:max_items])
        if len(item_indices) > max_items:
            queue.appendleft(Batch(items, item_indices[max_items:]))
        return Batch(items, item_indices[:max_items])

    def _compute_max_batch_size(self, items: ItemSequence, item_indices: Sequence[int]) -> int:
        """Return how many of these items may share a task, based on the typical run time of their class."""
        item_seconds = self._seconds_by_class.get(items.item_class)
        if not (self._allow_batches and item_seconds):
            return 1
        n_per_batch = len(item_indices) // (BATCHES_PER_CORE * count_available_cores())
        fair_size = max(n_per_batch, self.compute_min_batch_size(items))
        return max(1, min(MAX_BATCH_ITEMS, int(TARGET_BATCH_SECONDS / item_seconds), fair_size))

    def compute_min_batch_size(self, items: ItemSequence) -> int:
        """Return the number of items with which a batch runs for MIN_BATCH_SECONDS, or 0 if unknown."""
        item_seconds = self._seconds_by_class.get(items.item_class)
        return int(MIN_BATCH_SECONDS / item_seconds) if item_seconds and self._allow_batches else 0

    def _count_items_before_fault(self, items: ItemSequence, item_indices: Sequence[int]) -> int:
        """Return how many of these items may share a task in view of the faults that are injected for tests.

        An item with such a fault must run alone, so the task ends before it, unless it is the first item.
        """
        faulty_offsets = (
            offset
            for offset, item_index in enumerate(item_indices)
            if items.get_submission_index(item_index) in self._unbatchable_submissions
        )
        return max(1, next(faulty_offsets, len(item_indices)))

    def _get_late_tracker(self, items: ItemSequence) -> LateTracker[AttemptId]:
        """Return the tracker of late attempts for the class of `items`, and mark it as recently used."""
        tracker = self._trackers_by_class.get(items.item_class)
        if tracker is None:
            tracker = LateTracker(OPEN_ENDED_RULE, is_open_ended=True)
            self._trackers_by_class[items.item_class] = tracker
            self._backup_policy.add_late_tracker(tracker)
        if tracker in self._recent_trackers:
            self._recent_trackers.remove(tracker)
        self._recent_trackers.append(tracker)
        return tracker

    # -- as tasks end --------------------------------------------------------------------------

    def split_outcome(self, task_table: TaskTable, outcome: Outcome) -> BatchOutcome | None:
        """Split the outcome of a task into outcomes of its items. Return None if the task was discarded.

        If a batch failed as a whole, its items become separate tasks and have no outcome yet. Items that the
        worker did not process are queued again.
        """
        with self._blocks.lock:
            task_index = outcome.task
            batch = self._blocks.batches.get(task_index)
            self._multi_item_tasks.discard(task_index)
            if batch is None or not batch.indices:
                self.discard_task(task_table, task_index)
                return None
            batch_outcome = split_outcome_by_item(batch, outcome)
            if outcome.failure is None:
                self._record_processed_items(batch, batch_outcome, outcome)
            elif len(batch.indices) > 1:
                for item_index, failure in batch_outcome.failures:
                    self.split_off_item(task_table, task_index, item_index, failure, is_batch_loss=True)
                return BatchOutcome(batch.items)
            return batch_outcome

    def _record_processed_items(self, batch: Batch, batch_outcome: BatchOutcome, outcome: Outcome) -> None:
        n_processed = len(batch.indices) - len(batch_outcome.unprocessed)
        self._record_run_time(batch.items.item_class, outcome.seconds / n_processed)
        if batch_outcome.unprocessed:
            self._queue.appendleft(Batch(batch.items, batch_outcome.unprocessed))
            self._blocks.batches[outcome.task] = Batch(batch.items, batch.indices[:n_processed])

    def split_off_item(
        self,
        task_table: TaskTable,
        task_index: int,
        item_index: int,
        failure: Failure,
        is_batch_loss: bool = False,
    ) -> None:
        """Move a failed item from its batch to a new task, so that it is retried alone.

        Parameters
        ----------
        task_table : TaskTable
            The table of the job's tasks, to which the new task is added.
        task_index, item_index : int
            The task of the batch, and the item.
        failure : Failure
            Why the item failed.
        is_batch_loss : bool
            Whether the whole batch failed. In that case, the attempt does not count against the item's
            retries, because any other item may have killed the worker.
        """
        items, item_indices = self._blocks.batches[task_index]
        new_task_index = self._blocks.add_batch(Batch(items, [item_index]))
        late_tracker = self._get_late_tracker(items)
        task_table.split_off_task(task_index, new_task_index, failure, late_tracker, is_batch_loss)
        self._blocks.batches[task_index] = Batch(
            items, [other for other in item_indices if other != item_index]
        )
        if len(item_indices) == 1:
            self.discard_task(task_table, task_index)

    def get_batch(self, task_index: int) -> Batch:
        """Return the batch of a task, which must not have been discarded."""
        return self._blocks.batches[task_index]

    def discard_task(self, task_table: TaskTable, task_index: int) -> None:
        """Discard all state of a task whose outcome is no longer needed."""
        with self._blocks.lock:
            self._blocks.batches.pop(task_index, None)
        self._multi_item_tasks.discard(task_index)
        task_table.discard_task(task_index)

    def _record_run_time(self, item_class: Hashable, run_seconds: float) -> None:
        earlier_seconds = self._seconds_by_class.pop(item_class, run_seconds)
        self._seconds_by_class[item_class] = (earlier_seconds + run_seconds) / 2
        if len(self._seconds_by_class) > MAX_ITEM_CLASSES:  # Forget the least recently used class.
            del self._seconds_by_class[next(iter(self._seconds_by_class))]


def can_batch_items(executor: ResolvedExecutor, backups: int, retries: int) -> bool:
    """Return whether short items may share a task.

    Batching requires backups and retries, because the items of a lost or late batch are rerun one by one.
    """
    return executor.can_batch and backups > 0 and retries > 0
