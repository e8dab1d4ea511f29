"""Backup tasks and copies: late tasks are started once more, or every task several times at once.

Of several copies of a task the others are stopped the moment the first returns, the cheapest
accounting there is.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from math import ceil, floor, inf
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from polarmap.planning.distributions import Distribution, Floats
from polarmap.planning.quadrature import everywhere, lengths, mean_quantile
from polarmap.run.lateness import (
    SILENCE_SECONDS,
    LateAttempts,
    LatenessRule,
    cautious,
    extrapolated,
    half_of,
    late_share,
)

Again = Callable[[npt.NDArray[np.bool_]], Floats]  # run times of backups of the tasks that are True


class BackupRule(NamedTuple):
    """When cubed and Spark start backups: when a task has run longer than `slow` times the usual time.

    Attributes
    ----------
    done
        The share of tasks that must have returned before any is late.
    min_tasks
        Fewer than so many get no backups.
    of_all
        The usual time is that by which this share of all tasks had returned, queueing included (as
        in cubed); False: the median of those that returned (as in Spark).
    """

    slow: float = 3.0
    done: float = 0.5
    min_tasks: int = 1
    of_all: bool = True

    def awaited(self, tasks: int) -> int:
        """How many of so many tasks must have returned before any is late.

        Examples
        --------
        >>> BackupRule().awaited(5), BackupRule(of_all=False).awaited(5)
        (3, 2)
        """
        return max(1, ceil(tasks * self.done) if self.of_all else floor(tasks * self.done))


# cubed.runtime.backup.should_launch_backup: a task slower than 3 x the run time by which half of
# all tasks were done. Spark 4: spark.speculation.quantile = 0.9, .multiplier = 3.
CUBED = BackupRule(min_tasks=10)
SPARK = BackupRule(done=0.9, min_tasks=2, of_all=False)


class SimulatedJobs(NamedTuple):
    """What simulated jobs took: seconds, worker-seconds and tasks started; arrays (trials,)."""

    time: Floats
    paid: Floats
    started: Floats


def simulate_backups(
    first: Floats, again: Again, rule: BackupRule | LatenessRule, max_backups: int = 1
) -> SimulatedJobs:
    """Simulate jobs whose late tasks are started again, where every task begins at once.

    Parameters
    ----------
    first : array (trials, k)
        Run times of the first attempts; inf for one that never ends.
    again : callable
        Run times of further attempts, of the tasks that are True in an array (trials, k).
    rule : BackupRule or LatenessRule
        When a task is late: as others have it, or as `hedged_map` does.
    max_backups : int
        That one task may get; a backup may become late itself.

    Examples
    --------
    >>> first = np.array([[1.0] * 9 + [8.0]])
    >>> jobs = simulate_backups(first, lambda late: np.full(late.sum(), 1.5), CUBED)
    >>> jobs.time.tolist(), jobs.paid.tolist(), jobs.started.tolist()
    ([4.5], [15.0], [11.0])
    >>> simulate_backups(first, lambda late: np.full(late.sum(), 1.5), LatenessRule(10)).time.tolist()
    [2.6]
    """
    ascending = np.sort(first, axis=1)
    early = np.zeros(len(first), bool)
    if isinstance(rule, LatenessRule):
        launch, early = ages(ascending, rule)[:, None], is_told_early(ascending, rule)
    else:
        launch = launch_times(ascending, rule)[:, None]
    time, began, drawn = first.copy(), [], []
    for turn in range(1, max_backups + 1):
        # All being equally old, the moment that one is late all that still run are, and their backups
        # after as long once more.
        start = np.broadcast_to(turn * launch, first.shape)
        late = early[:, None] | (time > start)
        seconds = np.full(first.shape, inf)
        seconds[late] = again(late)
        drawn.append(seconds)
        began.append(np.where(late, start, inf))
        time = np.where(late, np.minimum(time, start + seconds), time)
    for row in np.flatnonzero(early).tolist():
        assert isinstance(rule, LatenessRule)
        attempts = np.array([first[row], *(seconds[row] for seconds in drawn)])
        time[row], starts = _event_by_event(attempts, rule)
        for one, start in zip(began, starts[1:]):
            one[row] = start
    started, paid = np.full(len(first), float(first.shape[1])), time.sum(axis=1)
    for start in began:
        copies = np.isfinite(start)
        started += copies.sum(axis=1)
        paid += np.where(copies, time - np.where(copies, start, 0.0), 0.0).sum(axis=1)
    return SimulatedJobs(time.max(axis=1), paid, started)


def is_told_early(first: Floats, rule: LatenessRule, spare: int = 0) -> npt.NDArray[np.bool_]:
    """Whether more than `spare` tasks are late before half of them have returned, (trials,).

    first : array (trials, tasks): run times of the tasks of each job, ascending.
    """
    half = half_of(rule.tasks)
    returned = np.arange(1, half)
    silent = first[:, 0] > max(rule.min_seconds, SILENCE_SECONDS * 2.0**spare)
    patience = np.maximum(rule.min_seconds, cautious(first[:, : half - 1], returned, half))
    return np.asarray(silent | (patience < first[:, 1:half]).any(axis=1))


def ages(first: Floats, rule: LatenessRule) -> Floats:
    """`late_after` once half of the tasks have returned, (trials,); `first` as for `is_told_early`."""
    with np.errstate(invalid="ignore"):  # where nothing returns
        found = extrapolated(first[:, 0], first[:, half_of(rule.tasks) - 1], late_share(rule.tasks))
    return np.maximum(rule.min_seconds, found)


def _event_by_event(seconds: Floats, rule: LatenessRule) -> tuple[Floats, Floats]:
    """When each task of one job has returned, (k,), and when each attempt was started, (attempts, k).

    seconds : array (attempts, k): what each attempt would take.
    """
    attempts: LateAttempts[tuple[int, int]] = LateAttempts(rule)
    ended, started = np.full(seconds.shape[1], inf), np.full(seconds.shape, inf)
    returns: list[tuple[float, int, int]] = []  # a heap

    def start(task: int, attempt: int, now: float) -> None:
        started[attempt, task] = now
        attempts.begin((task, attempt), now)
        if np.isfinite(seconds[attempt, task]):
            heapq.heappush(returns, (now + float(seconds[attempt, task]), task, attempt))

    for task in range(seconds.shape[1]):
        start(task, 0, 0.0)
    while np.isinf(ended).any():
        now = min(returns[0][0] if returns else inf, attempts.next_moment())
        if now == inf:
            break
        if returns and returns[0][0] == now:
            _, task, attempt = heapq.heappop(returns)
            if np.isinf(ended[task]):
                ended[task] = now
                attempts.learn(float(seconds[attempt, task]), attempt > 0)
                for other in range(len(seconds)):
                    attempts.end((task, other))
        for task, attempt in sorted(attempts.late_at(now)):
            if attempt + 1 < len(seconds) and np.isinf(started[attempt + 1, task]):
                start(task, attempt + 1, now)
    return ended, started


def launch_times(first: Floats, rule: BackupRule) -> Floats:
    """When a rule starts backups, (trials,), inf if it never does; `first` as for `is_told_early`.

    >>> launch_times(np.array([[1.0] * 9 + [8.0]]), CUBED).tolist()
    [3.0]
    """
    trials, k = first.shape
    launch = np.full(trials, np.inf)
    if k < rule.min_tasks:
        return launch
    for returned in range(k - 1, rule.awaited(k) - 1, -1):  # the earliest moment comes last
        patience = rule.slow * _usual(first, rule, returned)
        moment = np.maximum(first[:, returned - 1], patience)
        launch = np.where(moment < first[:, returned], moment, launch)
    return launch


def _usual(first: Floats, rule: BackupRule, returned: int) -> Floats:
    """The usual time of each job when so many of its tasks have returned."""
    if rule.of_all:
        return first[:, rule.awaited(first.shape[1]) - 1]
    return (first[:, (returned - 1) // 2] + first[:, returned // 2]) / 2


class Replicated(NamedTuple):
    """Tasks with so many copies each: P(T <= t) = (1 - P(one is out at t)^copies)^tasks."""

    tasks: int
    copies: int
    runtimes: Distribution

    @property
    def failure_probability(self) -> float:
        """Probability that all copies of a task never end."""
        return float(-np.expm1(self.tasks * np.log1p(-(self.runtimes.failure_probability**self.copies))))

    def quantile(self, p: Floats) -> Floats:
        """The time by which the job is complete with probability `p`.

        >>> from polarmap.planning.distributions import ShiftedExponential
        >>> Replicated(1, 2, ShiftedExponential(0.0, 1.0)).quantile(np.array([0.5])).round(6).tolist()
        [0.346574]
        """
        return self.runtimes.time_of(*self._shares(p, 1 - p))

    def mean(self) -> float:
        """Expected seconds until all tasks have a result, of the jobs in which all of them do."""
        below, above = everywhere()
        fails = self.failure_probability
        shares = self._shares((1 - fails) * below, fails + (1 - fails) * above)
        return mean_quantile(self.runtimes, lengths(below, above), *self.runtimes.among_ended(*shares))

    def _shares(self, below: Floats, above: Floats) -> tuple[Floats, Floats]:
        """Shares of the copies that have ended, and not, where `below` of the jobs have."""
        with np.errstate(divide="ignore"):
            one = np.where(below < 0.5, np.log(below), np.log1p(-np.minimum(above, 0.5))) / self.tasks
            out = np.log(-np.expm1(one)) / self.copies
        return -np.expm1(out), np.exp(out)
