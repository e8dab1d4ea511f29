"""Least squares in the shape of ImageNet, 2,013,526 x 196,608 in float32 (1.58 TB), at any scale.

Workers make, code and store the matrix, of rank 64: it is never in one place. Needs the extra `linalg`."""

import argparse
import tempfile
import time

import numpy as np
from scipy.sparse.linalg import lsqr

from polarmap import CodedOperator, Pool, coded_map
from polarmap.arrays import Stored


def make_array(name, left, right, storage, pool):
    """The product as a coded array: it is linear in `left`, so its parity is made of the parity of `left`."""
    destination = Stored(name, storage)
    array = coded_map(lambda rows: rows @ right.T, left, tasks=32, out=destination, executor=pool).array
    array.repair(executor=pool)  # what was late when others determined it
    return array


def main(byte_fraction: float, n_steps: int, storage: str, pool: Pool) -> None:
    rows, columns = (round(length * byte_fraction**0.5) for length in (2_013_526, 196_608))
    rng, started_at = np.random.default_rng(0), time.perf_counter()
    left, right = (rng.standard_normal((length, 64), np.float32) for length in (rows, columns))
    A = make_array("images", left, right, storage, pool)
    transposed_array = make_array("images-transposed", right, left, storage, pool)
    print(f"{rows:,} x {columns:,}, stored by rows and by columns: {time.perf_counter() - started_at:.1f} s")
    with CodedOperator(A, transpose=transposed_array, executor=pool) as operator:
        x = right @ rng.standard_normal(64, np.float32) / columns  # of all that explain b the shortest
        b, started_at = operator @ x, time.perf_counter()
        solution = lsqr(operator, b, iter_lim=n_steps, atol=0, btol=0)[0]
        print(f"LSQR: {(time.perf_counter() - started_at) / n_steps:.2f} s a step")
        print(f"after {n_steps}: |found - x| / |x| = {np.linalg.norm(solution - x) / np.linalg.norm(x):.0e}")
    A.delete(), transposed_array.delete()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1e-4, help="of the bytes")
    parser.add_argument("--steps", type=int, default=10, help="of LSQR")
    parser.add_argument("--storage", help="a folder; or a YAML file of Lithops, whose workers do it")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        storage = arguments.storage or folder
        with Pool(storage if storage.endswith(".yaml") else None) as pool:
            main(arguments.scale, arguments.steps, storage, pool)
