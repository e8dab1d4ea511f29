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
from benchmarks import is_quick, page_folder
from benchmarks.compare.jobs import DISTRIBUTIONS
from benchmarks.compare.page import table
from benchmarks.cubed_backups import map_with_backups
from benchmarks.sleeping_jobs import SleepingJob, SlowWorkers, doubled, paid_by
from polarmap import Fault, FaultyExecutor, Pool
from polarmap.executors.lithops_internals import end, localhost_functions

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


def coded(pool: Pool, seconds: np.ndarray, **options: Any) -> Taken:
    """A coded map of N tasks, each of which sleeps before it doubles its block."""
    faults = {task: Fault("sleep", float(one)) for task, one in enumerate(seconds[0])}
    began = time.monotonic()
    results = polarmap.coded_map(
        doubled, BLOCKS, workers=N, executor=FaultyExecutor(pool, faults), progress=False, **options
    )
    taken = time.monotonic() - began
    assert np.allclose(list(results), np.multiply(2, BLOCKS))
    return Taken(taken, paid_by(results.report), 0.0)


def in_small_blocks(pool: Pool, slow: SlowWorkers, seconds: np.ndarray) -> Taken:
    """A coded map of more tasks than workers, all of which are busy until it is over."""
    slow.draw(seconds[0] / PIECES)
    blocks, began = BLOCKS * PIECES, time.monotonic()
    results = polarmap.coded_map(slow, blocks, workers=PIECES * N, executor=pool, progress=False)
    taken = time.monotonic() - began
    assert np.allclose(list(results), np.multiply(2, blocks))
    return Taken(taken, N * results.report.seconds, 0.0)


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
    functions = localhost_functions()
    functions.config["localhost"]["worker_processes"] = K

    def plain(job: SleepingJob) -> Any:
        futures = functions.map(job.__call__, list(range(K)), chunksize=1, include_modules=["benchmarks"])
        return functions.get_result(futures, wait_dur_sec=0.01, show_progressbar=False)

    try:
        yield {"Lithops": partial(timed, plain)}
    finally:
        end(functions)


@contextmanager
def on_joblib() -> Iterator[dict[str, Scheme]]:
    """Its processes, which stay; tasks are not put together into batches."""
    from joblib import Parallel, delayed
    from joblib.externals.loky import get_reusable_executor

    with Parallel(n_jobs=K, batch_size=1, pre_dispatch="all") as parallel:
        yield {"joblib": partial(timed, lambda job: parallel(delayed(job)(task) for task in range(K)))}
    get_reusable_executor().shutdown(wait=True, kill_workers=True)


@contextmanager
def on_dask() -> Iterator[dict[str, Scheme]]:
    """Its client, with threads enough for all tasks in a process for each core."""
    from distributed import Client, LocalCluster

    cores = os.cpu_count() or 1
    with (
        LocalCluster(
            n_workers=cores, threads_per_worker=-(-K // cores), dashboard_address=None, silence_logs=50
        ) as cluster,
        Client(cluster) as client,
    ):
        yield {"Dask": partial(timed, lambda job: client.gather(client.map(job, list(range(K)), pure=False)))}


PLACES = (on_pool, on_lithops, on_joblib, on_dask)

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


def page(found: dict[str, dict[str, np.ndarray]], unit: float, load: float) -> str:
    """The text of docs/real-jobs.md."""
    jobs = len(next(iter(found.values()))[PLAIN])
    began = np.concatenate([schemes["Lithops"][:, 2] for schemes in found.values()])
    parts = [
        TEXT.format(
            jobs=jobs,
            unit=unit,
            load=load,
            began=unit * float(np.median(began)),
            K=K,
            N=N,
            slots=ATTEMPTS * N,
            blocks=PIECES * K,
            tasks=PIECES * N,
            pieces=PIECES,
        )
    ]
    for name, schemes in found.items():
        plain = schemes[PLAIN]
        parts += [f"## {name}", table(HEADER, [row(one, taken, plain) for one, taken in schemes.items()])]
    return "\n\n".join(parts) + "\n"


HEADER = ["", "median", "quartiles", "99 %", "ratio", "its quartiles", "worker-seconds"]


def row(scheme: str, taken: np.ndarray, plain: np.ndarray) -> list[str]:
    """Of the table: times in units, ratios of the same job, all worker-seconds relative to a plain map's."""
    low, middle, high, worst = np.quantile(taken[:, 0], [0.25, 0.5, 0.75, 0.99])
    ratios = np.quantile(taken[:, 0] / plain[:, 0], [0.25, 0.5, 0.75])
    return [
        scheme,
        f"{middle:.2f}",
        f"{low:.2f}-{high:.2f}",
        f"{worst:.2f}",
        f"{ratios[1]:.2f}",
        f"{ratios[0]:.2f}-{ratios[2]:.2f}",
        f"{taken[:, 1].sum() / plain[:, 1].sum():.2f}",
    ]


TEXT = """\
# Real jobs with delays

Written by `python -m benchmarks.stragglers`: {jobs} jobs of each distribution of run times, of {K} tasks
({N} coded) that sleep, on processes of this machine that stay. The same draws for every scheme of a job,
schemes in turns, a slot for every task as in a cloud; two cores, load average {load:.1f}. Times are from the
call to the results, in units of the distribution, {unit:g} s each, to compare with
[what is simulated](comparison-jobs.md): what a scheme takes beside its sleep is in them.

* *plain map*, *backup tasks* and *coded* run on the workers of one `polarmap.Pool(workers={slots})`, which
  starts all tasks and their backups at once, as joblib and Dask do when they are given {K} slots. Without
  `workers=` it starts as many as keep the cores busy.
* *coded, {blocks} blocks* are {tasks} tasks, each an {pieces}th as long, on a `polarmap.Pool(workers={N})`:
  each worker takes the next when it is done, and is as slow all the time as a task of *upfront* is.
  Its worker-seconds are those of all workers until the job is over.
* *backup tasks, cubed* is its own `cubed.runtime.executors.lithops.map_unordered`, with `use_backups=True`
  and a look every 5 ms in place of every second. Lithops on one machine runs the jobs of an executor one
  after another, so that a backup would wait for the straggler: what cubed asks of Lithops, to map and to
  wait, workers of the pool do.
* *Lithops*, *joblib* and *Dask* are plain maps by these packages with {K} slots. Lithops starts processes for
  every map here: the first task of a job began after {began:.2f} s (median).
* *ratio* is to the plain map of the same job: median and quartiles. *worker-seconds* are those of all jobs,
  relative to the plain map's: whatever still runs when a job is over is stopped, and paid, then."""


def main() -> None:
    """Measure, write the page, print it."""
    quick = is_quick(__doc__)
    unit = QUICK_UNIT if quick else UNIT
    found = measured(QUICK_JOBS if quick else JOBS, unit)
    text = page(found, unit, os.getloadavg()[1])
    (page_folder(quick) / "real-jobs.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
