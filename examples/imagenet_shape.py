"""Solve least squares with a matrix of ImageNet's shape, 2,013,526 x 196,608 float32 (1.58 TB), or smaller.

Workers generate, encode and store the matrix, of rank 64, in parts. Needs the extra `linalg`."""

import argparse
import tempfile
import time

import numpy as np
from scipy.sparse.linalg import lsqr

from polarmap import CodedOperator, Pool, coded_map
from polarmap.arrays import Stored


def make_array(name, left, right, storage, pool):
    """Store left @ right.T as a coded array, whose parity is computed from the parity of `left`."""
    destination = Stored(name, storage)
    array = coded_map(lambda rows: rows @ right.T, left, tasks=32, out=destination, executor=pool).array
    array.repair(executor=pool)  # stores the blocks of late tasks, too
    return array


def main(byte_fraction: float, n_steps: int, storage: str, pool: Pool) -> None:
    rows, columns = (round(length * byte_fraction**0.5) for length in (2_013_526, 196_608))
    rng, started_at = np.random.default_rng(0), time.perf_counter()
    left, right = (rng.standard_normal((length, 64), np.float32) for length in (rows, columns))
    A = make_array("images", left, right, storage, pool)
    transposed_array = make_array("images-transposed", right, left, storage, pool)
    print(f"{rows:,} x {columns:,}, stored by rows and by columns: {time.perf_counter() - started_at:.1f} s")
    with CodedOperator(A, transpose=transposed_array, executor=pool) as operator:
        x = right @ rng.standard_normal(64, np.float32) / columns  # the minimum-norm solution
        b, started_at = operator @ x, time.perf_counter()
        solution = lsqr(operator, b, iter_lim=n_steps, atol=0, btol=0)[0]
        print(f"LSQR: {(time.perf_counter() - started_at) / n_steps:.2f} s a step")
        print(f"after {n_steps}: relative error {np.linalg.norm(solution - x) / np.linalg.norm(x):.0e}")
    A.delete(), transposed_array.delete()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1e-4, help="fraction of the full size in bytes")
    parser.add_argument("--steps", type=int, default=10, help="iterations of LSQR")
    parser.add_argument("--storage", help="a folder, or a Lithops YAML file for workers in a cloud")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        storage = arguments.storage or folder
        with Pool(storage if storage.endswith(".yaml") else None) as pool:
            main(arguments.scale, arguments.steps, storage, pool)
