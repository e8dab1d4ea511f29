"""The results of simulated jobs, and functions that find out which of their tasks are late."""

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
    """The time and cost of simulated jobs, with one entry per job.

    Attributes
    ----------
    completion_times : array (trials,)
        The completion time of each job, in seconds; inf if it never completes.
    worker_seconds : array (trials,)
        The sum of the run times of all workers, in seconds.
    n_tasks_started : array (trials,)
        The number of tasks that were started, including backups and parity tasks.
    """

    completion_times: Floats
    worker_seconds: Floats
    n_tasks_started: Floats


def find_jobs_with_early_backups(
    sorted_run_times: Floats, rule: LatenessRule, n_spare: int = 0
) -> npt.NDArray[np.bool_]:
    """Find the jobs in which tasks become late before half of all tasks have completed.

    In these jobs, the run time after which tasks are late changes with each result. They require a
    discrete-event simulation, which is slower.

    Parameters
    ----------
    sorted_run_times : array (trials, tasks)
        The run times of each job's tasks, in ascending order.
    rule : LatenessRule
        Decides when a task is late.
    n_spare : int
        The number of parity tasks that start together with the data tasks.

    Returns
    -------
    boolean array (trials,)
        True for each job that has such tasks.
    """
    n_half = compute_min_results_to_extrapolate(rule.n_tasks)
    n_completed = np.arange(1, n_half)
    silent_mask = sorted_run_times[:, 0] > max(rule.min_seconds, NO_RESULT_SECONDS * 2.0**n_spare)
    early_run_times = sorted_run_times[:, : n_half - 1]
    late_after = compute_cautious_late_after_seconds(early_run_times, n_completed, n_half)
    late_after = np.maximum(rule.min_seconds, late_after)
    return np.asarray(silent_mask | (late_after < sorted_run_times[:, 1:n_half]).any(axis=1))


def compute_lateness_thresholds(sorted_run_times: Floats, rule: LatenessRule) -> Floats:
    """Return the run time after which tasks are late, once half of their job's tasks have completed.

    Parameters
    ----------
    sorted_run_times : array (trials, tasks)
        The run times of each job's tasks, in ascending order.
    rule : LatenessRule
        Decides when a task is late.

    Returns
    -------
    array (trials,)
        Seconds, one value for each job.
    """
    n_half = compute_min_results_to_extrapolate(rule.n_tasks)
    first, median = sorted_run_times[:, 0], sorted_run_times[:, n_half - 1]
    with np.errstate(invalid="ignore"):  # inf - inf, if no task ever completes.
        thresholds = extrapolate_quantile(first, median, compute_late_fraction(rule.n_tasks))
    return np.maximum(rule.min_seconds, thresholds)
