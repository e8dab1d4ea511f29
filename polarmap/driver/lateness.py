"""Decide when an attempt is late: one rule for parity on demand and for backup tasks.

An attempt is late once it has run longer than all but a twelfth of the tasks are expected to, or, if there
are few tasks, all but two. If no distribution of run times is known, the rule uses the tasks of the job. Once
half of them have returned, their run times predict the remaining run times. Before that, an attempt is late
after three times as long as half of the tasks would take at the pace so far. While no task has returned, one
attempt after another becomes late, the first after a minute.
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

LATE_FRACTION = 1 / 12  # expected share of the tasks that become late although nothing is wrong with them
MIN_LATE_TASKS = 2.0  # minimum of the same, as a number of tasks
MIN_MEDIAN_FACTOR = 1.1  # no attempt is late before this multiple of the median run time
EARLY_FACTOR = 3.0  # multiple of the seconds that half of the tasks would take at the pace so far
NO_RESULT_SECONDS = 60.0  # run time after which an attempt is late if no task has returned
MIN_WAIT_SECONDS = 1e-9  # a shorter wait may not advance a clock
MIN_BACKUP_SECONDS = 0.1  # minimum run time before a backup: a shorter task is not worth another one
RUN_TIME_HISTORY_SIZE = 512  # run times kept of an open-ended job; every other one is then dropped


class RunTimeQuantiles(Protocol):
    """The quantile function of the run time of a task, such as a `polarmap.planning.Distribution`."""

    def quantile_given_completion(self, p: Floats) -> Floats:
        """Return the seconds by which a fraction `p` of the tasks that end has ended."""


@dataclass(frozen=True)
class LatenessRule:
    """A rule for when a running attempt is late, given the run times of tasks that have returned.

    Parameters
    ----------
    n_tasks : int
        The number of tasks of the job, without those that replace late ones.
    run_times : Distribution, optional
        The distribution of the run time of a task. Without it the rule uses the tasks of the job.
    min_seconds : float
        Seconds before which no attempt is late.

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
        """Return the seconds of running after which the next attempt becomes late.

        With a distribution, this is its quantile at 11/12 (for few tasks at 1 - 2 / tasks, or the median),
        given that a task ends. Without one, it is the same quantile of the shifted exponential distribution
        with the fastest and the median run time of this job, which is known once half of the tasks have
        returned and does not depend on slow ones. It is never less than 1.1 times the median. Before half of
        the tasks have returned, it is three times as long as half would take at the pace so far, and at least
        0.1 s. While no task has returned, it is a minute, doubled for each late attempt.

        Parameters
        ----------
        sorted_run_times : sequence of float
            Run times of the tasks that have returned, ascending.
        n_late : int
            The number of late attempts that are running.

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
        """The quantile of the distribution, which does not depend on the tasks; None without one."""
        if self.run_times is None:
            return None
        tail_fraction = compute_late_fraction(self.n_tasks)
        quantiles = self.run_times.quantile_given_completion(np.array([1 - tail_fraction, 0.5]))
        quantile, median = quantiles.tolist()
        return float(max(self.min_seconds, quantile, MIN_MEDIAN_FACTOR * median))


def make_backup_lateness_rule(n_tasks: int) -> LatenessRule:
    """Return the lateness rule for backups: no attempt of the `n_tasks` tasks is late before 0.1 s."""
    return LatenessRule(n_tasks, min_seconds=MIN_BACKUP_SECONDS)


@dataclass(frozen=True)
class ParityRule:
    """A rule for how many parity tasks to start in place of late and failed tasks.

    Parameters
    ----------
    recovery_threshold : int
        The number of results that suffice to decode the results of all data tasks.
    run_times : Distribution, optional
        The distribution of the run time of a task. Without it the rule uses the tasks of the job.

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
        """The rule by which a task is late."""
        return LatenessRule(self.recovery_threshold, self.run_times)

    def count_parity_to_start(self, n_returned: int, n_on_time: int, n_held_back: int) -> int:
        """Return the number of parity tasks to start now.

        Parameters
        ----------
        n_returned : int
            The number of tasks that have returned a result.
        n_on_time : int
            The number of running tasks that are not late.
        n_held_back : int
            The number of parity tasks that have not been started.
        """
        return min(n_held_back, max(0, self.recovery_threshold - n_returned - n_on_time))


AttemptT = TypeVar("AttemptT", bound=Hashable)


class LateTracker(Generic[AttemptT]):
    """Tracks running attempts and which of them are late; each update costs O(log n).

    Parameters
    ----------
    lateness_rule : LatenessRule
    is_open_ended : bool
        Whether the number of tasks is not known in advance. Then the number of attempts up to now takes the
        place of `lateness_rule.n_tasks`.
    n_initial_attempts : float
        Tasks with a smaller index start at once. Run times of other tasks and of restarts are used only
        until half of the initial tasks have returned.

    Examples
    --------
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
        self._on_time_heap: list[
            tuple[float, int, AttemptT]
        ] = []  # (start, n_started, attempt); may have ended
        self._n_started = 0
        self._running: set[AttemptT] = set()
        self._late_attempts: set[AttemptT] = set()
        self._run_times: list[float] = []
        self._restart_run_times: list[float] = []

    def on_start(self, attempt: AttemptT, started_at: float) -> None:
        """Add an attempt that a worker has started."""
        self._n_started += 1
        self._running.add(attempt)
        heapq.heappush(self._on_time_heap, (started_at, self._n_started, attempt))

    def on_end(self, attempt: AttemptT) -> None:
        """Remove an attempt that has ended, or whose result is not needed any more."""
        self._running.discard(attempt)
        self._late_attempts.discard(attempt)

    def record_run_time(self, run_seconds: float, is_restart: bool = False) -> None:
        """Add the run time of an attempt that has returned.

        Parameters
        ----------
        run_seconds : float
        is_restart : bool
            Whether the attempt replaced a late or a failed attempt.
        """
        run_times = self._restart_run_times if is_restart else self._run_times
        insort(run_times, run_seconds)
        if self._is_open_ended and len(run_times) > RUN_TIME_HISTORY_SIZE:
            del run_times[1::2]  # Keeps the distribution, and ever fewer of the old run times.

    def find_late_attempts(self, now: float) -> set[AttemptT]:
        """Return the running attempts that are late now, or were late at an earlier call."""
        self.find_next_late_time(now)
        return set(self._late_attempts)

    def find_next_late_time(self, now: float = -inf) -> float:
        """Return when the next attempt after `now` becomes late if nothing happens before; inf if none."""
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
        """Return the seconds until the next attempt may become late, unless an attempt ends before.

        Parameters
        ----------
        has_queued : bool
            Whether attempts are queued, which may start at any moment.
        now : float
        """
        wait_seconds = self.find_next_late_time(now) - now
        return max(
            MIN_WAIT_SECONDS, min(wait_seconds, self.late_after_seconds()) if has_queued else wait_seconds
        )

    def late_after_seconds(self) -> float:
        """Return the seconds of running after which the next attempt becomes late."""
        rule, run_times, restart_run_times = self._lateness_rule, self._run_times, self._restart_run_times
        if self._is_open_ended:
            n_tasks = len(run_times) + len(restart_run_times) + len(self._running)
            rule = LatenessRule(max(1, n_tasks), rule.run_times, rule.min_seconds)
        # Restarts count only as long as too few of the initial attempts have returned.
        if restart_run_times and len(run_times) < compute_min_results_to_extrapolate(rule.n_tasks):
            run_times = sorted([*run_times, *restart_run_times])
        return rule.late_after_seconds(run_times, len(self._late_attempts))


def compute_min_results_to_extrapolate(n_tasks: int) -> int:
    """Return the number of run times that suffice to predict those of all `n_tasks` tasks: half of them."""
    return ceil(n_tasks / 2)


def compute_late_fraction(n_tasks: int) -> float:
    """Return the share of `n_tasks` tasks that is expected to become late.

    >>> compute_late_fraction(4), compute_late_fraction(8), compute_late_fraction(2400) == 1 / 12
    (0.5, 0.25, True)
    """
    return max(LATE_FRACTION, min(0.5, MIN_LATE_TASKS / n_tasks))


def compute_cautious_late_after_seconds(
    slowest_seconds: npt.ArrayLike, n_returned: npt.ArrayLike, half_n_tasks: int
) -> Floats:
    """Return three times the time in which half of the tasks would return at the pace until now."""
    pace_factor = EARLY_FACTOR * half_n_tasks / np.asarray(n_returned)
    return np.asarray(np.maximum(MIN_BACKUP_SECONDS, pace_factor * np.asarray(slowest_seconds)))


def extrapolate_quantile(
    fastest_seconds: npt.ArrayLike, median_seconds: npt.ArrayLike, tail_fraction: float
) -> Floats:
    """Return the quantile at 1 - `tail_fraction` of the shifted exponential with this minimum and median."""
    median_array = np.asarray(median_seconds)
    n_half_lives = log(1 / tail_fraction) / log(2) - 1
    quantile = median_array + (median_array - np.asarray(fastest_seconds)) * n_half_lives
    return np.asarray(np.maximum(quantile, MIN_MEDIAN_FACTOR * median_array))
