"""The loop alone, on a clock that goes on while it looks; what it tries again is in `test_map_execution`."""

from __future__ import annotations

import math
from collections.abc import Sequence

from driver.test_collector import CountingCollector

from polarmap.driver.collector import Collector, JobTimer
from polarmap.driver.policies import SchedulingPolicy
from polarmap.driver.scheduler import schedule_tasks
from polarmap.driver.task_table import TaskTable
from polarmap.executors.interface import Event


class Ticking:
    """A run of which each question takes so many seconds; a wait that nothing ends is a mistake."""

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
        self._now += min(timeout, 7 * self._step)  # woken
        return []

    def wake(self) -> None: ...

    def close(self) -> None: ...


class DelayedPolicy(SchedulingPolicy):
    """A third task starts after a second."""

    def choose_tasks_to_start(
        self, task_table: TaskTable, collector: Collector, elapsed_seconds: float
    ) -> Sequence[int]:
        return [2] if elapsed_seconds >= 1.0 and task_table.held_back else []

    def seconds_until_next_start(self, task_table: TaskTable, elapsed_seconds: float) -> float:
        return max(1e-9, 1.0 - elapsed_seconds) if elapsed_seconds < 1.0 else math.inf


def test_what_becomes_due_between_two_questions_is_not_waited_for_for_ever() -> None:
    for step in range(1, 60):
        run = Ticking(step / 100)
        tasks = TaskTable(3)
        collector, policy = CountingCollector(tasks, 2, JobTimer(run.now)), DelayedPolicy(range(2))
        for _ in schedule_tasks(run, policy, 1, collector):
            if not tasks.held_back:
                break
        assert run.submitted == [[(0, 0), (1, 0)], [(2, 0)]]
