"""Compute the largest singular value of a stored matrix, encoded once and mapped often with two stragglers.

The matrix is stored in a folder and mapped by local processes, or by `power_iteration.py my_cloud.yaml`."""

import sys
import tempfile

import numpy as np

import polarmap
from polarmap.arrays import CodedArray
from polarmap.testing import Fault, FaultyExecutor

ROWS, COLUMNS, ITERATIONS = 4_000, 240, 3


def multiply(coded_array: CodedArray, x: np.ndarray, executor: str | None, iteration: int) -> np.ndarray:
    """Return A @ x for the stored matrix A, while two workers sleep, different ones in each iteration."""
    faults = {(5 * iteration + offset) % coded_array.n: Fault("sleep", 30) for offset in (0, 7)}
    options = {"executor": FaultyExecutor(executor, faults), "retries": 5, "verify": False}
    return polarmap.coded_map(lambda block: block @ x, coded_array, **options).concatenate()


def main(config: str | None = None) -> None:
    rng = np.random.default_rng(0)
    A = rng.standard_normal((ROWS, COLUMNS))
    A += np.outer(rng.standard_normal(ROWS), rng.standard_normal(COLUMNS))
    with tempfile.TemporaryDirectory() as folder:
        options = {"blocks": 6, "tasks": 9, "storage": config or folder, "overwrite": True}
        by_rows = polarmap.encode(A, name="power-rows", **options)
        by_columns = polarmap.encode(A.T, name="power-columns", **options)
        print(by_rows, by_columns, sep="\n")
        by_rows.store.delete([by_rows.block_segments(2)[0].key])  # a deleted part is one more erasure
        v = rng.standard_normal(COLUMNS)
        for iteration in range(ITERATIONS):
            u = multiply(by_rows, v / np.linalg.norm(v), config, iteration)
            v = multiply(by_columns, u / np.linalg.norm(u), config, iteration)
            print(f"iteration {iteration}: largest singular value about {np.linalg.norm(v):.6f}")
        print(by_rows.check(), by_rows.repair().damaged_blocks, by_rows.check(), sep="\n")
        by_rows.delete()
        by_columns.delete()
    exact = np.linalg.norm(A, 2)
    assert abs(np.linalg.norm(v) - exact) < 1e-6 * exact
    print(f"numpy on the whole matrix:              {exact:.6f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
