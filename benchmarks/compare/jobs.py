"""Completion and cost of every scheme under a distribution of run times: exact where a formula exists."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from benchmarks.compare.codes import Measured, Size
from polarmap.planning import (
    Completion,
    Distribution,
    Pareto,
    ShiftedExponential,
    SimulatedJobs,
    completion_after,
    completion_time,
    simulate_on_demand,
    simulate_subtasks,
    stragglers,
    training_trace,
)

DISTRIBUTIONS: dict[str, Distribution] = {
    "2 % stragglers at 5x": stragglers(ShiftedExponential(1.0, 0.1), 0.02, 5.0),
    "shifted exponential 1 + Exp(1)": ShiftedExponential(1.0, 1.0),
    "heavy tail, Pareto(2.5)": Pareto(1.0, 2.5),
    "real trace of a training job": training_trace(),
}
PIECES = (4, 16)
CHUNK = 1 << 23  # run times simulated at a time


def schemes(size: Size, runtimes: Distribution, codes: list[Measured], trials: int) -> Iterator[Completion]:
    """Every scheme at one size under one distribution, with a third more tasks where it codes."""
    n, k = size.n, size.k
    yield completion_time(k, k, "uncoded", runtimes)
    for copies in (2, 3):
        found = completion_time(copies * k, k, "replication", runtimes)
        yield found._replace(scheme=f"{copies}x replication")
    for scheme, name in (("backup-cubed", "cubed"), ("backup-spark", "Spark 4")):
        found = completion_time(k, k, scheme, runtimes, trials=trials)
        yield found._replace(scheme=f"backup tasks ({name})")
    for code in codes:
        yield completion_after(code.needed, n, k, runtimes, code.name)
    yield simulated("on demand", size, runtimes, trials, partial(demanded, 0))
    few = max(1, (n - k) // 4)
    yield simulated(f"{few} upfront, rest on demand", size, runtimes, trials, partial(demanded, few))
    for pieces in PIECES:
        yield simulated(f"{pieces} subtasks", size, runtimes, trials, partial(in_pieces, pieces))


def demanded(upfront: int, times: np.ndarray, k: int, runtimes: Distribution) -> SimulatedJobs:
    return simulate_on_demand(times[:, :k], times[:, k:], upfront, runtimes)


def in_pieces(pieces: int, times: np.ndarray, k: int, runtimes: Distribution) -> SimulatedJobs:
    return simulate_subtasks(times, k, pieces)


def simulated(
    scheme: str, size: Size, runtimes: Distribution, trials: int, run: partial[SimulatedJobs]
) -> Completion:
    rng = np.random.default_rng(0)
    step = max(1, CHUNK // size.n)
    parts = [
        run(runtimes.sample(rng, (min(step, trials - first), size.n)), size.k, runtimes)
        for first in range(0, trials, step)
    ]
    return summarized(scheme, size, SimulatedJobs(*(np.concatenate(column) for column in zip(*parts))))


def summarized(scheme: str, size: Size, jobs: SimulatedJobs) -> Completion:
    """The numbers of simulated jobs."""
    ended = np.isfinite(jobs.time)
    p50, p95, p99 = np.quantile(jobs.time, [0.5, 0.95, 0.99], method="higher").tolist()
    time = jobs.time[ended]
    return Completion(
        scheme=scheme,
        n=size.n,
        k=size.k,
        mean=float(time.mean()),
        error=float(time.std() / np.sqrt(len(time))),
        p50=p50,
        p95=p95,
        p99=p99,
        paid=float(jobs.paid[ended].mean()),
        arrivals=float(size.k),
        started=float(jobs.started[ended].mean()),
        failure_probability=float(1 - ended.mean()),
    )
