"""Policies decide on clocks and counts that are passed in: late tasks, parity on demand."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polarmap.executors.interface import Failure, Outcome
from polarmap.run.lateness import LatenessRule, ParityRule
from polarmap.run.loop import Need, Policy, Stopwatch
from polarmap.run.policies import Backups, OnDemand, with_backups
from polarmap.run.tasks import TaskTable

STOPPED = Stopwatch(lambda: 0.0)


class Wanted(Need):
    """A need that a number of results meets."""

    is_protected = True

    def __init__(self, tasks: TaskTable, count: int, watch: Stopwatch = STOPPED) -> None:
        super().__init__(tasks, watch)
        self._count = count

    def add(self, outcome: Outcome) -> None: ...

    @property
    def is_met(self) -> bool:
        return len(self.tasks.arrived) >= self._count

    @property
    def threshold(self) -> int:
        return self._count

    def would_be_met(self, tasks: Collection[int]) -> bool:
        return len(tasks) >= self._count

    def settle_for_less(self) -> None: ...


def returned(task: int, attempt: int = 0) -> Outcome:
    return Outcome(task, attempt, [np.zeros(1)], ("array",), None, 1.0)


def lost(task: int, attempt: int = 0) -> Outcome:
    return Outcome(task, attempt, [], (), Failure("lost", "WorkerLost", ""), 0.0)


def test_upfront_starts_everything_and_then_nothing() -> None:
    policy, tasks = Policy(5), TaskTable(5)
    assert list(policy.first) == [0, 1, 2, 3, 4]
    assert not policy.due(tasks, Wanted(tasks, 5), 1e9)
    assert policy.wait_seconds(tasks, 1e9) == inf


def note_began(tasks: TaskTable, indices: Iterable[int], when: float) -> None:
    for index in indices:
        tasks.note_began(index, tasks[index].attempts - 1, when)


def backed_up(n: int, most: int = 2) -> tuple[Backups, TaskTable, Wanted]:
    policy = Backups(n, LatenessRule(n, min_seconds=0.1), most)
    tasks = TaskTable(n, policy.late)
    tasks.start(policy.first, 0.0)
    return policy, tasks, Wanted(tasks, n)


def test_a_late_task_gets_a_backup_which_may_become_late_itself() -> None:
    policy, tasks, need = backed_up(4)
    note_began(tasks, range(4), 0.0)
    assert policy.wait_seconds(tasks, 1.0) == 59.0
    for task in (0, 1, 2):
        tasks.note(returned(task), 1.0)
    assert policy.wait_seconds(tasks, 1.0) == pytest.approx(0.1)
    assert not policy.due(tasks, need, 1.05)
    assert list(policy.due(tasks, need, 1.1)) == [3]
    tasks.start([3], 1.1)
    assert not policy.due(tasks, need, 9.0)  # it waits for a slot
    assert policy.wait_seconds(tasks, 9.0) == pytest.approx(1.1)  # unless it is given one now
    note_began(tasks, [3], 9.0)
    assert policy.wait_seconds(tasks, 9.0) == pytest.approx(1.1)
    assert list(policy.due(tasks, need, 10.1)) == [3]
    tasks.start([3], 10.1)
    note_began(tasks, [3], 10.1)
    assert not policy.due(tasks, need, 1e6)
    assert policy.wait_seconds(tasks, 1e6) == inf


def test_a_task_that_waits_for_a_slot_is_not_late() -> None:
    policy, tasks, need = backed_up(4)
    note_began(tasks, [0, 1], 0.0)
    for task in (0, 1):
        tasks.note(returned(task), 1.0)
    assert not policy.due(tasks, need, 1e6)
    note_began(tasks, [2], 1.0)
    assert not policy.due(tasks, need, 2.0)
    assert list(policy.due(tasks, need, 2.2)) == [2]


def test_a_backup_that_fails_is_replaced_while_the_first_attempt_runs() -> None:
    policy, tasks, need = backed_up(4, most=3)
    note_began(tasks, range(4), 0.0)
    for task in (0, 1, 2):
        tasks.note(returned(task), 1.0)
    assert list(policy.due(tasks, need, 3.0)) == [3]
    tasks.start([3], 3.0)
    tasks.note(lost(3, 1), 4.0)
    assert tasks.running.keys() == {3}
    assert not tasks.failed
    assert list(policy.due(tasks, need, 4.0)) == [3]


@given(st.lists(st.floats(0.1, 50.0), min_size=3, max_size=12), st.integers(0, 3))
def test_backups_start_when_the_rule_of_all_attempts_says(times: list[float], most: int) -> None:
    """Against a look at every attempt, at the moments at which something happens; backups never return."""
    n, rule = len(times), LatenessRule(len(times), min_seconds=0.1)
    policy, tasks, need = backed_up(n, most)
    note_began(tasks, range(n), 0.0)
    began: list[list[float]] = [[0.0] for _ in range(n)]
    late: set[tuple[int, int]] = set()
    durations: list[float] = []
    for now, task in sorted((seconds, task) for task, seconds in enumerate(times)):
        tasks.note(returned(task), now)
        durations.append(now)
        age = rule.late_after(durations)
        running = [one for one in range(n) if not tasks[one].returned]
        late |= {(one, turn) for one in running for turn, when in enumerate(began[one]) if when + age <= now}
        last = {one: len(began[one]) - 1 for one in running}
        expected = [one for one in running if (one, last[one]) in late and last[one] < most]
        assert list(policy.due(tasks, need, now)) == expected
        tasks.start(expected, now)
        note_began(tasks, expected, now)
        for one in expected:
            began[one].append(now)


def on_demand(n: int, k: int) -> tuple[OnDemand, TaskTable, Wanted]:
    policy = OnDemand(n, ParityRule(k))
    tasks = TaskTable(n, policy.late)
    tasks.start(policy.first, 0.0)
    return policy, tasks, Wanted(tasks, k)


def test_nothing_more_starts_once_the_need_is_met_or_parity_is_of_no_use() -> None:
    policy, tasks, need = on_demand(4, 2)
    need.is_protected = False
    assert not policy.due(tasks, need, 1e6)
    need.is_protected = True
    tasks.note(returned(0), 1.0)
    tasks.note(returned(1), 1.0)
    assert not policy.due(tasks, need, 1e6)


def test_what_is_late_already_is_not_waited_for_though_nobody_asked_what_is_due() -> None:
    policy, tasks, need = on_demand(8, 4)
    note_began(tasks, range(4), 0.0)
    for task in range(3):
        tasks.note(returned(task), 1.0)
    need.is_protected = False  # so nothing is due, and no task is looked at
    assert not policy.due(tasks, need, 50.0)
    assert policy.wait_seconds(tasks, 50.0) == inf


def test_thousands_of_silent_tasks_become_late_one_after_another() -> None:
    policy, tasks, need = on_demand(2400, 1800)
    note_began(tasks, range(1800), 0.0)
    assert not policy.due(tasks, need, 59.0)
    assert list(policy.due(tasks, need, 60.0)) == [1800]


def test_where_numbers_do_not_decide_the_need_is_asked() -> None:
    policy = OnDemand(8, ParityRule(4), counts_decide=False)
    tasks = TaskTable(8, policy.late)
    tasks.start(policy.first, 0.0)
    need = Wanted(tasks, 6)
    for task in range(4):
        tasks.note(returned(task), 1.0)
    assert list(policy.due(tasks, need, 1.0)) == [4, 5]


def test_nobody_looks_for_late_tasks_that_get_no_backup() -> None:
    assert with_backups(4, 0).late is None
    assert isinstance(with_backups(4, 2), Backups)
