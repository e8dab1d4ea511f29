"""CodedOperator on sparse matrices against scipy: products, lsqr and svds, with and without stragglers.

Of each matrix: what a product takes in scipy, and through an operator that is coded, has copies of late
tasks, or chooses by itself; 24 blocks, 8 of parity. "2 sleep": two workers sleep in every product.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import scipy.sparse
from scipy.sparse.linalg import lsqr, svds

import polarmap
from benchmarks import in_turns, is_quick, seconds_of, show
from polarmap import CodedOperator, Pool
from polarmap.blocks.sparse import SparseCodedBlocks, SparseDataBlocks, compute_relative_work
from polarmap.codes import PolarCode
from polarmap.codes.uncoded import DEFAULT_BACKUPS, Uncoded
from polarmap.driver.options import check_options
from polarmap.linalg.products import make_product_runner
from polarmap.testing import Fault, FaultyExecutor
from polarmap.worker.block_products import multiply_block

K, N = 24, 32
LATE = {3: Fault("sleep", 20.0), 9: Fault("sleep", 20.0)}
STEPS = 10  # of lsqr
VALUES = 2  # of svds


def product(coded: Any, x: Any, executor: Any) -> Callable[[], Any]:
    """A x by blocks of rows that are coded one way."""
    run = make_product_runner(executor, check_options("auto", None, None, 1), lambda: ())
    f, rows = partial(multiply_block, x, x.dtype, True), coded.blocks.rows
    return lambda: run(f, coded, (rows,)).concatenate()


def products(A: Any, pool: Any, repeats: int) -> tuple[Any, ...]:
    """What decides, and the seconds of a product: scipy's, coded, copies; the last two with sleepers."""
    x, blocks = np.ones(A.shape[1]), SparseDataBlocks(A, K)
    coded = SparseCodedBlocks(blocks, PolarCode(N, K), keep_parity=True)
    copies = SparseCodedBlocks(blocks, Uncoded(K, DEFAULT_BACKUPS), keep_parity=True)
    late = FaultyExecutor(pool, LATE)
    actions: list[Callable[[], Any]] = [lambda: A @ x]
    actions += [product(one, x, executor) for executor in (pool, late) for one in (coded, copies)]
    for action in actions:
        assert np.allclose(action(), A @ x)
    parity = [coded.block_layout(index)[0][1][0] for index in range(K, N)]
    work = compute_relative_work(blocks.nonzeros_per_block, parity)
    return parity[0] * K / A.nnz, work, coded.encode_seconds, *map(median, in_turns(actions, repeats))


def solvers(A: Any, pool: Any) -> list[tuple[Any, ...]]:
    """lsqr and svds on operators that choose, and in scipy: seconds, and milliseconds of a product."""
    b = np.random.default_rng(1).standard_normal(A.shape[0])
    tasks: dict[str, Callable[[Any], Any]] = {
        "lsqr": lambda one: lsqr(one, b, atol=0, btol=0, iter_lim=STEPS)[0],
        "svds": lambda one: svds(one, VALUES, return_singular_vectors=False, rng=0, tol=1e-3),
    }
    found = []
    counts = dict.fromkeys(tasks, 0)  # of products, which are as many in scipy
    for name, executor in (("operator", pool), ("2 sleep", FaultyExecutor(pool, LATE))):
        with CodedOperator(A, blocks=K, tasks=N, executor=executor) as operator:
            operator.rmatvec(operator.matvec(np.ones(A.shape[1])))  # encodes both sides
            for solver, solve in tasks.items():
                before, seconds = operator.n_products, seconds_of(partial(solve, operator))
                counts[solver] = operator.n_products - before
                code = operator.report.code if operator.report else ""
                found.append((solver, name, seconds, 1e3 * seconds / counts[solver], code))
    for solver, solve in tasks.items():
        seconds = seconds_of(partial(solve, A))
        found.append((solver, "scipy", seconds, 1e3 * seconds / counts[solver], ""))
    return found


def main() -> None:
    quick = is_quick(__doc__)
    shapes = [(24_000, 1_000, 0.001), (24_000, 1_000, 0.01)]
    if not quick:
        shapes += [(96_000, 10_000, 0.001), (48_000, 4_000, 0.01), (96_000, 10_000, 0.01)]
    print(f"polarmap {polarmap.__version__}: A x, {K} blocks, {N} coded; seconds of a product")
    lines, solved = [], []
    with Pool() as pool:
        for rows, columns, density in shapes:
            A = scipy.sparse.random_array((rows, columns), density=density, format="csr", rng=0)
            name = f"{rows:,} x {columns:,}, {density:.1%}"
            lines.append((name, *products(A, pool, 2 if quick else 3)))
            if (rows, density) in ((24_000, 0.01), (96_000, 0.001)):
                solved += [(name, *one) for one in solvers(A, pool)]
    coding = ("parity/data", "work", "encode")
    show(("", *coding, "scipy", "coded", "copies", "coded, 2 sleep", "copies, 2 sleep"), lines)
    print(f"\nlsqr, {STEPS} steps; svds, {VALUES} values")
    show(("", "", "", "seconds", "ms a product", "code"), solved)


if __name__ == "__main__":
    main()
