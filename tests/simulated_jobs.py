"""Distributions of run times to judge completion times by, and jobs simulated straight from them."""

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
    """Mean time, mean cost and share of failures of jobs, straight from their run times."""
    ended = np.isfinite(finish)
    paid = np.minimum(arrivals, finish).sum(axis=0)
    return finish[ended].mean(), paid[ended].mean(), 1 - ended.mean()


def late_moments(
    rule: LatenessRule, durations: Iterable[float], running: Iterable[float], later: Iterable[float] = ()
) -> list[float]:
    """The moments from which tasks that began at some moments and run are late, if nothing happens before.

    durations, later : what those took that have returned, of the ones that began with the job and after it.
    """
    began, known = list(running), sorted(durations)
    if len(known) < rule.n_tasks / 2:
        known = sorted([*known, *later])
    if known or rule.run_times is not None:
        return [moment + rule.late_after_seconds(known) for moment in began]
    oldest_first = sorted(range(len(began)), key=began.__getitem__)
    late = {task: turn for turn, task in enumerate(oldest_first)}
    return [moment + rule.late_after_seconds((), late[task]) for task, moment in enumerate(began)]
