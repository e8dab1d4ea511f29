"""Describe simulated jobs, and find which of their tasks the `LatenessRule` considers late."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from polarmap.driver.lateness import (
    NO_RESULT_SECONDS,
    LatenessRule,
    compute_cautious_late_after_seconds,
    compute_late_fraction,
    compute_min_results_to_extrapolate,
    extrapolate_quantile,
)
from polarmap.planning.distributions import Floats


class SimulatedJobs(NamedTuple):
    """What simulated jobs took: seconds, worker-seconds and tasks started; arrays (trials,)."""

    completion_times: Floats
    worker_seconds: Floats
    n_tasks_started: Floats


def find_jobs_with_early_backups(
    sorted_run_times: Floats, rule: LatenessRule, n_spare: int = 0
) -> npt.NDArray[np.bool_]:
    """Whether more than `n_spare` tasks are late before half of them have returned, (trials,).

    sorted_run_times : array (trials, tasks): run times of the tasks of each job, ascending.
    """
    n_half = compute_min_results_to_extrapolate(rule.n_tasks)
    n_completed = np.arange(1, n_half)
    silent_mask = sorted_run_times[:, 0] > max(rule.min_seconds, NO_RESULT_SECONDS * 2.0**n_spare)
    early_run_times = sorted_run_times[:, : n_half - 1]
    late_after = compute_cautious_late_after_seconds(early_run_times, n_completed, n_half)
    late_after = np.maximum(rule.min_seconds, late_after)
    return np.asarray(silent_mask | (late_after < sorted_run_times[:, 1:n_half]).any(axis=1))


def compute_lateness_thresholds(sorted_run_times: Floats, rule: LatenessRule) -> Floats:
    """`late_after_seconds` once half of the tasks have returned, (trials,); `sorted_run_times` as for
    `find_jobs_with_early_backups`.
    """
    n_half = compute_min_results_to_extrapolate(rule.n_tasks)
    first, median = sorted_run_times[:, 0], sorted_run_times[:, n_half - 1]
    with np.errstate(invalid="ignore"):  # where nothing returns
        thresholds = extrapolate_quantile(first, median, compute_late_fraction(rule.n_tasks))
    return np.maximum(rule.min_seconds, thresholds)
