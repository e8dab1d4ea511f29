"""Parity on demand: start parity tasks only when data tasks are late, and each helps whatever is.

A task is late once it has run longer than all but a twelfth of the tasks are expected to (of few
tasks: all but two). From then on it is not counted on any more: a parity task is started in its
place, which makes up for any one late task, not for this one. So a false alarm costs little: when
the late task returns after all, the job is complete and its stand-in is stopped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import ceil, inf, log

import numpy as np
import numpy.typing as npt

from polarmap.errors import CodeError
from polarmap.runtimes.backups import Trials
from polarmap.runtimes.distributions import Distribution, Floats

LATE_SHARE = 1 / 12  # of the tasks that are taken as late though nothing may be wrong with them
LATE_TASKS = 2.0  # the same as a number, where the share is less than that
LEEWAY = 1.1  # times the median: no task is late before


def to_start(
    needed: int,
    arrived: Sequence[float],
    running: Iterable[float],
    now: float,
    left: int,
    tasks: int,
    runtimes: Distribution | None = None,
) -> int:
    """How many parity tasks to start now.

    Parameters
    ----------
    needed : int
        Results that determine those of the data tasks.
    arrived : sequence of float
        What the tasks took whose results are here.
    running : iterable of float
        When the tasks began that still run, on the clock of `now`. A task that waits for a free
        worker begins at `now`: nothing can be said of it yet.
    left : int
        Parity tasks that have not been started.
    tasks : int
        Data tasks of the job.
    runtimes : Distribution, optional
        Of one task. Without it the tasks of this job tell: no task is late before half as
        many as there are data tasks have returned.

    Examples
    --------
    >>> from polarmap.runtimes.distributions import ShiftedExponential
    >>> law = ShiftedExponential(1.0, 0.1)  # 11 in 12 tasks take 1.25 s or less
    >>> to_start(24, [1.1] * 22, [0.0, 0.0], now=1.2, left=8, tasks=24, runtimes=law)
    0
    >>> to_start(24, [1.1] * 22, [0.0, 0.0], now=1.3, left=8, tasks=24, runtimes=law)
    2
    >>> to_start(24, [1.1] * 22, [0.0, 0.0, 1.25, 1.25], now=1.3, left=6, tasks=24, runtimes=law)
    0
    """
    age = late_age(tasks, arrived, runtimes)
    on_time = sum(now - began < age for began in running)
    return min(left, max(0, needed - len(arrived) - on_time))


def late_age(tasks: int, arrived: npt.ArrayLike, runtimes: Distribution | None = None) -> float:
    """The age in seconds from which a task counts as late; inf while nothing tells.

    With a distribution, its quantile at 11/12 (of few tasks: at 1 - 2 / tasks, or the median), of
    the tasks that end. Without, the same quantile of the shifted exponential law that has the
    fastest and the median task of this job: known once half have returned, and in no need of the
    slow ones. Never less than 1.1 times the median.

    >>> late_age(24, [1.0] * 11), late_age(24, [1.0] * 12)
    (inf, 1.1)
    >>> round(late_age(24, [1.0] * 6 + [1.1] * 6), 4)  # 1.1 + 0.1 log2(6)
    1.3585
    """
    late = _late_share(tasks)
    if runtimes is not None:
        quantile, median = runtimes.inverse(np.array([1 - late, 0.5]), np.array([late, 0.5])).tolist()
        return float(max(quantile, LEEWAY * median))
    times = np.sort(np.asarray(arrived, np.float64))
    half = ceil(tasks / 2)
    if len(times) < half:
        return inf
    return float(_extrapolated(times[0], times[half - 1], late))


def on_demand(data: Floats, parity: Floats, upfront: int = 0, runtimes: Distribution | None = None) -> Trials:
    """Jobs that start their data tasks, and parity tasks as `to_start` says; vectorized over trials.

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
    Trials
        time, paid, started; arrays (trials,).

    Examples
    --------
    >>> late = np.array([[1.0] * 23 + [5.0]])
    >>> jobs = on_demand(late, np.full((1, 8), 1.0))
    >>> jobs.time.tolist(), jobs.paid.round(9).tolist(), jobs.started.tolist()
    ([2.1], [26.1], [25.0])
    """
    data, parity = _checked(data, parity, upfront)
    k = data.shape[1]
    started = np.full(parity.shape, inf)
    started[:, :upfront] = 0.0
    first, age = _first_look(np.sort(data, axis=1), runtimes)
    for turn in range(parity.shape[1] - upfront):  # all that was started in one look is late together
        now = (first + turn * age)[:, None]
        have = (data <= now).sum(axis=1) + (started + parity <= now).sum(axis=1)
        if (have >= k).all():
            break
        if (have >= k).all():
            break
        before = np.isfinite(started).sum(axis=1)
        until = before + np.where(np.isfinite(now[:, 0]), k - have, 0)
        places = np.arange(parity.shape[1])
        new = (places >= before[:, None]) & (places < until[:, None])
        started = np.where(new, now, started)
    ends = np.concatenate([data, started + parity], axis=1)
    time = np.partition(ends, k - 1, axis=1)[:, k - 1]
    starts = np.concatenate([np.zeros(data.shape), started], axis=1)
    stop = time[:, None]
    with np.errstate(invalid="ignore"):
        paid = np.where(starts < stop, np.minimum(ends, stop) - starts, 0.0).sum(axis=1)
    return Trials(time, paid, k + (started < stop).sum(axis=1).astype(float))


def _first_look(ascending: Floats, runtimes: Distribution | None) -> tuple[Floats, Floats]:
    """When data tasks are late in each job (trials,), and the age from which a task is."""
    trials, k = ascending.shape
    if runtimes is not None:
        age = np.full(trials, late_age(k, (), runtimes))
        return age, age
    median = ascending[:, ceil(k / 2) - 1]
    with np.errstate(invalid="ignore"):
        age = _extrapolated(ascending[:, 0], median, _late_share(k))
    known = np.isfinite(median)
    return np.where(known, np.maximum(age, median), inf), np.where(known, age, 1.0)


def _late_share(tasks: int) -> float:
    return max(LATE_SHARE, min(0.5, LATE_TASKS / tasks))


def _extrapolated(fastest: Floats, median: Floats, late: float) -> Floats:
    """The quantile at 1 - late of the shifted exponential law with this minimum and median."""
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
