"""Real jobs whose tasks sleep for drawn run times: every scheme on workers of this machine that stay.

python -m benchmarks.stragglers [--quick]

Plain maps of polarmap's pool, Lithops, joblib and Dask, backup tasks by cubed's own function and by
`hedged_map`, coded maps: the same draws for every scheme of a job, schemes in turns, a slot for every task as
in a cloud. Writes docs/real-jobs.md; with --quick a few short jobs, to build/comparison/.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import polarmap
from benchmarks import is_quick, pages, step_rivals
from benchmarks.compare.jobs import DISTRIBUTIONS
from benchmarks.cubed_backups import map_with_backups
from benchmarks.pages import table
from benchmarks.sleeping_jobs import SleepingJob, SlowWorkers, doubled, paid_by
from polarmap import Pool
from polarmap.executors.lithops_internals import build_localhost_executor, close_function_executor
from polarmap.testing import Fault, FaultyExecutor
from polarmap.types import Report

K, N = 24, 32
ATTEMPTS = 4  # of a task, at most
PIECES = 8  # times as many blocks for workers that take one after another
UNIT = 0.2  # seconds to the unit of the distribution
JOBS, QUICK_JOBS, QUICK_UNIT = 50, 2, 0.02
BLOCKS = list(np.random.default_rng(0).standard_normal((K, 16)))
PLAIN = "plain map"


class Taken(NamedTuple):
    """Of one job: seconds until its results were there, of workers, and until the first task began."""

    seconds: float
    paid: float
    began: float


Scheme = Callable[[np.ndarray], Taken]  # of the run times of all attempts, (ATTEMPTS, N), in seconds


def timed(run: Callable[[SleepingJob], Any], seconds: np.ndarray) -> Taken:
    """A job of K tasks; those that it leaves behind come to their end before the next one."""
    with tempfile.TemporaryDirectory() as folder:
        job, began = SleepingJob(Path(folder), seconds), time.monotonic()
        results = run(job)
        over = time.monotonic()
        assert set(results) == set(range(K))  # cubed may hand out a task and its backup
        first = min(times[0] for times in job.attempts())
        taken = Taken(over - began, job.worker_seconds(over), first - began)
        while any(len(times) < 2 and over < times[0] + seconds.max() for times in job.attempts()):
            time.sleep(0.01)
            over = time.monotonic()
    return taken


def coded(pool: Pool, seconds: np.ndarray, schedule: Any = "upfront") -> Taken:
    """A coded map of N tasks, each of which sleeps before it doubles its block."""
    faults = {task: Fault("sleep", float(one)) for task, one in enumerate(seconds[0])}
    taken, report = doubling(doubled, 1, executor=FaultyExecutor(pool, faults), schedule=schedule)
    return Taken(taken, paid_by(report), 0.0)


def in_small_blocks(pool: Pool, slow: SlowWorkers, seconds: np.ndarray) -> Taken:
    """A coded map of more tasks than workers, all of which are busy until it is over."""
    slow.draw(seconds[0] / PIECES)
    taken, report = doubling(slow, PIECES, executor=pool)
    return Taken(taken, N * report.seconds, 0.0)


def doubling(f: Any, pieces: int, **options: Any) -> tuple[float, Report]:
    """Seconds of a coded map of so many times as many blocks, and its report."""
    blocks, began = BLOCKS * pieces, time.monotonic()
    results = polarmap.coded_map(f, blocks, tasks=pieces * N, progress=False, **options)
    taken = time.monotonic() - began
    assert np.allclose(list(results), np.multiply(2, blocks))
    return taken, results.report


# --- the schemes ---------------------------------------------------------------------------------


@contextmanager
def on_pool() -> Iterator[dict[str, Scheme]]:
    """polarmap's own, and cubed's function, on the workers of one pool."""
    with (
        Pool(workers=ATTEMPTS * N) as pool,  # a slot for every attempt
        Pool(workers=N) as few,
        tempfile.TemporaryDirectory() as folder,
    ):

        def plain(job: SleepingJob) -> list[int]:
            with polarmap.Executor(pool, backups=0) as executor:
                return list(executor.map(job, range(K)))

        def backed_up_by_cubed(job: SleepingJob) -> list[int]:
            executor = polarmap.Executor(pool, backups=0)
            try:
                return map_with_backups(executor, job, range(K))
            finally:
                executor.shutdown(wait=False)

        def hedged(job: SleepingJob) -> list[int]:
            return list(polarmap.hedged_map(job, range(K), executor=pool, progress=False))

        yield {
            PLAIN: partial(timed, plain),
            "backup tasks, cubed": partial(timed, backed_up_by_cubed),
            "**backup tasks, `hedged_map`**": partial(timed, hedged),
            "**coded, upfront**": partial(coded, pool),
            "**coded, on demand**": partial(coded, pool, schedule="on_demand"),
            f"**coded, {PIECES * K} blocks**": partial(in_small_blocks, few, SlowWorkers(Path(folder))),
        }


@contextmanager
def on_lithops() -> Iterator[dict[str, Scheme]]:
    """Its map on this machine, with the settings that polarmap has found best."""
    functions = build_localhost_executor()
    functions.config["localhost"]["worker_processes"] = K

    def plain(job: SleepingJob) -> Any:
        futures = functions.map(job.__call__, list(range(K)), chunksize=1, include_modules=["benchmarks"])
        return functions.get_result(futures, wait_dur_sec=0.01, show_progressbar=False)

    try:
        yield {"Lithops": partial(timed, plain)}
    finally:
        close_function_executor(functions)


@contextmanager
def on_rival(name: str, way: Any) -> Iterator[dict[str, Scheme]]:
    """Another library's map, with a slot for every task."""
    with way(called, range(K), lambda: [0.0] * K, K) as step:
        yield {name: partial(timed, step)}


def called(task: int, job: SleepingJob) -> int:
    """What a rival runs for each task."""
    return job(task)


PLACES = (
    on_pool,
    on_lithops,
    partial(on_rival, "joblib", step_rivals.joblib),
    partial(on_rival, "Dask", step_rivals.dask),
)

# --- measuring and writing -----------------------------------------------------------------------


def measured(jobs: int, unit: float) -> dict[str, dict[str, np.ndarray]]:
    """Distribution -> scheme -> what each job took, (jobs, 3), in units of the distribution."""
    found: dict[str, dict[str, np.ndarray]] = {}
    with ExitStack() as stack:
        schemes = {name: run for place in PLACES for name, run in stack.enter_context(place()).items()}
        for run in schemes.values():
            run(np.full((ATTEMPTS, N), unit))  # starts workers
        for name, runtimes in DISTRIBUTIONS.items():
            rng = np.random.default_rng(1)
            found[name] = {scheme: np.empty((jobs, 3)) for scheme in schemes}
            for job in range(jobs):
                seconds = unit * runtimes.sample(rng, (ATTEMPTS, N))
                for scheme, run in schemes.items():
                    found[name][scheme][job] = np.array(run(seconds)) / unit
            print(f"{name}: {jobs} jobs of each scheme", flush=True)
    return found


HEADER = ["", "median", "quartiles", "99 %", "ratio", "worker-seconds"]


def row(scheme: str, taken: np.ndarray, plain: np.ndarray) -> list[str]:
    """Of the table: times in units, ratios of the same job, all worker-seconds relative to a plain map's."""
    low, middle, high, worst = np.quantile(taken[:, 0], [0.25, 0.5, 0.75, 0.99])
    return [
        scheme,
        f"{middle:.2f}",
        f"{low:.2f}-{high:.2f}",
        f"{worst:.2f}",
        f"{np.median(taken[:, 0] / plain[:, 0]):.2f}",
        f"{taken[:, 1].sum() / plain[:, 1].sum():.2f}",
    ]


def parts(found: dict[str, dict[str, np.ndarray]], unit: float, load: float) -> dict[str, str]:
    """What stands on docs/real-jobs.md."""
    began = np.concatenate([schemes["Lithops"][:, 2] for schemes in found.values()])
    tables = [
        f"## {name}\n\n{table(HEADER, [row(one, taken, schemes[PLAIN]) for one, taken in schemes.items()])}"
        for name, schemes in found.items()
    ]
    return {
        "jobs": str(len(began) // len(found)),
        "unit": f"{unit:g}",
        "load": f"{load:.1f}",
        "began": f"{unit * float(np.median(began)):.2f}",
        "distributions": "\n\n".join(tables),
    }


def main() -> None:
    """Measure, print the tables, write them into the page."""
    quick = is_quick(__doc__)
    unit = QUICK_UNIT if quick else UNIT
    found = parts(measured(QUICK_JOBS if quick else JOBS, unit), unit, os.getloadavg()[1])
    print(found["distributions"])
    pages.write("real-jobs.md", found, quick)


if __name__ == "__main__":
    main()
