"""Distributions of run times to judge completion times by, and jobs simulated straight from them."""

from __future__ import annotations

import numpy as np

from polarmap.planning import (
    Distribution,
    Failing,
    Pareto,
    ShiftedExponential,
    cold_starts,
    training_trace,
)

DISTRIBUTIONS: dict[str, Distribution] = {
    "exponential": ShiftedExponential(1.0, 1.0),
    "pareto": Pareto(1.0, 2.5),
    "trace": training_trace(),
    "cold": cold_starts(ShiftedExponential(1.0, 0.2), 0.05, 4.0),
    "failing": Failing(cold_starts(training_trace(), 0.05, 3.0), 0.02),
}


def brute_force(finish: np.ndarray, arrivals: np.ndarray) -> tuple[float, float, float]:
    """Mean time, mean cost and share of failures of jobs, straight from their run times."""
    ended = np.isfinite(finish)
    paid = np.minimum(arrivals, finish).sum(axis=0)
    return finish[ended].mean(), paid[ended].mean(), 1 - ended.mean()
