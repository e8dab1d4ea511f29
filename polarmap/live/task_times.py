"""Compute when each task of a map was queued and ran, and how many tasks were queued and ran over time.

If a view has space for all tasks, its timeline shows the times of each task. Otherwise, the timeline shows
numbers of tasks: snapshots -> task times -> timelines in the terminal and in the SVG.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple

from polarmap.live.snapshots import STATE_BY_LETTER, STATE_LETTERS, MapSnapshot

FAILED_LETTER = STATE_LETTERS["failed"]


class TaskTimes(NamedTuple):
    """The times at which a task was queued, started and ended, in seconds since the start of its map.

    The task was queued from `queued_at` to `run_at`, and ran from `run_at` to `ended_at`. If the task did not
    wait or did not run, the two times are equal.
    """

    task: int
    queued_at: float
    run_at: float
    ended_at: float


def compute_task_times(snapshot: MapSnapshot) -> list[TaskTimes]:
    """Return the times of all tasks that were submitted, in the order of the tasks.

    A failed task counts as running until its last failure. If it is unknown when a task started, the task
    counts as queued as long as its state is "queued" or "cancelled". In any other state, it counts as running
    since its submission.
    """
    end = snapshot.elapsed_seconds
    times = []
    for task, submitted_at in enumerate(snapshot.submitted):
        if submitted_at is None:
            continue
        started_at, ended_at = snapshot.started[task], snapshot.ended[task]
        state = STATE_BY_LETTER[snapshot.states[task].lower()]
        if started_at is None and ended_at is None and state in ("queued", "cancelled"):
            times.append(TaskTimes(task, submitted_at, end, end))
        else:
            run_at = submitted_at if started_at is None else max(submitted_at, started_at)
            times.append(TaskTimes(task, submitted_at, run_at, end if ended_at is None else ended_at))
    return times


def get_timeline_end(snapshot: MapSnapshot) -> float:
    """Return the duration of a map's timeline in seconds.

    The duration is positive even if no time has passed yet, so that callers can divide by it.
    """
    ends = [ended_at for ended_at in snapshot.ended if ended_at is not None]
    return max([snapshot.elapsed_seconds, *ends]) or 1.0


class TaskCounts(NamedTuple):
    """The numbers of queued, running, returned and failed tasks of a map at equidistant points in time.

    Each list has one number for each point in time.
    """

    queued: list[int]
    running: list[int]
    returned: list[int]
    failed: list[int]


def count_tasks_over_time(snapshot: MapSnapshot, n_columns: int) -> TaskCounts:
    """Count the queued, running, returned and failed tasks of a map at `n_columns` points in time.

    The points in time are the centres of equal intervals, which together cover the duration of the map.
    """
    times, end = compute_task_times(snapshot), get_timeline_end(snapshot)
    edges = [end * (column + 0.5) / n_columns for column in range(n_columns)]
    n_submitted = _count_up_to([task.queued_at for task in times], edges)
    n_started = _count_up_to([task.run_at for task in times if task.run_at < task.ended_at], edges)
    n_ended = _count_up_to([task.ended_at for task in times if task.run_at < task.ended_at], edges)
    endings = [(state, at) for state, at in zip(snapshot.states.lower(), snapshot.ended) if at is not None]
    return TaskCounts(
        [submitted - started for submitted, started in zip(n_submitted, n_started)],
        [started - ended for started, ended in zip(n_started, n_ended)],
        _count_up_to([ended_at for state, ended_at in endings if state != FAILED_LETTER], edges),
        _count_up_to([ended_at for state, ended_at in endings if state == FAILED_LETTER], edges),
    )


def _count_up_to(times: list[float], edges: list[float]) -> list[int]:
    """Return, for each point in time in `edges`, how many of the `times` are less than or equal to it."""
    ordered = sorted(times)
    return [bisect_right(ordered, edge) for edge in edges]
