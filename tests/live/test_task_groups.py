"""Check how the tasks of a map are grouped and counted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from polarmap.live.snapshots import STATE_LETTERS, MapSnapshot
from polarmap.live.task_groups import STATE_COLORS, TaskGroup, count_tasks_by_state, group_tasks

RUNNING = MapSnapshot(3, "f", "rotation code", "processes", 8, 6, 6, 1, 1.0, True, "aRqfhscx")


def test_few_tasks_have_a_group_each() -> None:
    snapshot = replace(RUNNING, decoded_blocks=(3,))
    groups = group_tasks(snapshot, 8)
    assert groups[1] == TaskGroup(1, 1, "running", is_late=True, is_decoded=False)
    assert groups[3] == TaskGroup(3, 1, "failed", is_late=False, is_decoded=True)
    assert [group.state for group in groups] == [
        *("arrived", "running", "queued", "failed", "held back", "surplus", "cancelled", "abandoned")
    ]


@pytest.mark.parametrize(
    ("letters", "state", "is_late"),
    [
        ("aaaq", "arrived", False),
        ("aaaf", "failed", False),
        ("aaRR", "arrived", True),
        ("qqrR", "queued", True),
    ],
)
def test_a_group_shows_failed_and_late_tasks(letters: str, state: str, is_late: bool) -> None:
    (group,) = group_tasks(replace(RUNNING, states=letters), 1)
    assert (group.state, group.is_late, group.n_tasks) == (state, is_late, 4)


@pytest.mark.parametrize("n", [1, 7, 999, 1000, 1001, 10_000])
def test_groups_are_at_most_as_many_as_requested_and_contain_all_tasks(n: int) -> None:
    groups = group_tasks(replace(RUNNING, states=("aRq" * n)[:n]), 1000)
    assert len(groups) <= 1000
    assert sum(group.n_tasks for group in groups) == n
    assert [group.first_task for group in groups] == list(range(0, n, groups[0].n_tasks))


def test_counts_of_tasks_end_with_late_and_decoded_ones() -> None:
    counts = count_tasks_by_state(replace(RUNNING, decoded_blocks=(2, 3)))
    assert list(counts.items())[-2:] == [("late", 1), ("decoded", 2)]
    assert sum(counts.values()) == 8 + 1 + 2


def test_every_state_has_a_colour() -> None:
    assert set(STATE_COLORS) == set(STATE_LETTERS)
