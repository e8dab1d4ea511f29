"""Tests of scheduling policies with given times and counts: backups of late tasks, and parity on demand."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

import pytest
from driver.test_collector import CountingCollector, lost, returned
from hypothesis import given
from hypothesis import strategies as st

from polarmap.driver.lateness import LatenessRule, LateTracker, ParityRule
from polarmap.driver.policies import (
    MAX_RETRY_DELAY,
    BackupPolicy,
    OnDemandParityPolicy,
    RetryRule,
    UpfrontPolicy,
    make_backup_policy,
)
from polarmap.driver.task_table import TaskTable


def test_upfront_starts_all_tasks_once() -> None:
    policy, tasks = UpfrontPolicy(5), TaskTable(5)
    assert list(policy.initial_tasks) == [0, 1, 2, 3, 4]
    assert not policy.choose_tasks_to_start(tasks, CountingCollector(tasks, 5), 1e9)
    assert policy.seconds_until_next_start(tasks, 1e9) == inf


def note_began(task_table: TaskTable, indices: Iterable[int], when: float) -> None:
    for index in indices:
        task_table.record_start(index, task_table[index].n_attempts - 1, when)


def backed_up(n: int, max_backups: int = 2) -> tuple[BackupPolicy, TaskTable, CountingCollector]:
    policy = BackupPolicy(n, LatenessRule(n, min_seconds=0.1), max_backups)
    tasks = TaskTable(n, policy.late_tracker)
    tasks.start_attempts(policy.initial_tasks, 0.0)
    return policy, tasks, CountingCollector(tasks, n)


def test_a_late_task_gets_a_backup_which_may_become_late_itself() -> None:
    policy, tasks, collector = backed_up(4)
    note_began(tasks, range(4), 0.0)
    assert policy.seconds_until_next_start(tasks, 1.0) == 59.0
    for task in (0, 1, 2):
        tasks.record_outcome(returned(task), 1.0)
    assert policy.seconds_until_next_start(tasks, 1.0) == pytest.approx(0.1)
    assert not policy.choose_tasks_to_start(tasks, collector, 1.05)
    assert list(policy.choose_tasks_to_start(tasks, collector, 1.1)) == [3]
    tasks.start_attempts([3], 1.1)
    assert not policy.choose_tasks_to_start(tasks, collector, 9.0)  # The backup waits for a slot.
    # The estimate assumes that a slot is free now.
    assert policy.seconds_until_next_start(tasks, 9.0) == pytest.approx(1.1)
    note_began(tasks, [3], 9.0)
    assert policy.seconds_until_next_start(tasks, 9.0) == pytest.approx(1.1)
    assert list(policy.choose_tasks_to_start(tasks, collector, 10.1)) == [3]
    tasks.start_attempts([3], 10.1)
    note_began(tasks, [3], 10.1)
    assert not policy.choose_tasks_to_start(tasks, collector, 1e6)
    assert policy.seconds_until_next_start(tasks, 1e6) == inf


def test_a_task_that_waits_for_a_slot_is_not_late() -> None:
    policy, tasks, collector = backed_up(4)
    note_began(tasks, [0, 1], 0.0)
    for task in (0, 1):
        tasks.record_outcome(returned(task), 1.0)
    assert not policy.choose_tasks_to_start(tasks, collector, 1e6)
    note_began(tasks, [2], 1.0)
    assert not policy.choose_tasks_to_start(tasks, collector, 2.0)
    assert list(policy.choose_tasks_to_start(tasks, collector, 2.2)) == [2]


def test_a_backup_that_fails_is_replaced_while_the_first_attempt_runs() -> None:
    policy, tasks, collector = backed_up(4, max_backups=3)
    note_began(tasks, range(4), 0.0)
    for task in (0, 1, 2):
        tasks.record_outcome(returned(task), 1.0)
    assert list(policy.choose_tasks_to_start(tasks, collector, 3.0)) == [3]
    tasks.start_attempts([3], 3.0)
    tasks.record_outcome(lost(3, 1), 4.0)
    assert tasks.in_flight.keys() == {3}
    assert not tasks.failed
    assert list(policy.choose_tasks_to_start(tasks, collector, 4.0)) == [3]


@given(st.lists(st.floats(0.1, 50.0), min_size=3, max_size=12), st.integers(0, 3))
def test_backups_start_when_the_rule_of_all_attempts_says(times: list[float], max_backups: int) -> None:
    # The oracle examines every attempt whenever a task ends. Backups never return.
    n, rule = len(times), LatenessRule(len(times), min_seconds=0.1)
    policy, tasks, collector = backed_up(n, max_backups)
    note_began(tasks, range(n), 0.0)
    began: list[list[float]] = [[0.0] for _ in range(n)]
    late: set[tuple[int, int]] = set()
    durations: list[float] = []
    for now, task in sorted((seconds, task) for task, seconds in enumerate(times)):
        tasks.record_outcome(returned(task), now)
        durations.append(now)
        age = rule.late_after_seconds(durations)
        running = [index for index in range(n) if not tasks[index].has_result]
        late |= {
            (index, turn) for index in running for turn, when in enumerate(began[index]) if when + age <= now
        }
        last = {index: len(began[index]) - 1 for index in running}
        expected = [index for index in running if (index, last[index]) in late and last[index] < max_backups]
        assert list(policy.choose_tasks_to_start(tasks, collector, now)) == expected
        tasks.start_attempts(expected, now)
        note_began(tasks, expected, now)
        for task_index in expected:
            began[task_index].append(now)


def on_demand(n: int, k: int) -> tuple[OnDemandParityPolicy, TaskTable, CountingCollector]:
    policy = OnDemandParityPolicy(n, ParityRule(k))
    tasks = TaskTable(n, policy.late_tracker)
    tasks.start_attempts(policy.initial_tasks, 0.0)
    return policy, tasks, CountingCollector(tasks, k)


def test_no_task_starts_once_results_suffice_or_parity_cannot_help() -> None:
    policy, tasks, collector = on_demand(4, 2)
    collector.can_use_parity = False
    assert not policy.choose_tasks_to_start(tasks, collector, 1e6)
    collector.can_use_parity = True
    tasks.record_outcome(returned(0), 1.0)
    tasks.record_outcome(returned(1), 1.0)
    assert not policy.choose_tasks_to_start(tasks, collector, 1e6)


def test_the_policy_does_not_wait_for_a_task_that_is_already_late() -> None:
    policy, tasks, collector = on_demand(8, 4)
    note_began(tasks, range(4), 0.0)
    for task in range(3):
        tasks.record_outcome(returned(task), 1.0)
    collector.can_use_parity = False  # Parity cannot start, so the policy does not examine any task.
    assert not policy.choose_tasks_to_start(tasks, collector, 50.0)
    assert policy.seconds_until_next_start(tasks, 50.0) == inf


def test_thousands_of_silent_tasks_become_late_one_after_another() -> None:
    policy, tasks, collector = on_demand(2400, 1800)
    note_began(tasks, range(1800), 0.0)
    assert not policy.choose_tasks_to_start(tasks, collector, 59.0)
    assert list(policy.choose_tasks_to_start(tasks, collector, 60.0)) == [1800]


def test_the_collector_decides_if_counts_do_not() -> None:
    policy = OnDemandParityPolicy(8, ParityRule(4), is_mds=False)
    tasks = TaskTable(8, policy.late_tracker)
    tasks.start_attempts(policy.initial_tasks, 0.0)
    collector = CountingCollector(tasks, 6)
    for task in range(4):
        tasks.record_outcome(returned(task), 1.0)
    assert list(policy.choose_tasks_to_start(tasks, collector, 1.0)) == [4, 5]


def test_late_tasks_are_not_tracked_without_backups() -> None:
    assert make_backup_policy(4, 0).late_tracker is None
    assert isinstance(make_backup_policy(4, 2), BackupPolicy)


def test_a_retry_rule_counts_attempts_and_doubles_the_delay_up_to_a_minute() -> None:
    rule, tasks = RetryRule(2, 20.0), TaskTable(1)
    for attempt, delay in enumerate((20.0, 40.0, 60.0)):
        tasks.start_attempts([0], 100.0 * attempt)
        tasks.record_outcome(lost(0, attempt), 100.0 * attempt + 1)
        assert rule.compute_retry_time(tasks[0]) == 100.0 * attempt + 1 + delay
        assert rule.allows_retry(tasks[0]) == (attempt < 2)
    assert RetryRule(1).compute_retry_time(tasks[0]) == 201.0
    assert RetryRule(10**6, 1e-3).compute_delay(10**6) == MAX_RETRY_DELAY


def test_an_item_that_was_lost_in_a_batch_waits_for_the_delay_once() -> None:
    tasks = TaskTable(1)
    tasks.start_attempts([0], 0.0)
    tasks.record_outcome(lost(0, 0), 3.0)
    tasks.split_off_task(0, 1, lost(0, 0).failure, LateTracker(LatenessRule(1)), is_batch_loss=True)
    assert RetryRule(1, 8.0).compute_retry_time(tasks[1]) == 11.0
