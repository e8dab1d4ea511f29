"""Completion times that the theory gives, and how fast they are computed."""

from __future__ import annotations

from collections.abc import Iterator
from math import log
from time import perf_counter

import numpy as np

from benchmarks import is_quick, show
from polarmap import PolarCode
from polarmap.planning import (
    Distribution,
    Failing,
    Pareto,
    ShiftedExponential,
    arrivals_needed,
    cold_starts,
    completion_time,
    sequential_finish,
    stragglers,
    training_trace,
)

DISTRIBUTIONS: dict[str, Distribution] = {
    "1 + Exp(1)": ShiftedExponential(1.0, 1.0),
    "Pareto(2.5)": Pareto(1.0, 2.5),
    "2 % at 5x": stragglers(ShiftedExponential(1.0, 0.1), 0.02, 5.0),
    "cold, failing": Failing(cold_starts(ShiftedExponential(1.0, 0.1), 0.1, 3.0), 0.005),
    "training trace": training_trace(),
}
RIVALS = [  # scheme, workers started for each block
    ("uncoded", 1.0),
    ("backup-cubed", 1.0),
    ("backup-spark", 1.0),
    ("replication", 2.0),
    ("rotation", 4 / 3),
    ("optimal", 4 / 3),
    ("sequential", 4 / 3),
]


def literature(n: int, trials: int) -> Iterator[list[object]]:
    """Rate 1/2, 1 + Exp(1), beside the limit for many workers."""
    runtimes, limit = DISTRIBUTIONS["1 + Exp(1)"], 1 + log(2)
    k = n // 2
    for scheme in ("uncoded", "replication", "backup-cubed", "mds", "rotation", "optimal", "sequential"):
        workers = k if scheme in ("uncoded", "backup-cubed") else n
        found = completion_time(workers, k, scheme, runtimes, trials=trials)
        yield [scheme, workers, found.mean, found.error, found.p50, found.p99, found.paid / k, limit]


def beyond_k(trials: int) -> Iterator[list[object]]:
    """Mean results needed beyond k, in random order of arrival."""
    for n, k in [(16, 12), (64, 48), (128, 96), (256, 192), (256, 128), (512, 384)]:
        schemes = ("sequential", "integers", "optimal")
        needed = [arrivals_needed(n, k, scheme, trials=trials) for scheme in schemes]
        yield [n, k, *(float(one.ranks @ one.weights) - k for one in needed)]


def rivals(k: int, trials: int) -> Iterator[list[object]]:
    """A job of k blocks under each distribution."""
    for name, runtimes in DISTRIBUTIONS.items():
        for scheme, rate in RIVALS:
            found = completion_time(round(rate * k), k, scheme, runtimes, trials=trials)
            seconds = found.mean, found.p50, found.p99
            yield [name, scheme, found.n, *seconds, found.paid, found.failure_probability]


def sweeps(trials: int) -> Iterator[list[object]]:
    """Seconds to draw all run times and to find when each job is decodable."""
    for n in (1000, 10_000):
        start = perf_counter()
        code = PolarCode(n, n // 2, "arikan", "sequential")
        arrivals = 1 + np.random.default_rng(0).standard_exponential((n, trials), dtype=np.float32)
        drawn = perf_counter()
        mean = float(sequential_finish(code, arrivals).mean())
        yield [n, trials, drawn - start, perf_counter() - drawn, mean]


def main() -> None:
    quick = is_quick(__doc__)
    n, trials = (128, 100) if quick else (512, 1000)
    header = ["scheme", "workers", "mean s", "+-", "p50 s", "p99 s", "paid/k", "limit s"]
    show(header, literature(n, trials))
    print()
    show(["n", "k", "sequential", "integers", "optimal"], beyond_k(100 if quick else 300))
    print()
    header = ["run times", "scheme", "workers", "mean s", "p50 s", "p99 s", "paid", "fails"]
    show(header, rivals(24, trials))
    print()
    show(["workers", "trials", "drawn s", "decoded s", "mean s"], sweeps(100 if quick else 1000))


if __name__ == "__main__":
    main()
