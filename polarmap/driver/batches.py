"""Short tasks of a kind go to a worker together: to send each by itself takes longer than to do it."""

from __future__ import annotations

import pickle
import weakref
from bisect import bisect_right
from collections import deque
from collections.abc import Hashable, Iterable, Mapping, Sequence
from concurrent.futures import CancelledError
from itertools import groupby
from math import inf
from typing import Any

import numpy as np

from polarmap.driver.collector import Collector
from polarmap.driver.lateness import MIN_BACKUP_SECONDS, LatenessRule, LateTracker
from polarmap.driver.policies import BackupPolicy, SchedulingPolicy
from polarmap.driver.task_table import TaskTable
from polarmap.executors.interface import (
    AttemptId,
    Failure,
    Outcome,
    TaskBlocks,
    read_only_view,
    to_failure,
)
from polarmap.executors.resolved import NO_FAULTS, ResolvedExecutor
from polarmap.worker.environment import count_available_cores
from polarmap.worker.pickled_values import unpickle_array
from polarmap.worker.pytree import Array
from polarmap.worker.segments import INLINE
from polarmap.worker.task_functions import MAX_BATCH_SECONDS
from polarmap.worker.task_records import ErrorInfo, Fault

MAX_BATCHES = 128  # that workers are given at a time: what waits may turn out to be short
N_INITIAL_BATCHES = 8  # that workers are given before any has begun; later two for each at work
TARGET_BATCH_SECONDS = 0.02  # that one takes, or not much longer
MIN_BATCH_SECONDS = 0.002  # that one takes at least, where as much waits: to send it takes a tenth of that
LATE_BATCH_SECONDS = 4 * MAX_BATCH_SECONDS  # after which the items of one are given anew, each by itself
MAX_BATCH_ITEMS = 1024  # items: each waits for those before it, and is late where one of these is
MAX_ITEM_CLASSES = 64  # of items of which it is remembered how long they take
BATCHES_PER_CORE = 4  # of what waits, where it is not much
SINGLE_ITEM_FAULTS = "raise", "garbage"  # that strike an item and not the whole batch
OPEN_ENDED_RULE = LatenessRule(1, min_seconds=MIN_BACKUP_SECONDS)  # no item is late before


class ItemSequence:
    """What is to be done by one function, in its order.

    item_class : the same for items that take about as long.
    context : what a worker needs besides the pickles of items.
    blocks : each as it travels: as a pickle, or as an array where it goes by itself.
    """

    def __init__(
        self, item_class: Hashable, context: Any = None, blocks: Iterable[bytes | Array] = ()
    ) -> None:
        self.item_class, self.context, self.blocks = item_class, context, list(blocks)
        # How much larger the number of an item is among all of a `BatchPolicy`: (first item, difference).
        self.position_offsets = list[tuple[int, int]]()

    def claim_items(self, item_indices: Sequence[int]) -> Sequence[int]:
        """Those of these that may begin, or have: nobody has cancelled them, and nobody can any more."""
        return item_indices

    def get_submission_index(self, item_index: int) -> int:
        """Return the number of an item among all items of a `BatchPolicy`, in the order of submission."""
        offsets = self.position_offsets
        return item_index + offsets[bisect_right(offsets, (item_index, inf)) - 1][1]


Batch = tuple[ItemSequence, Sequence[int]]  # some that come together


# What became of some items: by number, what each gave, as `unpickle_result` reads it, and why others gave
# nothing.
BatchOutcome = tuple[ItemSequence, Sequence[tuple[int, bytes | Array]], Sequence[tuple[int, Failure]]]


class BatchPolicy(TaskBlocks, SchedulingPolicy):
    """Items as the tasks of a run: which start when, alone or together; and their blocks.

    First attempts at items of a kind go together once it is known that these are short, if workers are
    processes here. Each has its own end; one that is lost with others is started again by itself, and the
    loss does not count against its retries. So an item that kills its worker each time kills one worker with
    a batch and then one with each attempt of its own. A batch
    that takes long is given up, and its items begin anew, each by itself: one that sleeps, or waits for
    another, holds up none behind it. Else those are started once more that are late, if none waits.

    Parameters
    ----------
    allow_batches : whether short ones go together.
    max_in_flight : items that its run is given at a time, where they do not.
    max_backups : that a late one may get.
    faults : injected into items, which are counted in the order of submission.

    Attributes
    ----------
    batches : dict from task to Batch
        What each task consists of, as long as anything is wanted of it.
    """

    structure, location = ("array",), INLINE

    def __init__(
        self,
        allow_batches: bool,
        max_in_flight: int,
        max_backups: int,
        faults: Mapping[int, Fault] = NO_FAULTS,
    ) -> None:
        SchedulingPolicy.__init__(self, 0)
        self._n_submitted = 0
        self._unbatchable_positions = {
            position for position, fault in faults.items() if fault.kind in SINGLE_ITEM_FAULTS
        }
        # by the position of an item that has a fault
        self._attempts_with_fault: dict[int, set[AttemptId]] = {}
        self._allow_batches = allow_batches
        self._max_in_flight = MAX_BATCHES if allow_batches else max_in_flight
        self._queue = deque[Batch]()
        self._single_items = deque[Batch]()  # that go first, and by themselves
        self._next_task_index = 0  # of the next task
        self.batches: dict[int, Batch] = {}
        self._multi_item_tasks = set[int]()  # tasks of several that have not ended
        self._cached_block: tuple[int, list[Array]] = -1, []
        # of an item of each kind, as its worker measured it
        self._seconds_by_class: dict[Hashable, float] = {}
        self._backup_policy = BackupPolicy(0, OPEN_ENDED_RULE, max_backups)
        self.late_tracker = self._backup_policy.late_tracker
        # The attempts at items of each kind, as long as there is one, or it is among the latest.
        self._trackers_by_class = weakref.WeakValueDictionary[Hashable, LateTracker[AttemptId]]()
        self._recent_trackers = deque[LateTracker[AttemptId]](maxlen=MAX_ITEM_CLASSES)

    def enqueue_items(self, items: ItemSequence, item_indices: Sequence[int]) -> None:
        """Let some of these wait behind those that do."""
        offset = self._n_submitted - item_indices[0]
        if not items.position_offsets or items.position_offsets[-1][1] != offset:
            items.position_offsets.append((item_indices[0], offset))
        self._n_submitted += item_indices[-1] + 1 - item_indices[0]

        def is_batchable(item_index: int) -> bool:
            return isinstance(items.blocks[item_index], bytes)

        if all(map(is_batchable, item_indices)):  # a range stays one: it is cut in no time
            self._queue.append((items, item_indices))
            return
        for is_group_batchable, group in groupby(item_indices, is_batchable):
            group_indices = list(group)
            chunks = [group_indices] if is_group_batchable else [[index] for index in group_indices]
            self._queue.extend((items, chunk) for chunk in chunks)

    # -- as the blocks of a run ----------------------------------------------------------------

    @property
    def n(self) -> int:  # type: ignore[override]
        """How many there are now."""
        return len(self.batches)

    def block_leaves(self, task: int) -> list[Array]:
        """The items of a task as they travel to its worker; CancelledError if nobody waits for any."""
        if self._cached_block[0] != task:
            self._cached_block = task, [self._build_batch_block(task)]
        return self._cached_block[1]

    def _build_batch_block(self, task_index: int) -> Array:
        items, item_indices = self.batches.get(task_index) or (None, [])
        if items is not None:
            item_indices = items.claim_items(item_indices)
            self.batches[task_index] = items, item_indices
        if items is None or not item_indices:
            raise CancelledError
        blocks = [items.blocks[item_index] for item_index in item_indices]
        if isinstance(blocks[0], np.ndarray):
            return read_only_view(blocks[0])
        return np.frombuffer(pickle.dumps((items.context, blocks), pickle.HIGHEST_PROTOCOL), np.int8)

    def find_injected_fault(self, faults: Mapping[int, Fault], task: int, attempt: int) -> Fault | None:
        """Return the fault that an attempt at a batch is to suffer: the first that one of its items has left.

        Attempts are counted for each item, because an item may go from one task to another.
        """
        items, item_indices = self.batches.get(task) or (None, ())
        if items is None:
            return None
        for position in map(items.get_submission_index, item_indices):
            if (fault := faults.get(position)) is None:
                continue
            faulty_attempts = self._attempts_with_fault.setdefault(position, set())
            if (task, attempt) in faulty_attempts or len(faulty_attempts) < fault.attempts:
                faulty_attempts.add((task, attempt))
                return fault
        return None

    # -- as the policy of a schedule -----------------------------------------------------------

    def choose_tasks_to_start(
        self, task_table: TaskTable, collector: Collector, elapsed_seconds: float
    ) -> Sequence[int]:
        """Tasks of items that wait; late ones, if none waits for a worker that a backup would take."""
        late_tasks = [
            task
            for task in sorted(self._multi_item_tasks)
            if self._compute_batch_late_time(task_table, task) <= elapsed_seconds
        ]
        for task in late_tasks:
            self._split_late_batch(task_table, task)
        while batch := self._pop_next_batch(task_table):
            items, item_indices = self.batches[self._next_task_index] = batch
            if len(item_indices) > 1:
                self._multi_item_tasks.add(self._next_task_index)
            late_tracker = self._get_late_tracker(items) if len(item_indices) == 1 else None
            task_table.add_task(self._next_task_index, late_tracker)
            self._next_task_index += 1
        if task_table.held_back or task_table.queued or self._queue or self._single_items:
            return sorted(task_table.held_back)
        return self._backup_policy.choose_tasks_to_start(task_table, collector, elapsed_seconds)

    def seconds_until_next_start(self, task_table: TaskTable, elapsed_seconds: float) -> float:
        """Until a task may be late; none is while it is not known that all run, which it soon may be."""
        late_times = (self._compute_batch_late_time(task_table, task) for task in self._multi_item_tasks)
        seconds_until_late = min(late_times, default=inf) - elapsed_seconds
        if task_table.queued:
            return min(seconds_until_late, MIN_BACKUP_SECONDS)
        backup_seconds = self._backup_policy.seconds_until_next_start(task_table, elapsed_seconds)
        return min(seconds_until_late, backup_seconds)

    def _compute_batch_late_time(self, task_table: TaskTable, task_index: int) -> float:
        """When one of several items becomes late; never before it is known to have begun."""
        return min(task_table[task_index].dispatched_at.values(), default=inf) + LATE_BATCH_SECONDS

    def _split_late_batch(self, task_table: TaskTable, task_index: int) -> None:
        """Let the items of a task wait for a worker of their own each."""
        items, item_indices = self.batches[task_index]
        if item_indices:
            self._record_run_time(items.item_class, LATE_BATCH_SECONDS / len(item_indices))
        self._single_items.extend((items, [item_index]) for item_index in item_indices)
        self.discard_task(task_table, task_index)

    def _pop_next_batch(self, task_table: TaskTable) -> Batch | None:
        """Items that go to a worker now; None if none waits, or workers have enough to do.

        One by itself goes once no batch of several is left that may be given up: so those by themselves go
        in their order, as one may wait for the next.
        """
        queue = self._single_items or self._queue
        if not queue:
            return None
        items, item_indices = queue[0]
        max_items = self._compute_max_batch_size(items, item_indices)
        max_in_flight, n_running = self._max_in_flight, len(task_table.in_flight) - len(task_table.queued)
        # else they are known to be long
        if self._allow_batches and (max_items > 1 or items.item_class not in self._seconds_by_class):
            max_in_flight = min(max_in_flight, 2 * n_running + N_INITIAL_BATCHES)
        n_open_tasks = len(task_table.in_flight) + len(task_table.held_back)
        if n_open_tasks >= max_in_flight or (max_items == 1 and self._multi_item_tasks):
            return None
        queue.popleft()
        if self._unbatchable_positions:
            max_items = self._count_items_before_fault(items, item_indices[:max_items])
        if len(item_indices) > max_items:
            queue.appendleft((items, item_indices[max_items:]))
        return items, item_indices[:max_items]

    def _compute_max_batch_size(self, items: ItemSequence, item_indices: Sequence[int]) -> int:
        """How many of these a worker may be given at once."""
        item_seconds = self._seconds_by_class.get(items.item_class)
        if not (self._allow_batches and item_seconds):
            return 1
        n_per_batch = len(item_indices) // (BATCHES_PER_CORE * count_available_cores())
        fair_size = max(n_per_batch, int(MIN_BATCH_SECONDS / item_seconds))
        return max(1, min(MAX_BATCH_ITEMS, int(TARGET_BATCH_SECONDS / item_seconds), fair_size))

    def _count_items_before_fault(self, items: ItemSequence, item_indices: Sequence[int]) -> int:
        """Return how many of these items may share a batch: an item that is to fail by itself is alone."""
        faulty_offsets = (
            offset
            for offset, item_index in enumerate(item_indices)
            if items.get_submission_index(item_index) in self._unbatchable_positions
        )
        return max(1, next(faulty_offsets, len(item_indices)))

    def _get_late_tracker(self, items: ItemSequence) -> LateTracker[AttemptId]:
        """The attempts at items of a kind, which is the latest now."""
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

    def split_outcome_by_item(self, task_table: TaskTable, outcome: Outcome) -> BatchOutcome | None:
        """What an outcome says of items; of those that failed with others nothing yet: they begin anew alone.

        None where nobody waits for its task any more.
        """
        task_index, failure = outcome.task, outcome.failure
        items, item_indices = self.batches.get(task_index) or (None, [])
        self._multi_item_tasks.discard(task_index)
        if items is None or not item_indices:
            self.discard_task(task_table, task_index)
            return None
        if failure is not None:
            for item_index in item_indices if len(item_indices) > 1 else ():
                self.split_off_item(task_table, task_index, item_index, failure, is_batch_loss=True)
            return items, (), [(item_index, failure) for item_index in item_indices if len(item_indices) == 1]
        if len(item_indices) == 1:
            self._record_run_time(items.item_class, outcome.seconds)
            return items, [(item_indices[0], outcome.leaves[0])], ()
        results, errors = unpickle_array(outcome.leaves[0])
        self._record_run_time(items.item_class, outcome.seconds / len(results))
        if len(item_indices) > len(results):  # what its worker has left
            self._queue.appendleft((items, item_indices[len(results) :]))
            self.batches[task_index] = items, item_indices[: len(results)]
        failures = [(item_indices[offset], to_failure(ErrorInfo(*error))) for offset, error in errors.items()]
        indexed_results = zip(item_indices, results)
        successes = [result for offset, result in enumerate(indexed_results) if offset not in errors]
        return items, successes, failures

    def split_off_item(
        self,
        task_table: TaskTable,
        task_index: int,
        item_index: int,
        failure: Failure,
        is_batch_loss: bool = False,
    ) -> None:
        """Make an item that failed, and was not alone in its task, a task of its own.

        is_batch_loss : whether all items of the task failed with it. The attempt then does not count against
            its retries, as any of the others may have killed the worker.
        """
        items, item_indices = self.batches[task_index]
        late_tracker = self._get_late_tracker(items)
        task_table.split_off_task(task_index, self._next_task_index, failure, late_tracker, is_batch_loss)
        self.batches[self._next_task_index] = items, [item_index]
        self._next_task_index += 1
        self.batches[task_index] = items, [other for other in item_indices if other != item_index]
        if len(item_indices) == 1:
            self.discard_task(task_table, task_index)

    def discard_task(self, task_table: TaskTable, task_index: int) -> None:
        """Nothing is wanted of a task any more."""
        self.batches.pop(task_index, None)
        self._multi_item_tasks.discard(task_index)
        task_table.discard_task(task_index)

    def _record_run_time(self, item_class: Hashable, run_seconds: float) -> None:
        """Take in how long an item of a kind took."""
        earlier_seconds = self._seconds_by_class.pop(item_class, run_seconds)
        self._seconds_by_class[item_class] = (earlier_seconds + run_seconds) / 2
        if len(self._seconds_by_class) > MAX_ITEM_CLASSES:
            # of which none has ended for longest
            del self._seconds_by_class[next(iter(self._seconds_by_class))]


def can_batch_items(executor: ResolvedExecutor, backups: int, retries: int) -> bool:
    """Return whether short items may share a batch: each that is lost or late with others is tried again."""
    return executor.can_batch and backups > 0 and retries > 0


def unpickle_result(data: bytes | Array) -> Any:
    """What an item gave, of the pickle or the block that its worker has sent."""
    return unpickle_array(data) if isinstance(data, np.ndarray) else pickle.loads(data)
