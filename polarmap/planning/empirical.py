"""Empirical distributions of observed run times: from a list, from reports of coded maps, or from a CSV file.

A coded map stops (abandons) tasks whose results it no longer needs. Such tasks are right-censored: it is only
known that they would have taken longer. Leaving them out would make tasks look faster than they are, so the
distribution is the Kaplan-Meier (product-limit) estimate, which takes them into account (Kaplan and Meier
1958).
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Sequence
from copy import copy
from importlib import resources
from math import inf
from os import PathLike
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from polarmap.errors import CodeError
from polarmap.planning.distributions import (
    Distribution,
    Floats,
    Mask,
    Mixture,
    ShiftedExponential,
    check_observations,
)
from polarmap.planning.probability_pair import ProbabilityPair
from polarmap.report import Report, TaskReport

UNSTARTED_STATES = "cancelled", "queued"  # The states of tasks that never ran.
# The quantile for a probability p is the first run time whose cumulative probability is at least p. Because
# of rounding errors, a cumulative probability may be smaller than p by up to this tolerance.
ROUNDING_TOL = 1e-12


class SharedCores(NamedTuple):
    """The cores that tasks on a single machine shared while their run times were measured.

    Attributes
    ----------
    n_cores : int
        The number of cores.
    max_concurrent_tasks : int
        The largest number of tasks that ran at the same time.
    """

    n_cores: int
    max_concurrent_tasks: int

    def __str__(self) -> str:
        explanation = "more workers than cores would slow each other down"
        if self.max_concurrent_tasks > self.n_cores:
            explanation = "the run times include waiting for a core, and would be longer with more workers"
        return (
            f"up to {self.max_concurrent_tasks} tasks at a time shared the {self.n_cores} cores "
            f"of this machine: {explanation}"
        )


class Empirical(Distribution):
    """The distribution of observed run times, including right-censored ones (tasks that were stopped early).

    Its cdf is a step function: the Kaplan-Meier estimate.

    Parameters
    ----------
    times : array-like (m,)
        Run times in seconds. For a task that has not completed, pass how long it had been running when last
        observed, or inf if it never completes.
    completed : boolean array-like (m,), optional
        False for a task that was still running when it was last observed (right-censored). By default, all
        tasks have completed.
    shared_cores : SharedCores, optional
        The cores that the tasks shared, if they ran on one machine.

    Attributes
    ----------
    values, probabilities : arrays (j,)
        The distinct run times of completed tasks, and their probabilities, which sum to 1.
    failure_probability : float
        The probability that a task takes longer than the longest completed one. The observations do not tell
        when such tasks complete, if at all. `with_exponential_tail` extrapolates.
    tail_scale : float
        The mean number of seconds by which tasks that are slower than the median exceed it. Used by
        `with_exponential_tail`.
    n_completed : int
        The number of completed tasks.
    shared_cores : SharedCores or None
        The cores that the tasks shared, as passed.

    Examples
    --------
    >>> Empirical([1.0, 2.0, 2.0, 4.0]).quantile([0.25, 0.5, 1.0]).tolist()
    [1.0, 2.0, 4.0]
    >>> Empirical([1.0, 2.0, 3.0], completed=[True, False, True]).cdf([1.0, 3.0]).round(3).tolist()
    [0.333, 1.0]
    """

    def __init__(
        self,
        times: npt.ArrayLike,
        completed: npt.ArrayLike | None = None,
        shared_cores: SharedCores | None = None,
    ) -> None:
        self.times, self.completed_mask = checked_times, completed_mask = check_observations(times, completed)
        self.n_completed, self.shared_cores = int(completed_mask.sum()), shared_cores
        self.values, probabilities, self.failure_probability = kaplan_meier(checked_times, completed_mask)
        self.probabilities = probabilities / probabilities.sum()
        self.n_observations = len(checked_times)
        # Because of rounding errors, a cumulative sum of the probabilities may exceed 1.
        cumulative = np.minimum(np.cumsum(self.probabilities), 1.0)
        reverse_cumulative = np.minimum(np.cumsum(self.probabilities[::-1])[::-1], 1.0)
        self._step_cdf = np.append(0.0, cumulative)
        self._step_survival = np.append(reverse_cumulative, 0.0)
        self._integrated_quantiles = np.append(np.cumsum((self.probabilities * self.values)[::-1])[::-1], 0.0)
        self.tail_scale = _estimate_tail_scale(checked_times, completed_mask)

    def __repr__(self) -> str:
        censored_text = (
            f", a fraction of {self.failure_probability:.2g} longer" if self.failure_probability else ""
        )
        return (
            f"<Empirical: {self.n_observations} tasks, {self.values[0]:g} to {self.values[-1]:g} s, "
            f"median {self.quantile(0.5):g}{censored_text}>"
        )

    @classmethod
    def from_reports(cls, reports: Report | Iterable[Report], clock: str = "arrived") -> Empirical:
        """Create the distribution from the run times in the reports of one or more maps.

        A map abandons tasks when it no longer needs their results. Such tasks count as right-censored,
        because they were still running when the last result of the map arrived. With clock="seconds", the
        median start-up time is subtracted from the time they had been running.

        Failed tasks have a run time of inf. Tasks that never started are left out.

        Parameters
        ----------
        reports : Report or iterable of Report
            `CodedResult.report` of each map.
        clock : {"arrived", "seconds"}
            "arrived": measure from the start of a task on its worker until its result arrived. If the start
            is unknown, measure from its submission. "seconds": take the compute time that the worker
            reported; tasks without one are left out.
        """
        if clock not in ("arrived", "seconds"):
            raise CodeError(f"clock must be 'arrived' or 'seconds', not {clock!r}")
        times: list[float] = []
        completed: list[bool] = []
        report_list = [reports] if isinstance(reports, Report) else list(reports)
        for report in report_list:
            censored_at = _compute_censoring_time(report, clock)
            for task in report.tasks:
                if task.launched is None or task.state in UNSTARTED_STATES:
                    continue
                started_at = get_start_time(task)
                if task.arrived is None:
                    times.append(inf if task.state == "failed" else max(0.0, censored_at - started_at))
                    completed.append(False)
                elif clock == "arrived" or task.seconds is not None:
                    times.append(task.arrived - started_at if clock == "arrived" else task.seconds or 0.0)
                    completed.append(True)
        if not times:
            raise CodeError("reports must hold the run time of at least one task")
        return cls(times, completed, find_shared_cores(report_list))

    @classmethod
    def from_csv(cls, file: str | PathLike[str] | Iterable[str], column: str) -> Empirical:
        """Create the distribution from the run times in one column of a CSV file.

        Parameters
        ----------
        file : path or iterable of str
            The path of the file, or its lines. The first line contains the column names.
        column : str
            The name of the column, whose fields must all be numbers of seconds.
        """
        if isinstance(file, (str, PathLike)):
            with open(file, newline="", encoding="utf-8-sig") as lines:
                return cls.from_csv(lines, column)
        reader = csv.DictReader(file, restval="", skipinitialspace=True)
        column_names = reader.fieldnames or ("none",)
        if column not in column_names:
            raise CodeError(f"column must be one of {', '.join(column_names)}, not {column!r}")
        return cls([row[column] for row in reader])

    @classmethod
    def from_json(cls, path: str | PathLike[str], series: str = "warm") -> Empirical:
        """Load the run times from a file written by `polarmap measure --out` or `Measurement.save`.

        Parameters
        ----------
        path : str or path
            The file to load.
        series : {"warm", "cold"}
            "cold" is the first map of the measurement, "warm" is the second.

        Raises
        ------
        CodeError
            If the file cannot be read or has a different format.
        """
        try:
            with open(path, encoding="utf-8") as file:
                saved = json.load(file)
            times = [inf if seconds is None else seconds for seconds in saved[series]]
            shared_cores = SharedCores(**saved["shared_cores"]) if saved.get("shared_cores") else None
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            problem = f"{os.fspath(path)!r} is not a file of `polarmap measure` with {series!r} times"
            raise CodeError(f"{problem}: {type(error).__name__}: {error}") from None
        return cls(times, shared_cores=shared_cores)

    def resample(self, rng: np.random.Generator) -> Empirical | None:
        """Return a bootstrap sample: as many observations, drawn at random with replacement.

        Return None if no task in the sample has completed.
        """
        indices = rng.integers(len(self.times), size=len(self.times))
        completed_mask = self.completed_mask[indices]
        return Empirical(self.times[indices], completed_mask) if completed_mask.any() else None

    def with_exponential_tail(self) -> Distribution:
        """Return this distribution with an exponential tail beyond the longest completed run time.

        Use it if tasks that were stopped early would have completed later. In the returned distribution, all
        tasks complete, because the tail replaces `failure_probability`.

        The scale of the tail is estimated by the total time that tasks, including unfinished ones, spent
        beyond the median, divided by the number of tasks that completed beyond the median.

        Examples
        --------
        >>> observed = Empirical([1.0, 2.0, 4.0, 4.0], completed=[True, True, True, False])
        >>> observed.with_exponential_tail().mean()
        3.75
        """
        if not self.failure_probability:
            return self
        if not self.tail_scale > 0:
            raise CodeError(
                "an exponential tail cannot be fitted, because no task completed beyond the median"
            )
        completed_part = copy(self)
        completed_part.failure_probability = 0.0
        tail = ShiftedExponential(float(self.values[-1]), self.tail_scale)
        return Mixture([completed_part, tail], [1 - self.failure_probability, self.failure_probability])

    def conditional_cdf_and_survival(self, times: Floats) -> ProbabilityPair:
        step_indices = np.searchsorted(self.values, times, side="right")
        return ProbabilityPair(self._step_cdf[step_indices], self._step_survival[step_indices])

    def conditional_quantile(self, probabilities: ProbabilityPair) -> Floats:
        cdf, survival = probabilities
        # For each probability, search the cdf if it is below 0.5. Otherwise, search the survival function
        # (1 - cdf). The smaller of the two is more accurate.
        indices_from_cdf = np.searchsorted(self._step_cdf[1:], cdf - ROUNDING_TOL, side="left")
        indices_from_survival = len(self.values) - np.searchsorted(
            self._step_survival[:0:-1], survival + ROUNDING_TOL * survival, side="right"
        )
        step_indices = np.where(cdf < 0.5, indices_from_cdf, indices_from_survival)
        return np.asarray(self.values[np.minimum(step_indices, len(self.values) - 1)])

    def integrated_quantile(self, survival: Floats) -> Floats:
        return np.asarray(np.interp(survival, self._step_survival[::-1], self._integrated_quantiles[::-1]))


def kaplan_meier(times: Floats, completed_mask: Mask) -> tuple[Floats, Floats, float]:
    """Estimate a run-time distribution from right-censored observations.

    The Kaplan-Meier estimate of the survival probability P(T > t) is

        S(t) = product over completion times u <= t of (1 - d_u / r_u)

    where d_u tasks completed at u, and r_u tasks were observed for u seconds or longer.

    Parameters
    ----------
    times : array (m,)
        How long each task was observed, in seconds.
    completed_mask : boolean array (m,)
        True if the task completed at that time, False if it was still running (right-censored).

    Returns
    -------
    times : array (j,)
        The distinct completion times, in ascending order.
    probabilities : array (j,)
        The probability of each completion time.
    remainder : float
        The probability that a task takes longer than the last completion time.

    Examples
    --------
    >>> [part if isinstance(part, float) else part.round(3).tolist() for part in kaplan_meier(
    ...     np.array([1.0, 2.0, 3.0, 5.0]), np.array([True, False, True, False]))]
    [[1.0, 3.0], [0.25, 0.375], 0.375]
    """
    distinct_times, n_completed = np.unique(times[completed_mask], return_counts=True)
    if completed_mask.all():
        return distinct_times, n_completed / len(times), 0.0
    n_at_risk = len(times) - np.searchsorted(np.sort(times), distinct_times, side="left")
    survival = np.cumprod(1 - n_completed / n_at_risk)
    previous_survival = np.append(1.0, survival[:-1])
    return distinct_times, previous_survival * n_completed / n_at_risk, float(survival[-1])


def get_start_time(task: TaskReport) -> float:
    """Return the start time of a task, in seconds since the start of its map.

    If it is unknown, return the time at which the task was submitted.
    """
    return (task.launched or 0.0) if task.started is None else task.started


def find_shared_cores(reports: Sequence[Report]) -> SharedCores | None:
    """Return the cores that the tasks of local maps shared, or None if no map ran on this machine.

    If there are several such maps, the largest numbers of cores and of concurrent tasks are returned.
    """
    local_counts = [
        (report.n_cores, report.max_concurrent_tasks) for report in reports if report.n_cores is not None
    ]
    if not local_counts:
        return None
    n_cores, max_concurrent_tasks = map(max, zip(*local_counts))
    return SharedCores(n_cores, max_concurrent_tasks)


def _compute_censoring_time(report: Report, clock: str) -> float:
    """Return the latest time at which abandoned tasks are known to have been running.

    Tasks are abandoned when the map no longer needs their results, i.e. when the last result arrives. The
    time is in seconds since the start of the map. If `clock` is "seconds", which excludes the start-up of
    tasks, the median start-up time is subtracted.
    """
    arrivals = [task.arrived for task in report.tasks if task.arrived is not None]
    last_arrival = max(arrivals, default=0.0)
    if clock == "arrived":
        return last_arrival
    startup_times = [
        task.arrived - task.seconds - get_start_time(task)
        for task in report.tasks
        if task.arrived is not None and task.seconds is not None
    ]
    return max(0.0, last_arrival - float(np.median(startup_times))) if startup_times else 0.0


def _estimate_tail_scale(times: Floats, completed_mask: Mask) -> float:
    """Estimate the scale, in seconds, of an exponential distribution of the run times beyond their median.

    The estimate is the total time that tasks spent beyond the median, divided by the number of tasks that
    completed after it. Return 0 if there are no such tasks.
    """
    threshold = np.median(times[completed_mask])
    beyond_mask = np.isfinite(times) & (times > threshold)
    n_completed = int((beyond_mask & completed_mask).sum())
    return float((times[beyond_mask] - threshold).sum()) / n_completed if n_completed else 0.0


def as_distribution(run_times: object) -> Distribution:
    """Convert run times in any supported form to a Distribution.

    Parameters
    ----------
    run_times : Distribution, iterable of float or Report, Report, or path
        A Distribution is returned unchanged. Numbers are run times in seconds. A path must be that of a file
        written by `polarmap measure`. Since reports contain no run times beyond the end of their map, an
        exponential tail is added to their distribution (`Empirical.with_exponential_tail`).

    Examples
    --------
    >>> as_distribution([1.0, 3.0]).mean()
    2.0
    """
    return to_distribution_and_observations(run_times)[0]


def to_distribution_and_observations(run_times: object) -> tuple[Distribution, Empirical | None]:
    """Convert run times to a Distribution and also return the observed run times.

    The conversion is that of `as_distribution`. The second value is None if `run_times` is a Distribution
    that was not estimated from observations.
    """
    if isinstance(run_times, Distribution):
        return run_times, run_times if isinstance(run_times, Empirical) else None
    if isinstance(run_times, (str, PathLike)):
        observations = Empirical.from_json(run_times)
        return observations, observations
    items = [run_times] if isinstance(run_times, Report) else list(_check_iterable(run_times))
    if items and all(isinstance(item, Report) for item in items):
        observations = Empirical.from_reports([item for item in items if isinstance(item, Report)])
        return observations.with_exponential_tail(), observations
    observations = Empirical(np.array(items, dtype=object))
    return observations, observations


def load_training_trace() -> Empirical:
    """Load example run times of operations in a real large-scale training job, relative to their median.

    The distribution has two peaks. It is not representative of serverless functions, because it has no cold
    starts and no failures. It is derived from 45,056 forward and backward operations, each divided by the
    median of its operation and pipeline stage. The file training_trace.txt holds the means of 1,000 equal
    parts of the sorted values, in units of 1e-4.

    Source: data/trace-AR.parquet of ByteDance-Seed/StragglerAnalysis, Copyright ByteDance, Apache License 2.0
    (https://www.apache.org/licenses/LICENSE-2.0). Changes: two operation types were kept, and durations were
    made relative and reduced to these numbers.

    Examples
    --------
    >>> load_training_trace().quantile([0.5, 0.95, 0.99]).round(2).tolist()
    [1.0, 2.23, 2.49]
    """
    means = resources.files(__package__).joinpath("training_trace.txt").read_text(encoding="ascii")
    return Empirical(np.array(means.split(), float) / 1e4)


def _check_iterable(run_times: object) -> Iterable[object]:
    if not isinstance(run_times, Iterable):
        raise CodeError(
            "run_times must be a Distribution, run times in seconds, reports or a path, "
            f"not {type(run_times).__name__}"
        )
    return run_times
