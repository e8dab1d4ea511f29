"""Least squares that is of use before the stragglers are back: a sketch that grows into the solution."""

from __future__ import annotations

import time

import numpy as np
from polarmap.testing import Fault, FaultyExecutor

import polarmap

ROWS, COLUMNS, WORKERS = 60_000, 40, 16


def main() -> None:
    stream = np.random.default_rng(0)
    A = stream.standard_normal((ROWS, COLUMNS)) * np.logspace(0, 3, COLUMNS)
    b = A @ stream.standard_normal(COLUMNS) + 5 * np.linspace(0, 20, ROWS) * stream.standard_normal(ROWS)
    best = np.linalg.lstsq(A, b, rcond=None)[0]
    with polarmap.Pool(workers=WORKERS) as pool:
        polarmap.hedged_map(np.sum, range(WORKERS), executor=pool)  # workers are there now
        slow = {task: Fault("sleep", seconds=0.3 * (task + 1)) for task in range(WORKERS - 4)}
        began = time.perf_counter()
        for estimate in polarmap.linalg.sketched_lstsq(
            A, b, tasks=WORKERS, executor=FaultyExecutor(pool, slow)
        ):
            seconds = time.perf_counter() - began
            error = np.linalg.norm(A @ (estimate.value - best)) / np.linalg.norm(b)
            print(
                f"{seconds:4.1f} s: {estimate.arrived:2} of {WORKERS} workers, "
                f"error {error:.1e}, said to be {estimate.error_p90:.1e} at most"
            )
    assert estimate.error_p90 == 0
    assert np.allclose(estimate.value, best)
    print("the last is the solution of numpy.linalg.lstsq")


if __name__ == "__main__":
    main()
