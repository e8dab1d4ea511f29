"""Whole jobs on workers that stay.

python -m benchmarks.kept_jobs

All by default: no executor, no option that a user would not set, no environment variable. Figures are
medians of all runs, with what nine in ten of them take at most in brackets.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any

import numpy as np
from scipy.sparse.linalg import aslinearoperator, svds
from sklearn.datasets import load_diabetes

import polarmap
from benchmarks import in_turns, is_quick, median_and_most, seconds_of, show
from polarmap import CodedOperator, Fault, FaultyExecutor, Pool

FIRST_MAP = """
import numpy as np, polarmap
polarmap.coded_map(np.sum, np.arange(48.0), blocks=12, workers=16, progress=False)
"""
KILL_EVERY = 50  # maps

Line = tuple[str, str]  # what, figure


def milliseconds(taken: Sequence[float]) -> str:
    return f"{median_and_most([1e3 * one for one in taken], digits=1)} ms"


def ratio(taken: Sequence[float], other: Sequence[float]) -> str:
    return f"{median(taken) / median(other):.2f}"


def products(stream: np.random.Generator, turns: int) -> Iterator[Line]:
    A, x, b = stream.standard_normal((24_000, 1_000)), np.ones(1_000), np.ones(24_000)
    with CodedOperator(A) as operator:

        def gradient_step(factor: Any) -> Any:
            return x - 1e-5 * (factor.T @ (factor @ x - b))

        plain = aslinearoperator(A)
        found = in_turns(
            [
                lambda: A @ x,
                lambda: operator @ x,
                lambda: gradient_step(plain),
                lambda: gradient_step(operator),
            ],
            turns,
        )
    ours, theirs = (f"{milliseconds(found[i])}, {ratio(found[i], found[i - 1])} x numpy" for i in (1, 3))
    yield "CodedOperator @ x, 24,000 x 1,000", ours
    yield "gradient descent step on it", theirs


def singular_values(stream: np.random.Generator, turns: int) -> Iterator[Line]:
    A = stream.standard_normal((20_000, 500))
    options = {"k": 6, "return_singular_vectors": False, "random_state": 0}

    def coded() -> Any:
        with CodedOperator(A) as operator:
            return svds(operator, **options)

    plain, ours = in_turns([lambda: svds(aslinearoperator(A), **options), coded], turns)
    figure = f"{median_and_most(ours)} s, {ratio(ours, plain)} x numpy-backed"
    yield "svds, k = 6 of 20,000 x 500", figure


def small_maps(stream: np.random.Generator, turns: int) -> Iterator[Line]:
    small, x = stream.standard_normal((240, 4)), np.ones(4)

    def default() -> Any:
        return polarmap.coded_map(lambda block: block @ x, small, blocks=6, workers=8, progress=False)

    default()
    later = [seconds_of(default) for _ in range(turns)]
    yield "a later map, 6 of 8, small", milliseconds(later)
    with ThreadPoolExecutor(4) as pool:

        def on_threads() -> Any:
            return polarmap.coded_map(
                lambda block: block @ x, small, blocks=24, workers=32, executor=pool, progress=False
            )

        on_threads()
        loop = [seconds_of(on_threads) for _ in range(turns)]
    yield "the loop: thread pool, 24 of 32, small", milliseconds(loop)
    process = [sys.executable, "-c", FIRST_MAP]
    first = [seconds_of(lambda: subprocess.run(process, check=True)) for _ in range(3)]
    yield "a process: import, first map of 16 tasks, end", f"{median_and_most(first)} s"


def models(stream: np.random.Generator, turns: int) -> Iterator[Line]:
    X, y = load_diabetes(return_X_y=True)
    polarmap.shutdown()
    first = seconds_of(lambda: polarmap.glm.Ridge().fit(X, y))
    later = [seconds_of(lambda: polarmap.glm.Ridge().fit(X, y)) for _ in range(turns)]
    yield "Ridge().fit(diabetes), with the start of workers", f"{first:.2f} s"
    yield "Ridge().fit(diabetes), later", f"{median_and_most(later)} s"


def killed_workers(stream: np.random.Generator, turns: int) -> Iterator[Line]:
    A, x = stream.standard_normal((2_400, 1_000)), np.ones(1_000)
    maps = 20 * turns
    with (
        Pool() as pool,
        CodedOperator(A, executor=pool) as lucky,
        CodedOperator(A, executor=FaultyExecutor(pool, {5: Fault("kill")})) as unlucky,
    ):
        for operator in (lucky, unlucky):
            operator @ x
        turn = itertools.cycle([unlucky, *[lucky] * (KILL_EVERY - 1)])
        taken = [seconds_of(lambda: next(turn) @ x) for _ in range(maps)]
    figure = f"{1e3 * max(taken):.0f} ms; median {milliseconds(taken)}"
    yield f"slowest of {maps:,} steps, a worker killed every {KILL_EVERY}", figure


def main() -> None:
    """Print the table."""
    turns = 5 if is_quick(__doc__) else 50
    stream = np.random.default_rng(0)
    print("load " + "/".join(f"{number:.1f}" for number in os.getloadavg()))
    subjects = (
        products(stream, turns),
        small_maps(stream, turns),
        models(stream, max(3, turns // 5)),
        singular_values(stream, max(2, turns // 10)),
        killed_workers(stream, turns),
    )
    show(("", ""), itertools.chain(*subjects))


if __name__ == "__main__":
    main()
