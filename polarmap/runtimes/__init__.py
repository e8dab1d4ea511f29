"""Run times as distributions: how they polarize, when a job is complete, how many workers to start."""

from polarmap.runtimes.completion import (
    SCHEMES,
    Completion,
    arrivals_needed,
    completion_after,
    completion_cdf,
    completion_time,
    lower_bound,
)
from polarmap.runtimes.decodability import Needed, sequential_finish
from polarmap.runtimes.distributions import (
    Distribution,
    Failing,
    Mixture,
    Pareto,
    Scaled,
    ShiftedExponential,
    cold_starts,
    stragglers,
)
from polarmap.runtimes.empirical import Empirical, as_runtimes
from polarmap.runtimes.ondemand import late_age, late_from, on_demand, to_start
from polarmap.runtimes.planner import Plan, frontier, plan
from polarmap.runtimes.polarization import (
    frozen_at,
    polarize,
    sequential_bound,
    step_times,
    target_time,
    unpolarized,
    virtual_cdf,
    virtual_mean,
    virtual_quantile,
)
from polarmap.runtimes.subtasks import subtasks
from polarmap.runtimes.trainingtrace import training_trace

__all__ = [
    "SCHEMES",
    "Completion",
    "Distribution",
    "Empirical",
    "Failing",
    "Mixture",
    "Needed",
    "Pareto",
    "Plan",
    "Scaled",
    "ShiftedExponential",
    "arrivals_needed",
    "as_runtimes",
    "cold_starts",
    "completion_after",
    "completion_cdf",
    "completion_time",
    "frontier",
    "frozen_at",
    "late_age",
    "late_from",
    "lower_bound",
    "on_demand",
    "plan",
    "polarize",
    "sequential_bound",
    "sequential_finish",
    "step_times",
    "stragglers",
    "subtasks",
    "target_time",
    "to_start",
    "training_trace",
    "unpolarized",
    "virtual_cdf",
    "virtual_mean",
    "virtual_quantile",
]
