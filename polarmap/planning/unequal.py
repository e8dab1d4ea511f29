"""Workers that are not alike: which of them to use, and when a job of theirs is complete.

Which results have arrived depends on who computes them, so jobs are simulated rather than integrated.
Codes and workers are chosen for the time by which as many are expected back as are needed: there
each worker has its own erasure probability, for which `PolarCode(erasure=)` is designed.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from math import inf, isfinite
from typing import NamedTuple, TypeGuard

import numpy as np

from polarmap.codes.dtypes import Indices
from polarmap.codes.polar import PolarCode, design_share
from polarmap.errors import CodeError
from polarmap.planning.backups import SimulatedJobs
from polarmap.planning.decodability import DECODED, decoder_of, finish
from polarmap.planning.distributions import LONGEST, Distribution, Floats, Mixture, first_reached

SCHEMES = ("uncoded", "mds", "rotation", *DECODED)
LEAST_JOBS = 2000  # simulated where decoding one solves no dense system


class Chosen(NamedTuple):
    """The workers that are chosen for a job.

    workers : who they are, ascending, (n,).
    erasure : probability that each is still out at the time the job is chosen for, (n,).
    """

    workers: Indices
    erasure: Floats


def _is_hashable(one: object) -> bool:
    """Whether equal distributions are found to be equal quickly; those of a caller's class may not be."""
    return isinstance(one, Hashable)


class UnequalWorkers:
    """Workers each with a distribution of its run times."""

    def __init__(self, runtimes: Sequence[Distribution]) -> None:
        keys: list[object] = [one if _is_hashable(one) else id(one) for one in runtimes]
        self._distinct = list(dict(zip(keys, runtimes)).values())
        numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        self._kind = np.array([numbers[key] for key in keys])
        self.runtimes = tuple(runtimes)

    @property
    def are_alike(self) -> bool:
        """Whether all workers have the same distribution of run times."""
        return len(self._distinct) == 1

    @property
    def together(self) -> Distribution:
        """The distribution of the run times of a worker that is drawn at random."""
        if self.are_alike:
            return self._distinct[0]
        return Mixture(self._distinct, np.bincount(self._kind) / len(self._kind))

    def survival(self, time: float) -> Floats:
        """P(T > time) of each, (m,)."""
        out = np.array([float(one.survival(time)) for one in self._distinct])
        return np.asarray(out[self._kind])

    def sample(self, rng: np.random.Generator, jobs: int) -> Floats:
        """Run times of all of them in so many jobs, (m, jobs); inf for a task that never ends."""
        times = np.empty((len(self._kind), jobs))
        for number, one in enumerate(self._distinct):
            rows = np.flatnonzero(self._kind == number)
            times[rows] = one.sample(rng, (len(rows), jobs))
        return times

    def chosen(self, n: int, back: float) -> Chosen:
        """The n workers of which `back` are expected back soonest, and the erasure of each by then.

        At any time those are the n most likely to be back, so the time is found by bisection; inf, where
        too many never end.
        """
        low, high = 0.0, 1.0
        while self._expected(n, high) < back and isfinite(high):
            low, high = high, 2 * high if high < LONGEST else inf
        time = first_reached(
            lambda time: np.array(self._expected(n, float(time)) >= back), np.array(low), np.array(high)
        )
        out = self.survival(float(time))
        workers = np.sort(np.argsort(out, kind="stable")[:n])
        return Chosen(workers, out[workers])

    def _expected(self, n: int, time: float) -> float:
        """How many of the best n are expected back at a time."""
        return n - float(np.sort(self.survival(time))[:n].sum())


def is_sequence_of_distributions(given: object) -> TypeGuard[Sequence[Distribution]]:
    """Whether run times are said worker by worker; CodeError where only of some."""
    if not isinstance(given, (list, tuple)):
        return False
    count = sum(isinstance(one, Distribution) for one in given)
    if 0 < count < len(given):
        raise CodeError(
            f"{count} of {len(given)} entries of runtimes are Distributions: give one for each worker, "
            "Empirical(seconds) where it has been observed"
        )
    return count > 0


def chosen_for(workers: UnequalWorkers, n: int, k: int, scheme: str) -> Chosen:
    """The n workers for k blocks, and the erasure probabilities for which to design their code.

    Without a code the job is over with the last: when half a worker is expected to be out.
    """
    share = design_share(decoder_of(scheme)) if scheme in DECODED else 1.0
    return workers.chosen(n, k - 0.5 if n == k else n - share * (n - k))


def simulate_unequal(
    workers: UnequalWorkers, k: int, scheme: str, erasure: float | None, trials: int, seed: int
) -> tuple[SimulatedJobs, Floats]:
    """Jobs of one task for each worker, by one of SCHEMES, and how many results each job awaited, (trials,).

    erasure : for which the arikan code is designed; None: for each worker's own, as `chosen_for` has it.

    >>> from polarmap.planning.distributions import ShiftedExponential
    >>> times = [ShiftedExponential(1.0, 1e-9)] * 3 + [ShiftedExponential(2.0, 1e-9)] * 3
    >>> workers = UnequalWorkers(times)
    >>> [simulate_unequal(workers, k, "mds", None, 1, 0)[0].time[0].round(6).item() for k in (3, 4)]
    [1.0, 2.0]
    """
    if scheme not in SCHEMES:
        raise CodeError(
            f"{scheme} is simulated for workers that are alike only: give one Distribution, or one of the "
            f"schemes {', '.join(SCHEMES)}"
        )
    n = len(workers.runtimes)
    jobs = trials if scheme in ("optimal", "integers") else max(trials, LEAST_JOBS)
    times = workers.sample(np.random.default_rng(seed), jobs)
    if scheme in DECODED and n > k:
        design = chosen_for(workers, n, k, scheme).erasure if erasure is None else erasure
        code = PolarCode(n, k, "arikan", decoder_of(scheme), design)
        time = finish(code, times[code.assignment], scheme)
    else:
        time = np.partition(times, k - 1, axis=0)[k - 1]
    paid = np.minimum(times, time).sum(axis=0)
    return SimulatedJobs(time, paid, np.full(jobs, float(n))), (times <= time).sum(axis=0).astype(float)
