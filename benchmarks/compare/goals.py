"""What the project set out to reach, beside what is measured."""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter
from typing import NamedTuple

import numpy as np

from benchmarks.compare.codes import Measured, Size
from benchmarks.compare.jobs import DISTRIBUTIONS, demanded, simulated
from polarmap import PolarCode
from polarmap.planning import Completion, sequential_finish


class Goal(NamedTuple):
    """One goal: what, what was found, the limit, whether it is met."""

    what: str
    found: float
    limit: float

    @property
    def is_met(self) -> bool:
        return self.found <= self.limit


Jobs = dict[str, Completion]


def goals(tables: dict[tuple[Size, str], Jobs], codes: dict[Size, list[Measured]], quick: bool) -> list[Goal]:
    small = next(iter(codes))
    straggling = tables[small, next(iter(DISTRIBUTIONS))]
    return [
        Goal(
            "rotation / MDS, mean completion, the worst of all sizes and distributions",
            worst_of_rotation(tables),
            1.01,
        ),
        *of_stragglers(straggling),
        mix(small, straggling),
        *of_subtasks(tables),
        sweep(100 if quick else 1000),
    ]


def worst_of_rotation(tables: dict[tuple[Size, str], Jobs]) -> float:
    return max(jobs["rotation"].mean / jobs["dense Gaussian"].mean for jobs in tables.values())


def of_stragglers(jobs: Jobs) -> Iterator[Goal]:
    where = "2 % at 5x, (32, 24)"
    backup, uncoded = jobs["backup tasks (cubed)"], jobs["uncoded"]
    yield Goal(f"upfront p99 / backup tasks', {where}", jobs["rotation"].p99 / backup.p99, 0.3)
    yield Goal(f"on demand worker-seconds / uncoded's, {where}", jobs["on demand"].paid / uncoded.paid, 1.05)
    yield Goal(f"on demand p99 / backup tasks', {where}", jobs["on demand"].p99 / backup.p99, 0.6)


def mix(size: Size, jobs: Jobs) -> Goal:
    """The fastest mixture that costs at most 1.15 times what no code does."""
    backup, uncoded = jobs["backup tasks (cubed)"], jobs["uncoded"]
    runtimes = next(iter(DISTRIBUTIONS.values()))
    mixtures = {
        upfront: simulated("", size, runtimes, 10_000, lambda *job, few=upfront: demanded(few, *job))
        for upfront in range(size.n - size.k + 1)
    }
    cheap = {few: found for few, found in mixtures.items() if found.paid <= 1.15 * uncoded.paid}
    few = min(cheap, key=lambda few: cheap[few].p99)
    cost = cheap[few].paid / uncoded.paid
    limits = f"costs {cost:.2f} of uncoded, at most 1.15"
    what = f"{few} upfront and the rest on demand, p99 / backup tasks' ({limits})"
    return Goal(what, cheap[few].p99 / backup.p99, 0.35)


def of_subtasks(tables: dict[tuple[Size, str], Jobs]) -> Iterator[Goal]:
    for (size, name), jobs in tables.items():
        if size == next(iter(tables))[0]:
            ratio = jobs["16 subtasks"].mean / jobs["dense Gaussian"].mean
            yield Goal(f"16 subtasks' mean / T_(k:n), (32, 24), {name}", ratio, 1.0)


def sweep(trials: int) -> Goal:
    """10,000 workers: run times drawn, decode times of the sequential decoder found."""
    n = 10_000
    code = PolarCode(n, 7_500, "arikan", "sequential")
    start = perf_counter()
    arrivals = 1 + np.random.default_rng(0).standard_exponential((n, trials), dtype=np.float32)
    sequential_finish(code, arrivals)
    return Goal(f"seconds for 10,000 workers x {trials:,} trials", perf_counter() - start, 60.0)
