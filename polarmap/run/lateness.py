"""When a task is late: one rule for parity on demand and for backup tasks.

A task is late once it has run longer than all but a twelfth of the tasks are expected to (of few tasks:
all but two). Where no distribution of run times is known, the tasks of the job tell: from half of them what
the others should take; from fewer, three times as long as half would take at their pace. Nothing tells what
is late while nothing has returned: then one task after another is, the first after a minute.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil, inf, log
from typing import Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

LATE_SHARE = 1 / 12  # of the tasks that are taken as late though nothing may be wrong with them
LATE_TASKS = 2.0  # the same as a number, where the share is less than that
LEEWAY = 1.1  # times the median: no task is late before
CAUTION = 3.0  # times what half of the tasks would take at the pace of the fewer that returned
SILENCE_SECONDS = 60.0  # in which nothing has returned
LEAST_SECONDS = 1e-9  # to wait: less may leave a clock where it is
BACKUP_SECONDS = 0.1  # in which nobody starts a backup: what is over so soon is not worth another task
REMEMBERED = 512  # durations of an endless job, half of which then go


class RunTimes(Protocol):
    """What is known of the run time of a task; each `polarmap.planning.Distribution` is one."""

    def conditional_quantile(self, cdf: Floats, survival: Floats) -> Floats:
        """Seconds within which a share `cdf` ends of the tasks that end, and a share `survival` does not."""


@dataclass(frozen=True)
class LatenessRule:
    """After how many seconds a running task is late, given how long others took.

    Parameters
    ----------
    tasks : int
        Of the job, without those that are started for late ones.
    runtimes : Distribution, optional
        Of one task. Without it the tasks of the job tell.
    min_seconds : float
        No task is late before.

    Examples
    --------
    >>> from polarmap.planning.distributions import ShiftedExponential
    >>> rule = LatenessRule(24, ShiftedExponential(1.0, 0.1))  # 11 in 12 tasks take 1.25 s or less
    >>> round(rule.late_after([]), 2)
    1.25
    """

    tasks: int
    runtimes: RunTimes | None = None
    min_seconds: float = 0.0

    def late_after(self, durations: Sequence[float], late: int = 0) -> float:
        """After how many seconds the task is late that has run longest and is not late yet.

        With a distribution, its quantile at 11/12 (of few tasks: at 1 - 2 / tasks, or the median), of
        the tasks that end. Without, the same quantile of the shifted exponential distribution that has
        the fastest and the median task of this job: known once half have returned, and in no need of
        the slow ones. Never less than 1.1 times the median. Before half have returned, three times as
        long as half would take if they went on returning at the pace so far, and at least 0.1 s. While
        nothing has returned, a minute, and twice as long for each that is late.

        Parameters
        ----------
        durations : sequence of float
            What the tasks took that have returned, ascending.
        late : int
            Tasks that are late and run.

        Examples
        --------
        >>> rule = LatenessRule(24)
        >>> rule.late_after([1.0] * 12), rule.late_after([1.0] * 6), rule.late_after([])
        (1.1, 6.0, 60.0)
        >>> round(rule.late_after([1.0] * 6 + [1.1] * 6), 4)  # 1.1 + 0.1 log2(6)
        1.3585
        """
        if self._known is not None:
            return self._known
        half = half_of(self.tasks)
        if not len(durations):
            seconds = SILENCE_SECONDS * 2.0 ** min(late, 1000)
        elif len(durations) < half:
            seconds = float(cautious(durations[-1], len(durations), half))
        else:
            seconds = float(extrapolated(durations[0], durations[half - 1], late_share(self.tasks)))
        return max(self.min_seconds, seconds)

    @cached_property
    def _known(self) -> float | None:
        """What a distribution tells of that, whatever the tasks of the job do; None without one."""
        if self.runtimes is None:
            return None
        share = late_share(self.tasks)
        pair = self.runtimes.conditional_quantile(np.array([1 - share, 0.5]), np.array([share, 0.5]))
        quantile, median = pair.tolist()
        return float(max(self.min_seconds, quantile, LEEWAY * median))


def backup_lateness(tasks: int) -> LatenessRule:
    """When a task of `hedged_map` is late."""
    return LatenessRule(tasks, min_seconds=BACKUP_SECONDS)


@dataclass(frozen=True)
class ParityRule:
    """How many parity tasks are started for those that are late or have failed.

    Parameters
    ----------
    recovery_threshold : int
        Results that determine those of the data tasks, and data tasks of the job.
    runtimes : Distribution, optional
        Of one task. Without it the tasks of the job tell.

    Examples
    --------
    >>> from polarmap.planning.distributions import ShiftedExponential
    >>> rule = ParityRule(24, ShiftedExponential(1.0, 0.1))
    >>> rule.parity_to_start(22, on_time=2, left=8), rule.parity_to_start(22, on_time=0, left=8)
    (0, 2)
    """

    recovery_threshold: int
    runtimes: RunTimes | None = None

    @property
    def lateness(self) -> LatenessRule:
        """When a task is late."""
        return LatenessRule(self.recovery_threshold, self.runtimes)

    def parity_to_start(self, returned: int, on_time: int, left: int) -> int:
        """How many of the `left` parity tasks to start when so many tasks have returned or are not late."""
        return min(left, max(0, self.recovery_threshold - returned - on_time))


Attempt = TypeVar("Attempt", bound=Hashable)


class LateAttempts(Generic[Attempt]):
    """The attempts at tasks that run, and which of them are late by a rule; each change costs O(log n).

    is_endless : whether the job consists of what is known and runs by now, rather than of the rule's tasks.
    at_once : how many of the tasks start at once, which come first.

    >>> attempts = LateAttempts[str](LatenessRule(3))
    >>> for name in "abc": attempts.begin(name, 0.0)
    >>> for name in "ab": attempts.end(name), attempts.learn(1.0)
    (None, None)
    (None, None)
    >>> attempts.late_at(1.0), round(attempts.next_moment(), 9), attempts.late_at(1.2)
    (set(), 1.1, {'c'})
    """

    def __init__(self, rule: LatenessRule, is_endless: bool = False, at_once: float = inf) -> None:
        self._rule, self._is_endless, self.at_once = rule, is_endless, at_once
        self._on_time: list[tuple[float, int, Attempt]] = []  # a heap, of some that have ended, too
        self._number = 0  # of attempts that began
        self._running: set[Attempt] = set()
        self._late: set[Attempt] = set()
        self._durations: list[float] = []
        self._later: list[float] = []

    def begin(self, attempt: Attempt, when: float) -> None:
        """An attempt began to run at this moment."""
        self._number += 1
        self._running.add(attempt)
        heapq.heappush(self._on_time, (when, self._number, attempt))

    def end(self, attempt: Attempt) -> None:
        """An attempt does not run any more, or nobody waits for it."""
        self._running.discard(attempt)
        self._late.discard(attempt)

    def learn(self, took: float, is_later: bool = False) -> None:
        """Take in that an attempt returned after so many seconds.

        is_later : whether it was started in the place of a late or a failed one.
        """
        durations = self._later if is_later else self._durations
        insort(durations, took)
        if self._is_endless and len(durations) > REMEMBERED:
            del durations[1::2]  # as many of the slow as of the fast ones; of old ones ever fewer are left

    def late_at(self, now: float) -> set[Attempt]:
        """The attempts that run and are late by this moment, or were when this was asked before."""
        self.next_moment(now)
        return set(self._late)

    def next_moment(self, now: float = -inf) -> float:
        """When the next attempt after `now` becomes late, if nothing happens before; inf if none does."""
        while self._on_time:
            when, _, attempt = self._on_time[0]
            if attempt in self._running:
                moment = when + self.late_after()
                if moment > now:
                    return moment
                self._late.add(attempt)
            heapq.heappop(self._on_time)
        return inf

    def next_seconds(self, unbegun: bool, now: float) -> float:
        """Until the next one is, if nothing happens before; of those that are `unbegun` one may begin now."""
        wait = self.next_moment(now) - now
        return max(LEAST_SECONDS, min(wait, self.late_after()) if unbegun else wait)

    def late_after(self) -> float:
        """After how many seconds of running the oldest attempt that is not late yet becomes late."""
        rule, durations, later = self._rule, self._durations, self._later
        if self._is_endless:
            tasks = len(durations) + len(later) + len(self._running)
            rule = LatenessRule(max(1, tasks), rule.runtimes, rule.min_seconds)
        if later and len(durations) < half_of(rule.tasks):  # else those that were started at once tell
            durations = sorted([*durations, *later])
        return rule.late_after(durations, len(self._late))


def half_of(tasks: int) -> int:
    """How many of so many tasks must have returned to tell what the others should take."""
    return ceil(tasks / 2)


def late_share(tasks: int) -> float:
    """The share of so many tasks that is taken as late.

    >>> late_share(4), late_share(8), late_share(2400) == 1 / 12
    (0.5, 0.25, True)
    """
    return max(LATE_SHARE, min(0.5, LATE_TASKS / tasks))


def cautious(slowest: npt.ArrayLike, returned: npt.ArrayLike, half: int) -> Floats:
    """Seconds that half of the tasks should not need, of which fewer have returned by now; worth a backup."""
    pace = CAUTION * half / np.asarray(returned)
    return np.asarray(np.maximum(BACKUP_SECONDS, pace * np.asarray(slowest)))


def extrapolated(fastest: npt.ArrayLike, median: npt.ArrayLike, share: float) -> Floats:
    """The quantile at 1 - share of the shifted exponential distribution with this minimum and median."""
    middle = np.asarray(median)
    quantile = middle + (middle - np.asarray(fastest)) * (log(1 / share) / log(2) - 1)
    return np.asarray(np.maximum(quantile, LEEWAY * middle))
