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
    checked_observations,
)
from polarmap.report import Report, TaskReport

UNSTARTED = "cancelled", "queued"  # states of tasks that were submitted and tell nothing
ROUNDING = 1e-12  # of a cumulated probability: a quantile at an edge takes the step below it


class SharedCores(NamedTuple):
    """Cores of one machine that tasks shared while their run times were observed.

    Attributes
    ----------
    cores
        Number of cores.
    most_at_once
        Largest number of tasks that ran at the same time.
    """

    cores: int
    most_at_once: int

    def __str__(self) -> str:
        means = "more workers than cores would wait for each other"
        if self.most_at_once > self.cores:
            means = "their times include waiting, and more workers wait longer"
        return f"up to {self.most_at_once} tasks at once shared the {self.cores} cores here: {means}"


class Empirical(Distribution):
    """The steps of observed run times.

    Parameters
    ----------
    times : array-like (m,)
        Seconds that tasks took, or, where not `ended`, had run when they were last seen. inf: a
        task that never ended.
    ended : boolean array-like (m,), optional
        False for right-censored times. By default all ended.
    shared_cores : SharedCores, optional
        The cores that the tasks shared, if they ran on one machine.

    Attributes
    ----------
    values, masses : arrays (j,)
        The distinct run times and their probabilities among the tasks that end.
    failure_probability : float
        Probability beyond the last run time that ended. The data say nothing of when, if ever,
        that part ends; `with_tail` extrapolates.
    tail : float
        Mean time that tasks spend beyond the median, if they do: the scale of `with_tail`.
    completed
        Number of tasks that ended.
    shared_cores
        The cores that the tasks shared, if they ran on this machine; else None.

    Examples
    --------
    >>> Empirical([1.0, 2.0, 2.0, 4.0]).quantile([0.25, 0.5, 1.0]).tolist()
    [1.0, 2.0, 4.0]
    >>> Empirical([1.0, 2.0, 3.0], ended=[True, False, True]).cdf([1.0, 3.0]).round(3).tolist()
    [0.333, 1.0]
    """

    def __init__(
        self,
        times: npt.ArrayLike,
        ended: npt.ArrayLike | None = None,
        shared_cores: SharedCores | None = None,
    ) -> None:
        self.seen, self.done = seen, done = checked_observations(times, ended)
        self.completed, self.shared_cores = int(done.sum()), shared_cores
        self.values, masses, self.failure_probability = product_limit(seen, done)
        self.masses = masses / masses.sum()
        self.observed = len(seen)
        # Rounding must not make a sum of probabilities larger than one.
        upwards = np.minimum(np.cumsum(self.masses), 1.0)
        downwards = np.minimum(np.cumsum(self.masses[::-1])[::-1], 1.0)
        self._below = np.append(0.0, upwards)
        self._above = np.append(downwards, 0.0)
        self._areas = np.append(np.cumsum((self.masses * self.values)[::-1])[::-1], 0.0)
        self.tail = _mean_excess(seen, done)

    def __repr__(self) -> str:
        beyond = f", {self.failure_probability:.2g} beyond" if self.failure_probability else ""
        return (
            f"<Empirical: {self.observed} tasks, {self.values[0]:g} to {self.values[-1]:g} s, "
            f"median {self.quantile(0.5):g}{beyond}>"
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
        ended: list[bool] = []
        every = [reports] if isinstance(reports, Report) else list(reports)
        for report in every:
            last = _last_seen(report, clock)
            for task in report.tasks:
                if task.launched is None or task.state in UNSTARTED:
                    continue
                if task.arrived is None:
                    times.append(inf if task.state == "failed" else max(0.0, last - start_of(task)))
                    ended.append(False)
                elif clock == "arrived" or task.seconds is not None:
                    times.append(task.arrived - start_of(task) if clock == "arrived" else task.seconds or 0.0)
                    ended.append(True)
        if not times:
            raise CodeError("no reports given, or none that holds a run time")
        return cls(times, ended, shared_cores_of(every))

    @classmethod
    def from_csv(cls, file: str | PathLike[str] | Iterable[str], column: str) -> Empirical:
        """A column of a csv file (path or lines), by its name in the first row; empty fields are an error."""
        if isinstance(file, (str, PathLike)):
            with open(file, newline="", encoding="utf-8-sig") as lines:
                return cls.from_csv(lines, column)
        rows = csv.DictReader(file, restval="", skipinitialspace=True)
        names = rows.fieldnames or ("none",)
        if column not in names:
            raise CodeError(f"there is no column {column!r} but {', '.join(names)}")
        return cls([row[column] for row in rows])

    @classmethod
    def from_json(cls, path: str | PathLike[str], times: str = "warm") -> Empirical:
        """What `polarmap measure --out` wrote: the times of its "warm" map, or of the "cold" one before.

        Raises
        ------
        CodeError
            For another file.
        """
        try:
            with open(path, encoding="utf-8") as file:
                saved = json.load(file)
            found = [inf if one is None else one for one in saved[times]]
            shared = SharedCores(**saved["shared_cores"]) if saved.get("shared_cores") else None
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            what = f"{os.fspath(path)!r} holds no {times!r} times of `polarmap measure`"
            raise CodeError(f"{what}: {type(error).__name__}: {error}") from None
        return cls(found, shared_cores=shared)

    def resampled(self, stream: np.random.Generator) -> Empirical | None:
        """Return a bootstrap resample of the observations, or None if no task in it ended."""
        chosen = stream.integers(len(self.seen), size=len(self.seen))
        done = self.done[chosen]
        return Empirical(self.seen[chosen], done) if done.any() else None

    def with_tail(self) -> Distribution:
        """The same with an exponential tail in place of `failure_probability`, fitted beyond the median.

        Its scale is all time spent beyond the median, also by abandoned tasks, for each that ended there.

        Examples
        --------
        >>> Empirical([1.0, 2.0, 4.0, 4.0], ended=[True, True, True, False]).with_tail().mean()
        3.75
        """
        if not self.failure_probability:
            return self
        if not self.tail > 0:
            raise CodeError("no task ended beyond the median: nothing tells how the tail goes on")
        seen = copy(self)  # of the tasks that end
        seen.failure_probability = 0.0
        tail = ShiftedExponential(float(self.values[-1]), self.tail)
        return Mixture([seen, tail], [1 - self.failure_probability, self.failure_probability])

    def split(self, times: Floats) -> tuple[Floats, Floats]:
        step = np.searchsorted(self.values, times, side="right")
        return self._below[step], self._above[step]

    def inverse(self, below: Floats, above: Floats) -> Floats:
        # In the half where the cumulated probability is the accurate one.
        low = np.searchsorted(self._below[1:], below - ROUNDING, side="left")
        high = len(self.values) - np.searchsorted(self._above[:0:-1], above + ROUNDING * above, side="right")
        step = np.where(below < 0.5, low, high)
        return np.asarray(self.values[np.minimum(step, len(self.values) - 1)])

    def area(self, above: Floats) -> Floats:
        return np.asarray(np.interp(above, self._above[::-1], self._areas[::-1]))


def product_limit(seen: Floats, done: Mask) -> tuple[Floats, Floats, float]:
    """Distinct times at which tasks ended, the probability of each, and what is left beyond.

    S(t) = product over times u <= t of (1 - ended at u / seen to run until u or longer), Kaplan
    and Meier (1958); a task last seen at u counts as running until u.

    >>> [part if isinstance(part, float) else part.round(3).tolist() for part in product_limit(
    ...     np.array([1.0, 2.0, 3.0, 5.0]), np.array([True, False, True, False]))]
    [[1.0, 3.0], [0.25, 0.375], 0.375]
    """
    values, counts = np.unique(seen[done], return_counts=True)
    if done.all():
        return values, counts / len(seen), 0.0
    at_risk = len(seen) - np.searchsorted(np.sort(seen), values, side="left")
    survival = np.cumprod(1 - counts / at_risk)
    before = np.append(1.0, survival[:-1])
    return values, before * counts / at_risk, float(survival[-1])


def start_of(task: TaskReport) -> float:
    """Return the second of its map in which a task began, or was submitted if that is all that is known."""
    return (task.launched or 0.0) if task.began is None else task.began


def shared_cores_of(reports: Sequence[Report]) -> SharedCores | None:
    """Return the cores that the tasks of maps on this machine shared; None if no map ran here."""
    here = [(report.cores, report.most_at_once) for report in reports if report.cores is not None]
    return SharedCores(max(cores for cores, _ in here), max(most for _, most in here)) if here else None


def _last_seen(report: Report, clock: str) -> float:
    """In which second of this map its tasks are known to have run still, by one clock or the other."""
    arrivals = [task.arrived for task in report.tasks if task.arrived is not None]
    last = max(arrivals, default=0.0)
    if clock == "arrived":
        return last
    starts = [
        task.arrived - task.seconds - start_of(task)
        for task in report.tasks
        if task.arrived is not None and task.seconds is not None
    ]
    return max(0.0, last - float(np.median(starts))) if starts else 0.0


def _mean_excess(seen: Floats, done: Mask) -> float:
    """Time spent beyond the median of what ended, for each task that ended there."""
    threshold = np.median(seen[done])
    beyond = np.isfinite(seen) & (seen > threshold)
    ends = int((beyond & done).sum())
    return float((seen[beyond] - threshold).sum()) / ends if ends else 0.0


def as_runtimes(given: object) -> Distribution:
    """A Distribution from one, from run times in seconds, reports of coded maps, or the path of a file.

    The file is one of `polarmap measure`. Reports say nothing of the time beyond the end of their map, so
    their distribution is continued with an exponential tail (`Empirical.with_tail`).

    Examples
    --------
    >>> as_runtimes([1.0, 3.0]).mean()
    2.0
    """
    return observed_runtimes(given)[0]


def observed_runtimes(given: object) -> tuple[Distribution, Empirical | None]:
    """Return the distribution as `as_runtimes` does, and the observations of which it is made, if known."""
    if isinstance(given, Distribution):
        return given, given if isinstance(given, Empirical) else None
    if isinstance(given, (str, PathLike)):
        observed = Empirical.from_json(given)
        return observed, observed
    items = [given] if isinstance(given, Report) else list(_iterated(given))
    if items and all(isinstance(item, Report) for item in items):
        observed = Empirical.from_reports([item for item in items if isinstance(item, Report)])
        return observed.with_tail(), observed
    observed = Empirical(np.array(items, dtype=object))
    return observed, observed


def training_trace() -> Empirical:
    """Run times of the tasks of one large training job, in multiples of the median: real ones, and bimodal.

    Of 45,056 forward and backward operations, each relative to the median of its operation and pipeline
    stage: training_trace.txt has 1,000 means of equal shares, ascending, in units of 1e-4. Derived from
    data/trace-AR.parquet of ByteDance-Seed/StragglerAnalysis, Copyright ByteDance, Apache License 2.0
    (https://www.apache.org/licenses/LICENSE-2.0); changed: two operation types kept, durations made
    relative, reduced to these numbers. Not serverless functions: no cold starts, no failures.

    Examples
    --------
    >>> training_trace().quantile([0.5, 0.95, 0.99]).round(2).tolist()
    [1.0, 2.23, 2.49]
    """
    means = resources.files(__package__).joinpath("training_trace.txt").read_text(encoding="ascii")
    return Empirical(np.array(means.split(), float) / 1e4)


def _iterated(given: object) -> Iterable[object]:
    if not isinstance(given, Iterable):
        raise CodeError(
            f"runtimes must be a Distribution, seconds of past tasks or reports, not {type(given).__name__}"
        )
    return given
