"""A @ x on workers of which two sleep: a plain map waits, a coded map does not."""

import sys
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np

import polarmap
from polarmap.testing import Fault, FaultyExecutor

SLEEPERS = (3, 11)


def plain_task(block: np.ndarray, x: np.ndarray, sleep: float) -> np.ndarray:
    time.sleep(sleep)
    return block @ x


def main(rows: int = 20_000, columns: int = 960, seconds: float = 15.0) -> None:
    rng = np.random.default_rng(0)
    A, x = rng.standard_normal((rows, columns)), rng.standard_normal(columns)
    exact = A @ x
    print(f"A is {rows:,} x {columns:,}; tasks {SLEEPERS} sleep {seconds:g} s, coded task 17 is killed too")

    began = time.perf_counter()
    with ProcessPoolExecutor(4) as pool:
        sleeps = [seconds * (index in SLEEPERS) for index in range(24)]
        uncoded = np.concatenate(list(pool.map(plain_task, np.array_split(A, 24), [x] * 24, sleeps)))
    print(f"uncoded map, 24 tasks: {time.perf_counter() - began:6.2f} s")
    assert np.allclose(uncoded, exact)

    faults = {index: Fault("sleep", seconds) for index in SLEEPERS} | {17: Fault("kill")}
    began = time.perf_counter()
    y = polarmap.coded_map(
        lambda block: block @ x, A, blocks=24, tasks=32, executor=FaultyExecutor(None, faults)
    )
    print(f"coded map,   32 tasks: {time.perf_counter() - began:6.2f} s")
    print(y.report)
    error = np.abs(y.concatenate() - exact).max() / np.abs(exact).max()
    print(f"largest error of the coded result: {error:.1e} of the largest entry")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
