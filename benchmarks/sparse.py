"""Compare CodedOperator on sparse matrices with scipy: products, lsqr and svds, with and without stragglers.

For each matrix, a product is timed in scipy, and through operators of 24 blocks with 8 parity blocks or with
backup copies of late tasks. Solvers use an operator that chooses by itself. "2 sleep": two workers sleep in
every product.
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
from benchmarks import parse_quick_flag, print_table, time_call, time_in_turns
from polarmap import CodedOperator, Pool
from polarmap.blocks.sparse import SparseCodedBlocks, SparseDataBlocks, compute_relative_work
from polarmap.codes import PolarCode
from polarmap.codes.uncoded import DEFAULT_BACKUPS, Uncoded
from polarmap.driver.options import check_options
from polarmap.executors import resolve_executor
from polarmap.linalg.products import make_product_runner
from polarmap.testing import Fault, FaultyExecutor
from polarmap.worker.task_functions import multiply_block

K, N = 24, 32
SLEEPING_FAULTS = {3: Fault("sleep", 20.0), 9: Fault("sleep", 20.0)}
N_LSQR_STEPS = 10  # Iterations of lsqr.
N_SINGULAR_VALUES = 2  # Singular values that svds computes.


def make_product(coded_blocks: Any, x: Any, executor: Any) -> Callable[[], Any]:
    """Return a function that computes A x from blocks of rows with the given coding."""
    run_product = make_product_runner(
        resolve_executor(executor), check_options("auto", None, None, 1), lambda: ()
    )
    block_function, block_rows = partial(multiply_block, x, x.dtype, True), coded_blocks.blocks.rows
    return lambda: run_product(block_function, coded_blocks, (block_rows,)).concatenate()


def measure_products(A: Any, pool: Any, n_turns: int) -> tuple[Any, ...]:
    """Return the quantities that decide about coding, and the seconds of a product.

    The times are scipy's, then coded and with copies, then the latter two again with sleeping workers.
    """
    x, blocks = np.ones(A.shape[1]), SparseDataBlocks(A, K)
    coded_blocks = SparseCodedBlocks(blocks, PolarCode(N, K), keep_parity=True)
    uncoded_blocks = SparseCodedBlocks(blocks, Uncoded(K, DEFAULT_BACKUPS), keep_parity=True)
    faulty_executor = FaultyExecutor(pool, SLEEPING_FAULTS)
    actions: list[Callable[[], Any]] = [lambda: A @ x]
    actions += [
        make_product(encoding, x, executor)
        for executor in (pool, faulty_executor)
        for encoding in (coded_blocks, uncoded_blocks)
    ]
    for action in actions:
        assert np.allclose(action(), A @ x)
    parity_sizes = [coded_blocks.block_layout(index)[0][1][0] for index in range(K, N)]
    coding_work = compute_relative_work(blocks.nonzeros_per_block, parity_sizes)
    return (
        parity_sizes[0] * K / A.nnz,
        coding_work,
        coded_blocks.encode_seconds,
        *map(median, time_in_turns(actions, n_turns)),
    )


def measure_solvers(A: Any, pool: Any) -> list[tuple[Any, ...]]:
    """Return the seconds, and milliseconds per product, of lsqr and svds on operators and in scipy."""
    b = np.random.default_rng(1).standard_normal(A.shape[0])
    solver_functions: dict[str, Callable[[Any], Any]] = {
        "lsqr": lambda operand: lsqr(operand, b, atol=0, btol=0, iter_lim=N_LSQR_STEPS)[0],
        "svds": lambda operand: svds(
            operand, N_SINGULAR_VALUES, return_singular_vectors=False, rng=0, tol=1e-3
        ),
    }
    measurements = []
    n_products_by_solver = dict.fromkeys(solver_functions, 0)  # scipy computes the same number of products.
    for name, executor in (("operator", pool), ("2 sleep", FaultyExecutor(pool, SLEEPING_FAULTS))):
        with CodedOperator(A, blocks=K, tasks=N, executor=executor) as operator:
            operator.rmatvec(operator.matvec(np.ones(A.shape[1])))  # Encodes both sides before the timing.
            for solver, solve in solver_functions.items():
                n_products_before, seconds = operator.n_products, time_call(partial(solve, operator))
                n_products_by_solver[solver] = operator.n_products - n_products_before
                code = operator.report.code if operator.report else ""
                measurements.append(
                    (solver, name, seconds, 1e3 * seconds / n_products_by_solver[solver], code)
                )
    for solver, solve in solver_functions.items():
        seconds = time_call(partial(solve, A))
        measurements.append((solver, "scipy", seconds, 1e3 * seconds / n_products_by_solver[solver], ""))
    return measurements


def main() -> None:
    quick = parse_quick_flag(__doc__)
    shapes = [(24_000, 1_000, 0.001), (24_000, 1_000, 0.01)]
    if not quick:
        shapes += [(96_000, 10_000, 0.001), (48_000, 4_000, 0.01), (96_000, 10_000, 0.01)]
    print(f"polarmap {polarmap.__version__}: A x with {K} blocks and {N} tasks; seconds of a product")
    lines, solver_lines = [], []
    with Pool() as pool:
        for n_rows, n_columns, density in shapes:
            A = scipy.sparse.random_array((n_rows, n_columns), density=density, format="csr", rng=0)
            name = f"{n_rows:,} x {n_columns:,}, {density:.1%}"
            lines.append((name, *measure_products(A, pool, 2 if quick else 3)))
            if (n_rows, density) in ((24_000, 0.01), (96_000, 0.001)):
                solver_lines += [(name, *measurement) for measurement in measure_solvers(A, pool)]
    coding = ("parity/data", "work", "encode")
    print_table(("matrix", *coding, "scipy", "coded", "copies", "coded, 2 sleep", "copies, 2 sleep"), lines)
    print(f"\nlsqr, {N_LSQR_STEPS} steps; svds, {N_SINGULAR_VALUES} values")
    print_table(("matrix", "solver", "operand", "seconds", "ms / product", "code"), solver_lines)


if __name__ == "__main__":
    main()
