"""Work in pieces: what a straggler has finished counts, though it never returns the rest.

Every worker cuts its block into s subtasks and hands in each result as it comes. The first subtasks
of all workers form one codeword, the second ones another, and each is decoded once k workers have
handed it in. Workers take their subtasks in different orders, so that half-finished work is spread
over all codewords. A job may so be complete before k workers are: the bound T_(k:n) holds for
workers that return all or nothing.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from polarmap.errors import CodeError
from polarmap.planning.backups import SimulatedJobs
from polarmap.planning.distributions import Floats

TILE_BYTES = 1 << 26  # of the finish times of some trials


def simulate_subtasks(times: npt.ArrayLike, k: int, pieces: int, startup: float = 0.0) -> SimulatedJobs:
    """Simulate jobs whose n workers hand in every subtask, each decoded from any k workers' results.

    Parameters
    ----------
    times : array (trials, n)
        Run times of the whole tasks; inf for a worker that never finishes anything.
    k : int
        Data blocks.
    pieces : int
        Subtasks of each worker, all equally long. 1 gives the k-th order statistic.
    startup : float
        Seconds at the beginning of each task in which nothing is computed (never more than it takes).

    Returns
    -------
    SimulatedJobs
        time, paid (whatever runs at completion is stopped), started; arrays (trials,).

    Examples
    --------
    >>> slow = np.array([[1.0, 1.0, 1.0, 4.0, 4.0, 4.0]])
    >>> [simulate_subtasks(slow, 4, pieces).time[0].item() for pieces in (1, 2, 4)]
    [4.0, 2.0, 2.0]
    """
    whole = np.asarray(times, np.float64)
    if whole.ndim != 2 or not 1 <= k <= whole.shape[1]:
        raise CodeError(f"run times of shape (trials, n) with n >= k = {k} are needed, not {whole.shape}")
    if pieces < 1 or not startup >= 0:
        raise CodeError(f"pieces must be at least 1 and startup at least 0, not {pieces} and {startup}")
    trials, n = whole.shape
    width = max(1, TILE_BYTES // (8 * n * pieces))
    time = np.concatenate(
        [_complete(whole[first : first + width], k, pieces, startup) for first in range(0, trials, width)]
    )
    paid = np.minimum(whole, time[:, None]).sum(axis=1)
    return SimulatedJobs(time, paid, np.full(trials, float(n)))


def _complete(whole: Floats, k: int, pieces: int, startup: float) -> Floats:
    """When the last codeword has k results, (trials,)."""
    n = whole.shape[1]
    idle = np.minimum(startup, whole)
    turn = (np.arange(pieces)[:, None] - np.arange(n)) % pieces + 1  # of piece p on worker w
    with np.errstate(invalid="ignore"):
        computing = np.where(np.isfinite(whole), whole - idle, np.inf)
    latest = np.zeros(len(whole))
    for share in turn / pieces:
        handed_in = idle + computing * share
        latest = np.maximum(latest, np.partition(handed_in, k - 1, axis=1)[:, k - 1])
    return latest
