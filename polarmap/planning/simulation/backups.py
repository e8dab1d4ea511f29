"""Simulation of backup tasks: a late task is started a second time, and the first result counts.

This is also called speculative execution. When one attempt (run of a task) returns, the other attempts of the
same task are assumed to stop immediately. So the cost is the lowest possible.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from math import ceil, floor, inf
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from polarmap.driver.lateness import LatenessRule, LateTracker
from polarmap.planning.distributions import Floats
from polarmap.planning.simulation.jobs import (
    SimulatedJobs,
    compute_lateness_thresholds,
    find_jobs_with_early_backups,
)

# A function that draws the run times of backups. It is called with a boolean array (trials, k), which is True
# for late tasks, and returns a vector with one run time for each late task, in seconds.
BackupSampler = Callable[[npt.NDArray[np.bool_]], Floats]


class BackupRule(NamedTuple):
    """The rule by which cubed and Spark start backups of slow tasks (speculative execution).

    A task gets a backup (a second run) when it has taken `slowdown` times as long as a typical task.

    Attributes
    ----------
    slowdown : float
        The multiple of a typical run time after which a task gets a backup.
    completed_fraction : float
        The fraction of tasks that must have completed before backups are started.
    min_tasks : int
        Jobs with fewer tasks do not use backups.
    uses_all_tasks : bool
        How a typical run time is defined. True: the time by which `completed_fraction` of all tasks had
        completed (as in cubed). False: the median run time of the completed tasks (as in Spark).
    """

    slowdown: float = 3.0
    completed_fraction: float = 0.5
    min_tasks: int = 1
    uses_all_tasks: bool = True

    def min_completed(self, n_tasks: int) -> int:
        """Return the number of tasks that must have completed before backups are started.

        Examples
        --------
        >>> BackupRule().min_completed(5), BackupRule(uses_all_tasks=False).min_completed(5)
        (3, 2)
        """
        round_count = ceil if self.uses_all_tasks else floor
        return max(1, round_count(n_tasks * self.completed_fraction))


# The rules of cubed and Spark 4 with their default settings:
# - cubed (cubed.runtime.backup.should_launch_backup) starts a backup of a task after 3 times the time by
#   which half of all tasks had completed.
# - Spark has the settings spark.speculation.quantile = 0.9 and spark.speculation.multiplier = 3.
CUBED_RULE = BackupRule(min_tasks=10)
SPARK_RULE = BackupRule(completed_fraction=0.9, min_tasks=2, uses_all_tasks=False)


def simulate_backups(
    first_run_times: Floats,
    sample_backups: BackupSampler,
    rule: BackupRule | LatenessRule,
    max_backups: int = 1,
) -> SimulatedJobs:
    """Simulate jobs in which backups are started for late tasks.

    All tasks start at time 0. The first result of each task counts.

    Parameters
    ----------
    first_run_times : array (trials, k)
        The run time of each task's first attempt, in seconds; inf if it never completes.
    sample_backups : callable
        Called with a boolean array (trials, k) that is True for late tasks. Must return the run times of
        their backups, as a vector.
    rule : BackupRule or LatenessRule
        Decides when a task is late: the rule of cubed or Spark, or the rule of `hedged_map`.
    max_backups : int
        The maximum number of backups per task. A backup may itself become late.

    Returns
    -------
    SimulatedJobs

    Examples
    --------
    >>> first = np.array([[1.0] * 9 + [8.0]])
    >>> jobs = simulate_backups(first, lambda late: np.full(late.sum(), 1.5), CUBED_RULE)
    >>> jobs.completion_times.tolist(), jobs.worker_seconds.tolist(), jobs.n_tasks_started.tolist()
    ([4.5], [15.0], [11.0])
    >>> jobs = simulate_backups(first, lambda late: np.full(late.sum(), 1.5), LatenessRule(10))
    >>> jobs.completion_times.tolist()
    [2.6]
    """
    sorted_run_times = np.sort(first_run_times, axis=1)
    early_mask = np.zeros(len(first_run_times), bool)
    if isinstance(rule, LatenessRule):
        backup_after = compute_lateness_thresholds(sorted_run_times, rule)[:, None]
        early_mask = find_jobs_with_early_backups(sorted_run_times, rule)
    else:
        backup_after = compute_backup_start_times(sorted_run_times, rule)[:, None]
    completion_times, backup_start_times, backup_run_times = first_run_times.copy(), [], []
    for attempt in range(1, max_backups + 1):
        # All tasks of a job start at time 0, so all tasks that are still running become late at the same
        # time. Therefore, their backups also start at the same time, and become late after the same number of
        # seconds.
        start_times = np.broadcast_to(attempt * backup_after, first_run_times.shape)
        late_mask = early_mask[:, None] | (completion_times > start_times)
        run_times = np.full(first_run_times.shape, inf)
        run_times[late_mask] = sample_backups(late_mask)
        backup_run_times.append(run_times)
        backup_start_times.append(np.where(late_mask, start_times, inf))
        earlier_end = np.minimum(completion_times, start_times + run_times)
        completion_times = np.where(late_mask, earlier_end, completion_times)
    for job_index in np.flatnonzero(early_mask).tolist():
        assert isinstance(rule, LatenessRule)
        attempt_run_times = np.array([times[job_index] for times in (first_run_times, *backup_run_times)])
        completion_times[job_index], attempt_start_times = _simulate_backup_events(attempt_run_times, rule)
        for stored_start_times, start_times in zip(backup_start_times, attempt_start_times[1:]):
            stored_start_times[job_index] = start_times
    n_tasks_started = np.full(len(first_run_times), float(first_run_times.shape[1]))
    worker_seconds = completion_times.sum(axis=1)
    for start_times in backup_start_times:
        backup_mask = np.isfinite(start_times)
        n_tasks_started += backup_mask.sum(axis=1)
        backup_seconds = completion_times - np.where(backup_mask, start_times, 0.0)
        worker_seconds += np.where(backup_mask, backup_seconds, 0.0).sum(axis=1)
    return SimulatedJobs(completion_times.max(axis=1), worker_seconds, n_tasks_started)


def _simulate_backup_events(attempt_run_times: Floats, rule: LatenessRule) -> tuple[Floats, Floats]:
    """Simulate one job with backup tasks by discrete-event simulation.

    Parameters
    ----------
    attempt_run_times : array (attempts, k)
        The run time of each attempt, if it is started, in seconds.
    rule : LatenessRule
        Decides when a task is late and another attempt is started.

    Returns
    -------
    completed_at : array (k,)
        The completion time of each task, in seconds.
    started_at : array (attempts, k)
        The start time of each attempt; inf for attempts that are not started.
    """
    late_tracker: LateTracker[tuple[int, int]] = LateTracker(rule)
    completed_at, started_at = np.full(attempt_run_times.shape[1], inf), np.full(attempt_run_times.shape, inf)
    completion_queue: list[tuple[float, int, int]] = []  # A heap of (completion time, task, attempt).

    def start_attempt(task: int, attempt: int, current_time: float) -> None:
        started_at[attempt, task] = current_time
        late_tracker.on_start((task, attempt), current_time)
        run_time = float(attempt_run_times[attempt, task])
        if run_time < inf:
            heapq.heappush(completion_queue, (current_time + run_time, task, attempt))

    for task in range(attempt_run_times.shape[1]):
        start_attempt(task, 0, 0.0)
    while np.isinf(completed_at).any():
        next_completion_time = completion_queue[0][0] if completion_queue else inf
        current_time = min(next_completion_time, late_tracker.find_next_late_time())
        if current_time == inf:
            break
        if next_completion_time == current_time:
            _, task, attempt = heapq.heappop(completion_queue)
            if np.isinf(completed_at[task]):
                completed_at[task] = current_time
                late_tracker.record_run_time(float(attempt_run_times[attempt, task]), attempt > 0)
                for other_attempt in range(len(attempt_run_times)):
                    late_tracker.on_end((task, other_attempt))
        for task, attempt in sorted(late_tracker.find_late_attempts(current_time)):
            if attempt + 1 < len(attempt_run_times) and np.isinf(started_at[attempt + 1, task]):
                start_attempt(task, attempt + 1, current_time)
    return completed_at, started_at


def compute_backup_start_times(sorted_run_times: Floats, rule: BackupRule) -> Floats:
    """Return the time at which each simulated job starts backups of late tasks.

    Parameters
    ----------
    sorted_run_times : array (trials, k)
        The run times of each job's tasks, in ascending order.
    rule : BackupRule
        Decides when a task is late.

    Returns
    -------
    array (trials,)
        Seconds since the start of the job; inf if no backups are started.

    Examples
    --------
    >>> compute_backup_start_times(np.array([[1.0] * 9 + [8.0]]), CUBED_RULE).tolist()
    [3.0]
    """
    n_trials, k = sorted_run_times.shape
    start_times = np.full(n_trials, np.inf)
    if k < rule.min_tasks:
        return start_times
    # For each number of completed tasks, compute when backups start before the next task completes, if they
    # do. Go from large to small numbers, so that the earliest start time is kept.
    for n_completed in range(k - 1, rule.min_completed(k) - 1, -1):
        late_after = rule.slowdown * _compute_typical_run_times(sorted_run_times, rule, n_completed)
        candidate_times = np.maximum(sorted_run_times[:, n_completed - 1], late_after)
        is_in_time = candidate_times < sorted_run_times[:, n_completed]
        start_times = np.where(is_in_time, candidate_times, start_times)
    return start_times


def _compute_typical_run_times(sorted_run_times: Floats, rule: BackupRule, n_completed: int) -> Floats:
    """Return the typical run time of a task in each job, when `n_completed` of its tasks have completed.

    `BackupRule.uses_all_tasks` explains how the typical run time is defined.
    """
    if rule.uses_all_tasks:
        return sorted_run_times[:, rule.min_completed(sorted_run_times.shape[1]) - 1]
    return (sorted_run_times[:, (n_completed - 1) // 2] + sorted_run_times[:, n_completed // 2]) / 2
