"""Simulation of parity on demand: parity tasks start only when data tasks are late.

When a task is late (`LatenessRule`) or has failed, a parity task is started. Its result can replace any
missing result, not only that of the late task. Starting a parity task too early therefore costs little: if
the late task completes after all, the job is complete and the parity task is stopped.
"""

from __future__ import annotations

import heapq
from math import inf

import numpy as np

from polarmap.driver.lateness import LatenessRule, LateTracker, ParityRule, compute_min_results_to_extrapolate
from polarmap.errors import CodeError
from polarmap.planning.distributions import Distribution, Floats
from polarmap.planning.simulation.jobs import (
    SimulatedJobs,
    compute_lateness_thresholds,
    find_jobs_with_early_backups,
)


def simulate_on_demand(
    data_times: Floats, parity_times: Floats, n_upfront_parity: int = 0, run_times: Distribution | None = None
) -> SimulatedJobs:
    """Simulate jobs that start data tasks at time 0 and parity tasks only when data tasks are late.

    The result of a parity task can replace any missing result, so any k results complete a job. Tasks that
    are still running at that time are stopped. The `ParityRule` decides when parity tasks start.

    Parameters
    ----------
    data_times : array (trials, k)
        The run times of the data tasks, in seconds; inf for a task that never completes.
    parity_times : array (trials, n - k)
        The run times of the parity tasks, in the order in which they are started.
    n_upfront_parity : int
        The number of parity tasks that start together with the data tasks.
    run_times : Distribution, optional
        The expected run times, which define when a task is late. By default, they are estimated from the
        completed tasks of the same job.

    Returns
    -------
    SimulatedJobs

    Examples
    --------
    >>> late = np.array([[1.0] * 23 + [5.0]])
    >>> jobs = simulate_on_demand(late, np.full((1, 8), 1.0))
    >>> jobs.completion_times.tolist(), jobs.worker_seconds.round(9).tolist(), jobs.n_tasks_started.tolist()
    ([2.1], [26.1], [25.0])
    """
    data_times, parity_times = _check_run_times(data_times, parity_times, n_upfront_parity)
    k = data_times.shape[1]
    parity_start_times = _compute_parity_start_times(data_times, parity_times, n_upfront_parity, run_times)
    end_times = np.concatenate([data_times, parity_start_times + parity_times], axis=1)
    completion_times = np.partition(end_times, k - 1, axis=1)[:, k - 1]
    start_times = np.concatenate([np.zeros(data_times.shape), parity_start_times], axis=1)
    stop_times = completion_times[:, None]
    with np.errstate(invalid="ignore"):
        task_seconds = np.minimum(end_times, stop_times) - start_times
    worker_seconds = np.where(start_times < stop_times, task_seconds, 0.0).sum(axis=1)
    n_parity_started = (parity_start_times < stop_times).sum(axis=1).astype(float)
    return SimulatedJobs(completion_times, worker_seconds, k + n_parity_started)


def _compute_parity_start_times(
    data_times: Floats, parity_times: Floats, n_upfront_parity: int, run_times: Distribution | None
) -> Floats:
    """Return the start time of each parity task in each job, in seconds, or inf if it is not started."""
    k = data_times.shape[1]
    upfront_times = np.concatenate([data_times, parity_times[:, :n_upfront_parity]], axis=1)
    sorted_upfront_times = np.sort(upfront_times, axis=1)
    rule = LatenessRule(k, run_times)
    early_mask = np.zeros(len(data_times), bool)
    if run_times is None:
        early_mask = find_jobs_with_early_backups(sorted_upfront_times, rule, n_upfront_parity)
    start_times = np.full(parity_times.shape, inf)
    for job_index in np.flatnonzero(early_mask).tolist():
        start_times[job_index] = _simulate_parity_start_times(
            data_times[job_index], parity_times[job_index], n_upfront_parity
        )
    regular_mask = ~early_mask
    if run_times is not None:
        late_after = first_late_at = np.full(int(regular_mask.sum()), rule.late_after_seconds(()))
    else:
        regular_times = sorted_upfront_times[regular_mask]
        late_after = compute_lateness_thresholds(regular_times, rule)
        n_half = compute_min_results_to_extrapolate(k)
        first_late_at = np.maximum(late_after, regular_times[:, n_half - 1])
    start_times[regular_mask] = _compute_parity_start_times_in_rounds(
        data_times[regular_mask], parity_times[regular_mask], n_upfront_parity, first_late_at, late_after
    )
    return start_times


def _compute_parity_start_times_in_rounds(
    data_times: Floats,
    parity_times: Floats,
    n_upfront_parity: int,
    first_late_at: Floats,
    late_after_seconds: Floats,
) -> Floats:
    """Return the start time of each parity task, in jobs whose tasks become late in rounds.

    The first round is at `first_late_at`, and further rounds follow every `late_after_seconds`. Each round
    starts one parity task for each missing result.
    """
    k, parity_indices = data_times.shape[1], np.arange(parity_times.shape[1])
    start_times = np.full(parity_times.shape, inf)
    start_times[:, :n_upfront_parity] = 0.0
    for round_index in range(parity_times.shape[1] - n_upfront_parity):
        round_times = (first_late_at + round_index * late_after_seconds)[:, None]
        n_results = (data_times <= round_times).sum(axis=1)
        n_results += (start_times + parity_times <= round_times).sum(axis=1)
        if (n_results >= k).all():
            break
        n_started = np.isfinite(start_times).sum(axis=1)[:, None]
        n_due = n_started + k - n_results[:, None]
        new_mask = (parity_indices >= n_started) & (parity_indices < n_due)
        start_times = np.where(new_mask, round_times, start_times)
    return start_times


def _simulate_parity_start_times(data_times: Floats, parity_times: Floats, n_upfront_parity: int) -> Floats:
    """Return the start time of each parity task of one job, by discrete-event simulation."""
    k, attempt_times = len(data_times), np.concatenate([data_times, parity_times])
    rule = ParityRule(k)
    start_times, late_tracker = np.full(len(attempt_times), inf), LateTracker[int](rule.lateness_rule)
    completion_queue: list[tuple[float, int]] = []  # A heap of (completion time, task).
    current_time, n_started, n_completed, n_due = 0.0, 0, 0, k + n_upfront_parity
    while n_completed < k:
        for task in range(n_started, n_started + n_due):
            start_times[task] = current_time
            late_tracker.on_start(task, current_time)
            heapq.heappush(completion_queue, (current_time + float(attempt_times[task]), task))
        n_started += n_due
        current_time = min(completion_queue[0][0], late_tracker.find_next_late_time())
        if current_time == inf:
            break
        while completion_queue and completion_queue[0][0] <= current_time:
            _, task = heapq.heappop(completion_queue)
            late_tracker.on_end(task)
            late_tracker.record_run_time(float(attempt_times[task]), task >= k + n_upfront_parity)
            n_completed += 1
        n_on_time = n_started - n_completed - len(late_tracker.find_late_attempts(current_time))
        n_due = rule.count_parity_to_start(n_completed, n_on_time, len(attempt_times) - n_started)
    return start_times[k:]


def _check_run_times(
    data_times: Floats, parity_times: Floats, n_upfront_parity: int
) -> tuple[Floats, Floats]:
    data_times, parity_times = np.asarray(data_times, np.float64), np.asarray(parity_times, np.float64)
    is_table = data_times.ndim == parity_times.ndim == 2
    if not is_table or len(data_times) != len(parity_times) or not data_times.shape[1]:
        raise CodeError(
            "data_times must have shape (n_trials, k) and parity_times shape (n_trials, n - k), "
            f"not {data_times.shape} and {parity_times.shape}"
        )
    if not 0 <= n_upfront_parity <= parity_times.shape[1]:
        raise CodeError(
            f"n_upfront_parity must be from 0 to the number of parity tasks, {parity_times.shape[1]}, "
            f"not {n_upfront_parity}"
        )
    return data_times, parity_times
