"""Parity on demand: start parity tasks only when data tasks are late, and each helps whatever is.

A task is late once it has run longer than all but a twelfth of the tasks are expected to (of few
tasks: all but two). From then on it is not counted on any more: a parity task is started in its
place, which makes up for any one late task, not for this one. So a false alarm costs little: when
the late task returns after all, the job is complete and its stand-in is stopped. A task that failed
is not counted on either, from the moment it did.

Where no distribution of run times is known, the tasks of the job tell: from half of them what the others
should take; from fewer, three times as long as half would take at their pace. Nothing tells what is
late while nothing has returned: then parity tasks are started one by one, the first after a minute.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, inf, log

import numpy as np
import numpy.typing as npt

from polarmap.errors import CodeError
from polarmap.planning.backups import SimulatedJobs
from polarmap.planning.distributions import Distribution, Floats

LATE_SHARE = 1 / 12  # of the tasks that are taken as late though nothing may be wrong with them
LATE_TASKS = 2.0  # the same as a number, where the share is less than that
LEEWAY = 1.1  # times the median: no task is late before
CAUTION = 3.0  # times what half of the tasks would take at the pace of the fewer that returned
CAUTION_SECONDS = 0.1  # the least of that
SILENCE_SECONDS = 60.0  # in which nothing has returned


@dataclass(frozen=True)
class ParityRule:
    """When a task is late, and how many parity tasks are started for the late and the failed ones.

    Parameters
    ----------
    recovery_threshold : int
        Results that determine those of the data tasks, and data tasks of the job.
    runtimes : Distribution, optional
        Of one task. Without it the tasks of the job tell.

    Examples
    --------
    >>> from polarmap.planning.distributions import ShiftedExponential
    >>> rule = ParityRule(24, ShiftedExponential(1.0, 0.1))  # 11 in 12 tasks take 1.25 s or less
    >>> moments = rule.late_moments([1.1] * 22, running=[0.0, 0.0])
    >>> [rule.parity_to_start(22, sum(moment > now for moment in moments), left=8) for now in (1.2, 1.3)]
    [0, 2]
    """

    recovery_threshold: int
    runtimes: Distribution | None = None

    def parity_to_start(self, returned: int, on_time: int, left: int) -> int:
        """How many of the `left` parity tasks to start when so many tasks have returned or are not late."""
        return min(left, max(0, self.recovery_threshold - returned - on_time))

    def late_moments(
        self, durations: Sequence[float], running: Iterable[float], later: Sequence[float] = ()
    ) -> list[float]:
        """The moment from which each running task is late.

        It has then run for `late_after`. While nothing tells that, the oldest is late after a minute,
        and each of the others after twice as long as the one before: one parity task that returns will
        tell more than all the waiting.

        Parameters
        ----------
        durations : sequence of float
            What the tasks took that have returned, of those that were started at once.
        running : iterable of float
            When the tasks began that still run. For one that waits for a free worker say now: nothing
            can be said of it yet. One that failed does not run.
        later : sequence of float
            As `durations`, of the tasks that were started later.

        Examples
        --------
        >>> ParityRule(3).late_moments([1.0], [0.0, 0.5])
        [6.0, 6.5]
        >>> ParityRule(3).late_moments([], [0.0, 0.0, 0.0])
        [60.0, 120.0, 240.0]
        """
        began = list(running)
        known = durations if len(durations) >= _half(self.recovery_threshold) else [*durations, *later]
        age = self.late_after(known)
        if age < inf:
            return [moment + age for moment in began]
        oldest_first = sorted(range(len(began)), key=began.__getitem__)
        turn = {task: turn for turn, task in enumerate(oldest_first)}
        return [moment + SILENCE_SECONDS * 2.0 ** min(turn[task], 1000) for task, moment in enumerate(began)]

    def late_after(self, durations: npt.ArrayLike) -> float:
        """Seconds after which a running task is late, given how long others took; inf while unknown.

        With a distribution, its quantile at 11/12 (of few tasks: at 1 - 2 / tasks, or the median), of
        the tasks that end. Without, the same quantile of the shifted exponential distribution that has
        the fastest and the median task of this job: known once half have returned, and in no need of
        the slow ones. Never less than 1.1 times the median. Before half have returned, three times as
        long as half would take if they went on returning at the pace so far, and at least 0.1 s.

        >>> rule = ParityRule(24)
        >>> rule.late_after([1.0] * 12), rule.late_after([1.0] * 6), rule.late_after([])
        (1.1, 6.0, inf)
        >>> round(rule.late_after([1.0] * 6 + [1.1] * 6), 4)  # 1.1 + 0.1 log2(6)
        1.3585
        """
        late = _late_share(self.recovery_threshold)
        if self.runtimes is not None:
            pair = self.runtimes.inverse(np.array([1 - late, 0.5]), np.array([late, 0.5]))
            quantile, median = pair.tolist()
            return float(max(quantile, LEEWAY * median))
        times = np.sort(np.asarray(durations, np.float64))
        half = _half(self.recovery_threshold)
        if not len(times):
            return inf
        if len(times) < half:
            return float(_cautious(times[-1], len(times), half))
        return float(_extrapolated(times[0], times[half - 1], late))


def simulate_on_demand(
    data: Floats, parity: Floats, upfront: int = 0, runtimes: Distribution | None = None
) -> SimulatedJobs:
    """Simulate jobs that start their data tasks at once and parity tasks by the `ParityRule`.

    Any k results determine the job, as of the rotation kernel. Whatever runs when it is complete
    is stopped at that moment; a task costs worker-seconds from its start until it returns or is
    stopped.

    Parameters
    ----------
    data : array (trials, k)
        Run times of the data tasks; inf for one that never ends.
    parity : array (trials, n - k)
        Run times of the parity tasks, in the order they are started in.
    upfront : int
        Parity tasks started at once: the head start.
    runtimes : Distribution, optional
        What the policy knows of run times; without, it learns from the tasks of the same job.

    Returns
    -------
    SimulatedJobs
        time, paid, started; arrays (trials,).

    Examples
    --------
    >>> late = np.array([[1.0] * 23 + [5.0]])
    >>> jobs = simulate_on_demand(late, np.full((1, 8), 1.0))
    >>> jobs.time.tolist(), jobs.paid.round(9).tolist(), jobs.started.tolist()
    ([2.1], [26.1], [25.0])
    """
    data, parity = _checked(data, parity, upfront)
    k = data.shape[1]
    started = _starts(data, parity, upfront, runtimes)
    ends = np.concatenate([data, started + parity], axis=1)
    time = np.partition(ends, k - 1, axis=1)[:, k - 1]
    starts = np.concatenate([np.zeros(data.shape), started], axis=1)
    stop = time[:, None]
    with np.errstate(invalid="ignore"):
        paid = np.where(starts < stop, np.minimum(ends, stop) - starts, 0.0).sum(axis=1)
    return SimulatedJobs(time, paid, k + (started < stop).sum(axis=1).astype(float))


def _starts(data: Floats, parity: Floats, upfront: int, runtimes: Distribution | None) -> Floats:
    """When each parity task is started, (trials, n - k); inf if it never is."""
    k = data.shape[1]
    at_once = np.sort(np.concatenate([data, parity[:, :upfront]], axis=1), axis=1)
    early = np.zeros(len(data), bool) if runtimes is not None else _is_early(at_once, k, upfront)
    started = np.full(parity.shape, inf)
    for row in np.flatnonzero(early).tolist():
        started[row] = _event_by_event(data[row], parity[row], upfront)
    rest = ~early
    first, age = _first_look(at_once[rest], k, runtimes)
    started[rest] = _turn_by_turn(data[rest], parity[rest], upfront, first, age)
    return started


def _turn_by_turn(data: Floats, parity: Floats, upfront: int, first: Floats, age: Floats) -> Floats:
    """Start times of parity tasks where `age`, from which a task is late, does not change."""
    k, places = data.shape[1], np.arange(parity.shape[1])
    started = np.full(parity.shape, inf)
    started[:, :upfront] = 0.0
    for turn in range(parity.shape[1] - upfront):
        now = (first + turn * age)[:, None]
        have = (data <= now).sum(axis=1) + (started + parity <= now).sum(axis=1)
        if (have >= k).all():
            break
        before = np.isfinite(started).sum(axis=1)
        new = (places >= before[:, None]) & (places < (before + k - have)[:, None])
        started = np.where(new, now, started)
    return started


def _event_by_event(data: Floats, parity: Floats, upfront: int) -> Floats:
    """Start times of the parity tasks of one job, by the rule as a map asks it."""
    k, now, rule = len(data), 0.0, ParityRule(len(data))
    started = np.full(len(parity), inf)
    started[:upfront] = 0.0
    while True:
        seconds = np.concatenate([data, parity])
        begins = np.concatenate([np.zeros(k), started])
        ends, at_once = begins + seconds, np.arange(len(seconds)) < k + upfront
        arrived, running = ends <= now, (ends > now) & (begins <= now)
        left = np.flatnonzero(np.isinf(started))
        if arrived.sum() >= k or not len(left):
            return started
        told = seconds[arrived & at_once].tolist(), seconds[arrived & ~at_once].tolist()
        moments = np.array(rule.late_moments(told[0], begins[running], told[1]))
        count = rule.parity_to_start(int(arrived.sum()), int((moments > now).sum()), len(left))
        started[left[:count]] = now
        if not count:
            events = np.concatenate([ends[running], moments])
            now = float(np.min(events[events > now], initial=inf))
        if now == inf:
            return started


def _is_early(at_once: Floats, k: int, upfront: int) -> npt.NDArray[np.bool_]:
    """Whether parity tasks are started before half as many as needed have returned, (trials,)."""
    half = _half(k)
    returned = np.arange(1, half)
    silent = at_once[:, 0] > SILENCE_SECONDS * 2.0**upfront
    slow = _cautious(at_once[:, : half - 1], returned, half) < at_once[:, 1:half]
    return np.asarray(silent | slow.any(axis=1))


def _first_look(at_once: Floats, k: int, runtimes: Distribution | None) -> tuple[Floats, Floats]:
    """When the data tasks of each job are late, and after how many seconds any task is; (trials,)."""
    if runtimes is not None:
        age = np.full(len(at_once), ParityRule(k, runtimes).late_after(()))
        return age, age
    median = at_once[:, _half(k) - 1]
    age = _extrapolated(at_once[:, 0], median, _late_share(k))
    return np.maximum(age, median), age


def _half(tasks: int) -> int:
    return ceil(tasks / 2)


def _late_share(tasks: int) -> float:
    return max(LATE_SHARE, min(0.5, LATE_TASKS / tasks))


def _cautious(slowest: Floats, returned: npt.ArrayLike, half: int) -> Floats:
    """Seconds that half of the tasks should not need, of which fewer have returned by now."""
    return np.maximum(CAUTION_SECONDS, CAUTION * half / np.asarray(returned) * slowest)


def _extrapolated(fastest: Floats, median: Floats, late: float) -> Floats:
    """The quantile at 1 - late of the shifted exponential distribution with this minimum and median."""
    quantile = median + (median - fastest) * (log(1 / late) / log(2) - 1)
    return np.maximum(quantile, LEEWAY * median)


def _checked(data: Floats, parity: Floats, upfront: int) -> tuple[Floats, Floats]:
    data, parity = np.asarray(data, np.float64), np.asarray(parity, np.float64)
    if data.ndim != 2 or parity.ndim != 2 or len(data) != len(parity) or not data.shape[1]:
        raise CodeError(
            f"run times of shapes (trials, k) and (trials, n - k) are needed, "
            f"not {data.shape} and {parity.shape}"
        )
    if not 0 <= upfront <= parity.shape[1]:
        raise CodeError(f"upfront={upfront} of {parity.shape[1]} parity tasks cannot be started at once")
    return data, parity
