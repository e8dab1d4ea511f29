"""The largest singular values of a matrix, by scipy, on workers of which some sleep and die."""

import sys
import time

import numpy as np
from polarmap.testing import Fault, FaultyExecutor
from scipy.sparse.linalg import svds

import polarmap

# In every single product: two workers sleep, one dies.
FAULTS = {2: Fault("sleep", 20), 7: Fault("sleep", 20), 9: Fault("raise", attempts=9)}


def main(rows: int = 6_000, columns: int = 1_200, wanted: int = 5) -> None:
    rng = np.random.default_rng(0)
    low_rank = rng.standard_normal((rows, wanted)) @ rng.standard_normal((wanted, columns))
    A = low_rank + 0.1 * rng.standard_normal((rows, columns))
    print(f"A is {rows:,} x {columns:,}: rank {wanted} and noise; of 16 workers two sleep 20 s, one fails")

    executor = FaultyExecutor(None, FAULTS)  # of the default: processes of this machine that stay
    with polarmap.CodedOperator(A, blocks=12, tasks=16, executor=executor) as operator:
        began = time.perf_counter()
        values = svds(operator, k=wanted, rng=0)[1]
        print(f"svds: {operator.products} coded products in {time.perf_counter() - began:.2f} s")
        print(f"the last one: {operator.report}")

    exact = np.sqrt(np.linalg.eigvalsh(A.T @ A)[-wanted:])
    print("singular values:", np.round(values, 3))
    print(f"largest error against numpy: {np.abs(values - exact).max() / exact.max():.1e} (relative)")
    assert np.allclose(values, exact)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
