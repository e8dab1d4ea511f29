"""Simulate workers that join late and vanish: 500 uncoded against 1,500 coded ones, as in Pilanci's talk.

Both compute the same 500 blocks. Every worker joins after a start-up time, computes, and may be taken away at
any moment (spot capacity). An uncoded task that is lost starts again on a new worker; lost coded tasks are
not replaced. The talk does not publish its model in detail, so the distributions are our choice.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from benchmarks.rivals import Array
from polarmap.codes import PolarCode
from polarmap.planning import Distribution, ShiftedExponential, sequential_decoding_times

BLOCKS, WORKERS = 500, 1500
RUN_TIMES: Distribution = ShiftedExponential(1.0, 1.0)
JOIN_TIMES: Distribution = ShiftedExponential(0.2, 0.3)
VANISHING_RATES = (0.0, 0.1, 0.2, 0.4, 0.8)  # Rates at which a worker vanishes, per second.


class ElasticJobs(NamedTuple):
    """Jobs of one cluster at one vanishing rate, with arrays of one entry per trial.

    Attributes
    ----------
    lost_fraction : float
        Mean share of the first workers that vanish before they return a result.
    completion_times : Array
        Seconds until the results are complete.
    worker_seconds : Array
        Seconds of all workers together, from the time each joins.
    """

    scheme: str
    vanishing_rate: float
    lost_fraction: float
    completion_times: Array
    worker_seconds: Array


def simulate_elastic_jobs(vanishing_rate: float, n_trials: int) -> list[ElasticJobs]:
    """Return uncoded jobs with restarts, and coded jobs that decode by rotation and sequentially."""
    rng = np.random.default_rng(0)
    join_times, end_times, returned_mask = sample_attempts(vanishing_rate, (n_trials, WORKERS), rng)
    lost_fraction = float(1 - returned_mask.mean())
    arrival_times = np.where(returned_mask, end_times, np.inf)
    code = PolarCode(WORKERS, BLOCKS, "arikan", "sequential")
    times_by_scheme = {
        "coded, rotation": np.partition(arrival_times, BLOCKS - 1, axis=1)[:, BLOCKS - 1],
        "coded, polar sequential": sequential_decoding_times(code, np.ascontiguousarray(arrival_times.T)),
    }
    coded_jobs = [
        ElasticJobs(
            scheme,
            vanishing_rate,
            lost_fraction,
            completion_times,
            worker_seconds_until(join_times, end_times, completion_times),
        )
        for scheme, completion_times in times_by_scheme.items()
    ]
    end_times_of_tasks, worker_seconds = simulate_restarts(vanishing_rate, n_trials, rng)
    return [
        ElasticJobs(
            "uncoded, restarted",
            vanishing_rate,
            lost_fraction,
            end_times_of_tasks.max(axis=1),
            worker_seconds.sum(axis=1),
        ),
        *coded_jobs,
    ]


def sample_attempts(
    vanishing_rate: float, shape: tuple[int, ...], rng: np.random.Generator
) -> tuple[Array, Array, Array]:
    """Return when workers join, when they return or vanish, and which of them return."""
    join_times, run_times = JOIN_TIMES.sample(rng, shape), RUN_TIMES.sample(rng, shape)
    times_to_vanish = rng.exponential(1 / vanishing_rate, shape) if vanishing_rate else np.full(shape, np.inf)
    return join_times, join_times + np.minimum(run_times, times_to_vanish), run_times <= times_to_vanish


def simulate_restarts(vanishing_rate: float, n_trials: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Return end times and costs, (trials, tasks), of tasks that restart as soon as their worker vanishes."""
    end_times_of_tasks, worker_seconds = np.zeros((n_trials, BLOCKS)), np.zeros((n_trials, BLOCKS))
    missing_mask = np.ones((n_trials, BLOCKS), bool)
    while missing_mask.any():
        join_times, end_times, returned_mask = sample_attempts(
            vanishing_rate, (int(missing_mask.sum()),), rng
        )
        end_times_of_tasks[missing_mask] += end_times
        worker_seconds[missing_mask] += end_times - join_times
        missing_mask[missing_mask] = ~returned_mask
    return end_times_of_tasks, worker_seconds


def worker_seconds_until(join_times: Array, end_times: Array, completion_times: Array) -> Array:
    """Return the worker-seconds of each job if all attempts still running at its completion are stopped."""
    return np.maximum(np.minimum(end_times, completion_times[:, None]) - join_times, 0.0).sum(axis=1)


def sample_one_job(vanishing_rate: float) -> dict[str, Array]:
    """Return the sorted arrival times of one job's results, for 500 uncoded and 1,500 coded workers."""
    rng = np.random.default_rng(0)
    _, end_times, returned_mask = sample_attempts(vanishing_rate, (WORKERS,), rng)
    end_times_of_tasks, _ = simulate_restarts(vanishing_rate, 1, rng)
    return {
        "500 uncoded workers": np.sort(end_times_of_tasks[0]),
        "1,500 coded workers": np.sort(end_times[returned_mask]),
    }
