"""A step of an iteration on workers that stay, beside numpy, joblib and Dask on the same data.

python -m benchmarks.kept_workers

Every row does the same job: 24 blocks times a vector of 1,000 numbers. polarmap sends 32 and takes the
first 24 that determine the rest; the others need all of theirs. No environment variable is set: each
library limits the threads of its workers as it does by itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any

import numpy as np

import polarmap
from benchmarks import is_quick
from polarmap import CodedOperator, Fault, FaultyExecutor

BLOCKS, WORKERS, COLUMNS = 24, 32, 1_000
ASLEEP = {task: Fault("sleep", seconds=600.0, attempts=99) for task in (3, 11)}

Step = Callable[[], Any]
steps = 50


def milliseconds(step: Step) -> float:
    """The median of some steps, after ten that are not counted."""
    for _ in range(10):  # in which every worker comes to have its blocks
        step()
    times = []
    for _ in range(steps):
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    return 1e3 * median(times)


def with_joblib(A: np.ndarray, x: np.ndarray) -> float:
    """All blocks on loky's processes, which map large blocks."""
    from joblib import Parallel, delayed

    blocks = np.split(A, BLOCKS)
    with Parallel(n_jobs=-1) as parallel:
        return milliseconds(lambda: np.concatenate(parallel(delayed(np.matmul)(b, x) for b in blocks)))


def with_dask(A: np.ndarray, x: np.ndarray) -> float:
    """All blocks held as futures by processes with one thread each."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(threads_per_worker=1, dashboard_address=None, silence_logs=40) as cluster,
        Client(cluster) as client,
    ):
        held = client.scatter(np.split(A, BLOCKS))
        return milliseconds(
            lambda: np.concatenate(client.gather(client.map(np.matmul, held, [x] * BLOCKS, pure=False)))
        )


def coded(A: np.ndarray, x: np.ndarray, executor: Any = None) -> float:
    """CodedOperator @ x."""
    with CodedOperator(A, blocks=BLOCKS, workers=WORKERS, executor=executor) as operator:
        return milliseconds(lambda: operator @ x)


def on_threads(A: np.ndarray, x: np.ndarray) -> float:
    """The same on a thread pool of the standard library."""
    with ThreadPoolExecutor(4) as pool:
        return coded(A, x, pool)


ROWS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "numpy, no workers": lambda A, x: milliseconds(lambda: A @ x),
    "polarmap, default executor": coded,
    "polarmap, two of 32 always asleep": lambda A, x: coded(A, x, FaultyExecutor(None, ASLEEP)),
    "polarmap, thread pool": on_threads,
    "joblib": with_joblib,
    "Dask": with_dask,
}


def main() -> None:
    """Print both tables."""
    global steps
    steps = 10 if is_quick(__doc__) else 50
    stream = np.random.default_rng(0)
    x = stream.standard_normal(COLUMNS)
    sizes = {rows: stream.standard_normal((BLOCKS * rows, COLUMNS)) for rows in (1_000, 4)}
    heads = [f"{BLOCKS} x {rows} x {COLUMNS}" for rows in sizes]
    print(f"{f'ms a step, median of {steps}':36s}" + "".join(f"{head:>18s}" for head in heads))
    for name, row in ROWS.items():
        print(f"{name:36s}" + "".join(f"{row(A, x):18.2f}" for A in sizes.values()), flush=True)
    print()
    small = stream.standard_normal((240, 4))

    def small_map() -> Any:
        return polarmap.coded_map(
            lambda block: block @ np.ones(4), small, blocks=6, workers=8, progress=False
        )

    print(f"a small map, 6 of 8: {milliseconds(small_map):.2f} ms")
    X, y = stream.standard_normal((442, 10)), stream.standard_normal(442)
    polarmap.shutdown()
    for which in ("with the start of workers", "afterwards"):
        began = time.perf_counter()
        polarmap.glm.Ridge().fit(X, y)
        print(f"Ridge().fit on 442 x 10, {which}: {time.perf_counter() - began:.2f} s")


if __name__ == "__main__":
    main()
