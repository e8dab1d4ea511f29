"""Run times as distributions: how they polarize, when a job is complete, how many workers to start."""

from polarmap.planning.backups import BackupRule, SimulatedJobs, simulate_backups
from polarmap.planning.completion import (
    SCHEMES,
    Completion,
    arrivals_needed,
    completion_after,
    completion_cdf,
    completion_time,
    lower_bound,
)
from polarmap.planning.decodability import ArrivalsNeeded, sequential_finish
from polarmap.planning.distributions import (
    Distribution,
    Failing,
    Mixture,
    Pareto,
    Scaled,
    ShiftedExponential,
    cold_starts,
    stragglers,
)
from polarmap.planning.empirical import Empirical, as_runtimes, training_trace
from polarmap.planning.figures import plot_polarization, plot_runtimes
from polarmap.planning.measurement import Measurement, measure
from polarmap.planning.on_demand import simulate_on_demand
from polarmap.planning.planner import Plan, frontier, plan
from polarmap.planning.polarization import (
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
from polarmap.planning.small_blocks import simulate_small_blocks
from polarmap.run.lateness import LatenessRule, ParityRule

__all__ = [
    "SCHEMES",
    "ArrivalsNeeded",
    "BackupRule",
    "Completion",
    "Distribution",
    "Empirical",
    "Failing",
    "LatenessRule",
    "Measurement",
    "Mixture",
    "Pareto",
    "ParityRule",
    "Plan",
    "Scaled",
    "ShiftedExponential",
    "SimulatedJobs",
    "arrivals_needed",
    "as_runtimes",
    "cold_starts",
    "completion_after",
    "completion_cdf",
    "completion_time",
    "frontier",
    "frozen_at",
    "lower_bound",
    "measure",
    "plan",
    "plot_polarization",
    "plot_runtimes",
    "polarize",
    "sequential_bound",
    "sequential_finish",
    "simulate_backups",
    "simulate_on_demand",
    "simulate_small_blocks",
    "step_times",
    "stragglers",
    "target_time",
    "training_trace",
    "unpolarized",
    "virtual_cdf",
    "virtual_mean",
    "virtual_quantile",
]
