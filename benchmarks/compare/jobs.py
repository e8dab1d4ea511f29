"""Completion and cost of every scheme under a distribution of run times: exact where a formula exists."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from benchmarks.compare.codes import Measured, Size
from polarmap.code.polar import MAX_WORKERS
from polarmap.planning import (
    Completion,
    Distribution,
    Pareto,
    ShiftedExponential,
    SimulatedJobs,
    completion_after,
    completion_time,
    simulate_backups,
    simulate_on_demand,
    simulate_small_blocks,
    stragglers,
    training_trace,
)
from polarmap.planning.backups import CUBED

DISTRIBUTIONS: dict[str, Distribution] = {
    "2 % stragglers at 5x": stragglers(ShiftedExponential(1.0, 0.1), 0.02, 5.0),
    "shifted exponential 1 + Exp(1)": ShiftedExponential(1.0, 1.0),
    "heavy tail, Pareto(2.5)": Pareto(1.0, 2.5),
    "real trace of a training job": training_trace(),
}
PIECES = (4, 16)  # times as many blocks on workers that stay
TASK_PRICE = 0.001  # seconds, of each of their tasks
MULTIPLES = (1.0, 1.05, 1.1, 1.15, 1.25, 1.5, 2.0, 2.5, 3.0)  # of the time of half, from which a task is late
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
    yield tuned_backups(size, runtimes, trials)
    for code in codes:
        yield completion_after(code.needed, code.n, k, runtimes, code.name)
    yield simulated("on demand", size, runtimes, trials, partial(demanded, 0))
    few = max(1, (n - k) // 4)
    yield simulated(f"{few} upfront, rest on demand", size, runtimes, trials, partial(demanded, few))
    for pieces in PIECES:
        if pieces * n <= MAX_WORKERS:
            name = f"{pieces}x as many blocks"
            found = simulated(name, size, runtimes, trials, partial(in_small_blocks, pieces))
            yield found._replace(arrivals=float(pieces * k), pieces=pieces)


def tuned_backups(size: Size, runtimes: Distribution, trials: int) -> Completion:
    """Backup tasks by cubed's rule with the multiple that gives the least 99 % quantile."""

    def found(slow: float, trials: int) -> Completion:
        name = f"backup tasks (tuned: {slow:g} x)"
        return simulated(name, size, runtimes, trials, partial(with_backups, slow), size.k)

    return found(min(MULTIPLES, key=lambda slow: found(slow, max(200, trials // 5)).p99), trials)


def with_backups(slow: float, times: np.ndarray, k: int, runtimes: Distribution) -> SimulatedJobs:
    rng = np.random.default_rng(1)
    return simulate_backups(times, lambda late: runtimes.sample(rng, late.sum()), CUBED._replace(slow=slow))


def demanded(upfront: int, times: np.ndarray, k: int, runtimes: Distribution) -> SimulatedJobs:
    return simulate_on_demand(times[:, :k], times[:, k:], upfront, runtimes)


def in_small_blocks(pieces: int, times: np.ndarray, k: int, runtimes: Distribution) -> SimulatedJobs:
    return simulate_small_blocks(times, k, pieces, TASK_PRICE)


def simulated(
    scheme: str,
    size: Size,
    runtimes: Distribution,
    trials: int,
    run: partial[SimulatedJobs],
    tasks: int | None = None,
) -> Completion:
    """Jobs of as many `tasks`, by default all n, run by `run`."""
    rng, tasks = np.random.default_rng(0), tasks or size.n
    step = max(1, CHUNK // size.n)
    parts = [
        run(runtimes.sample(rng, (min(step, trials - first), tasks)), size.k, runtimes)
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
