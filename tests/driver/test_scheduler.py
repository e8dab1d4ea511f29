"""Tests of the scheduling loop on a virtual clock that advances with each poll."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from driver.test_collector import CountingCollector

import polarmap
from polarmap.driver import scheduler
from polarmap.driver.collector import Collector, JobTimer
from polarmap.driver.policies import RetryRule, SchedulingPolicy
from polarmap.driver.scheduler import schedule_tasks
from polarmap.driver.task_table import TaskTable
from polarmap.errors import CodedTimeoutError, CodeError
from polarmap.executors.interface import Event
from polarmap.testing import Fault, FaultyExecutor, ReplayExecutor


class TickingSession:
    """A session whose every poll takes `step` seconds and which must not be asked to wait forever."""

    def __init__(self, step: float) -> None:
        self._step, self._now = step, 0.0
        self.submitted: list[list[tuple[int, int]]] = []

    def now(self) -> float:
        self._now += self._step
        return self._now

    def submit(self, attempts: Sequence[tuple[int, int]]) -> None:
        self.submitted.append(list(attempts))

    def wait(self, timeout: float) -> list[Event]:
        assert timeout < math.inf or len(self.submitted) == 2
        self._now += min(timeout, 7 * self._step)  # A wait can end early, when `wake` is called.
        return []

    def wake(self) -> None: ...

    def close(self) -> None: ...


class DelayedPolicy(SchedulingPolicy):
    """A policy that starts a third task after one second."""

    def choose_tasks_to_start(
        self, task_table: TaskTable, collector: Collector, elapsed_seconds: float
    ) -> Sequence[int]:
        return [2] if elapsed_seconds >= 1.0 and task_table.held_back else []

    def seconds_until_next_start(self, task_table: TaskTable, elapsed_seconds: float) -> float:
        return max(1e-9, 1.0 - elapsed_seconds) if elapsed_seconds < 1.0 else math.inf


def test_a_start_that_becomes_due_between_two_calls_is_not_missed() -> None:
    for step in range(1, 60):
        run = TickingSession(step / 100)
        tasks = TaskTable(3)
        collector, policy = CountingCollector(tasks, 2, JobTimer(run.now)), DelayedPolicy(range(2))
        for _ in schedule_tasks(run, policy, RetryRule(1), collector):
            if not tasks.held_back:
                break
        assert run.submitted == [[(0, 0), (1, 0)], [(2, 0)]]


# --- delays before failed tasks are started again ------------------------------------------------


def run_with_failures(n_failures: int, delay: float, **options: Any) -> float:
    """Return the duration of a map of two tasks whose first task fails `n_failures` times."""
    faults = {0: Fault("kill", attempts=n_failures)}
    result = polarmap.hedged_map(
        abs,
        [-1, -2],
        executor=FaultyExecutor(ReplayExecutor(), faults),
        retries=n_failures,
        retry_delay=delay,
        **options,
    )
    assert list(result) == [1, 2] and result.report.tasks[0].attempts == n_failures + 1
    assert result.report.tasks[0].arrived == result.report.seconds
    return result.report.seconds


@pytest.mark.parametrize(
    ("n_failures", "delay", "seconds"),
    [
        (1, 0.0, 2.0),
        (1, 7.0, 9.0),
        (2, 7.0, 3.0 + 7 + 14),
        (4, 30.0, 5.0 + 30 + 60 + 60 + 60),
        (1, 1e9, 62.0),
    ],
)
def test_a_failed_task_waits_for_a_delay_that_doubles_up_to_a_minute(
    n_failures: int, delay: float, seconds: float
) -> None:
    assert run_with_failures(n_failures, delay, backups=0) == pytest.approx(seconds)


def test_each_failed_task_has_a_separate_delay() -> None:
    faults = FaultyExecutor(ReplayExecutor({0: 1.0, 1: 4.0, 2: 2.0}), dict.fromkeys((0, 1), Fault("kill")))
    result = polarmap.hedged_map(abs, [-1, -2, -3], executor=faults, backups=0, retry_delay=10.0)
    assert [task.arrived for task in result.report.tasks] == [1.0 + 10 + 1, 4.0 + 10 + 4, 2.0]


def test_a_coded_map_does_not_wait_for_retries_that_it_does_not_need() -> None:
    executor = FaultyExecutor(ReplayExecutor(), {0: Fault("kill")})
    options: dict[str, Any] = {"blocks": 3, "tasks": 4, "executor": executor, "verify": False}
    assert polarmap.coded_map(abs, np.eye(3), retry_delay=50.0, **options).report.seconds == 1.0


def test_a_map_with_a_failed_task_that_waits_ends_at_its_timeout() -> None:
    executor = FaultyExecutor(ReplayExecutor(), {0: Fault("kill")})
    with pytest.raises(CodedTimeoutError):
        polarmap.hedged_map(abs, [-1, 2], executor=executor, retry_delay=30.0, timeout=20.0)


def test_a_delay_is_not_extended_by_the_poll_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "MAX_POLL_INTERVAL", 0.3)
    assert run_with_failures(2, 1.0, backups=0) == pytest.approx(3.0 + 1 + 2)


@pytest.mark.parametrize("delay", [-1.0, math.inf, math.nan, "1", None])
def test_a_delay_is_a_number_of_seconds(delay: Any) -> None:
    with pytest.raises(CodeError, match="retry_delay must be a finite number of seconds >= 0, got"):
        polarmap.coded_map(abs, np.eye(3), retry_delay=delay)
