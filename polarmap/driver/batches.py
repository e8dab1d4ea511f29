"""Items that travel to workers in batches, and the blocks of tasks that consist of such batches."""

from __future__ import annotations

import pickle
import threading
from bisect import bisect_right
from collections.abc import Hashable, Iterable, Mapping, Sequence
from concurrent.futures import CancelledError
from math import inf
from typing import NamedTuple

import numpy as np

from polarmap.executors.interface import (
    AttemptId,
    Failure,
    Outcome,
    TaskBlocks,
    read_only_view,
    to_failure,
)
from polarmap.worker.locations import INLINE
from polarmap.worker.pickled_values import unpickle_array
from polarmap.worker.pytree import Array
from polarmap.worker.task_records import ErrorInfo, Fault


class ItemSequence:
    """Items that one function is called with, in order.

    Parameters
    ----------
    item_class : hashable
        Equal for items that take about as long.
    context : object
        Sent with each batch of pickled items, such as the pickle of the function.
    blocks : iterable of bytes or array
        Each item as it is sent: a pickle, or an array, which travels alone if batches are formed at run time.
    """

    def __init__(
        self, item_class: Hashable, context: object = None, blocks: Iterable[bytes | Array] = ()
    ) -> None:
        self.item_class, self.context, self.blocks = item_class, context, list(blocks)
        self._submission_offsets = list[tuple[int, int]]()  # (first item, submission index - item index)

    def claim_items(self, item_indices: Sequence[int]) -> Sequence[int]:
        """Return the items that are not cancelled. From now on they cannot be cancelled."""
        return item_indices

    def select_claimed_items(self, item_indices: Sequence[int]) -> Sequence[int]:
        """Return the items that are claimed."""
        return item_indices

    def record_submission(self, item_indices: Sequence[int], submission_index: int) -> None:
        """Note that the first of these items is number `submission_index` of all items of a job."""
        offset = submission_index - item_indices[0]
        if not self._submission_offsets or self._submission_offsets[-1][1] != offset:
            self._submission_offsets.append((item_indices[0], offset))

    def get_submission_index(self, item_index: int) -> int:
        """Return the number of an item among all items of a job, in the order of submission."""
        offsets = self._submission_offsets
        return item_index + offsets[bisect_right(offsets, (item_index, inf)) - 1][1]


class Batch(NamedTuple):
    """Items of one sequence, by index, that travel together."""

    items: ItemSequence
    indices: Sequence[int]


class BatchOutcome(NamedTuple):
    """The outcome of a batch, item by item.

    Attributes
    ----------
    items : ItemSequence
    results : sequence of (item index, bytes or array)
        What f returned, for `unpickle_item`.
    failures : sequence of (item index, Failure)
    unprocessed : sequence of int
        Items that the worker has not started, as the ones before took long.
    """

    items: ItemSequence
    results: Sequence[tuple[int, bytes | Array]] = ()
    failures: Sequence[tuple[int, Failure]] = ()
    unprocessed: Sequence[int] = ()


def split_outcome_by_item(batch: Batch, outcome: Outcome) -> BatchOutcome:
    """Return the outcome of each item of a batch."""
    items, item_indices = batch
    if outcome.failure is not None:
        return BatchOutcome(items, failures=[(item_index, outcome.failure) for item_index in item_indices])
    if len(item_indices) == 1:
        return BatchOutcome(items, [(item_indices[0], outcome.leaves[0])])
    results, errors = unpickle_array(outcome.leaves[0])
    indexed_results = zip(item_indices, results)
    return BatchOutcome(
        items,
        [result for offset, result in enumerate(indexed_results) if offset not in errors],
        [(item_indices[offset], to_failure(ErrorInfo(*error))) for offset, error in errors.items()],
        item_indices[len(results) :],
    )


class BatchBlocks(TaskBlocks):
    """The blocks of tasks that consist of one item or a batch of items each.

    The block of an item that is sent as an array is this array. All other blocks are pickles of the context
    and the items, as integers of 8 bits.

    Parameters
    ----------
    batches : sequence of Batch
        The batch of each task.

    Attributes
    ----------
    batches : dict from task index to Batch
    """

    structure = ("array",)

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.batches = dict(enumerate(batches))
        self.lock = threading.RLock()  # several blocks may be stored at a time
        self._cached_block: tuple[int, list[Array]] = -1, []

    @property
    def n(self) -> int:  # type: ignore[override]
        """The number of tasks that have not been removed."""
        return len(self.batches)

    def block_leaves(self, task: int) -> list[Array]:
        """Return the one array that the block of a task consists of."""
        with self.lock:
            if self._cached_block[0] != task:
                self._cached_block = task, [self._build_block(task)]
            return self._cached_block[1]

    def _build_block(self, task: int) -> Array:
        items, item_indices = self.batches[task]
        blocks = [items.blocks[item_index] for item_index in item_indices]
        if len(blocks) == 1 and isinstance(blocks[0], np.ndarray):
            return read_only_view(blocks[0])
        return np.frombuffer(pickle.dumps((items.context, blocks), pickle.HIGHEST_PROTOCOL), np.int8)


class QueuedBatchBlocks(BatchBlocks):
    """The blocks of tasks that are formed while a job runs, from items that may be cancelled meanwhile.

    Task indices are never used again. Faults strike items, by the order of their submission, because an item
    may go from one task to another.

    Attributes
    ----------
    lock : RLock
        Guards which items are queued, started or part of a task.
    """

    location = INLINE

    def __init__(self) -> None:
        super().__init__(())
        self._next_task_index = 0
        # by the submission index of an item that has a fault
        self._attempts_with_fault: dict[int, set[AttemptId]] = {}

    @property
    def has_items(self) -> bool:
        """Whether any task has an item that has not been cancelled. Hold the lock."""
        return any(batch.indices for batch in self.batches.values())

    def add_batch(self, batch: Batch) -> int:
        """Make a batch a task, and return the index of the task."""
        task_index = self._next_task_index
        self.batches[task_index] = batch
        self._next_task_index += 1
        return task_index

    def _build_block(self, task: int) -> Array:
        """Claim the items of a task and build its block. Raises CancelledError if all are cancelled."""
        batch = self.batches.get(task)
        if batch is None:
            raise CancelledError
        claimed_indices = batch.items.claim_items(batch.indices)
        self.batches[task] = batch._replace(indices=claimed_indices)
        if not claimed_indices:
            raise CancelledError
        return super()._build_block(task)

    def find_injected_fault(self, faults: Mapping[int, Fault], task: int, attempt: int) -> Fault | None:
        """Return the fault that an attempt is to suffer: the first that one of its items has left."""
        batch = self.batches.get(task)
        if batch is None:
            return None
        for submission_index in map(batch.items.get_submission_index, batch.indices):
            if (fault := faults.get(submission_index)) is None:
                continue
            faulty_attempts = self._attempts_with_fault.setdefault(submission_index, set())
            if (task, attempt) in faulty_attempts or len(faulty_attempts) < fault.attempts:
                faulty_attempts.add((task, attempt))
                return fault
        return None
