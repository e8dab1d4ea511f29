"""Pack items (the inputs of single calls) into batches, which are sent to workers as tasks.

A batch of several items is pickled into one array of bytes, the block of its task. `split_outcome_by_item`
splits what the worker returns into the results and failures of the items.
"""

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
    """An ordered sequence of inputs (items) for the same function.

    Parameters
    ----------
    item_class : hashable
        A key that is equal for items with about the same run time.
    context : object
        An object to send with each batch of pickled items, such as the pickled function.
    blocks : iterable of bytes or array
        The serialized items: pickles or arrays. If batches are formed at run time, an array is never batched
        with other items.
    """

    def __init__(
        self, item_class: Hashable, context: object = None, blocks: Iterable[bytes | Array] = ()
    ) -> None:
        self.item_class, self.context, self.blocks = item_class, context, list(blocks)
        # For each range of items: its first item index, and the submission index minus the item index.
        self._submission_offsets = list[tuple[int, int]]()

    def claim_items(self, item_indices: Sequence[int]) -> Sequence[int]:
        """Claim the items that have not been cancelled, and return them. They can no longer be cancelled."""
        return item_indices

    def select_claimed_items(self, item_indices: Sequence[int]) -> Sequence[int]:
        """Return which of these items have been claimed, so that they can no longer be cancelled."""
        return item_indices

    def record_submission(self, item_indices: Sequence[int], submission_index: int) -> None:
        """Record that the first of these items was number `submission_index` in the order of submission."""
        offset = submission_index - item_indices[0]
        if not self._submission_offsets or self._submission_offsets[-1][1] != offset:
            self._submission_offsets.append((item_indices[0], offset))

    def get_submission_index(self, item_index: int) -> int:
        """Return an item's position in the submission order of the whole job."""
        offsets = self._submission_offsets
        return item_index + offsets[bisect_right(offsets, (item_index, inf)) - 1][1]


class Batch(NamedTuple):
    """A group of items from one sequence that are sent to a worker together."""

    items: ItemSequence
    indices: Sequence[int]


class BatchOutcome(NamedTuple):
    """The results and failures of the items in a batch.

    Attributes
    ----------
    items : ItemSequence
        The sequence to which the item indices belong.
    results : sequence of (item index, bytes or array)
        The serialized return values of the mapped function, to be passed to `unpickle_item`.
    failures : sequence of (item index, Failure)
        The items that have no result, and why.
    unprocessed : sequence of int
        Items that the worker did not start because the items before them took too long.
    """

    items: ItemSequence
    results: Sequence[tuple[int, bytes | Array]] = ()
    failures: Sequence[tuple[int, Failure]] = ()
    unprocessed: Sequence[int] = ()


def split_outcome_by_item(batch: Batch, outcome: Outcome) -> BatchOutcome:
    """Split the outcome of a batch into the results and failures of its items."""
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
    """The input blocks of tasks, where each task is a batch of one or more items.

    If a batch consists of a single array, that array is the block. Every other block is a byte array with the
    pickled context and items.

    Parameters
    ----------
    batches : sequence of Batch
        The batch of each task.

    Attributes
    ----------
    batches : dict from task index to Batch
        The batch of each task that has not been removed.
    """

    structure = ("array",)

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.batches = dict(enumerate(batches))
        self.lock = threading.RLock()  # Several threads may request blocks at once.
        self._cached_block: tuple[int, list[Array]] = -1, []

    @property
    def n(self) -> int:  # type: ignore[override]
        """The number of tasks that have not been removed."""
        return len(self.batches)

    def block_leaves(self, task: int) -> list[Array]:
        """Return the input block of a task, as a list of one array."""
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
    """The input blocks of tasks that are formed while a job runs. Items may be cancelled until they are sent.

    Task indices are never reused. Injected faults (for tests) are assigned to items by their position in the
    submission order, because an item may move from one task to another.

    Attributes
    ----------
    lock : RLock
        Guards the sets of items that are queued, started or part of a task.
    """

    location = INLINE

    def __init__(self) -> None:
        super().__init__(())
        self._next_task_index = 0
        # Submission index of an item with a fault -> the attempts into which the fault has been injected.
        self._attempts_with_fault: dict[int, set[AttemptId]] = {}

    @property
    def has_items(self) -> bool:
        """Whether any task has an item that has not been cancelled. The caller must hold the lock."""
        return any(batch.indices for batch in self.batches.values())

    def add_batch(self, batch: Batch) -> int:
        """Create a task for a batch and return its index."""
        task_index = self._next_task_index
        self.batches[task_index] = batch
        self._next_task_index += 1
        return task_index

    def _build_block(self, task: int) -> Array:
        """Build the input block of a task, after which its items can no longer be cancelled.

        Raises CancelledError if all of them have already been cancelled.
        """
        batch = self.batches.get(task)
        if batch is None:
            raise CancelledError
        claimed_indices = batch.items.claim_items(batch.indices)
        self.batches[task] = batch._replace(indices=claimed_indices)
        if not claimed_indices:
            raise CancelledError
        return super()._build_block(task)

    def find_injected_fault(self, faults: Mapping[int, Fault], task: int, attempt: int) -> Fault | None:
        """Return the fault to inject into an attempt, or None.

        If several items of the task have a fault, the first fault that has not yet occurred as often as
        requested is used.
        """
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
