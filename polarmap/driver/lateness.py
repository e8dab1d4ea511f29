"""Decide when an attempt (one run of a task) is late, so that a parity task or a backup should start.

An attempt is late once it has run for longer than 11 of 12 tasks are expected to take. With fewer than 24
tasks, it is late once it has run for longer than all but two are expected to take. If the distribution of run
times is not known, it is estimated from the tasks of the same job. Once half of the tasks have returned, a
shifted exponential distribution is fitted to their run times. Before that, an attempt is late after three
times the time that half of the tasks would take at the pace so far. While no task has returned, the first
attempt becomes late after a minute, and each further one after twice the time of the previous one.
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

# Tasks are late after a run time that this fraction of them exceeds by chance if all workers are healthy.
LATE_FRACTION = 1 / 12
# In a job of few tasks, tasks are late after a run time that this many of them exceed by chance.
MIN_LATE_TASKS = 2.0
# An attempt is never late before this multiple of the median run time.
MIN_MEDIAN_FACTOR = 1.1
# Before half of the tasks have returned, their median run time is estimated from the pace so far. An attempt
# is late after this multiple of the estimate.
EARLY_FACTOR = 3.0
# While no task has returned, the first attempt becomes late after this run time.
NO_RESULT_SECONDS = 60.0
# The minimum wait for an attempt to become late: a shorter one may be less than the resolution of a clock.
MIN_WAIT_SECONDS = 1e-9
# Start no backup of an attempt before it has run for this long: a short task is not worth another attempt.
MIN_BACKUP_SECONDS = 0.1
# If the number of tasks is unknown, keep at most this many run times. Beyond that, drop every second one.
RUN_TIME_HISTORY_SIZE = 512


class RunTimeQuantiles(Protocol):
    """The quantile function of task run times, for example a `polarmap.planning.Distribution`."""

    def quantile_given_completion(self, p: Floats) -> Floats:
        """Return the quantiles of the run time, in seconds, at the probabilities `p`.

        The distribution is conditional on the task finishing: tasks that never finish are ignored.
        """


@dataclass(frozen=True)
class LatenessRule:
    """Decides how long an attempt (one run of a task) may run before it is late.

    Parameters
    ----------
    n_tasks : int
        The job's number of tasks, not counting backups and parity tasks that replace late ones.
    run_times : Distribution, optional
        The distribution of the run time of a task. By default, it is estimated from the tasks of the job.
    min_seconds : float
        No attempt is late before it has run for this long.

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
        """Return the run time, in seconds, after which the next attempt becomes late.

        The method depends on what is known of the run times:

        - If `run_times` is given, the result is the 11/12 quantile of that distribution.
        - Otherwise, once half of the tasks have returned, the result is the 11/12 quantile of a shifted
          exponential distribution. It is fitted to the minimum and the median, so slow tasks do not matter.
        - Before half of the tasks have returned, the result is three times the time that half of them would
          take at the pace so far, and at least 0.1 s.
        - While no task has returned, the result is a minute, doubled for each attempt that is late already.

        With fewer than 24 tasks, the quantile is 1 - 2 / n_tasks instead of 11/12, but at least the median.
        The first two results are at least 1.1 times the median.

        Parameters
        ----------
        sorted_run_times : sequence of float
            The run times of the tasks that have returned, in ascending order.
        n_late : int
            The number of running attempts that are late already.

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
        """The run time after which attempts are late according to `run_times`, or None if it is not given."""
        if self.run_times is None:
            return None
        tail_fraction = compute_late_fraction(self.n_tasks)
        quantiles = self.run_times.quantile_given_completion(np.array([1 - tail_fraction, 0.5]))
        quantile, median = quantiles.tolist()
        return float(max(self.min_seconds, quantile, MIN_MEDIAN_FACTOR * median))


def make_backup_lateness_rule(n_tasks: int) -> LatenessRule:
    """Return the lateness rule for backups (second attempts). No attempt is late during its first 0.1 s."""
    return LatenessRule(n_tasks, min_seconds=MIN_BACKUP_SECONDS)


@dataclass(frozen=True)
class ParityRule:
    """Decides how many parity tasks to start, whose results replace those of late and failed tasks.

    Parameters
    ----------
    recovery_threshold : int
        The number of results that suffice to decode the results of all data tasks.
    run_times : Distribution, optional
        The distribution of the run time of a task. By default, it is estimated from the tasks of the job.

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
        """The rule that decides when a task is late."""
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
    """Tracks which running attempts (runs of tasks) are late. Each update takes O(log n) time.

    Parameters
    ----------
    lateness_rule : LatenessRule
        Decides how long an attempt may run before it is late.
    is_open_ended : bool
        Whether the number of tasks is not known in advance. If so, the number of attempts so far replaces
        `lateness_rule.n_tasks`.
    n_initial_attempts : float
        The number of tasks that start immediately, which are those with the lowest indices. Run times of
        later tasks and of restarts are used only until half of these tasks have returned.

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
        # Heap of (start time, order of starting, attempt) for the attempts that have not become late. It may
        # contain finished attempts, which are removed when they reach the top.
        self._on_time_heap: list[tuple[float, int, AttemptT]] = []
        self._n_started = 0
        self._running: set[AttemptT] = set()
        self._late_attempts: set[AttemptT] = set()
        self._run_times: list[float] = []
        self._restart_run_times: list[float] = []

    def on_start(self, attempt: AttemptT, started_at: float) -> None:
        """Start tracking an attempt that a worker has started."""
        self._n_started += 1
        self._running.add(attempt)
        heapq.heappush(self._on_time_heap, (started_at, self._n_started, attempt))

    def on_end(self, attempt: AttemptT) -> None:
        """Stop tracking an attempt that has finished or is no longer needed."""
        self._running.discard(attempt)
        self._late_attempts.discard(attempt)

    def record_run_time(self, run_seconds: float, is_restart: bool = False) -> None:
        """Record the run time of an attempt that has returned. It affects when other attempts become late.

        Parameters
        ----------
        run_seconds : float
            The run time, in seconds.
        is_restart : bool
            Whether the attempt replaced a late or a failed attempt.
        """
        run_times = self._restart_run_times if is_restart else self._run_times
        insort(run_times, run_seconds)
        if self._is_open_ended and len(run_times) > RUN_TIME_HISTORY_SIZE:
            del run_times[1::2]  # Dropping every second sorted value keeps the distribution.

    def find_late_attempts(self, now: float) -> set[AttemptT]:
        """Return the running attempts that are late now or were late in an earlier call."""
        self.find_next_late_time(now)
        return set(self._late_attempts)

    def find_next_late_time(self, now: float = -inf) -> float:
        """Return the next time after `now` at which an attempt becomes late, or inf.

        This assumes that no attempt ends before that time.
        """
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
        """Return the seconds until an attempt may become late, assuming that no attempt ends before.

        Parameters
        ----------
        has_queued : bool
            Whether attempts are queued. A queued attempt may start at any moment and become late later.
        now : float
            The current time, by the clock of `on_start`.
        """
        wait_seconds = self.find_next_late_time(now) - now
        return max(
            MIN_WAIT_SECONDS, min(wait_seconds, self.late_after_seconds()) if has_queued else wait_seconds
        )

    def late_after_seconds(self) -> float:
        """Return the run time in seconds after which the next attempt becomes late."""
        rule, run_times, restart_run_times = self._lateness_rule, self._run_times, self._restart_run_times
        if self._is_open_ended:
            n_tasks = len(run_times) + len(restart_run_times) + len(self._running)
            rule = LatenessRule(max(1, n_tasks), rule.run_times, rule.min_seconds)
        # Use the run times of restarts only while too few initial attempts have returned.
        if restart_run_times and len(run_times) < compute_min_results_to_extrapolate(rule.n_tasks):
            run_times = sorted([*run_times, *restart_run_times])
        return rule.late_after_seconds(run_times, len(self._late_attempts))


def compute_min_results_to_extrapolate(n_tasks: int) -> int:
    """Return the number of run times needed to predict the run times of all `n_tasks` tasks: half of them."""
    return ceil(n_tasks / 2)


def compute_late_fraction(n_tasks: int) -> float:
    """Return the fraction of `n_tasks` tasks that become late by chance if all workers are healthy.

    >>> compute_late_fraction(4), compute_late_fraction(8), compute_late_fraction(2400) == 1 / 12
    (0.5, 0.25, True)
    """
    return max(LATE_FRACTION, min(0.5, MIN_LATE_TASKS / n_tasks))


def compute_cautious_late_after_seconds(
    slowest_seconds: npt.ArrayLike, n_returned: npt.ArrayLike, half_n_tasks: int
) -> Floats:
    """Return the run time after which attempts are late while less than half of the tasks have returned.

    This is three times the time in which half of the tasks (`half_n_tasks`) would return at the current pace,
    and at least 0.1 s. `n_returned` tasks have returned, and the slowest of them took `slowest_seconds`.
    """
    pace_factor = EARLY_FACTOR * half_n_tasks / np.asarray(n_returned)
    return np.asarray(np.maximum(MIN_BACKUP_SECONDS, pace_factor * np.asarray(slowest_seconds)))


def extrapolate_quantile(
    fastest_seconds: npt.ArrayLike, median_seconds: npt.ArrayLike, tail_fraction: float
) -> Floats:
    """Return the (1 - `tail_fraction`) quantile of run times, given their minimum and median.

    Run times are assumed to follow a shifted exponential distribution. The result is at least 1.1 times the
    median.
    """
    median_array = np.asarray(median_seconds)
    n_half_lives = log(1 / tail_fraction) / log(2) - 1
    quantile = median_array + (median_array - np.asarray(fastest_seconds)) * n_half_lives
    return np.asarray(np.maximum(quantile, MIN_MEDIAN_FACTOR * median_array))
