"""Workers that join late and vanish: 500 uncoded workers against 1,500 coded ones, as in Pilanci's talk.

The same 500 blocks in both. Every worker joins after a start-up time, computes, and may be taken
away at any moment (spot capacity). An uncoded task that is lost is started again on a new worker;
of the coded ones nobody asks. What the talk's model was in detail is not published: the distributions
are ours.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from benchmarks.rivals import Array
from polarmap.codes import PolarCode
from polarmap.planning import Distribution, ShiftedExponential, sequential_decoding_times

BLOCKS, WORKERS = 500, 1500
RUNTIMES: Distribution = ShiftedExponential(1.0, 1.0)
JOINING: Distribution = ShiftedExponential(0.2, 0.3)
RATES = (0.0, 0.1, 0.2, 0.4, 0.8)  # of vanishing, per worker and second


class Elastic(NamedTuple):
    """Jobs of one cluster at one rate of vanishing; arrays (trials,).

    lost : mean share of the workers started first that vanish before they return.
    time, paid : seconds, worker-seconds from joining on.
    """

    scheme: str
    rate: float
    lost: float
    time: Array
    paid: Array


def elastic(rate: float, trials: int) -> list[Elastic]:
    """Uncoded with restarts, coded by rotation (any 500), coded and decoded sequentially."""
    rng = np.random.default_rng(0)
    joined, ends, returned = attempts(rate, (trials, WORKERS), rng)
    lost = float(1 - returned.mean())
    arrivals = np.where(returned, ends, np.inf)
    code = PolarCode(WORKERS, BLOCKS, "arikan", "sequential")
    moments = {
        "coded, rotation": np.partition(arrivals, BLOCKS - 1, axis=1)[:, BLOCKS - 1],
        "coded, polar sequential": sequential_decoding_times(code, np.ascontiguousarray(arrivals.T)),
    }
    coded = [
        Elastic(scheme, rate, lost, time, paid_until(joined, ends, time)) for scheme, time in moments.items()
    ]
    clock, paid = restarted(rate, trials, rng)
    return [Elastic("uncoded, restarted", rate, lost, clock.max(axis=1), paid.sum(axis=1)), *coded]


def attempts(rate: float, shape: tuple[int, ...], rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """When workers join, when they return or vanish, and whether they return."""
    joined, took = JOINING.sample(rng, shape), RUNTIMES.sample(rng, shape)
    stays = rng.exponential(1 / rate, shape) if rate else np.full(shape, np.inf)
    return joined, joined + np.minimum(took, stays), took <= stays


def restarted(rate: float, trials: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Ends and costs of tasks, (trials, tasks), that start again as soon as their worker has vanished."""
    clock, paid = np.zeros((trials, BLOCKS)), np.zeros((trials, BLOCKS))
    missing = np.ones((trials, BLOCKS), bool)
    while missing.any():
        joined, ends, returned = attempts(rate, (int(missing.sum()),), rng)
        clock[missing] += ends
        paid[missing] += ends - joined
        missing[missing] = ~returned
    return clock, paid


def paid_until(joined: Array, ends: Array, time: Array) -> Array:
    """Worker-seconds of each job when whatever runs at its completion is stopped."""
    return np.maximum(np.minimum(ends, time[:, None]) - joined, 0.0).sum(axis=1)


def one_run(rate: float) -> dict[str, Array]:
    """The moments of the results of one job, ascending: 500 uncoded workers, 1,500 coded ones."""
    rng = np.random.default_rng(0)
    _, ends, returned = attempts(rate, (WORKERS,), rng)
    clock, _ = restarted(rate, 1, rng)
    return {"500 uncoded workers": np.sort(clock[0]), "1,500 coded workers": np.sort(ends[returned])}
