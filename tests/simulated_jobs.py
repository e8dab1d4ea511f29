"""Distributions of run times for tests of completion times, and statistics of simulated jobs."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from polarmap.planning import (
    Distribution,
    FailureProne,
    LatenessRule,
    Pareto,
    ShiftedExponential,
    load_training_trace,
    with_cold_starts,
)

DISTRIBUTIONS: dict[str, Distribution] = {
    "exponential": ShiftedExponential(1.0, 1.0),
    "pareto": Pareto(1.0, 2.5),
    "trace": load_training_trace(),
    "cold": with_cold_starts(ShiftedExponential(1.0, 0.2), 0.05, 4.0),
    "failing": FailureProne(with_cold_starts(load_training_trace(), 0.05, 3.0), 0.02),
}


def brute_force(finish: np.ndarray, arrivals: np.ndarray) -> tuple[float, float, float]:
    """Return the mean time, mean cost and share of failures of jobs, computed from their run times."""
    ended = np.isfinite(finish)
    paid = np.minimum(arrivals, finish).sum(axis=0)
    return finish[ended].mean(), paid[ended].mean(), 1 - ended.mean()


def late_moments(
    rule: LatenessRule, durations: Iterable[float], running: Iterable[float], later: Iterable[float] = ()
) -> list[float]:
    """Return the times after which running tasks are late, if nothing else happens.

    Parameters
    ----------
    durations : Iterable[float]
        Run times of returned tasks that began with the job.
    running : Iterable[float]
        Start times of the running tasks.
    later : Iterable[float]
        Run times of returned tasks that began after the job.
    """
    began, known = list(running), sorted(durations)
    if len(known) < rule.n_tasks / 2:
        known = sorted([*known, *later])
    if known or rule.run_times is not None:
        return [moment + rule.late_after_seconds(known) for moment in began]
    oldest_first = sorted(range(len(began)), key=began.__getitem__)
    late = {task: turn for turn, task in enumerate(oldest_first)}
    return [moment + rule.late_after_seconds((), late[task]) for task, moment in enumerate(began)]
