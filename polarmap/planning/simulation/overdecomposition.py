"""Simulation of over-decomposition: cutting the data into several small blocks per persistent worker.

Each worker takes the next task when it has completed one, so fast workers run more tasks than slow ones. All
blocks are coded together, so each result counts, even that of a slow worker. A job may therefore complete
earlier than with one large task per worker, for which the job has to wait for k of the n workers.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from polarmap.errors import CodeError
from polarmap.planning.distributions import Floats, bisect_predicate
from polarmap.planning.simulation.jobs import SimulatedJobs
from polarmap.validation import is_real_number

# The number of bisection steps when a time is computed. The remaining error is 2**-40 of the initial
# interval, so the time has about 12 significant digits.
BISECTION_STEPS = 40


def simulate_overdecomposition(
    run_times: npt.ArrayLike, k: int, tasks_per_worker: int, task_overhead: float = 0.0
) -> SimulatedJobs:
    """Simulate jobs in which n persistent workers take many small tasks from a shared queue.

    There are n * tasks_per_worker tasks, and any k * tasks_per_worker results complete a job. Tasks that are
    still running at that time are stopped.

    Parameters
    ----------
    run_times : array (trials, n)
        The time each worker would take for 1/n of all tasks, in seconds; inf for a worker that never
        completes a task. The speed of a worker is constant during a job.
    k : int
        The number of data blocks with one task per worker.
    tasks_per_worker : int
        The number of small tasks that replace each task. With 1, a job completes when k workers have
        finished.
    task_overhead : float
        The number of seconds that each small task takes in addition to its computation.

    Returns
    -------
    SimulatedJobs

    Examples
    --------
    >>> slow = np.array([[1.0, 1.0, 1.0, 4.0, 4.0, 4.0]])
    >>> jobs = [simulate_overdecomposition(slow, 4, tasks_per_worker) for tasks_per_worker in (1, 4, 8)]
    >>> [job.completion_times[0].round(9).item() for job in jobs]
    [4.0, 1.25, 1.125]
    """
    worker_times = np.asarray(run_times, np.float64)
    if worker_times.ndim != 2 or not 1 <= k <= worker_times.shape[1]:
        raise CodeError(
            f"run_times must have shape (n_trials, n) with n >= k = {k}, not {worker_times.shape}"
        )
    check_task_overhead(task_overhead)
    if tasks_per_worker < 1:
        raise CodeError(f"tasks_per_worker must be at least 1, not {tasks_per_worker}")
    n_trials, n = worker_times.shape
    n_results, task_seconds = k * tasks_per_worker, worker_times / tasks_per_worker + task_overhead
    # Each worker starts with one task. All other tasks are in the queue.
    n_queued = n * (tasks_per_worker - 1)
    completion_times = _compute_completion_times(task_seconds, min(n_results, n_queued))
    # The time at which each worker completes its last task and finds the queue empty. It is inf if this does
    # not happen before the job is complete.
    last_end_times = np.full(worker_times.shape, np.inf)
    if n_results > n_queued:
        with np.errstate(invalid="ignore"):
            next_end_times = (np.floor(completion_times[:, None] / task_seconds) + 1) * task_seconds
        last_end_times = np.where(task_seconds < np.inf, next_end_times, np.inf)
        rank = n_results - n_queued - 1
        completion_times = np.partition(last_end_times, rank, axis=1)[:, rank]
    worker_seconds = np.minimum(last_end_times, completion_times[:, None]).sum(axis=1)
    n_tasks_started = np.full(n_trials, min(n * tasks_per_worker, n_results + n - 1.0))
    return SimulatedJobs(completion_times, worker_seconds, n_tasks_started)


def check_task_overhead(task_overhead: object) -> None:
    """Raise CodeError unless `task_overhead` is a finite number of seconds, 0 or more."""
    if not is_real_number(task_overhead) or not 0 <= task_overhead < np.inf:
        raise CodeError(
            f"task_overhead must be a finite number of seconds of at least 0, not {task_overhead!r}"
        )


def _compute_completion_times(task_seconds: Floats, n_completions: int) -> Floats:
    """Return the time at which the workers of each job have completed `n_completions` tasks in total.

    `task_seconds` (trials, n) is the time that each worker takes per task.
    """
    if not n_completions:
        return np.zeros(len(task_seconds))
    with np.errstate(invalid="ignore", divide="ignore"):
        rate = (1 / task_seconds).sum(axis=1)
        low = n_completions / rate
        # An upper bound on the time, because each worker has at most one task that is not completed.
        high = (n_completions + task_seconds.shape[1]) / rate
        return bisect_predicate(
            lambda time: np.floor(time[:, None] / task_seconds).sum(axis=1) >= n_completions,
            low,
            high,
            BISECTION_STEPS,
        )
