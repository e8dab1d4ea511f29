"""Least-squares-sized matrix-vector product on 32 workers, three of which are in trouble."""

import sys
import time

import numpy as np

import polarmap
from polarmap import Fault, FaultyExecutor


def main(rows: int = 20_000, columns: int = 4_800) -> None:
    A = np.random.default_rng(0).standard_normal((rows, columns))
    x = np.ones(columns)

    def product(block: np.ndarray) -> np.ndarray:
        return block @ x

    trouble = {3: Fault("sleep", seconds=30), 11: Fault("sleep", seconds=30), 17: Fault("kill")}
    print(f"A is {rows:,} x {columns:,}: 24 blocks on 32 workers; 3 and 11 sleep for 30 s, 17 is killed")
    began = time.perf_counter()
    y = polarmap.coded_map(
        product, A, blocks=24, workers=32, executor=FaultyExecutor("localhost", trouble), progress=True
    )
    coded = time.perf_counter() - began

    # What a map without a code does is known without waiting for it: it waits for the sleepers.
    began = time.perf_counter()
    polarmap.coded_map(product, A, blocks=24, workers=32)
    healthy = time.perf_counter() - began

    exact = A @ x
    print(f"uncoded map      waits {max(f.seconds for f in trouble.values()):.0f} s for the sleepers, then has no block 17")
    print(f"coded map        {coded:.2f} s (with every worker healthy: {healthy:.2f} s)")
    print(y.report)
    error = np.abs(y.concatenate() - exact).max() / np.abs(exact).max()
    print(f"largest error    {error:.1e} of the largest entry")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
