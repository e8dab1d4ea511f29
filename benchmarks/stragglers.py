"""Real jobs on Lithops localhost whose tasks sleep for drawn run times: coded maps against rivals.

The same draws for every scheme of a job, one slot for each task (as in a cloud), a fresh executor
for every map. Writes docs/real-jobs.md; with --quick a few jobs, to build/comparison/.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import polarmap
from benchmarks import is_quick
from benchmarks.compare.jobs import LAWS
from benchmarks.compare.page import table
from polarmap import Fault, FaultyExecutor
from polarmap.executors import slots
from polarmap.executors.lithops import end, localhost_functions
from polarmap.runtimes.backups import CUBED

K, N = 24, 32
SCALE = 0.4  # seconds in which a task of the laws' unit sleeps
POLL = 0.005
ROOT = Path(__file__).resolve().parents[1]
CHOSEN = ("2 % stragglers at 5x", "real trace of a training job")


def f(block: Any) -> Any:
    return 2 * block


def delayed(seconds: float, block: Any) -> Any:
    time.sleep(seconds)
    return f(block)


class Draws:
    """Seconds of every task of one job, and of the backups of its data tasks."""

    def __init__(self, law: Any, rng: np.random.Generator) -> None:
        self.tasks = SCALE * law.sample(rng, N)
        self.backups = SCALE * law.sample(rng, K)


def plain(draws: Draws, blocks: list[Any]) -> None:
    """Lithops' map: wait for all."""
    mapped(draws, blocks, with_backups=False)


def backed_up(draws: Draws, blocks: list[Any]) -> None:
    """The same, and late tasks are started once more by cubed's rule."""
    mapped(draws, blocks, with_backups=True)


def mapped(draws: Draws, blocks: list[Any], with_backups: bool) -> None:
    began = time.monotonic()
    executors = [localhost_functions(K)]
    half = np.inf
    try:
        copies = [{i: future} for i, future in enumerate(submit(executors[0], draws.tasks[:K], blocks))]
        while late := [i for i in range(K) if not any(map(has_ended, copies[i].values()))]:
            now = time.monotonic() - began
            if K - len(late) >= CUBED.awaited(K):
                half = min(half, now)
            if with_backups and len(executors) == 1 and now > CUBED.slow * half:
                executors.append(localhost_functions(len(late)))
                again = submit(executors[1], draws.backups[late], [blocks[i] for i in late])
                for i, future in zip(late, again):
                    copies[i][K + i] = future
            time.sleep(POLL)
        for i, block in enumerate(blocks):
            assert np.array_equal(first_result(copies[i], executors), f(block))
    finally:
        for functions in executors:
            end(functions)


def submit(functions: Any, seconds: np.ndarray, blocks: list[Any]) -> list[Any]:
    pairs = [{"seconds": float(each), "block": block} for each, block in zip(seconds, blocks)]
    futures: list[Any] = functions.map(delayed, pairs, chunksize=1, include_modules=None)
    return futures


def has_ended(future: Any) -> bool:
    return bool(future.ready or future.success or future.done)


def first_result(copies: dict[int, Any], executors: list[Any]) -> Any:
    """Of a task and its backup, whichever has ended."""
    copy, future = next((copy, future) for copy, future in copies.items() if has_ended(future))
    storage = executors[copy >= K].internal_storage
    return future.result(throw_except=False, internal_storage=storage)


def coded(draws: Draws, blocks: list[Any], **options: Any) -> None:
    faults = {i: Fault("sleep", float(seconds)) for i, seconds in enumerate(draws.tasks)}
    executor = FaultyExecutor("localhost", faults)
    results = polarmap.coded_map(f, blocks, workers=N, executor=executor, verify=False, **options)
    assert all(np.allclose(found, f(block)) for found, block in zip(results, blocks))


SCHEMES: dict[str, Callable[[Draws, list[Any]], None]] = {
    "plain map": plain,
    "backup tasks (cubed)": backed_up,
    "coded, upfront": coded,
    "coded, on demand": partial(coded, parity="on_demand"),
}


def measured(jobs: int) -> dict[str, dict[str, np.ndarray]]:
    """Law -> scheme -> seconds of each job; the schemes in turns."""
    blocks = list(np.random.default_rng(0).standard_normal((K, 16)))
    found = {}
    for name in CHOSEN:
        rng = np.random.default_rng(1)
        seconds = {scheme: np.empty(jobs) for scheme in SCHEMES}
        for job in range(-1, jobs):  # the first one warms up
            draws = Draws(LAWS[name], rng)
            for scheme, run in SCHEMES.items():
                began = time.monotonic()
                run(draws, blocks)
                if job >= 0:
                    seconds[scheme][job] = time.monotonic() - began
        found[name] = seconds
    return found


def report(found: dict[str, dict[str, np.ndarray]], jobs: int) -> str:
    parts = [
        "# Real jobs with delays",
        f"Written by `python -m benchmarks.stragglers`. Lithops on localhost, {jobs} jobs for each law, "
        f"each of {K} tasks ({N} coded) that sleep for drawn run times, {SCALE:g} s to the unit of the "
        "law, the same draws for every scheme; a fresh executor for every map and a slot for every task. "
        "Seconds from the call to the results, start of the executor included; the ratio is to the plain "
        "map of the same job: median and, in brackets, quartiles.",
    ]
    for law, seconds in found.items():
        base = seconds["plain map"]
        rows = [row(scheme, taken, taken / base) for scheme, taken in seconds.items()]
        header = [law, "median s", "99 % s", "ratio to plain", "quartiles"]
        parts.append(table(header, rows))
    return "\n\n".join(parts) + "\n"


def row(scheme: str, taken: np.ndarray, ratio: np.ndarray) -> list[str]:
    low, middle, high = np.quantile(ratio, [0.25, 0.5, 0.75]).tolist()
    times = np.quantile(taken, [0.5, 0.99]).tolist()
    return [scheme, *(f"{each:.2f}" for each in times), f"{middle:.2f}", f"[{low:.2f}, {high:.2f}]"]


def main() -> None:
    quick = is_quick(__doc__)
    jobs = 3 if quick else 50
    slots.SPARE_SLOTS = N  # these tasks sleep: as in a cloud, none waits for another's slot
    text = report(measured(jobs), jobs)
    path = ROOT / ("build/comparison" if quick else "docs") / "real-jobs.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
