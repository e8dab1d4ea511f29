"""Backup tasks and copies: late tasks are started once more, or every task several times at once.

Of several copies of a task the others are stopped the moment the first returns, the cheapest
accounting there is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, floor, inf
from statistics import median
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from polarmap.planning.distributions import Distribution, Floats
from polarmap.planning.quadrature import everywhere, lengths, mean_quantile

Again = Callable[[npt.NDArray[np.bool_]], Floats]  # run times of backups of the tasks that are True


class BackupRule(NamedTuple):
    """When a task gets a backup: its latest attempt has run longer than `slow` times the usual time.

    slow : multiple of the usual time.
    done : the usual time is that by which this share of all tasks had returned, queueing included
        (as in cubed); before so many have, nothing is late.
    min_seconds : below which nothing is late.
    max_backups : that one task may get.
    min_tasks : fewer than so many get no backups.
    of_all : False: the usual time is the median of those that returned (as in Spark).
    """

    slow: float = 3.0
    done: float = 0.5
    min_seconds: float = 0.1
    max_backups: int = 2
    min_tasks: int = 1
    of_all: bool = True

    def awaited(self, tasks: int) -> int:
        """How many of so many tasks must have returned before any is late."""
        return max(1, ceil(tasks * self.done) if self.of_all else floor(tasks * self.done))

    def late_after(self, durations: Sequence[float], tasks: int) -> float:
        """Seconds after which an attempt is late, given how long others took, in order of return.

        >>> BackupRule().late_after([1.0, 2.0, 0.5], tasks=4), BackupRule().late_after([1.0], tasks=4)
        (6.0, inf)
        """
        awaited = self.awaited(tasks)
        if len(durations) < awaited or tasks < self.min_tasks:
            return inf
        usual = max(durations[:awaited]) if self.of_all else median(durations)
        return max(self.min_seconds, self.slow * usual)


HEDGED = BackupRule()  # the defaults of hedged_map
# cubed.runtime.backup.should_launch_backup: a task slower than 3 x the run time by which half of
# all tasks were done. Spark 4: spark.speculation.quantile = 0.9, .multiplier = 3.
CUBED = BackupRule(min_seconds=0.0, max_backups=1, min_tasks=10)
SPARK = BackupRule(done=0.9, min_seconds=0.0, max_backups=1, min_tasks=2, of_all=False)


class SimulatedJobs(NamedTuple):
    """What simulated jobs took: seconds, worker-seconds and tasks started; arrays (trials,)."""

    time: Floats
    paid: Floats
    started: Floats


def simulate_backups(first: Floats, again: Again, rule: BackupRule) -> SimulatedJobs:
    """Simulate jobs whose late tasks are started again: `hedged_map` when every task begins at once.

    The rule is asked at every moment. All tasks being equally old, the moment it holds for one it
    holds for all that still run, and for their backups after as long once more.

    Parameters
    ----------
    first : array (trials, k)
        Run times of the first attempts; inf for one that never ends.
    again : callable
        Run times of further attempts, of the tasks that are True in an array (trials, k); called for
        each attempt in turn.
    rule : BackupRule

    Examples
    --------
    >>> first = np.array([[1.0] * 9 + [8.0]])
    >>> jobs = simulate_backups(first, lambda late: np.full(late.sum(), 1.5), BackupRule())
    >>> jobs.time.tolist(), jobs.paid.tolist(), jobs.started.tolist()
    ([4.5], [15.0], [11.0])
    """
    launch = launch_times(np.sort(first, axis=1), rule)[:, None]
    time, began = first.copy(), []
    for turn in range(1, rule.max_backups + 1):
        start = np.broadcast_to(turn * launch, first.shape)
        late = time > start
        began.append(np.where(late, start, inf))
        time[late] = np.minimum(time[late], start[late] + again(late))
    started, paid = np.full(len(first), float(first.shape[1])), time.sum(axis=1)
    for start in began:
        copies = np.isfinite(start)
        started += copies.sum(axis=1)
        paid += np.where(copies, time - np.where(copies, start, 0.0), 0.0).sum(axis=1)
    return SimulatedJobs(time.max(axis=1), paid, started)


def launch_times(first: Floats, rule: BackupRule) -> Floats:
    """When a rule starts backups, (trials,); inf if it never does.

    Parameters
    ----------
    first : array (trials, k)
        Run times of the tasks of each job, ascending.

    Examples
    --------
    >>> launch_times(np.array([[1.0] * 9 + [8.0]]), CUBED).tolist()
    [3.0]
    """
    trials, k = first.shape
    launch = np.full(trials, np.inf)
    if k < rule.min_tasks:
        return launch
    for returned in range(k - 1, rule.awaited(k) - 1, -1):  # the earliest moment comes last
        patience = np.maximum(rule.min_seconds, rule.slow * _usual(first, rule, returned))
        moment = np.maximum(first[:, returned - 1], patience)
        launch = np.where(moment < first[:, returned], moment, launch)
    return launch


def _usual(first: Floats, rule: BackupRule, returned: int) -> Floats:
    """The usual time when so many tasks have returned, as `BackupRule.late_after` has it."""
    if rule.of_all:
        return first[:, rule.awaited(first.shape[1]) - 1]
    return (first[:, (returned - 1) // 2] + first[:, returned // 2]) / 2


class Replicated(NamedTuple):
    """k tasks with `copies` copies each: P(T <= t) = (1 - P(one is out at t)^copies)^k."""

    k: int
    copies: int
    runtimes: Distribution

    @property
    def failure_probability(self) -> float:
        """Probability that all copies of some task never end."""
        return float(-np.expm1(self.k * np.log1p(-(self.runtimes.failure_probability**self.copies))))

    def quantile(self, p: Floats) -> Floats:
        """The time by which the job is complete with probability `p`.

        >>> from polarmap.planning.distributions import ShiftedExponential
        >>> Replicated(1, 2, ShiftedExponential(0.0, 1.0)).quantile(np.array([0.5])).round(6).tolist()
        [0.346574]
        """
        share = np.minimum(p / (1 - self.failure_probability), 1.0)
        times = self.runtimes.inverse(*self._shares(share, 1 - share, self.k))
        return np.where(p > 1 - self.failure_probability, np.inf, times)

    def mean(self) -> float:
        """Expected seconds, of the jobs that complete."""
        return self._mean(self.k)

    def paid(self) -> float:
        """Expected worker-seconds, of the jobs that complete."""
        return self.k * self.copies * self._mean(1)

    def _mean(self, tasks: int) -> float:
        below, above = everywhere()
        return mean_quantile(self.runtimes, lengths(below, above), *self._shares(below, above, tasks))

    def _shares(self, below: Floats, above: Floats, tasks: int) -> tuple[Floats, Floats]:
        """Shares of the copies that end, where `below` of the jobs with so many tasks have."""
        with np.errstate(divide="ignore"):
            logarithm = np.where(below < 0.5, np.log(below), np.log1p(-np.minimum(above, 0.5))) / tasks
            still = -np.expm1(logarithm)  # 1 - below^(1/tasks)
            failing = self.runtimes.failure_probability**self.copies
            out = np.log(still + np.exp(logarithm) * failing) / self.copies
        ends = 1 - self.runtimes.failure_probability
        still_out = np.exp(out) - self.runtimes.failure_probability
        return -np.expm1(out) / ends, np.maximum(still_out, 0) / ends
