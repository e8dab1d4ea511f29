"""What the project set out to reach, under each distribution of run times, beside what is measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from time import process_time
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from benchmarks.compare.codes import Size
from benchmarks.compare.jobs import DISTRIBUTIONS, demanded, simulated
from polarmap import PolarCode
from polarmap.planning import Completion, sequential_finish

Jobs = dict[str, Completion]
UPFRONT_COST = 1.15  # of a plain map, up to which parity upfront is tried beside parity on demand


class Goal(NamedTuple):
    """One goal: what, what was found under each distribution, the limit.

    remarks : what else there is to say of a distribution.
    """

    what: str
    limit: float
    found: dict[str, float]
    remarks: Mapping[str, str] = MappingProxyType({})

    def is_met(self, name: str) -> bool:
        return self.found[name] <= self.limit


def goals(tables: dict[tuple[Size, str], Jobs]) -> list[Goal]:
    """Of the first size, but for the first goal, which is of all sizes."""
    small = next(iter(tables))[0]
    first = {name: jobs for (size, name), jobs in tables.items() if size == small}
    return [worst_of_rotation(tables), *of_lateness(first), mixed(small, first), of_small_blocks(first)]


def worst_of_rotation(tables: dict[tuple[Size, str], Jobs]) -> Goal:
    found: dict[str, float] = {}
    for (_, name), jobs in tables.items():
        found[name] = max(found.get(name, 0.0), jobs["rotation"].mean / jobs["dense Gaussian"].mean)
    return Goal("rotation / MDS, mean, the worst of all sizes", 1.01, found)


def best_backups(jobs: Jobs) -> float:
    """The least 99 % quantile that backup tasks by anybody's rule reach."""
    return min(job.p99 for scheme, job in jobs.items() if scheme.startswith("backup tasks"))


def of_lateness(tables: dict[str, Jobs]) -> Iterator[Goal]:
    def ratios(scheme: str) -> dict[str, float]:
        return {name: jobs[scheme].p99 / best_backups(jobs) for name, jobs in tables.items()}

    costs = {name: jobs["on demand"].paid / jobs["uncoded"].paid for name, jobs in tables.items()}
    yield Goal("upfront p99 / that of the best backup tasks", 0.3, ratios("rotation"))
    yield Goal("on demand worker-seconds / uncoded's", 1.05, costs)
    yield Goal("on demand p99 / that of the best backup tasks", 0.6, ratios("on demand"))


def mixed(size: Size, tables: dict[str, Jobs]) -> Goal:
    """The fastest mixture that costs at most UPFRONT_COST of what no code does."""
    found, remarks = {}, {}
    for name, jobs in tables.items():
        most = UPFRONT_COST * jobs["uncoded"].paid
        mixtures = [
            simulated("", size, DISTRIBUTIONS[name], 10_000, partial(demanded, upfront))
            for upfront in range(size.n - size.k + 1)
        ]
        few = min(
            (upfront for upfront, job in enumerate(mixtures) if job.paid <= most),
            key=lambda upfront: mixtures[upfront].p99,
        )
        found[name], remarks[name] = mixtures[few].p99 / best_backups(jobs), f"{few} upfront"
    what = f"some upfront, the rest on demand, for {UPFRONT_COST} of uncoded's worker-seconds: p99 / theirs"
    return Goal(what, 0.35, found, remarks)


def of_small_blocks(tables: dict[str, Jobs]) -> Goal:
    small, bound = "16x as many blocks", "dense Gaussian"
    found = {name: jobs[small].mean / jobs[bound].mean for name, jobs in tables.items()}
    return Goal(f"{small}, mean / T_(k:n)", 1.0, found)


def sweep(trials: int) -> float:
    """Core-seconds for 10,000 workers: run times drawn, decode times of the sequential decoder found."""
    n = 10_000
    code = PolarCode(n, 7_500, "arikan", "sequential")
    start = process_time()
    arrivals = 1 + np.random.default_rng(0).standard_exponential((n, trials), dtype=np.float32)
    sequential_finish(code, arrivals)
    return process_time() - start
