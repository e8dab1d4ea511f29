"""Workers that stay: what a map, a product and a fit cost by default, against numpy and plain pools.

Medians, 90 % quantiles where they are told. As users get it: nothing is set in the environment.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

import polarmap
from benchmarks import is_quick, show
from polarmap import CodedOperator, Fault, FaultyExecutor

K, N = 24, 32
Row = tuple[str, float, float, float | str]
ASLEEP = {3: Fault("sleep", 600.0, 10**9), 17: Fault("sleep", 600.0, 10**9)}


def seconds_of(call: Callable[[], Any], repetitions: int) -> list[float]:
    """What each of so many calls takes."""
    found = []
    for _ in range(repetitions):
        began = time.perf_counter()
        call()
        found.append(time.perf_counter() - began)
    return found


def row(label: str, found: list[float], ratio: float | str = "") -> Row:
    """Of the table, in milliseconds."""
    milliseconds = sorted(1000 * one for one in found)
    return label, statistics.median(milliseconds), milliseconds[int(0.9 * (len(milliseconds) - 1))], ratio


def steps(repetitions: int) -> list[Row]:
    """8 KB of x to 32 workers of 4 x 1,000 numbers each; 24 are needed."""
    blocks = np.random.default_rng(0).standard_normal((4 * K, 1_000))
    x = np.ones(1_000)
    rows = []
    with ThreadPoolExecutor(N) as threads, ProcessPoolExecutor(4) as processes:
        executors = {
            "workers here": None,
            "workers here, two asleep": FaultyExecutor(None, ASLEEP),
            "thread pool": threads,
            "process pool": processes,
        }
        for label, executor in executors.items():
            with CodedOperator(blocks, blocks=K, workers=N, executor=executor) as operator:
                seconds_of(partial(operator.matvec, x), 3)
                rows.append(row(f"a step, {label}", seconds_of(partial(operator.matvec, x), repetitions)))
    return rows


def products(repetitions: int) -> list[Row]:
    """One product with a matrix of 24,000 x 1,000."""
    matrix = np.random.default_rng(0).standard_normal((24_000, 1_000))
    x = np.ones(1_000)
    plain: list[float] = []
    with CodedOperator(matrix, blocks=K, workers=N) as operator:
        first = seconds_of(lambda: operator @ x, 1)
        seconds_of(lambda: operator @ x, 3)
        coded = []
        for _ in range(repetitions):  # in turns
            plain += seconds_of(lambda: matrix @ x, 1)
            coded += seconds_of(lambda: operator @ x, 1)
    ratio = statistics.median(coded) / statistics.median(plain)
    return [
        row("24,000 x 1,000, numpy", plain),
        row("24,000 x 1,000, first product", first),
        row("24,000 x 1,000, CodedOperator", coded, ratio),
    ]


def maps(repetitions: int) -> list[Row]:
    """A small coded_map, 6 of 8, and the first one."""
    data, x = np.random.default_rng(0).standard_normal((240, 50)), np.ones(50)

    def call() -> Any:
        return polarmap.coded_map(lambda block: block @ x, data, blocks=6, workers=8)

    polarmap.shutdown()
    return [
        row("coded_map, 6 of 8, first", seconds_of(call, 1)),
        row("coded_map, 6 of 8, later", seconds_of(call, repetitions)),
    ]


def fits(repetitions: int) -> list[Row]:
    """Ridge regression on 442 rows."""
    from sklearn.datasets import load_diabetes

    X, y = load_diabetes(return_X_y=True)
    polarmap.shutdown()
    first = seconds_of(lambda: polarmap.glm.Ridge().fit(X, y), 1)
    later = seconds_of(lambda: polarmap.glm.Ridge().fit(X, y), max(3, repetitions // 20))
    return [row("Ridge().fit(diabetes), first", first), row("Ridge().fit(diabetes), later", later)]


def main() -> None:
    repetitions = 20 if is_quick(__doc__) else 200
    parts = (maps, steps, products, fits)
    rows = (one for part in parts for one in part(repetitions))
    show(("what", "median ms", "90 % ms", "/ numpy"), ((f"{one[0]:<40}", *one[1:]) for one in rows))


if __name__ == "__main__":
    main()
