"""Tests of the timer of a job, and of the default behaviour of a collector."""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np
import pytest

from polarmap.driver.collector import EveryTaskCollector, JobTimer
from polarmap.driver.task_table import TaskTable
from polarmap.errors import CodedTimeoutError
from polarmap.executors.interface import Failure, Outcome

STOPPED = JobTimer(lambda: 0.0)


class CountingCollector(EveryTaskCollector):
    """A collector for which any `count` results suffice."""

    can_use_parity = True

    def __init__(self, task_table: TaskTable, count: int, timer: JobTimer = STOPPED) -> None:
        super().__init__(task_table, timer)
        self._count = count

    def add_outcome(self, outcome: Outcome) -> None: ...

    @property
    def has_sufficient_results(self) -> bool:
        return len(self.task_table.arrived) >= self._count

    @property
    def recovery_threshold(self) -> int:
        return self._count

    def would_suffice(self, task_indices: Collection[int]) -> bool:
        return len(task_indices) >= self._count

    def on_tasks_exhausted(self) -> None: ...


def returned(task: int, attempt: int = 0) -> Outcome:
    return Outcome(task, attempt, [np.zeros(1)], ("array",), None, 1.0)


def lost(task: int, attempt: int = 0) -> Outcome:
    return Outcome(task, attempt, [], (), Failure("lost", "WorkerLost", ""), 0.0)


def test_a_timer_measures_from_its_creation() -> None:
    readings = iter([10.0, 12.0, 13.5, 14.0, 14.0])
    timer = JobTimer(lambda: next(readings), timeout=3.0)
    assert timer.started_at == 10.0
    assert timer.elapsed_seconds == 2.0
    assert timer.remaining_seconds == -0.5
    assert timer.seconds_since(8.0) == 6.0
    assert timer.seconds_since(11.0) == 4.0  # The count starts no later than the timer itself.


def test_a_timer_without_a_timeout_never_expires() -> None:
    assert JobTimer(lambda: 0.0).remaining_seconds == math.inf


def test_pending_tasks_suffice_while_those_in_flight_and_held_back_are_enough() -> None:
    task_table = TaskTable(4)
    collector = CountingCollector(task_table, 3)
    task_table.start_attempts([0, 1], 0.0)  # Tasks 2 and 3 are held back.
    task_table.record_outcome(returned(0), 1.0)
    task_table.record_outcome(lost(1), 1.0)
    assert collector.can_pending_tasks_suffice()
    task_table.start_attempts([2], 1.0)
    task_table.record_outcome(lost(2), 2.0)
    assert not collector.can_pending_tasks_suffice()
    assert (collector.n_results, set(collector.decodable_tasks)) == (1, {0})


def test_a_timeout_says_how_many_results_have_arrived() -> None:
    task_table = TaskTable(3)
    collector = CountingCollector(task_table, 2, JobTimer(lambda: 0.0, timeout=5.0))
    task_table.start_attempts(range(3), 0.0)
    task_table.record_outcome(returned(0), 1.0)
    with pytest.raises(CodedTimeoutError, match="1 of 2 needed results"):
        collector.on_timeout()


def test_a_function_that_fails_everywhere_ends_the_map_with_its_error() -> None:
    task_table = TaskTable(2)
    collector = CountingCollector(task_table, 2)
    task_table.start_attempts(range(2), 0.0)
    collector.raise_if_f_always_fails()  # No task has failed yet.
    for task in range(2):
        error = KeyError("missing")
        failure = Failure("raised", "KeyError", str(error), error)
        task_table.record_outcome(lost(task)._replace(failure=failure), 1.0)
    with pytest.raises(KeyError, match="missing"):
        collector.raise_if_f_always_fails()
