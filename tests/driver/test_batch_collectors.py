"""Tests of batches of fixed items: each item keeps its first result, and failed items are retried."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from driver.test_collector import lost

from polarmap import hedged_map
from polarmap.driver.batch_collectors import FixedBatchCollector
from polarmap.driver.batches import Batch, BatchBlocks, ItemSequence
from polarmap.driver.collector import JobTimer
from polarmap.driver.item_results import ItemResults
from polarmap.driver.task_table import TaskTable
from polarmap.executors.interface import Outcome, build_block
from polarmap.testing import Fault, FaultyExecutor, ReplayExecutor
from polarmap.worker.pickled_values import pickle_each
from polarmap.worker.task_functions import make_call_task


class FailingOnce:
    """A function that fails in its first calls with certain items."""

    def __init__(self, n_failures: dict[int, int]) -> None:
        self.n_failures, self.called = dict(n_failures), list[int]()

    def __call__(self, item: int) -> int:
        self.called.append(item)
        if self.n_failures.get(item, 0):
            self.n_failures[item] -= 1
            raise LookupError(f"no {item}")
        return -item


def test_an_item_that_fails_is_retried_with_its_batch() -> None:
    for keep_exceptions in (False, True):
        f = FailingOnce({4: 1})
        options: dict[str, Any] = {"executor": ReplayExecutor(), "return_exceptions": keep_exceptions}
        results = hedged_map(f, range(6), blocks=2, **options)
        assert list(results) == [-item for item in range(6)]
        assert f.called == [0, 1, 2, 3, 4, 5, 3, 4, 5]
        assert [task.attempts for task in results.report.tasks] == [1, 2]
        assert results.report.tasks[1].failures == ("LookupError: no 4",)


def test_items_of_a_batch_that_always_fail_have_separate_failures() -> None:
    f = FailingOnce({3: 9, 5: 9})
    results: list[Any] = list(
        hedged_map(f, range(6), blocks=2, executor=ReplayExecutor(), return_exceptions=True)
    )
    assert [results[item] for item in (0, 1, 2, 4)] == [0, -1, -2, -4]
    for item in (3, 5):
        assert str(results[item]) == f"no {item}"
        assert results[item].__notes__ == [f"item {item} of 6 raised this"]
    with pytest.raises(LookupError, match="no 3") as caught:
        hedged_map(FailingOnce({3: 9, 5: 9}), range(6), blocks=2, executor=ReplayExecutor())
    assert caught.value.__notes__ == ["item 3 of 6 raised this"]


def test_f_that_fails_on_one_item_of_every_batch_does_not_fail_everywhere() -> None:
    f = FailingOnce({0: 1, 3: 1, 6: 1, 9: 1})
    executor = ReplayExecutor()

    def fail_once(item: int) -> int:
        try:
            return f(item)
        except LookupError:
            raise ValueError("the same text") from None

    assert list(hedged_map(fail_once, range(12), blocks=4, executor=executor)) == [-n for n in range(12)]


def test_a_lost_batch_is_restarted_with_the_same_items() -> None:
    executor = FaultyExecutor(ReplayExecutor(), {1: Fault("kill")})
    results = hedged_map(abs, range(-6, 0), blocks=3, executor=executor)
    assert list(results) == [6, 5, 4, 3, 2, 1]
    assert [task.attempts for task in results.report.tasks] == [1, 2, 1]
    executor = FaultyExecutor(ReplayExecutor(), {1: Fault("kill", attempts=9)})
    kept: list[Any] = list(
        hedged_map(abs, range(-6, 0), blocks=3, executor=executor, return_exceptions=True, backups=0)
    )
    assert [kept[item] for item in (0, 1, 4, 5)] == [6, 5, 2, 1]
    assert kept[2] is kept[3]
    assert kept[2].__notes__ == ["one of items 2 to 3 of 6 raised this"]


def test_batches_of_a_given_number_of_blocks_are_never_cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polarmap.worker.task_functions.MAX_BATCH_SECONDS", -1.0)
    results = hedged_map(abs, range(9), blocks=2, executor=ReplayExecutor())
    assert list(results) == list(range(9))
    assert [task.attempts for task in results.report.tasks] == [1, 1]


def test_large_arrays_share_a_block_with_small_items_and_come_back_writable() -> None:
    items: list[Any] = [np.arange(5000.0), "text", np.arange(3), np.arange(6000)]
    results = hedged_map(lambda item: item, items, blocks=2, executor=ReplayExecutor())
    for item, result in zip(items, results):
        np.testing.assert_array_equal(result, item)
    results[0][0] = 7.0
    assert items[0][0] == 0.0


def make_collector(
    f: Callable[[int], Any], n_items: int
) -> tuple[FixedBatchCollector, Callable[[int], Outcome]]:
    """Return a collector of one batch, and a function that runs an attempt at it."""
    items = ItemSequence("class", blocks=pickle_each(range(n_items)))  # type: ignore[arg-type]
    blocks, tasks = BatchBlocks([Batch(items, range(n_items))]), TaskTable(1)
    task_function = make_call_task(f, unpickle_blocks=True)

    def run(attempt: int) -> Outcome:
        packed = task_function(build_block(blocks, 0))
        leaves = [np.frombuffer(packed.data, np.uint8)]
        return Outcome(0, attempt, leaves, ("array",), None, 1.0)

    results = ItemResults(n_items, False, None)
    return FixedBatchCollector(blocks, results, tasks, JobTimer(lambda: 0.0)), run


@pytest.mark.parametrize("is_lost", [False, True])
def test_outcomes_of_two_attempts_that_end_together_are_merged(is_lost: bool) -> None:
    collector, run = make_collector(FailingOnce({1: 1}), 3)
    tasks = collector.task_table
    for _ in range(2):
        tasks.start_attempts([0], 0.0)
    outcomes = [run(0), lost(0, 1) if is_lost else run(1)]
    for outcome in outcomes:
        tasks.record_outcome(outcome, 1.0)
    for outcome in outcomes:
        collector.add_outcome(outcome)
    assert collector.has_sufficient_results == (not is_lost)
    assert collector.n_results == (0 if is_lost else 1)
    assert tasks.failed == ({0} if is_lost else set())


def test_a_result_that_cannot_be_pickled_is_the_failure_of_its_item() -> None:
    collector, run = make_collector(lambda item: threading.Lock() if item == 1 else item, 3)
    collector.task_table.start_attempts([0], 0.0)
    outcome = run(0)
    collector.task_table.record_outcome(outcome, 1.0)
    collector.add_outcome(outcome)
    with pytest.raises(TypeError, match=r"cannot pickle '_thread\.lock' object") as caught:
        collector.on_tasks_exhausted()
    assert caught.value.__notes__ == ["item 1 of 3 raised this"]
