"""Completion and cost of every scheme under a law of run times: exact where a formula exists."""

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
    completion_after,
    completion_time,
    on_demand,
    stragglers,
    subtasks,
    training_trace,
)
from polarmap.planning.backups import Trials

LAWS: dict[str, Distribution] = {
    "2 % stragglers at 5x": stragglers(ShiftedExponential(1.0, 0.1), 0.02, 5.0),
    "shifted exponential 1 + Exp(1)": ShiftedExponential(1.0, 1.0),
    "heavy tail, Pareto(2.5)": Pareto(1.0, 2.5),
    "real trace of a training job": training_trace(),
}
PIECES = (4, 16)
CHUNK = 1 << 23  # run times simulated at a time


def schemes(size: Size, law: Distribution, codes: list[Measured], trials: int) -> Iterator[Completion]:
    """Every scheme at one size under one law, with a third more tasks where it codes."""
    n, k = size.n, size.k
    yield completion_time(k, k, "uncoded", law)
    for copies in (2, 3):
        found = completion_time(copies * k, k, "replication", law)
        yield found._replace(scheme=f"{copies}x replication")
    yield completion_time(k, k, "backup-cubed", law, trials=trials)._replace(scheme="backup tasks (cubed)")
    yield completion_time(k, k, "backup-spark", law, trials=trials)._replace(scheme="backup tasks (Spark 4)")
    for code in codes:
        yield completion_after(code.needed, n, k, law, code.name)
    yield simulated("on demand", size, law, trials, partial(demanded, 0))
    few = max(1, (n - k) // 4)
    yield simulated(f"{few} upfront, rest on demand", size, law, trials, partial(demanded, few))
    for pieces in PIECES:
        yield simulated(f"{pieces} subtasks", size, law, trials, partial(in_pieces, pieces))


def demanded(upfront: int, times: np.ndarray, k: int, law: Distribution) -> Trials:
    return on_demand(times[:, :k], times[:, k:], upfront, law)


def in_pieces(pieces: int, times: np.ndarray, k: int, law: Distribution) -> Trials:
    return subtasks(times, k, pieces)


def simulated(scheme: str, size: Size, law: Distribution, trials: int, run: partial[Trials]) -> Completion:
    rng = np.random.default_rng(0)
    step = max(1, CHUNK // size.n)
    parts = [
        run(law.sample(rng, (min(step, trials - first), size.n)), size.k, law)
        for first in range(0, trials, step)
    ]
    return summarized(scheme, size, Trials(*(np.concatenate(column) for column in zip(*parts))))


def summarized(scheme: str, size: Size, jobs: Trials) -> Completion:
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
        never=float(1 - ended.mean()),
    )
