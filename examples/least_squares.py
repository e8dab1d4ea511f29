"""20,000 x 4,800 least squares (Pilanci 2021), LSQR through coded products that lose workers in each.

python examples/least_squares.py [share of the size, 0.25] [iterations, 8]"""

import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from polarmap.testing import Fault, FaultyExecutor
from scipy.sparse.linalg import LinearOperator, lsqr

from polarmap import CodedOperator

SLEEP = 0.5  # seconds that two of the workers sleep in every product


def uncoded(A, pool, sleepers):
    """The same products as a plain map: 24 tasks, of which it waits for all."""

    def task(index, part, v):
        time.sleep(SLEEP * (index in sleepers))
        return part @ v

    def product(parts, v):
        return np.concatenate(list(pool.map(task, range(24), parts, [v.reshape(-1)] * 24)))

    rows, columns = np.array_split(A, 24), np.array_split(A.T, 24)
    return LinearOperator(A.shape, lambda v: product(rows, v), lambda u: product(columns, u), dtype=float)


def main(share: float = 0.25, iterations: int = 8) -> None:
    rows, columns, stream = int(20_000 * share), int(4_800 * share), np.random.default_rng(0)
    A, x = stream.standard_normal((rows, columns)), stream.standard_normal(columns)
    b = A @ x + stream.standard_normal(rows)
    print(f"A is {rows:,} x {columns:,}; seconds per LSQR iteration (two products) over {iterations}")
    with ThreadPoolExecutor(32) as pool:
        for title, sleepers in (("no stragglers", ()), (f"tasks 3 and 11 sleep {SLEEP:g} s", (3, 11))):
            faulty = FaultyExecutor(pool, {task: Fault("sleep", SLEEP) for task in sleepers})
            operators = {"plain": uncoded(A, pool, sleepers), "coded": CodedOperator(A, executor=faulty)}
            for name, operator in operators.items():
                operator.rmatvec(operator.matvec(x))  # cuts and encodes, once
                began = time.perf_counter()
                found = lsqr(operator, b, iter_lim=iterations, atol=0, btol=0)[0]
                seconds = (time.perf_counter() - began) / iterations
                print(f"{title:28} {name}: {seconds:.3f} s, |Ax - b| = {np.linalg.norm(A @ found - b):.6f}")


if __name__ == "__main__":
    main(*map(float, sys.argv[1:2]), *map(int, sys.argv[2:3]))
