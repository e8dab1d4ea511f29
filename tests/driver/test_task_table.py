"""Tests of the table of tasks: states, failures and results, for any order of events."""

from __future__ import annotations

import numpy as np

from polarmap.driver.lateness import LatenessRule, LateTracker
from polarmap.driver.task_table import TaskTable
from polarmap.executors.interface import Failure, Outcome
from polarmap.report import TaskState

LOST, ODD = Failure("lost", "WorkerLost", "gone"), Failure("shape", "WrongShape", "odd")


class RecordingTracker(LateTracker[tuple[int, int]]):
    """A tracker that records its notifications and never reports a late task."""

    def __init__(self) -> None:
        super().__init__(LatenessRule(1), n_initial_attempts=1)
        self.durations: list[tuple[float, bool]] = []
        self.run: set[tuple[int, int]] = set()

    def on_start(self, attempt: tuple[int, int], started_at: float) -> None:
        self.run.add(attempt)

    def on_end(self, attempt: tuple[int, int]) -> None:
        self.run.discard(attempt)

    def record_run_time(self, run_seconds: float, is_restart: bool = False) -> None:
        self.durations.append((run_seconds, is_restart))


def make_table_and_tracker(n: int) -> tuple[TaskTable, RecordingTracker]:
    tracker = RecordingTracker()
    return TaskTable(n, tracker), tracker


def ended(task: int, attempt: int, failure: Failure | None = None) -> Outcome:
    leaves = [] if failure else [np.zeros(1)]
    return Outcome(task, attempt, leaves, () if failure else ("array",), failure, 2.0)


def test_a_task_runs_until_all_its_attempts_have_ended() -> None:
    tasks = TaskTable(2)
    tasks.start_attempts([0], 0.0)
    tasks.start_attempts([0], 1.0)
    tasks.record_outcome(ended(0, 1, LOST), 2.0)
    assert (tasks.in_flight.keys(), tasks.failed, tasks.held_back) == ({0}, set(), {1})
    tasks.record_outcome(ended(0, 0, LOST), 3.0)
    assert (tasks.in_flight.keys(), tasks.failed) == (set(), {0})
    assert [str(failure) for failure in tasks[0].failures] == ["WorkerLost: gone"] * 2


def test_a_failure_after_a_result_is_not_reported() -> None:
    tasks, tracker = make_table_and_tracker(1)
    tasks.start_attempts([0], 0.0)
    tasks.start_attempts([0], 1.0)
    tasks.record_outcome(ended(0, 1), 2.5)
    tasks.record_outcome(ended(0, 0, LOST), 3.0)
    assert tasks[0].failures == []
    assert tracker.durations == [(2.0, True)]
    assert not tasks.failed


def test_the_duration_of_an_attempt_counts_from_its_own_start() -> None:
    tasks, tracker = make_table_and_tracker(2)
    tasks.start_attempts([0, 1], 0.0)
    assert tasks.queued == {0, 1}
    tasks.record_start(0, 0, 0.5)
    assert (tasks.queued, tasks[0].dispatched_at) == ({1}, {0: 0.5})
    tasks.start_attempts([0], 2.0)
    tasks.record_start(0, 0, 0.7)  # This start is reported again. The second attempt waits for a slot.
    assert (tasks.queued, tasks[0].dispatched_at) == ({0, 1}, {0: 0.5})
    tasks.record_start(0, 1, 3.0)
    assert (tasks.queued, tasks[0].dispatched_at) == ({1}, {0: 0.5, 1: 3.0})
    tasks.record_outcome(ended(0, 0), 4.0)
    assert tracker.durations == [(3.5, False)]
    tasks.record_outcome(ended(1, 0), 5.0)  # The task began and ended between two polls.
    assert tracker.durations == [(3.5, False), (2.0, True)]
    assert not tasks.queued
    assert not tracker.run
    tasks, tracker = make_table_and_tracker(1)
    for attempt, began in ((0, 0.5), (1, 3.0)):
        tasks.start_attempts([0], began)
        tasks.record_start(0, attempt, began)
    tasks.record_outcome(ended(0, 1), 4.0)
    assert tracker.durations == [(1.0, True)]


def test_a_rejected_result_is_restored_when_it_turns_out_to_be_correct() -> None:
    tasks = TaskTable(1)
    tasks.start_attempts([0], 0.0)
    tasks.record_outcome(ended(0, 0), 1.0)
    tasks.reject_result(0, ODD)
    assert tasks.failed == {0}
    tasks.restore_result(0)
    assert not tasks.failed
    assert tasks[0].failures == []


def test_a_result_counts_regardless_of_later_attempts() -> None:
    tasks, tracker = make_table_and_tracker(1)
    tasks.start_attempts([0], 0.0)
    tasks.start_attempts([0], 1.0)
    tasks.record_outcome(ended(0, 1), 2.0)
    tasks.restore_result(0)
    tasks.record_outcome(ended(0, 0), 3.0)
    assert tracker.durations == [(2.0, True)]
    assert (tasks.in_flight.keys(), tasks.failed) == (set(), set())


def test_events_of_discarded_tasks_are_ignored() -> None:
    tasks, tracker = make_table_and_tracker(0)
    tasks.add_task(0, tracker)
    tasks.add_task(1, tracker)
    assert (len(tasks), tasks.held_back) == (2, {0, 1})
    tasks.start_attempts([0], 0.0)
    tasks.start_attempts([0], 1.0)
    tasks.record_start(0, 0, 0.0)
    tasks.record_outcome(ended(0, 0, LOST), 2.0)
    tasks.record_start(0, 1, 1.0)
    tasks.discard_task(0)
    tasks.discard_task(0)
    assert tracker.run == set()
    tasks.record_start(0, 1, 3.0)
    tasks.record_outcome(ended(0, 1), 3.0)
    assert (tasks.in_flight.keys(), tasks.failed, tasks.queued, tasks.held_back) == (set(), set(), set(), {1})
    assert (tasks.task_indices(), tracker.durations) == ([1], [])


def test_worker_seconds_are_those_of_the_latest_result_of_each_task() -> None:
    tasks = TaskTable(3)
    tasks.start_attempts([0, 1], 0.0)
    assert tasks.worker_seconds == []
    tasks.record_outcome(ended(0, 0), 1.0)
    tasks.record_outcome(ended(1, 0, LOST), 1.0)
    assert tasks.worker_seconds == [2.0]
    tasks.reject_result(0, ODD)
    tasks.start_attempts([0], 2.0)
    tasks.record_outcome(ended(0, 1)._replace(seconds=5.0), 9.0)
    assert tasks.worker_seconds == [5.0]


def test_the_late_tracker_is_notified_only_of_attempts_with_needed_results() -> None:
    tasks, tracker = make_table_and_tracker(1)
    for attempt in range(2):
        tasks.start_attempts([0], float(attempt))
        tasks.record_start(0, attempt, float(attempt))
    assert tracker.run == {(0, 0), (0, 1)}
    tasks.record_outcome(ended(0, 0), 2.0)
    assert tracker.run == set()
    tasks.reject_result(0, ODD)
    assert tracker.run == {(0, 1)}
    tasks.restore_result(0)
    assert tracker.run == set()


def states_of(tasks: TaskTable) -> list[str]:
    return [str(task.state) for task in tasks]


def test_each_task_has_the_state_of_its_result_or_of_its_attempts() -> None:
    tasks = TaskTable(6)
    tasks.start_attempts(range(5), 0.0)
    assert states_of(tasks) == ["queued"] * 5 + ["held back"]
    for index in range(4):
        tasks.record_start(index, 0, 0.5)
    tasks.record_start(4, 0, 0.6, is_confirmed=False)  # No worker has confirmed this start.
    assert states_of(tasks) == ["running"] * 4 + ["queued", "held back"]
    tasks.record_outcome(ended(0, 0), 1.0)
    tasks.record_outcome(ended(1, 0), 1.0)
    tasks.record_outcome(ended(2, 0, LOST), 1.0)
    assert states_of(tasks) == ["arrived", "arrived", "failed", "running", "queued", "held back"]
    tasks.reject_result(0, ODD)
    tasks.start_attempts([2], 2.0)
    assert states_of(tasks) == ["failed", "arrived", "queued", "running", "queued", "held back"]
    tasks.restore_result(0)
    tasks.finalize_attempt_states()
    tasks.mark_results_unneeded([1, 3])
    assert states_of(tasks) == ["arrived", "surplus", "cancelled", "abandoned", "cancelled", "held back"]
    assert tasks[2].attempt_states == [TaskState.FAILED, TaskState.CANCELLED]


def test_of_two_attempts_the_result_of_the_first_to_end_counts() -> None:
    tasks = TaskTable(1)
    for attempt in range(2):
        tasks.start_attempts([0], float(attempt))
        tasks.record_start(0, attempt, float(attempt))
    tasks.record_outcome(ended(0, 1), 2.0)
    assert (states_of(tasks), tasks[0].attempt_states) == (
        ["arrived"],
        [TaskState.RUNNING, TaskState.ARRIVED],
    )
    tasks.record_outcome(ended(0, 0), 3.0)
    tasks.finalize_attempt_states()
    assert (states_of(tasks), tasks[0].attempt_states) == (
        ["arrived"],
        [TaskState.SURPLUS, TaskState.ARRIVED],
    )


def test_the_start_of_a_task_is_that_of_its_worker_even_if_reported_late() -> None:
    tasks = TaskTable(4)
    tasks.start_attempts(range(4), 0.0)
    for index, when in ((0, 1.0), (1, 4.5)):
        tasks.record_start(index, 0, when)
    tasks.record_start(2, 0, 0.0, is_confirmed=False)
    for index in range(3):
        tasks.record_outcome(ended(index, 0), 5.0)  # The worker spent 2 s on each task.
    assert [task.first_started_at for task in tasks] == [1.0, 3.0, 3.0, None]
