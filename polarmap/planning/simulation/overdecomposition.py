"""Several times as many blocks as persistent workers: each takes the next when it is done.

It is known as over-decomposition, or tiny tasks. One codeword over all blocks makes every result count,
whichever worker it comes from: a fast worker does more of them, a slow one fewer. A job may so be complete
before k of n workers have done their share: the bound T_(k:n) holds for workers that return all or nothing.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from polarmap.errors import CodeError
from polarmap.planning.distributions import Floats, bisect_predicate
from polarmap.planning.simulation.jobs import SimulatedJobs
from polarmap.validation import is_real_number

BISECTION_STEPS = 40  # of the interval in which a moment lies: twelve digits


def simulate_overdecomposition(
    run_times: npt.ArrayLike, k: int, tasks_per_worker: int, task_overhead: float = 0.0
) -> SimulatedJobs:
    """Simulate jobs of n persistent workers and take n * pieces tasks one by one; any k * pieces results do.

    Parameters
    ----------
    run_times : array (trials, n)
        Seconds that a share of 1 / n of the tasks takes each worker, which is equally slow all the time; inf
        for one that never finishes anything.
    k, tasks_per_worker : int
        Blocks before there are `tasks_per_worker` times as many, and shorter tasks. 1 gives the k-th order
        statistic.
    task_overhead : float
        Seconds that each task takes beside its computation.

    Returns
    -------
    SimulatedJobs
        Whatever runs at completion is stopped.

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
            f"run times of shape (n_trials, n) with n >= k = {k} are needed, not {worker_times.shape}"
        )
    check_task_overhead(task_overhead)
    if tasks_per_worker < 1:
        raise CodeError(f"tasks_per_worker must be at least 1, not {tasks_per_worker}")
    n_trials, n = worker_times.shape
    n_results, task_seconds = k * tasks_per_worker, worker_times / tasks_per_worker + task_overhead
    n_queued = n * (tasks_per_worker - 1)  # a task begins whenever one ends, until so many have
    completion_times = _compute_completion_times(task_seconds, min(n_results, n_queued))
    # ends of the last tasks, after which workers are idle
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
    """CodeError for what no task can take beside its computation."""
    if not is_real_number(task_overhead) or not 0 <= task_overhead < np.inf:
        raise CodeError(f"task_overhead must be a number of seconds of at least 0, not {task_overhead!r}")


def _compute_completion_times(task_seconds: Floats, n_completions: int) -> Floats:
    """When workers that take so many seconds for a task have ended so many tasks, (trials,)."""
    if not n_completions:
        return np.zeros(len(task_seconds))
    with np.errstate(invalid="ignore", divide="ignore"):
        rate = (1 / task_seconds).sum(axis=1)
        low = n_completions / rate
        high = (n_completions + task_seconds.shape[1]) / rate  # Each worker has one unfinished task at most.
        return bisect_predicate(
            lambda time: np.floor(time[:, None] / task_seconds).sum(axis=1) >= n_completions,
            low,
            high,
            BISECTION_STEPS,
        )
