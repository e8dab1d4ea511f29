"""Run times as they were observed: in a list, in the reports of coded maps, in a csv file.

Tasks that were abandoned are right-censored: all that is known is that they ran longer. They are
neither dropped, which would make every job look fast, nor taken as ended: the distribution is the
product-limit estimate (Kaplan and Meier 1958).
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

UNSTARTED_STATES = "cancelled", "queued"  # states of tasks that were submitted and tell nothing
ROUNDING_TOL = 1e-12  # of a cumulated probability: a quantile at an edge takes the step below it


class SharedCores(NamedTuple):
    """Cores of one machine that tasks shared while their run times were observed.

    Attributes
    ----------
    n_cores
        Number of cores.
    max_concurrent_tasks
        Largest number of tasks that ran at the same time.
    """

    n_cores: int
    max_concurrent_tasks: int

    def __str__(self) -> str:
        explanation = "more workers than cores would wait for each other"
        if self.max_concurrent_tasks > self.n_cores:
            explanation = "their times include waiting, and more workers wait longer"
        return (
            f"up to {self.max_concurrent_tasks} tasks at once shared the {self.n_cores} cores "
            f"here: {explanation}"
        )


class Empirical(Distribution):
    """The steps of observed run times.

    Parameters
    ----------
    times : array-like (m,)
        Seconds that tasks took, or, where not `completed`, had run when they were last seen. inf: a
        task that never ended.
    completed : boolean array-like (m,), optional
        False for right-censored times. By default all ended.
    shared_cores : SharedCores, optional
        The cores that the tasks shared, if they ran on one machine.

    Attributes
    ----------
    values, probabilities : arrays (j,)
        The distinct run times and their probabilities among the tasks that end.
    failure_probability : float
        Probability beyond the last run time that ended. The data say nothing of when, if ever,
        that part ends; `with_exponential_tail` extrapolates.
    tail_scale : float
        Mean time that tasks spend beyond the median, if they do: the scale of `with_exponential_tail`.
    n_completed
        Number of tasks that ended.
    shared_cores
        The cores that the tasks shared, if they ran on this machine; else None.

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
        # Rounding must not make a sum of probabilities larger than one.
        cumulative = np.minimum(np.cumsum(self.probabilities), 1.0)
        reverse_cumulative = np.minimum(np.cumsum(self.probabilities[::-1])[::-1], 1.0)
        self._step_cdf = np.append(0.0, cumulative)
        self._step_survival = np.append(reverse_cumulative, 0.0)
        self._integrated_quantiles = np.append(np.cumsum((self.probabilities * self.values)[::-1])[::-1], 0.0)
        self.tail_scale = _estimate_tail_scale(checked_times, completed_mask)

    def __repr__(self) -> str:
        censored_text = f", {self.failure_probability:.2g} beyond" if self.failure_probability else ""
        return (
            f"<Empirical: {self.n_observations} tasks, {self.values[0]:g} to {self.values[-1]:g} s, "
            f"median {self.quantile(0.5):g}{censored_text}>"
        )

    @classmethod
    def from_reports(cls, reports: Report | Iterable[Report], clock: str = "arrived") -> Empirical:
        """The tasks of one or more `CodedResult.report`.

        Abandoned tasks are right-censored at the last arrival of their map (less the median start-up, by
        the worker's clock): they were still running then. Failed ones are inf. Tasks that no worker has
        started tell nothing, and are left out.

        Parameters
        ----------
        clock : {"arrived", "seconds"}
            "arrived": from when a worker began the task until its result was here. What is not known to have
            begun counts from when it was submitted. "seconds": what the worker spent; arrivals that do not
            say are left out.
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
            raise CodeError("no reports given, or none that holds a run time")
        return cls(times, completed, find_shared_cores(report_list))

    @classmethod
    def from_csv(cls, file: str | PathLike[str] | Iterable[str], column: str) -> Empirical:
        """A column of a csv file (path or lines), by its name in the first row; empty fields are an error."""
        if isinstance(file, (str, PathLike)):
            with open(file, newline="", encoding="utf-8-sig") as lines:
                return cls.from_csv(lines, column)
        reader = csv.DictReader(file, restval="", skipinitialspace=True)
        column_names = reader.fieldnames or ("none",)
        if column not in column_names:
            raise CodeError(f"there is no column {column!r} but {', '.join(column_names)}")
        return cls([row[column] for row in reader])

    @classmethod
    def from_json(cls, path: str | PathLike[str], series: str = "warm") -> Empirical:
        """What `polarmap measure --out` wrote: the times of its "warm" map, or of the "cold" one before.

        Raises
        ------
        CodeError
            For another file.
        """
        try:
            with open(path, encoding="utf-8") as file:
                saved = json.load(file)
            times = [inf if seconds is None else seconds for seconds in saved[series]]
            shared_cores = SharedCores(**saved["shared_cores"]) if saved.get("shared_cores") else None
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            problem = f"{os.fspath(path)!r} holds no {series!r} times of `polarmap measure`"
            raise CodeError(f"{problem}: {type(error).__name__}: {error}") from None
        return cls(times, shared_cores=shared_cores)

    def resample(self, rng: np.random.Generator) -> Empirical | None:
        """Return a bootstrap resample of the observations, or None if no task in it ended."""
        indices = rng.integers(len(self.times), size=len(self.times))
        completed_mask = self.completed_mask[indices]
        return Empirical(self.times[indices], completed_mask) if completed_mask.any() else None

    def with_exponential_tail(self) -> Distribution:
        """The same with an exponential tail in place of `failure_probability`, fitted beyond the median.

        Its scale is all time spent beyond the median, also by abandoned tasks, for each that ended there.

        Examples
        --------
        >>> observed = Empirical([1.0, 2.0, 4.0, 4.0], completed=[True, True, True, False])
        >>> observed.with_exponential_tail().mean()
        3.75
        """
        if not self.failure_probability:
            return self
        if not self.tail_scale > 0:
            raise CodeError("no task ended beyond the median: nothing tells how the tail goes on")
        completed_part = copy(self)  # of the tasks that end
        completed_part.failure_probability = 0.0
        tail = ShiftedExponential(float(self.values[-1]), self.tail_scale)
        return Mixture([completed_part, tail], [1 - self.failure_probability, self.failure_probability])

    def conditional_cdf_and_survival(self, times: Floats) -> ProbabilityPair:
        step_indices = np.searchsorted(self.values, times, side="right")
        return ProbabilityPair(self._step_cdf[step_indices], self._step_survival[step_indices])

    def conditional_quantile(self, probabilities: ProbabilityPair) -> Floats:
        cdf, survival = probabilities
        # In the half where the cumulated probability is the accurate one.
        indices_from_cdf = np.searchsorted(self._step_cdf[1:], cdf - ROUNDING_TOL, side="left")
        indices_from_survival = len(self.values) - np.searchsorted(
            self._step_survival[:0:-1], survival + ROUNDING_TOL * survival, side="right"
        )
        step_indices = np.where(cdf < 0.5, indices_from_cdf, indices_from_survival)
        return np.asarray(self.values[np.minimum(step_indices, len(self.values) - 1)])

    def integrated_quantile(self, survival: Floats) -> Floats:
        return np.asarray(np.interp(survival, self._step_survival[::-1], self._integrated_quantiles[::-1]))


def kaplan_meier(times: Floats, completed_mask: Mask) -> tuple[Floats, Floats, float]:
    """Distinct times at which tasks ended, the probability of each, and what is left beyond.

    S(t) = product over times u <= t of (1 - ended at u / seen to run until u or longer), Kaplan
    and Meier (1958); a task last seen at u counts as running until u.

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
    """Return the second of its map in which a task began, or was submitted if that is all that is known."""
    return (task.launched or 0.0) if task.started is None else task.started


def find_shared_cores(reports: Sequence[Report]) -> SharedCores | None:
    """Return the cores that the tasks of maps on this machine shared; None if no map ran here."""
    local_counts = [
        (report.n_cores, report.max_concurrent_tasks) for report in reports if report.n_cores is not None
    ]
    if not local_counts:
        return None
    n_cores, max_concurrent_tasks = map(max, zip(*local_counts))
    return SharedCores(n_cores, max_concurrent_tasks)


def _compute_censoring_time(report: Report, clock: str) -> float:
    """In which second of this map its tasks are known to have run still, by one clock or the other."""
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
    """Time spent beyond the median of what ended, for each task that ended there."""
    threshold = np.median(times[completed_mask])
    beyond_mask = np.isfinite(times) & (times > threshold)
    n_completed = int((beyond_mask & completed_mask).sum())
    return float((times[beyond_mask] - threshold).sum()) / n_completed if n_completed else 0.0


def as_distribution(run_times: object) -> Distribution:
    """A Distribution from one, from run times in seconds, reports of coded maps, or the path of a file.

    The file is one of `polarmap measure`. Reports say nothing of the time beyond the end of their map, so
    their distribution is continued with an exponential tail (`Empirical.with_exponential_tail`).

    Examples
    --------
    >>> as_distribution([1.0, 3.0]).mean()
    2.0
    """
    return to_distribution_and_observations(run_times)[0]


def to_distribution_and_observations(run_times: object) -> tuple[Distribution, Empirical | None]:
    """Return the distribution as `as_distribution` does, and the observations of which it is made, if
    known.
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
    """Run times of the tasks of one large training job, in multiples of the median: real ones, and bimodal.

    Of 45,056 forward and backward operations, each relative to the median of its operation and pipeline
    stage: training_trace.txt has 1,000 means of equal shares, ascending, in units of 1e-4. Derived from
    data/trace-AR.parquet of ByteDance-Seed/StragglerAnalysis, Copyright ByteDance, Apache License 2.0
    (https://www.apache.org/licenses/LICENSE-2.0); changed: two operation types kept, durations made
    relative, reduced to these numbers. Not serverless functions: no cold starts, no failures.

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
            "run_times must be a Distribution, seconds of past tasks or reports, "
            f"not {type(run_times).__name__}"
        )
    return run_times
