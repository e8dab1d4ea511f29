"""Tests of tasks whose blocks are batches of items, and of the outcome of each item."""

from __future__ import annotations

from concurrent.futures import CancelledError
from typing import Any

import numpy as np
import pytest

from polarmap.driver.batch_policy import MAX_BATCHES, BatchPolicy
from polarmap.driver.batches import Batch, BatchBlocks, ItemSequence, QueuedBatchBlocks, split_outcome_by_item
from polarmap.executors.interface import Failure, Outcome, build_block
from polarmap.testing import Fault
from polarmap.worker.pickled_values import pickle_each, pickle_to_array, unpickle_item
from polarmap.worker.task_functions import make_call_task


def make_items(*values: Any) -> ItemSequence:
    return ItemSequence("class", blocks=pickle_each(values))  # type: ignore[arg-type]


def run(blocks: BatchBlocks, task: int, f: Any) -> Outcome:
    packed = make_call_task(f, unpickle_blocks=True)(build_block(blocks, task))
    return Outcome(task, 0, [np.frombuffer(packed.data, np.uint8)], ("array",), None, 1.0)


def test_each_task_gets_the_items_of_its_batch() -> None:
    items = make_items("a", "bc", "def")
    items.blocks[2] = pickle_to_array("def")  # A pickle that is stored as an array can share a batch.
    batches = [Batch(items, [0]), Batch(items, [1, 2])]
    blocks = BatchBlocks(batches)
    assert (blocks.n, blocks.location) == (2, None)
    [(_, single)] = split_outcome_by_item(batches[0], run(blocks, 0, len)).results
    assert unpickle_item(single) == 1
    results = split_outcome_by_item(batches[1], run(blocks, 1, len)).results
    assert [(index, unpickle_item(data)) for index, data in results] == [(1, 2), (2, 3)]


def test_an_item_that_is_an_array_is_the_block_without_a_copy() -> None:
    array = np.arange(3.0)
    items = ItemSequence("class", blocks=[array])
    [leaf] = BatchBlocks([Batch(items, [0])]).block_leaves(0)
    assert np.shares_memory(leaf, array)
    assert not leaf.flags.writeable


def test_an_item_that_fails_does_not_affect_the_results_of_its_batch() -> None:
    items = make_items("1", "two", "3")
    batch = Batch(items, range(3))
    outcome = split_outcome_by_item(batch, run(BatchBlocks([batch]), 0, int))
    assert [(index, unpickle_item(data)) for index, data in outcome.results] == [(0, 1), (2, 3)]
    [(index, failure)] = outcome.failures
    assert (index, failure.kind, type(failure.cause)) == (1, "raised", ValueError)
    assert not outcome.unprocessed


def test_items_that_are_lost_together_have_the_same_failure() -> None:
    failure = Failure("lost", "WorkerLost", "gone")
    outcome = split_outcome_by_item(Batch(make_items(1, 2), range(2)), Outcome(0, 0, [], (), failure, 0.0))
    assert (outcome.results, outcome.failures) == ((), [(0, failure), (1, failure)])


def test_a_task_that_was_removed_has_no_block_and_its_index_is_not_used_again() -> None:
    blocks, items = QueuedBatchBlocks(), make_items(1, 2)
    assert [blocks.add_batch(Batch(items, [index])) for index in range(2)] == [0, 1]
    assert blocks.has_items
    blocks.batches.clear()
    assert not blocks.has_items
    with pytest.raises(CancelledError):
        build_block(blocks, 0)
    assert blocks.find_injected_fault({0: Fault("kill")}, 0, 0) is None
    assert blocks.add_batch(Batch(items, [0])) == 2


def test_faults_count_items_in_the_order_of_submission() -> None:
    policy = BatchPolicy(QueuedBatchBlocks(), True, MAX_BATCHES, 1)
    first, second = make_items(*range(6)), make_items(*range(2))
    policy.enqueue_items(first, range(3))
    policy.enqueue_items(second, [0])
    policy.enqueue_items(first, [3])
    policy.enqueue_items(first, [5])  # Item 4 is never submitted.
    policy.enqueue_items(second, [1])
    assert [first.get_submission_index(number) for number in (0, 1, 2, 3, 5)] == [0, 1, 2, 4, 5]
    assert [second.get_submission_index(number) for number in (0, 1)] == [3, 6]
