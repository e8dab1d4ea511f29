"""The loop alone, on a clock that goes on while it looks; what it tries again is in `test_running_map`."""

from __future__ import annotations

import math
from collections.abc import Sequence

from run.test_policies import Wanted

from polarmap.executors.interface import Event
from polarmap.run.loop import Need, Policy, Stopwatch, schedule
from polarmap.run.tasks import TaskTable


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


class Later(Policy):
    """A third task starts after a second."""

    def due(self, tasks: TaskTable, need: Need, now: float) -> Sequence[int]:
        return [2] if now >= 1.0 and tasks.held_back else []

    def wait_seconds(self, tasks: TaskTable, now: float) -> float:
        return max(1e-9, 1.0 - now) if now < 1.0 else math.inf


def test_what_becomes_due_between_two_questions_is_not_waited_for_for_ever() -> None:
    for step in range(1, 60):
        run = Ticking(step / 100)
        tasks = TaskTable(3)
        need, policy = Wanted(tasks, 2, Stopwatch(run.now)), Later(2)
        for _ in schedule(run, policy, 1, need):
            if not tasks.held_back:
                break
        assert run.submitted == [[(0, 0), (1, 0)], [(2, 0)]]
