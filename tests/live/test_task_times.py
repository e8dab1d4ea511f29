"""Check when tasks were queued and ran, and how many were queued and ran over time."""

from __future__ import annotations

from dataclasses import replace

from polarmap.live.snapshots import MapSnapshot
from polarmap.live.task_times import compute_task_times, count_tasks_over_time, get_timeline_end

RUNNING = MapSnapshot(
    *(3, "f", "rotation code", "processes", 8, 6, 6, 1, 1.0, True, "aRqfhscx"),
    submitted=(0.0, 0.0, 0.0, 0.0, None, 0.0, 0.0, 0.0),
    started=(0.1, 0.2, None, 0.3, None, 0.2, None, 0.5),
    ended=(0.6, None, None, None, None, 0.9, None, None),
)


def test_tasks_are_queued_until_a_worker_starts_them() -> None:
    times = {one.task: one[1:] for one in compute_task_times(RUNNING)}
    assert times == {
        0: (0.0, 0.1, 0.6),
        1: (0.0, 0.2, 1.0),
        2: (0.0, 1.0, 1.0),
        3: (0.0, 0.3, 1.0),
        5: (0.0, 0.2, 0.9),
        6: (0.0, 1.0, 1.0),
        7: (0.0, 0.5, 1.0),
    }


def test_a_failed_task_runs_until_its_last_failure() -> None:
    failed = replace(RUNNING, ended=(0.6, None, None, 0.45, None, 0.9, None, None))
    assert {one.task: one[1:] for one in compute_task_times(failed)}[3] == (0.0, 0.3, 0.45)
    counts, running = count_tasks_over_time(failed, 10), count_tasks_over_time(RUNNING, 10).running
    assert counts.failed == [0] * 4 + [1] * 6
    assert [before - after for before, after in zip(running, counts.running)] == counts.failed
    assert counts.returned == [0, 0, 0, 0, 0, 0, 1, 1, 1, 2]


def test_counts_over_time_tell_queued_from_running_tasks() -> None:
    counts = count_tasks_over_time(RUNNING, 10)
    assert counts.queued == [7, 6, 4, 3, 3, 2, 2, 2, 2, 2]
    assert counts.running == [0, 1, 3, 4, 4, 5, 4, 4, 4, 3]
    assert counts.returned == [0, 0, 0, 0, 0, 0, 1, 1, 1, 2]


def test_the_timeline_ends_with_the_map_or_its_last_result() -> None:
    assert get_timeline_end(RUNNING) == 1.0
    assert get_timeline_end(replace(RUNNING, elapsed_seconds=0.8)) == 0.9
    assert get_timeline_end(replace(RUNNING, elapsed_seconds=0.0, ended=())) == 1.0
