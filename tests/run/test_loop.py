"""The loop alone: what it submits and yields, when it tries again, when it gives up."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from run.test_policies import Wanted, lost, returned

from polarmap.errors import CodedTimeoutError
from polarmap.executors.base import Event, Outcome
from polarmap.run.loop import Need, Policy, Stopwatch, schedule
from polarmap.run.tasks import TaskTable


class Scripted:
    """A run whose outcomes are written down beforehand, on a clock of its own."""

    def __init__(self, script: Sequence[tuple[float, Outcome]]) -> None:
        self._script, self._now = list(script), 0.0
        self.submitted: list[list[tuple[int, int]]] = []

    def now(self) -> float:
        return self._now

    def submit(self, attempts: Sequence[tuple[int, int]]) -> None:
        self.submitted.append(list(attempts))

    def wait(self, timeout: float) -> list[Event]:
        if not self._script or self._script[0][0] > self._now + timeout:
            self._now += timeout
            return []
        self._now, outcome = self._script.pop(0)
        return [outcome]

    def wake(self) -> None: ...

    def close(self) -> None: ...


class GivingUp(Wanted):
    """Says of less than it needs that it will not do."""

    def settle_for_less(self) -> None:
        raise LookupError("nothing can come")


def loop(run: Scripted, n: int, needed: int, retries: int = 1, timeout: float = math.inf):  # type: ignore[no-untyped-def]
    tasks = TaskTable(n)
    need = GivingUp(tasks, needed, Stopwatch(run.now, timeout))
    for outcomes in schedule(run, Policy(n), retries, need):
        yield from outcomes
        if need.is_met:
            return


def test_it_stops_when_it_is_not_asked_any_more() -> None:
    run = Scripted([(1.0, returned(2)), (2.0, returned(0)), (3.0, returned(1))])
    assert [one.task for one in loop(run, 3, needed=2)] == [2, 0]
    assert run.submitted == [[(0, 0), (1, 0), (2, 0)]]
    assert run.now() == 2.0


def test_what_failed_starts_again_where_nothing_makes_up_for_it() -> None:
    run = Scripted([(1.0, returned(1)), (1.0, lost(0)), (9.0, returned(0, 1))])
    assert len(list(loop(run, 2, needed=2))) == 3
    assert run.submitted == [[(0, 0), (1, 0)], [(0, 1)]]


def test_it_is_tried_again_as_often_as_may_be() -> None:
    run = Scripted([(float(attempt), lost(0, attempt)) for attempt in range(4)])
    with pytest.raises(LookupError, match="nothing can come"):
        list(loop(run, 1, needed=1, retries=3))
    assert run.submitted == [[(0, attempt)] for attempt in range(4)]


def test_time_is_up() -> None:
    run = Scripted([(math.inf, returned(0))])
    with pytest.raises(
        CodedTimeoutError, match="0 of 1 needed results arrived within 3 s, 1 task still runs"
    ):
        list(loop(run, 1, needed=1, timeout=3.0))
    assert run.now() == pytest.approx(3.0)


class Ticking(Scripted):
    """Each question takes so many seconds; a wait that nothing ends is a mistake."""

    def __init__(self, step: float) -> None:
        super().__init__([])
        self._step = step

    def now(self) -> float:
        self._now += self._step
        return self._now

    def wait(self, timeout: float) -> list[Event]:
        assert timeout < math.inf or len(self.submitted) == 2
        self._now += min(timeout, 7 * self._step)  # woken
        return []


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
        need, policy = GivingUp(tasks, 2, Stopwatch(run.now)), Later(2)
        for _ in schedule(run, policy, 1, need):
            if not tasks.held_back:
                break
        assert run.submitted == [[(0, 0), (1, 0)], [(2, 0)]]
