"""Run real jobs whose tasks sleep for drawn run times, with every scheme on this machine's workers.

python -m benchmarks.stragglers [--quick]

The schemes are plain maps of polarmap's pool, Lithops, joblib and Dask, backup tasks by cubed's own function
and by `hedged_map`, and coded maps. All schemes of a job use the same draws and take turns. Every task has a
slot, as in a cloud. The program writes docs/real-jobs.md; with --quick it runs a few short jobs and writes to
build/comparison/.
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
from benchmarks import pages, parse_quick_flag, step_rivals
from benchmarks.compare.jobs import DISTRIBUTIONS
from benchmarks.cubed_backups import map_with_backups
from benchmarks.pages import markdown_table
from benchmarks.sleeping_jobs import SleepingJob, SlowWorkers, count_worker_seconds, double_block
from polarmap import Pool
from polarmap.executors.lithops_internals import build_localhost_executor, close_function_executor
from polarmap.testing import Fault, FaultyExecutor
from polarmap.types import Report

K, N = 24, 32
ATTEMPTS = 4  # The largest number of attempts of a task.
OVERDECOMPOSITION = 8  # Blocks per worker, for workers that process one after another.
UNIT_SECONDS = 0.2  # Seconds per unit of the distribution.
JOBS, QUICK_JOBS, QUICK_UNIT_SECONDS = 50, 2, 0.02
BLOCKS = list(np.random.default_rng(0).standard_normal((K, 16)))
PLAIN = "plain map"


class JobTimes(NamedTuple):
    """The times of a job: until its results, of all workers together, and until the first task began."""

    seconds: float
    worker_seconds: float
    start_delay: float


# takes the run times of all attempts in seconds, shape (ATTEMPTS, N)
Scheme = Callable[[np.ndarray], JobTimes]


def time_job(run_job: Callable[[SleepingJob], Any], run_times: np.ndarray) -> JobTimes:
    """Run a job of K tasks and return its times.

    Tasks that the job leaves behind end before this function returns.
    """
    with tempfile.TemporaryDirectory() as folder:
        job, started_at = SleepingJob(Path(folder), run_times), time.monotonic()
        results = run_job(job)
        end_at = time.monotonic()
        assert set(results) == set(range(K))  # cubed may return both a task and its backup.
        first_start = min(times[0] for times in job.attempt_times())
        job_times = JobTimes(end_at - started_at, job.worker_seconds(end_at), first_start - started_at)
        while any(len(times) < 2 and end_at < times[0] + run_times.max() for times in job.attempt_times()):
            time.sleep(0.01)
            end_at = time.monotonic()
    return job_times


def run_coded_job(pool: Pool, run_times: np.ndarray, schedule: Any = "upfront") -> JobTimes:
    """Run a coded map of N tasks that each sleep before they double their block, and return its times."""
    faults = {task: Fault("sleep", float(sleep_seconds)) for task, sleep_seconds in enumerate(run_times[0])}
    seconds, report = time_coded_map(
        double_block, 1, executor=FaultyExecutor(pool, faults), schedule=schedule
    )
    return JobTimes(seconds, count_worker_seconds(report), 0.0)


def run_overdecomposed_job(pool: Pool, slow_workers: SlowWorkers, run_times: np.ndarray) -> JobTimes:
    """Run a coded map of more tasks than workers, which are all busy until it ends, and return its times."""
    slow_workers.set_sleep_seconds(run_times[0] / OVERDECOMPOSITION)
    seconds, report = time_coded_map(slow_workers, OVERDECOMPOSITION, executor=pool)
    return JobTimes(seconds, N * report.seconds, 0.0)


def time_coded_map(f: Any, overdecomposition: int, **options: Any) -> tuple[float, Report]:
    """Return the seconds of a coded map of `overdecomposition` times as many blocks, and its report."""
    blocks, started_at = BLOCKS * overdecomposition, time.monotonic()
    results = polarmap.coded_map(f, blocks, tasks=overdecomposition * N, progress=False, **options)
    seconds = time.monotonic() - started_at
    assert np.allclose(list(results), np.multiply(2, blocks))
    return seconds, results.report


# --- the schemes ---------------------------------------------------------------------------------


@contextmanager
def pool_schemes() -> Iterator[dict[str, Scheme]]:
    """Provide polarmap's schemes, and backup tasks by cubed, on the workers of pools."""
    with (
        Pool(workers=ATTEMPTS * N) as pool,  # A slot for every attempt.
        Pool(workers=N) as small_pool,
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
            PLAIN: partial(time_job, plain),
            "backup tasks, cubed": partial(time_job, backed_up_by_cubed),
            "**backup tasks, `hedged_map`**": partial(time_job, hedged),
            "**coded, upfront**": partial(run_coded_job, pool),
            "**coded, on demand**": partial(run_coded_job, pool, schedule="on_demand"),
            f"**coded, {OVERDECOMPOSITION * K} blocks**": partial(
                run_overdecomposed_job, small_pool, SlowWorkers(Path(folder))
            ),
        }


@contextmanager
def lithops_schemes() -> Iterator[dict[str, Scheme]]:
    """Provide Lithops' map on this machine, with the settings that polarmap uses."""
    function_executor = build_localhost_executor()
    function_executor.config["localhost"]["worker_processes"] = K

    def plain(job: SleepingJob) -> Any:
        futures = function_executor.map(
            job.__call__, list(range(K)), chunksize=1, include_modules=["benchmarks"]
        )
        return function_executor.get_result(futures, wait_dur_sec=0.01, show_progressbar=False)

    try:
        yield {"Lithops": partial(time_job, plain)}
    finally:
        close_function_executor(function_executor)


@contextmanager
def rival_schemes(name: str, open_rival: Any) -> Iterator[dict[str, Scheme]]:
    """Provide the map of another library, with a slot for every task."""
    with open_rival(call_job, range(K), lambda: [0.0] * K, K) as step:
        yield {name: partial(time_job, step)}


def call_job(task: int, job: SleepingJob) -> int:
    """Run the job's task in another library's worker."""
    return job(task)


SCHEME_SOURCES = (
    pool_schemes,
    lithops_schemes,
    partial(rival_schemes, "joblib", step_rivals.joblib_step),
    partial(rival_schemes, "Dask", step_rivals.dask_step),
)

# --- measuring and writing -----------------------------------------------------------------------


def measure_schemes(n_jobs: int, unit_seconds: float) -> dict[str, dict[str, np.ndarray]]:
    """Return the times of all jobs, (jobs, 3), by distribution and scheme, in units of the distribution."""
    times_by_distribution: dict[str, dict[str, np.ndarray]] = {}
    with ExitStack() as stack:
        schemes = {
            name: run_scheme
            for open_schemes in SCHEME_SOURCES
            for name, run_scheme in stack.enter_context(open_schemes()).items()
        }
        for run_scheme in schemes.values():
            run_scheme(np.full((ATTEMPTS, N), unit_seconds))  # Starts the workers.
        for name, run_times in DISTRIBUTIONS.items():
            rng = np.random.default_rng(1)
            times_by_distribution[name] = {scheme: np.empty((n_jobs, 3)) for scheme in schemes}
            for job_index in range(n_jobs):
                run_times_in_seconds = unit_seconds * run_times.sample(rng, (ATTEMPTS, N))
                for scheme, run_scheme in schemes.items():
                    times_by_distribution[name][scheme][job_index] = (
                        np.array(run_scheme(run_times_in_seconds)) / unit_seconds
                    )
            print(f"{name}: {n_jobs} jobs of each scheme", flush=True)
    return times_by_distribution


HEADER = ["", "median", "quartiles", "99 %", "ratio", "worker-seconds"]


def format_row(scheme: str, job_times: np.ndarray, plain_job_times: np.ndarray) -> list[str]:
    """Return a row of the table.

    Times are in units, ratios compare the same job, and worker-seconds are relative to the plain map's total.
    """
    lower_quartile, median_time, upper_quartile, p99 = np.quantile(job_times[:, 0], [0.25, 0.5, 0.75, 0.99])
    return [
        scheme,
        f"{median_time:.2f}",
        f"{lower_quartile:.2f}-{upper_quartile:.2f}",
        f"{p99:.2f}",
        f"{np.median(job_times[:, 0] / plain_job_times[:, 0]):.2f}",
        f"{job_times[:, 1].sum() / plain_job_times[:, 1].sum():.2f}",
    ]


def make_page_parts(
    times_by_distribution: dict[str, dict[str, np.ndarray]], unit_seconds: float, load_average: float
) -> dict[str, str]:
    """Return the measured parts of docs/real-jobs.md by name."""
    start_delays = np.concatenate([schemes["Lithops"][:, 2] for schemes in times_by_distribution.values()])
    tables = []
    for name, schemes in times_by_distribution.items():
        rows = [format_row(scheme, job_times, schemes[PLAIN]) for scheme, job_times in schemes.items()]
        tables.append(f"## {name}\n\n{markdown_table(HEADER, rows)}")
    return {
        "jobs": str(len(start_delays) // len(times_by_distribution)),
        "unit": f"{unit_seconds:g}",
        "load": f"{load_average:.1f}",
        "began": f"{unit_seconds * float(np.median(start_delays)):.2f}",
        "distributions": "\n\n".join(tables),
    }


def main() -> None:
    """Measure, print the tables, and write them into the page."""
    quick = parse_quick_flag(__doc__)
    unit_seconds = QUICK_UNIT_SECONDS if quick else UNIT_SECONDS
    page_parts = make_page_parts(
        measure_schemes(QUICK_JOBS if quick else JOBS, unit_seconds), unit_seconds, os.getloadavg()[1]
    )
    print(page_parts["distributions"])
    pages.write_page("real-jobs.md", page_parts, quick)


if __name__ == "__main__":
    main()
