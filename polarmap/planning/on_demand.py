"""Parity on demand: start parity tasks only when data tasks are late, and each helps whatever is.

From the moment a task is late (`LatenessRule`) it is not counted on any more: a parity task is started in
its place, which makes up for any one late task, not for this one. So a false alarm costs little: when
the late task returns after all, the job is complete and its stand-in is stopped. A task that failed
is not counted on either, from the moment it did.
"""

from __future__ import annotations

import heapq
from math import inf

import numpy as np

from polarmap.errors import CodeError
from polarmap.planning.backups import SimulatedJobs, ages, is_told_early
from polarmap.planning.distributions import Distribution, Floats
from polarmap.run.lateness import LateAttempts, LatenessRule, ParityRule, half_of


def simulate_on_demand(
    data: Floats, parity: Floats, upfront: int = 0, runtimes: Distribution | None = None
) -> SimulatedJobs:
    """Simulate jobs that start their data tasks at once and parity tasks by the `ParityRule`.

    Any k results determine the job, as of the rotation kernel. Whatever runs when it is complete is stopped.

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
    rule = LatenessRule(k, runtimes)
    early = np.zeros(len(data), bool) if runtimes is not None else is_told_early(at_once, rule, upfront)
    started = np.full(parity.shape, inf)
    for row in np.flatnonzero(early).tolist():
        started[row] = _event_by_event(data[row], parity[row], upfront)
    rest = ~early
    if runtimes is not None:
        age = first = np.full(int(rest.sum()), rule.late_after(()))
    else:
        age = ages(at_once[rest], rule)
        first = np.maximum(age, at_once[rest, half_of(k) - 1])
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
    k, seconds, rule = len(data), np.concatenate([data, parity]), ParityRule(len(data))
    started, attempts = np.full(len(seconds), inf), LateAttempts[int](rule.lateness)
    returns: list[tuple[float, int]] = []  # a heap
    now, begun, returned, due = 0.0, 0, 0, k + upfront
    while returned < k:
        for task in range(begun, begun + due):
            started[task] = now
            attempts.begin(task, now)
            heapq.heappush(returns, (now + float(seconds[task]), task))
        begun += due
        now = min(returns[0][0], attempts.next_moment())
        if now == inf:
            break
        while returns and returns[0][0] <= now:
            _, task = heapq.heappop(returns)
            attempts.end(task)
            attempts.learn(float(seconds[task]), task >= k + upfront)
            returned += 1
        on_time = begun - returned - len(attempts.late_at(now))
        due = rule.parity_to_start(returned, on_time, len(seconds) - begun)
    return started[k:]


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
