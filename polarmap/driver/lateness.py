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

LATE_FRACTION = 1 / 12  # of the tasks that are taken as late though nothing may be wrong with them
MIN_LATE_TASKS = 2.0  # the same as a number, where the share is less than that
MIN_MEDIAN_FACTOR = 1.1  # times the median: no task is late before
EARLY_FACTOR = 3.0  # times what half of the tasks would take at the pace of the fewer that returned
NO_RESULT_SECONDS = 60.0  # in which nothing has returned
MIN_WAIT_SECONDS = 1e-9  # to wait: less may leave a clock where it is
MIN_BACKUP_SECONDS = 0.1  # in which nobody starts a backup: what is over so soon is not worth another task
RUN_TIME_HISTORY_SIZE = 512  # durations of an endless job, half of which then go


class RunTimeQuantiles(Protocol):
    """What is known of the run time of a task; each `polarmap.planning.Distribution` is one."""

    def conditional_quantile(self, cdf: Floats, survival: Floats) -> Floats:
        """Seconds within which a share `cdf` ends of the tasks that end, and a share `survival` does not."""


@dataclass(frozen=True)
class LatenessRule:
    """After how many seconds a running task is late, given how long others took.

    Parameters
    ----------
    n_tasks : int
        Of the job, without those that are started for late ones.
    run_times : Distribution, optional
        Of one task. Without it the tasks of the job tell.
    min_seconds : float
        No task is late before.

    Examples
    --------
    >>> from polarmap.planning.distributions import ShiftedExponential
    >>> rule = LatenessRule(24, ShiftedExponential(1.0, 0.1))  # 11 in 12 tasks take 1.25 s or less
    >>> round(rule.late_after_seconds([]), 2)
    1.25
    """

    n_tasks: int
    run_times: RunTimeQuantiles | None = None
    min_seconds: float = 0.0

    def late_after_seconds(self, sorted_run_times: Sequence[float], n_late: int = 0) -> float:
        """After how many seconds the task is late that has run longest and is not late yet.

        With a distribution, its quantile at 11/12 (of few tasks: at 1 - 2 / tasks, or the median), of
        the tasks that end. Without, the same quantile of the shifted exponential distribution that has
        the fastest and the median task of this job: known once half have returned, and in no need of
        the slow ones. Never less than 1.1 times the median. Before half have returned, three times as
        long as half would take if they went on returning at the pace so far, and at least 0.1 s. While
        nothing has returned, a minute, and twice as long for each that is late.

        Parameters
        ----------
        sorted_run_times : sequence of float
            What the tasks took that have returned, ascending.
        n_late : int
            Tasks that are late and run.

        Examples
        --------
        >>> rule = LatenessRule(24)
        >>> [rule.late_after_seconds([1.0] * n_returned) for n_returned in (12, 6, 0)]
        [1.1, 6.0, 60.0]
        >>> round(rule.late_after_seconds([1.0] * 6 + [1.1] * 6), 4)  # 1.1 + 0.1 log2(6)
        1.3585
        """
        if self._known_late_after_seconds is not None:
            return self._known_late_after_seconds
        n_half_of_tasks = compute_min_results_to_extrapolate(self.n_tasks)
        if not len(sorted_run_times):
            seconds = NO_RESULT_SECONDS * 2.0 ** min(n_late, 1000)
        elif len(sorted_run_times) < n_half_of_tasks:
            slowest, n_returned = sorted_run_times[-1], len(sorted_run_times)
            seconds = float(compute_cautious_late_after_seconds(slowest, n_returned, n_half_of_tasks))
        else:
            fastest, median = sorted_run_times[0], sorted_run_times[n_half_of_tasks - 1]
            seconds = float(extrapolate_quantile(fastest, median, compute_late_fraction(self.n_tasks)))
        return max(self.min_seconds, seconds)

    @cached_property
    def _known_late_after_seconds(self) -> float | None:
        """What a distribution tells of that, whatever the tasks of the job do; None without one."""
        if self.run_times is None:
            return None
        tail_fraction = compute_late_fraction(self.n_tasks)
        quantiles = self.run_times.conditional_quantile(
            np.array([1 - tail_fraction, 0.5]), np.array([tail_fraction, 0.5])
        )
        quantile, median = quantiles.tolist()
        return float(max(self.min_seconds, quantile, MIN_MEDIAN_FACTOR * median))


def make_backup_lateness_rule(n_tasks: int) -> LatenessRule:
    """When a task of `hedged_map` is late."""
    return LatenessRule(n_tasks, min_seconds=MIN_BACKUP_SECONDS)


@dataclass(frozen=True)
class ParityRule:
    """How many parity tasks are started for those that are late or have failed.

    Parameters
    ----------
    recovery_threshold : int
        Results that determine those of the data tasks, and data tasks of the job.
    run_times : Distribution, optional
        Of one task. Without it the tasks of the job tell.

    Examples
    --------
    >>> from polarmap.planning.distributions import ShiftedExponential
    >>> rule = ParityRule(24, ShiftedExponential(1.0, 0.1))
    >>> [rule.count_parity_to_start(22, n_on_time=n_on_time, n_held_back=8) for n_on_time in (2, 0)]
    [0, 2]
    """

    recovery_threshold: int
    run_times: RunTimeQuantiles | None = None

    @property
    def lateness_rule(self) -> LatenessRule:
        """When a task is late."""
        return LatenessRule(self.recovery_threshold, self.run_times)

    def count_parity_to_start(self, n_returned: int, n_on_time: int, n_held_back: int) -> int:
        """How many of the `n_held_back` parity tasks to start when so many tasks have returned or are not
        late.
        """
        return min(n_held_back, max(0, self.recovery_threshold - n_returned - n_on_time))


AttemptT = TypeVar("AttemptT", bound=Hashable)


class LateTracker(Generic[AttemptT]):
    """The attempts at tasks that run, and which of them are late by a rule; each change costs O(log n).

    is_open_ended : whether the job consists of what is known and runs by now, rather than of the rule's
        tasks.
    n_initial_attempts : how many of the tasks start at once, which come first.

    >>> attempts = LateTracker[str](LatenessRule(3))
    >>> for name in "abc": attempts.on_start(name, 0.0)
    >>> for name in "ab": attempts.on_end(name), attempts.record_run_time(1.0)
    (None, None)
    (None, None)
    >>> attempts.find_late_attempts(1.0), round(attempts.find_next_late_time(), 9)
    (set(), 1.1)
    >>> attempts.find_late_attempts(1.2)
    {'c'}
    """

    def __init__(
        self, lateness_rule: LatenessRule, is_open_ended: bool = False, n_initial_attempts: float = inf
    ) -> None:
        self._lateness_rule, self._is_open_ended = lateness_rule, is_open_ended
        self.n_initial = n_initial_attempts
        self._on_time_heap: list[tuple[float, int, AttemptT]] = []  # a heap, of some that have ended, too
        self._n_started = 0  # of attempts that began
        self._running: set[AttemptT] = set()
        self._late_attempts: set[AttemptT] = set()
        self._run_times: list[float] = []
        self._restart_run_times: list[float] = []

    def on_start(self, attempt: AttemptT, started_at: float) -> None:
        """An attempt began to run at this moment."""
        self._n_started += 1
        self._running.add(attempt)
        heapq.heappush(self._on_time_heap, (started_at, self._n_started, attempt))

    def on_end(self, attempt: AttemptT) -> None:
        """An attempt does not run any more, or nobody waits for it."""
        self._running.discard(attempt)
        self._late_attempts.discard(attempt)

    def record_run_time(self, run_seconds: float, is_restart: bool = False) -> None:
        """Take in that an attempt returned after so many seconds.

        is_restart : whether it was started in the place of a late or a failed one.
        """
        run_times = self._restart_run_times if is_restart else self._run_times
        insort(run_times, run_seconds)
        if self._is_open_ended and len(run_times) > RUN_TIME_HISTORY_SIZE:
            del run_times[1::2]  # as many of the slow as of the fast ones; of old ones ever fewer are left

    def find_late_attempts(self, now: float) -> set[AttemptT]:
        """The attempts that run and are late by this moment, or were when this was asked before."""
        self.find_next_late_time(now)
        return set(self._late_attempts)

    def find_next_late_time(self, now: float = -inf) -> float:
        """When the next attempt after `now` becomes late, if nothing happens before; inf if none does."""
        while self._on_time_heap:
            started_at, _, attempt = self._on_time_heap[0]
            if attempt in self._running:
                late_at = started_at + self.late_after_seconds()
                if late_at > now:
                    return late_at
                self._late_attempts.add(attempt)
            heapq.heappop(self._on_time_heap)
        return inf

    def seconds_until_next_late_attempt(self, has_queued: bool, now: float) -> float:
        """Until the next one is, if nothing happens before; of those that are `has_queued` one may begin
        now.
        """
        wait_seconds = self.find_next_late_time(now) - now
        return max(
            MIN_WAIT_SECONDS, min(wait_seconds, self.late_after_seconds()) if has_queued else wait_seconds
        )

    def late_after_seconds(self) -> float:
        """After how many seconds of running the oldest attempt that is not late yet becomes late."""
        rule, run_times, restart_run_times = self._lateness_rule, self._run_times, self._restart_run_times
        if self._is_open_ended:
            n_tasks = len(run_times) + len(restart_run_times) + len(self._running)
            rule = LatenessRule(max(1, n_tasks), rule.run_times, rule.min_seconds)
        # else those that were started at once tell
        if restart_run_times and len(run_times) < compute_min_results_to_extrapolate(rule.n_tasks):
            run_times = sorted([*run_times, *restart_run_times])
        return rule.late_after_seconds(run_times, len(self._late_attempts))


def compute_min_results_to_extrapolate(n_tasks: int) -> int:
    """How many of so many tasks must have returned to tell what the others should take."""
    return ceil(n_tasks / 2)


def compute_late_fraction(n_tasks: int) -> float:
    """The share of so many tasks that is taken as late.

    >>> compute_late_fraction(4), compute_late_fraction(8), compute_late_fraction(2400) == 1 / 12
    (0.5, 0.25, True)
    """
    return max(LATE_FRACTION, min(0.5, MIN_LATE_TASKS / n_tasks))


def compute_cautious_late_after_seconds(
    slowest_seconds: npt.ArrayLike, n_returned: npt.ArrayLike, half_n_tasks: int
) -> Floats:
    """Seconds that half of the tasks should not need, of which fewer have returned by now; worth a backup."""
    pace_factor = EARLY_FACTOR * half_n_tasks / np.asarray(n_returned)
    return np.asarray(np.maximum(MIN_BACKUP_SECONDS, pace_factor * np.asarray(slowest_seconds)))


def extrapolate_quantile(
    fastest_seconds: npt.ArrayLike, median_seconds: npt.ArrayLike, tail_fraction: float
) -> Floats:
    """The quantile at 1 - share of the shifted exponential distribution with this minimum and median."""
    median_array = np.asarray(median_seconds)
    n_half_lives = log(1 / tail_fraction) / log(2) - 1
    quantile = median_array + (median_array - np.asarray(fastest_seconds)) * n_half_lives
    return np.asarray(np.maximum(quantile, MIN_MEDIAN_FACTOR * median_array))
