"""Rivals that start a task again: every task r times at once, or the late ones a second time.

Of two copies of a task the loser is stopped the moment the winner returns, the cheapest
accounting there is for these rivals.
"""

from __future__ import annotations

from math import ceil, floor
from typing import NamedTuple

import numpy as np

from polarmap.runtimes.distributions import Distribution, Floats
from polarmap.runtimes.quadrature import everywhere, lengths, mean_quantile


class Rule(NamedTuple):
    """When late tasks get a backup: their time exceeds `slow` times the median, all being alike.

    least : tasks a job must have.
    done : share of the tasks that must have returned first.
    slow : multiple of the median.
    of_all : the median of all tasks (known once half have returned), or of those that returned.
    """

    least: int
    done: float
    slow: float
    of_all: bool

    def awaited(self, k: int) -> int:
        """How many of k tasks must have returned."""
        return max(1, ceil(k * self.done) if self.of_all else floor(k * self.done))


# cubed.runtime.backup.should_launch_backup: a task slower than 3 x the run time by which half of
# all tasks were done. Spark 4: spark.speculation.quantile = 0.9, .multiplier = 3.
CUBED = Rule(least=10, done=0.5, slow=3.0, of_all=True)
SPARK = Rule(least=2, done=0.9, slow=3.0, of_all=False)


class Trials(NamedTuple):
    """Simulated jobs; arrays (trials,): seconds, worker-seconds, tasks started."""

    time: Floats
    paid: Floats
    started: Floats


def backed_up(k: int, runtimes: Distribution, rule: Rule, trials: int, rng: np.random.Generator) -> Trials:
    """Jobs of k tasks, all started at once, whose late tasks are started once more.

    The rule is asked at every moment, not at intervals. All tasks being equally old, the moment
    it holds for one it holds for all that still run.
    """
    first = np.sort(runtimes.sample(rng, (trials, k)), axis=1)
    launch = launch_times(first, rule)
    late = first > launch[:, None]
    started = np.broadcast_to(launch[:, None], first.shape)[late]
    time = first.copy()
    time[late] = np.minimum(first[late], started + runtimes.sample(rng, len(started)))
    copies = np.zeros(first.shape)
    copies[late] = time[late] - started
    return Trials(time.max(axis=1), (time + copies).sum(axis=1), k + late.sum(axis=1).astype(float))


def launch_times(first: Floats, rule: Rule) -> Floats:
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
    if k < rule.least:
        return launch
    for returned in range(k - 1, rule.awaited(k) - 1, -1):  # the earliest moment comes last
        moment = np.maximum(first[:, returned - 1], rule.slow * _median(first, rule, returned))
        launch = np.where(moment < first[:, returned], moment, launch)
    return launch


def _median(first: Floats, rule: Rule, returned: int) -> Floats:
    """The median the rule looks at when so many tasks have returned."""
    if rule.of_all:
        return first[:, rule.awaited(first.shape[1]) - 1]
    return (first[:, (returned - 1) // 2] + first[:, returned // 2]) / 2


class Replicated(NamedTuple):
    """k tasks with `copies` copies each: P(T <= t) = (1 - P(one is out at t)^copies)^k."""

    k: int
    copies: int
    runtimes: Distribution

    @property
    def never(self) -> float:
        """Probability that all copies of some task never end."""
        return float(-np.expm1(self.k * np.log1p(-(self.runtimes.never**self.copies))))

    def quantile(self, p: Floats) -> Floats:
        """The time by which the job is complete with probability `p`.

        >>> from polarmap.runtimes.distributions import ShiftedExponential
        >>> Replicated(1, 2, ShiftedExponential(0.0, 1.0)).quantile(np.array([0.5])).round(6).tolist()
        [0.346574]
        """
        share = np.minimum(p / (1 - self.never), 1.0)
        times = self.runtimes.inverse(*self._shares(share, 1 - share, self.k))
        return np.where(p > 1 - self.never, np.inf, times)

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
            failing = self.runtimes.never**self.copies
            out = np.log(still + np.exp(logarithm) * failing) / self.copies
        never = self.runtimes.never
        return -np.expm1(out) / (1 - never), np.maximum(np.exp(out) - never, 0) / (1 - never)
