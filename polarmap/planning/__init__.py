"""Planning: from a distribution of task run times to the number of workers to start.

    measure / reports -> Distribution -> completion_time (one scheme) -> plan (the best number of workers)

Run times are described by probability distributions (`distributions`, `empirical`). The completion time of a
job is then computed from order statistics (`completion`), or estimated by simulation where no formula is
known (`simulation`). `plan` compares different numbers of workers and recommends one.
"""

from polarmap.driver.lateness import LatenessRule, ParityRule
from polarmap.planning.completion import (
    SCHEMES,
    Completion,
    arrivals_needed,
    completion_cdf,
    completion_from_arrivals,
    completion_time,
    lower_bound,
)
from polarmap.planning.decodability import ArrivalsNeeded, sequential_decoding_times
from polarmap.planning.distributions import (
    Distribution,
    FailureProne,
    Mixture,
    Pareto,
    Scaled,
    ShiftedExponential,
    with_cold_starts,
    with_stragglers,
)
from polarmap.planning.empirical import Empirical, as_distribution, load_training_trace
from polarmap.planning.figures import plot_polarization, plot_run_times
from polarmap.planning.measurement import Measurement, measure
from polarmap.planning.planner import Plan, frontier, plan
from polarmap.planning.polarization import (
    frozen_set_at_time,
    polarization_gap,
    polarize,
    sequential_completion_bound,
    sequential_failure_bound,
    virtual_cdf,
    virtual_mean,
    virtual_medians,
    virtual_quantile,
)
from polarmap.planning.probability_pair import ProbabilityPair
from polarmap.planning.simulation.backups import BackupRule, simulate_backups
from polarmap.planning.simulation.jobs import SimulatedJobs
from polarmap.planning.simulation.on_demand import simulate_on_demand
from polarmap.planning.simulation.overdecomposition import simulate_overdecomposition

__all__ = [
    "SCHEMES",
    "ArrivalsNeeded",
    "BackupRule",
    "Completion",
    "Distribution",
    "Empirical",
    "FailureProne",
    "LatenessRule",
    "Measurement",
    "Mixture",
    "Pareto",
    "ParityRule",
    "Plan",
    "ProbabilityPair",
    "Scaled",
    "ShiftedExponential",
    "SimulatedJobs",
    "arrivals_needed",
    "as_distribution",
    "completion_cdf",
    "completion_from_arrivals",
    "completion_time",
    "frontier",
    "frozen_set_at_time",
    "load_training_trace",
    "lower_bound",
    "measure",
    "plan",
    "plot_polarization",
    "plot_run_times",
    "polarization_gap",
    "polarize",
    "sequential_completion_bound",
    "sequential_decoding_times",
    "sequential_failure_bound",
    "simulate_backups",
    "simulate_on_demand",
    "simulate_overdecomposition",
    "virtual_cdf",
    "virtual_mean",
    "virtual_medians",
    "virtual_quantile",
    "with_cold_starts",
    "with_stragglers",
]
