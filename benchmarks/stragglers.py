"""Real jobs whose tasks sleep for drawn run times: coded maps against a plain map and backup tasks.

On threads and on Lithops localhost; the same draws for every scheme of a job, one slot for each task
(as in a cloud), a fresh executor for every map. Writes docs/real-jobs.md; with --quick a few jobs, to
build/comparison/.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import polarmap
from benchmarks import is_quick
from benchmarks.compare.jobs import DISTRIBUTIONS
from benchmarks.compare.page import table
from polarmap import Fault, FaultyExecutor
from polarmap.executors import slots
from polarmap.executors.lithops_internals import end, localhost_functions
from polarmap.planning import Distribution
from polarmap.planning.backups import CUBED

K, N = 24, 32
SCALE = 1.0  # seconds in which a task of the distributions' unit sleeps
POLL = 0.005
ROOT = Path(__file__).resolve().parents[1]
HEADER = ["", "median s", "99 % s", "ratio to plain", "quartiles"]
CHOSEN = ("2 % stragglers at 5x", "real trace of a training job")


def f(block: Any) -> Any:
    return 2 * block


def delayed(seconds: float, block: Any) -> Any:
    time.sleep(seconds)
    return f(block)


class Draws:
    """Seconds of every task of one job, and of the backups of its data tasks."""

    def __init__(self, runtimes: Distribution, rng: np.random.Generator) -> None:
        self.tasks = SCALE * runtimes.sample(rng, N)
        self.backups = SCALE * runtimes.sample(rng, K)


class Threads:
    """A pool of threads for each map."""

    name = "threads"

    def __init__(self, count: int) -> None:
        self._pool = ThreadPoolExecutor(count)

    def submit(self, pairs: list[tuple[float, Any]]) -> list[Any]:
        return [self._pool.submit(delayed, *pair) for pair in pairs]

    @staticmethod
    def has_ended(future: Any) -> bool:
        return bool(future.done())

    def result(self, future: Any) -> Any:
        return future.result()

    def end(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    @staticmethod
    @contextmanager
    def for_coded() -> Iterator[Any]:
        pool = ThreadPoolExecutor(N)
        yield pool
        pool.shutdown(wait=False, cancel_futures=True)


class Localhost:
    """Lithops on this machine, with the same settings as polarmap's own."""

    name = "Lithops localhost"

    def __init__(self, count: int) -> None:
        self._functions = localhost_functions(count)

    def submit(self, pairs: list[tuple[float, Any]]) -> list[Any]:
        items = [{"seconds": seconds, "block": block} for seconds, block in pairs]
        futures: list[Any] = self._functions.map(delayed, items, chunksize=1, include_modules=None)
        return futures

    @staticmethod
    def has_ended(future: Any) -> bool:
        return bool(future.ready or future.success or future.done)

    def result(self, future: Any) -> Any:
        return future.result(throw_except=False, internal_storage=self._functions.internal_storage)

    def end(self) -> None:
        end(self._functions)

    @staticmethod
    @contextmanager
    def for_coded() -> Iterator[Any]:
        slots.SPARE_SLOTS, before = N, slots.SPARE_SLOTS  # these tasks sleep: none waits for a slot
        yield "localhost"
        slots.SPARE_SLOTS = before


Workers = type[Threads] | type[Localhost]


def plain(workers: Workers, draws: Draws, blocks: list[Any], with_backups: bool = False) -> None:
    """A map that waits for all; with backups, late tasks are started once more by cubed's rule."""
    began = time.monotonic()
    pools: list[Any] = [workers(K)]
    half = np.inf
    try:
        copies = [[(pools[0], future)] for future in pools[0].submit(pairs(draws.tasks[:K], blocks))]
        while late := [i for i in range(K) if first_of(copies[i]) is None]:
            now = time.monotonic() - began
            if K - len(late) >= CUBED.awaited(K):
                half = min(half, now)
            if with_backups and len(pools) == 1 and now > CUBED.slow * half:
                pools.append(workers(len(late)))
                again = pools[1].submit(pairs(draws.backups[late], [blocks[i] for i in late]))
                for i, future in zip(late, again):
                    copies[i].append((pools[1], future))
            time.sleep(POLL)
        for i, block in enumerate(blocks):
            pool, future = first_of(copies[i]) or copies[i][0]
            assert np.array_equal(pool.result(future), f(block))
    finally:
        for pool in pools:
            pool.end()


def pairs(seconds: np.ndarray, blocks: list[Any]) -> list[tuple[float, Any]]:
    return list(zip(seconds.tolist(), blocks))


def first_of(copies: list[tuple[Any, Any]]) -> tuple[Any, Any] | None:
    """The pool and the future that has ended, of a task and its backup."""
    return next(((pool, future) for pool, future in copies if pool.has_ended(future)), None)


def coded(workers: Workers, draws: Draws, blocks: list[Any], **options: Any) -> None:
    faults = {i: Fault("sleep", float(seconds)) for i, seconds in enumerate(draws.tasks)}
    with workers.for_coded() as executor:
        faulty = FaultyExecutor(executor, faults)
        results = polarmap.coded_map(f, blocks, workers=N, executor=faulty, verify=False, **options)
    assert all(np.allclose(found, f(block)) for found, block in zip(results, blocks))


SCHEMES: dict[str, Callable[..., None]] = {
    "plain map": plain,
    "backup tasks (cubed)": partial(plain, with_backups=True),
    "coded, upfront": coded,
    "coded, on demand": partial(coded, schedule="on_demand"),
}


def measured(workers: Workers, runtimes: Distribution, jobs: int) -> dict[str, np.ndarray]:
    """Scheme -> seconds of each job; the schemes in turns."""
    blocks = list(np.random.default_rng(0).standard_normal((K, 16)))
    rng = np.random.default_rng(1)
    seconds = {scheme: np.empty(jobs) for scheme in SCHEMES}
    for job in range(-1, jobs):  # the first one warms up
        draws = Draws(runtimes, rng)
        for scheme, run in SCHEMES.items():
            began = time.monotonic()
            run(workers, draws, blocks)
            if job >= 0:
                seconds[scheme][job] = time.monotonic() - began
    return seconds


def report(found: dict[tuple[str, str], dict[str, np.ndarray]]) -> str:
    parts = [
        "# Real jobs with delays",
        f"Written by `python -m benchmarks.stragglers`: jobs of {K} tasks ({N} coded) that sleep for drawn "
        f"run times, {SCALE:g} s to the unit of the distribution, the same draws for every scheme; a fresh "
        "executor for every map and a slot for every task. Seconds from the call to the results, start of "
        "the executor included; the ratio is to the plain map of the same job: median and quartiles.",
    ]
    if not any(workers == Localhost.name for workers, _ in found):
        parts.append("Lithops localhost was left out this time.")
    for (workers, name), seconds in found.items():
        base = seconds["plain map"]
        rows = [row(scheme, taken, taken / base) for scheme, taken in seconds.items()]
        parts += [f"## {workers}: {name}, {len(base)} jobs", table(HEADER, rows)]
    return "\n\n".join(parts) + "\n"


def row(scheme: str, taken: np.ndarray, ratio: np.ndarray) -> list[str]:
    low, middle, high = np.quantile(ratio, [0.25, 0.5, 0.75]).tolist()
    times = np.quantile(taken, [0.5, 0.99]).tolist()
    return [scheme, *(f"{each:.2f}" for each in times), f"{middle:.2f}", f"[{low:.2f}, {high:.2f}]"]


def main() -> None:
    quick = is_quick(__doc__)
    kinds: tuple[Workers, ...] = (Threads, Localhost)
    found = {
        (kind.name, name): measured(kind, DISTRIBUTIONS[name], 3 if quick else 50)
        for kind in kinds
        for name in CHOSEN
    }
    text = report(found)
    path = ROOT / ("build/comparison" if quick else "docs") / "real-jobs.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
