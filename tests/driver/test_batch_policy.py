"""Tests of short items that are sent to workers in batches: each item succeeds or fails separately."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from polarmap import Pool
from polarmap.driver.batch_collectors import QueuedBatchCollector
from polarmap.driver.batch_policy import (
    LATE_BATCH_SECONDS,
    MAX_BATCHES,
    N_INITIAL_BATCHES,
    TARGET_BATCH_SECONDS,
    BatchPolicy,
    can_batch_items,
)
from polarmap.driver.batches import ItemSequence, QueuedBatchBlocks
from polarmap.driver.collector import JobTimer
from polarmap.driver.item_results import ItemResults
from polarmap.driver.policies import RetryRule
from polarmap.driver.scheduler import schedule_tasks
from polarmap.driver.task_table import TaskTable
from polarmap.executors import resolve_executor
from polarmap.executors.interface import AttemptId, Failure, JobSpec
from polarmap.executors.replay import ReplaySession
from polarmap.testing import Fault, FaultyExecutor, ReplayExecutor
from polarmap.worker.pickled_values import pickle_each, pickle_to_array
from polarmap.worker.task_functions import make_call_task

SECONDS = 0.05  # Default duration of a task.


@pytest.fixture(autouse=True)
def _one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polarmap.driver.batch_policy.count_available_cores", lambda: 1)


class NumberSequence(ItemSequence):
    """A sequence of numbers. Those in `unwanted` are no longer needed."""

    def __init__(self, count: int, kind: str = "kind") -> None:
        super().__init__(kind, blocks=pickle_each(range(count)))  # type: ignore[arg-type]
        self.unwanted: set[int] = set()

    def claim_items(self, item_indices: list[int]) -> list[int]:
        return [number for number in item_indices if number not in self.unwanted]


class RecordedResults(ItemResults):
    """The results of items, which records each value or the text of each failure."""

    def _add_value(self, item_index: int, value: Any) -> None:
        assert item_index not in self.values
        super()._add_value(item_index, value)

    def add_failure(self, item_indices: Sequence[int], failure: Failure) -> None:
        self.values |= dict.fromkeys(item_indices, str(failure))


class SimulatedMap:
    """A map of f over numbers whose run times are known.

    Attributes
    ----------
    submitted : list of list of int
        The numbers of each submitted task, in the order of submission.
    """

    def __init__(
        self,
        f: Callable[[Any], Any],
        *sequences: ItemSequence,
        seconds: float | None = 1e-3,
        script: dict[int, float] | None = None,
        faults: dict[int, Fault] | None = None,
        retries: int = 1,
    ) -> None:
        self.blocks, self.submitted = QueuedBatchBlocks(), list[list[int]]()
        self.policy = BatchPolicy(self.blocks, True, MAX_BATCHES, 1, faults or {})
        if seconds is not None:
            self.policy._seconds_by_class["kind"] = seconds
        for items in sequences:
            self.policy.enqueue_items(items, range(len(items.blocks)))
        self.cancelled_attempts: list[AttemptId] = []
        self.faults = faults or {}
        executor = ReplayExecutor(dict.fromkeys(range(1000), SECONDS) | (script or {}))
        self.run = executor.open(JobSpec(make_call_task(f, unpickle_blocks=True), self.blocks, self.faults))
        self.run.submit, self.run.cancel = self._submit, self.cancelled_attempts.extend  # type: ignore[method-assign, assignment]
        count = sum(len(items.blocks) - len(getattr(items, "unwanted", ())) for items in sequences)
        self.results = RecordedResults(count, True, None)
        timer = JobTimer(self.run.now)
        self.collector = QueuedBatchCollector(self.policy, self.blocks, self.results, TaskTable(0), timer)
        self._steps = schedule_tasks(self.run, self.policy, RetryRule(retries), self.collector)
        self.step()

    def _submit(self, attempts: list[AttemptId]) -> None:
        self.submitted += [list(self.blocks.batches[task].indices) for task, _ in attempts]
        ReplaySession.submit(self.run, attempts)

    def step(self) -> None:
        for outcome in next(self._steps):
            self.collector.add_outcome(outcome)

    def run_to_end(self) -> dict[int, Any]:
        """Run the map to its end and return the outcome of every item."""
        while not self.collector.has_sufficient_results:
            self.step()
        return self.results.values

    def start_batches(self) -> list[list[int]]:
        """Return the batches submitted before any task has ended."""
        self.step()
        return self.submitted


def negative(number: int) -> Any:
    if number == 3:
        raise ValueError("unlucky")
    return threading.Lock() if number == 5 else -number


def test_items_of_a_batch_end_separately_and_failed_items_are_retried_alone() -> None:
    simulation = SimulatedMap(negative, NumberSequence(100))
    # Each batch contains a quarter of the queued items, up to 20.
    assert [len(batch) for batch in simulation.start_batches()[:3]] == [20, 20, 15]
    results = simulation.run_to_end()
    again = [[3], [5]]
    assert [number for batch in simulation.submitted if batch not in again for number in batch] == list(
        range(100)
    )
    assert [batch for batch in simulation.submitted if batch in again] == again
    assert results[3] == "ValueError: unlucky"
    assert (
        results[5]
        == "TypeError: f returned a _thread.lock that cannot be pickled: cannot pickle '_thread.lock' object"
    )
    assert [results[number] for number in range(6, 100)] == [-number for number in range(6, 100)]
    table = simulation.collector.make_report_table_builder()()
    assert [task.n_attempts for task in table] == [2 if number in (3, 5) else 1 for number in range(100)]
    assert table.arrived.keys() == set(range(100)) - {3, 5}
    assert table[25].worker_seconds == pytest.approx(SECONDS / 20)


def test_items_are_sent_singly_until_they_are_known_to_be_short() -> None:
    for seconds in (None, TARGET_BATCH_SECONDS):
        simulation = SimulatedMap(abs, NumberSequence(40), seconds=seconds)
        simulation.run_to_end()
        assert simulation.submitted == [[number] for number in range(40)]


def test_only_small_items_of_the_same_class_share_a_batch() -> None:
    large = NumberSequence(40)
    large.blocks[4:6] = pickle_to_array(4), pickle_to_array(5)
    simulation = SimulatedMap(abs, large)
    first = simulation.start_batches()
    assert first[:4] == [[0, 1], [2, 3], [4], [5]]
    assert simulation.run_to_end() == {number: number for number in range(40)}
    simulation = SimulatedMap(abs, NumberSequence(20, "other"), NumberSequence(20))
    assert simulation.start_batches()[:20] == [[number] for number in range(N_INITIAL_BATCHES)]


def test_run_times_are_learned_from_the_first_items_unless_these_are_long() -> None:
    simulation = SimulatedMap(abs, NumberSequence(300), seconds=None)
    assert len(simulation.start_batches()) == N_INITIAL_BATCHES
    simulation.step()
    assert len(simulation.submitted) == 1 + MAX_BATCHES  # The first batch has ended, and took long.
    simulation.run_to_end()
    assert simulation.policy._seconds_by_class["kind"] == pytest.approx(SECONDS)
    assert simulation.submitted == [[number] for number in range(300)]
    quick = SimulatedMap(abs, NumberSequence(300), seconds=None, script=dict.fromkeys(range(1000), 1e-4))
    assert list(quick.run_to_end()) == list(range(300))
    assert len(quick.submitted) < 30


def test_batches_fill_their_target_time_when_many_items_are_queued() -> None:
    simulation = SimulatedMap(abs, NumberSequence(1000), seconds=1e-5)
    assert [len(batch) for batch in simulation.start_batches()] == [250, 200, 200, 200, 150]


def test_items_of_a_sequence_that_are_queued_in_parts_share_tasks() -> None:
    policy, items, other = (
        BatchPolicy(QueuedBatchBlocks(), True, MAX_BATCHES, 1),
        *map(NumberSequence, (8, 8)),
    )
    policy._seconds_by_class["kind"] = 1e-3
    for part in (range(1), range(1, 4), range(5, 6), range(6, 7)):
        policy.enqueue_items(items, part)
    policy.enqueue_items(other, range(7, 8))
    assert list(policy._queue) == [(items, range(4)), (items, range(5, 7)), (other, range(7, 8))]
    assert [items.get_submission_index(index) for index in (0, 1, 3, 5, 6)] == [0, 1, 3, 4, 5]


def test_a_batch_is_small_if_its_items_are_known_to_run_for_less_than_two_milliseconds() -> None:
    policy, items = BatchPolicy(QueuedBatchBlocks(), True, MAX_BATCHES, 1), NumberSequence(1)
    assert policy.compute_min_batch_size(items) == 0  # The run time is unknown.
    policy._seconds_by_class["kind"] = 1e-5
    assert policy.compute_min_batch_size(items) == 200
    policy._allow_batches = False
    assert policy.compute_min_batch_size(items) == 0


@pytest.mark.parametrize("ends_late", [False, True])
def test_a_late_batch_is_cancelled_and_its_items_are_restarted_singly(ends_late: bool) -> None:
    simulation = SimulatedMap(
        negative, NumberSequence(40), script={1: LATE_BATCH_SECONDS * (1.5 if ends_late else 1e6)}
    )
    late, last = simulation.start_batches()[1], len(simulation.submitted)
    results = simulation.run_to_end()
    assert simulation.cancelled_attempts == [(1, 0)]
    alone = [batch for batch in simulation.submitted[last:] if batch[0] in late]
    assert alone == [[number] for number in late]
    assert sorted(results) == list(range(40))
    assert [task.n_attempts for task in simulation.collector.make_report_table_builder()()][6:] == [1] * 34


def test_items_that_a_worker_leaves_of_a_long_batch_are_queued_again(monkeypatch: pytest.MonkeyPatch) -> None:
    # A task runs its first item only.
    monkeypatch.setattr("polarmap.worker.task_functions.MAX_BATCH_SECONDS", -1.0)
    simulation = SimulatedMap(abs, NumberSequence(40))
    left = simulation.start_batches()[0][1:]
    first = len(simulation.submitted)
    assert simulation.run_to_end() == {number: number for number in range(40)}
    assert set(left) <= {number for batch in simulation.submitted[first:] for number in batch}
    assert [task.n_attempts for task in simulation.collector.make_report_table_builder()()] == [1] * 40


def test_items_that_are_lost_together_are_retried_singly_and_reported_separately() -> None:
    simulation = SimulatedMap(abs, NumberSequence(40), faults={0: Fault("kill")})
    lost = list(simulation.start_batches()[0])
    assert simulation.run_to_end() == {number: number for number in range(40)}
    assert [batch for batch in simulation.submitted if batch[0] in lost][1:] == [[number] for number in lost]
    assert [task.n_attempts for task in simulation.collector.make_report_table_builder()()] == [
        2 if n in lost else 1 for n in range(40)
    ]


@pytest.mark.parametrize("retries", [0, 1, 2])
def test_only_the_loss_of_a_single_item_uses_up_a_retry(retries: int) -> None:
    unlucky, doomed = 3, 5
    # The first fault strikes the batch that holds both items. All later ones strike an item that is alone.
    faults = {unlucky: Fault("kill", attempts=1 + retries), doomed: Fault("kill", attempts=99)}
    simulation = SimulatedMap(abs, NumberSequence(40), faults=faults, retries=retries)
    results = simulation.run_to_end()
    assert {number for number, end in results.items() if end != number} == {doomed}
    assert "injected fault 'kill'" in results[doomed]
    [batch, *later_batches] = [
        numbers for numbers in simulation.submitted if {unlucky, doomed} & set(numbers)
    ]
    assert {unlucky, doomed} < set(batch)
    assert sorted(later_batches) == [[unlucky]] * (retries + 1) + [[doomed]] * (retries + 1)
    attempts = {
        number: task.n_attempts
        for number, task in enumerate(simulation.collector.make_report_table_builder()())
    }
    assert attempts[unlucky] == attempts[doomed] == 2 + retries


def test_cancelled_items_do_not_start_and_the_rest_of_their_batch_continues() -> None:
    items = NumberSequence(40)
    items.unwanted = {2, *range(10, 25), *range(36, 40)}
    simulation = SimulatedMap(abs, items)
    assert simulation.run_to_end() == {number: number for number in set(range(40)) - items.unwanted}


def test_items_share_batches_on_local_processes_only_if_they_can_be_retried() -> None:
    with Pool(workers=1) as pool:
        assert can_batch_items(pool.resolve(), 1, 1)
        assert can_batch_items(resolve_executor(FaultyExecutor(FaultyExecutor(pool))), 1, 1)
        executors: list[Any] = [ReplayExecutor(), FaultyExecutor(ReplayExecutor())]
        assert not any(can_batch_items(resolve_executor(executor), 1, 1) for executor in executors)
        assert not can_batch_items(pool.resolve(), 0, 1)
        assert not can_batch_items(pool.resolve(), 1, 0)


def test_a_fault_strikes_the_batch_of_its_item_once() -> None:
    simulation = SimulatedMap(abs, NumberSequence(40), faults={15: Fault("kill")})
    batch = next(batch for batch in simulation.start_batches() if 15 in batch)
    assert len(batch) > 1
    assert simulation.run_to_end() == {number: number for number in range(40)}
    table = simulation.collector.make_report_table_builder()()
    struck = [number for number, task in enumerate(table) if task.failures]
    assert struck == batch
    assert simulation.submitted.count([15]) == 1


def test_a_cancelled_batch_leaves_no_fault_for_its_items() -> None:
    faults = {15: Fault("sleep", 10 * LATE_BATCH_SECONDS)}
    simulation = SimulatedMap(abs, NumberSequence(40), faults=faults)
    assert simulation.run_to_end() == {number: number for number in range(40)}
    assert simulation.run.now() < 5 * LATE_BATCH_SECONDS
    assert simulation.submitted.count([15]) == 1


@pytest.mark.parametrize("kind", ["raise", "garbage"])
def test_an_item_with_a_fault_of_its_own_is_sent_alone(kind: str) -> None:
    faults = {number: Fault(kind) for number in (0, 15, 16, 39)}
    batches = BatchPolicy(QueuedBatchBlocks(), True, MAX_BATCHES, 1, faults)
    batches._seconds_by_class["kind"] = 1e-3
    batches.enqueue_items(NumberSequence(40), range(40))
    sent = [list(batch[1]) for batch in iter(lambda: batches._pop_next_batch(TaskTable(0)), None)]
    assert [batch for batch in sent if faults.keys() & set(batch)] == [[0], [15], [16], [39]]
    assert [number for batch in sent for number in batch] == list(range(40))
    assert max(map(len, sent)) > 1


def test_a_split_task_keeps_its_count_of_attempts() -> None:
    tasks = TaskTable(1)
    tasks.start_attempts([0], 1.0)
    tasks.split_off_task(
        0,
        7,
        Failure("lost", "WorkerLost", "gone"),
        BatchPolicy(QueuedBatchBlocks(), True, 4, 1)._get_late_tracker(ItemSequence("kind")),
    )
    assert (tasks[7].n_attempts, tasks.failed) == (1, {7})
    assert tasks.start_attempts([7], 2.0) == [(7, 1)]
