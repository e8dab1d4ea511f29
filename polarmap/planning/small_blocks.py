"""Several times as many blocks as workers that stay: each takes the next when it is done.

It is known as over-decomposition, or tiny tasks. One codeword over all blocks makes every result count,
whichever worker it comes from: a fast worker does more of them, a slow one fewer. A job may so be complete
before k of n workers have done their share: the bound T_(k:n) holds for workers that return all or nothing.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from polarmap.codes.checks import is_number
from polarmap.errors import CodeError
from polarmap.planning.backups import SimulatedJobs
from polarmap.planning.distributions import Floats, first_reached

HALVINGS = 40  # of the interval in which a moment lies: twelve digits


def simulate_small_blocks(
    times: npt.ArrayLike, k: int, pieces: int, task_price: float = 0.0
) -> SimulatedJobs:
    """Simulate jobs of n workers that stay and take n * pieces tasks one by one; any k * pieces results do.

    Parameters
    ----------
    times : array (trials, n)
        Seconds that a share of 1 / n of the tasks takes each worker, which is equally slow all the time; inf
        for one that never finishes anything.
    k, pieces : int
        Blocks before there are `pieces` times as many, and shorter tasks. 1 gives the k-th order statistic.
    task_price : float
        Seconds that each task takes beside its computation.

    Returns
    -------
    SimulatedJobs
        Whatever runs at completion is stopped.

    Examples
    --------
    >>> slow = np.array([[1.0, 1.0, 1.0, 4.0, 4.0, 4.0]])
    >>> [simulate_small_blocks(slow, 4, pieces).time[0].round(9).item() for pieces in (1, 4, 8)]
    [4.0, 1.25, 1.125]
    """
    whole = np.asarray(times, np.float64)
    if whole.ndim != 2 or not 1 <= k <= whole.shape[1]:
        raise CodeError(f"run times of shape (trials, n) with n >= k = {k} are needed, not {whole.shape}")
    check_task_price(task_price)
    if pieces < 1:
        raise CodeError(f"pieces must be at least 1, not {pieces}")
    trials, n = whole.shape
    wanted, seconds = k * pieces, whole / pieces + task_price
    queued = n * (pieces - 1)  # a task begins whenever one ends, until so many have
    time = _moment(seconds, min(wanted, queued))
    last = np.full(whole.shape, np.inf)  # ends of the last tasks, after which workers are idle
    if wanted > queued:
        with np.errstate(invalid="ignore"):
            last = np.where(seconds < np.inf, (np.floor(time[:, None] / seconds) + 1) * seconds, np.inf)
        time = np.partition(last, wanted - queued - 1, axis=1)[:, wanted - queued - 1]
    return SimulatedJobs(
        time, np.minimum(last, time[:, None]).sum(axis=1), np.full(trials, min(n * pieces, wanted + n - 1.0))
    )


def check_task_price(seconds: object) -> None:
    """CodeError for what no task can take beside its computation."""
    if not is_number(seconds) or not 0 <= seconds < np.inf:
        raise CodeError(f"task_price must be a number of seconds of at least 0, not {seconds!r}")


def _moment(seconds: Floats, ends: int) -> Floats:
    """When workers that take so many seconds for a task have ended so many tasks, (trials,)."""
    if not ends:
        return np.zeros(len(seconds))
    with np.errstate(invalid="ignore", divide="ignore"):
        rate = (1 / seconds).sum(axis=1)
        low, high = ends / rate, (ends + seconds.shape[1]) / rate  # each is in the midst of one at most
        return first_reached(
            lambda time: np.floor(time[:, None] / seconds).sum(axis=1) >= ends, low, high, HALVINGS
        )
