"""Compute Gram matrices A^H A and A^H diag(w) A without waiting for stragglers."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from polarmap.blocks.code_choice import encode_for_reuse
from polarmap.blocks.pairs import CodedPairs
from polarmap.driver.events import JobContext
from polarmap.driver.options import Progress, Verify, check_options
from polarmap.driver.prepared_map import PreparedMap, map_function
from polarmap.driver.results import LazyReport
from polarmap.dtypes import Array, DType, is_integer_dtype
from polarmap.errors import CodeError
from polarmap.executors import resolve_executor
from polarmap.linalg import operands
from polarmap.linalg.layouts import GRAM_COUNTS, BlockCounts, check_axis_block_counts, get_default_gram_tasks
from polarmap.linalg.products import CodedProduct, ProductRunner, make_product_runner, multiply_block_pairs
from polarmap.validation import check_positive_int
from polarmap.worker.task_functions import compute_gram_block

SPARSE_GRAM_ADVICE = (
    "A.toarray(), or sum(hedged_map(lambda rows: rows.T @ rows, A.tocsr())), which copies late tasks"
)


@map_function
def coded_gram(
    A: Any,
    weights: Any = None,
    *,
    blocks: int | None = None,
    tasks: int | None = None,
    executor: Any = None,
    verify: Verify = "auto",
    rtol: float | None = None,
    timeout: float | None = None,
    retries: int = 1,
    retry_delay: float = 0.0,
    progress: Progress = None,
) -> PreparedMap[CodedProduct]:
    """Compute A^H A or A^H diag(weights) A without waiting for stragglers.

    The columns of A are partitioned into k blocks, which are encoded as n blocks A_i. Each task computes one
    product A_i^H diag(weights) A_j. Only products with i <= j are computed, because the product for (j, i) is
    the conjugate transpose of the product for (i, j). This takes half the work of `coded_matmul`.

    Parameters
    ----------
    A : array-like (M, N)
        A NumPy, Zarr or h5py array, or a memmap. All entries must be finite.
    weights : array-like (M,), optional
        One real weight per row, which may be negative. By default, all weights are 1.
    blocks : int, optional
        The number k of blocks of columns. By default, 7, or N if that is smaller.
    tasks : int, optional
        The number n of coded blocks of columns. By default, k + k / 7, rounded up. There are n (n + 1) / 2
        tasks, of which the first k (k + 1) / 2 are data tasks, row by row.
    executor, verify, rtol, timeout, retries, retry_delay, progress : optional
        As for `coded_matmul`.

    Returns
    -------
    CodedProduct
        The matrix as `array` (N, N), and the `report` of the map. The matrix is exactly Hermitian outside
        its diagonal blocks. Products of integers are exact modulo 2^bits, as in NumPy, but take all n^2
        tasks.

    Raises
    ------
    CodeError
        If shapes do not match, weights are complex, data is not finite, or a size or dtype is not supported.
    NotDecodableError, CodedTimeoutError, ExecutorError
        As for `coded_map`.

    Examples
    --------
    >>> from concurrent.futures import ThreadPoolExecutor
    >>> A, w = np.random.default_rng(0).standard_normal((30, 9)), np.arange(30.0)
    >>> with ThreadPoolExecutor(4) as pool:
    ...     hessian = coded_gram(A, w, blocks=3, executor=pool)
    >>> np.allclose(hessian.array, A.T @ (w[:, None] * A)), hessian.report.n
    (True, 10)
    """

    def execute(context: JobContext) -> CodedProduct:
        matrix = operands.check_matrix(A, "A", SPARSE_GRAM_ADVICE)
        checked = None if weights is None else check_weights(weights, matrix.shape[0])
        dtype = np.dtype(matrix.dtype if checked is None else np.result_type(matrix.dtype, checked.dtype))
        k = min(GRAM_COUNTS.k, matrix.shape[1]) if blocks is None else check_positive_int("blocks", blocks)
        n = get_default_gram_tasks(k) if tasks is None else check_positive_int("tasks", tasks)
        coded_pairs = _encode_column_pairs(matrix, dtype, k, n)
        run_product = make_product_runner(
            resolve_executor(executor),
            check_options(verify, rtol, timeout, retries, retry_delay=retry_delay),
            lambda: context,
        )
        gram, report = compute_gram(coded_pairs, matrix.shape[1], checked, dtype, run_product)
        return CodedProduct(gram, report.report)

    return PreparedMap(execute)


def compute_gram(
    coded_pairs: CodedPairs, n_columns: int, weights: Array | None, dtype: DType, run_product: ProductRunner
) -> tuple[Array, LazyReport]:
    """Compute the Gram matrix A^H diag(w) A in one coded map, whose tasks multiply pairs of column blocks.

    `coded_pairs` contains the coded blocks of A, which has `n_columns` columns. If `weights` is None, all
    weights are 1. `run_product` runs the map (see `make_product_runner`).

    Returns
    -------
    gram : array (n_columns, n_columns), or (n_columns, n_columns, m) for weights (rows, m)
        The Gram matrix.
    report : LazyReport
        The report of the map.
    """
    block_function = partial(compute_gram_block, weights, dtype.newbyteorder("="))
    shape = (n_columns, n_columns, *(() if weights is None else weights.shape[1:]))
    gram, report = multiply_block_pairs(block_function, coded_pairs, shape, run_product)
    if not is_integer_dtype(dtype):
        _fill_lower_triangle(gram, coded_pairs.block_layout(0)[0][1][0])
    return gram, report


def _encode_column_pairs(matrix: Any, dtype: DType, k: int, n: int) -> CodedPairs:
    """Encode blocks of columns of a matrix, and return the pairs of coded blocks that tasks multiply.

    Usually, pairs (i, j) with i <= j are enough, because a Gram matrix is Hermitian. Integers need all pairs,
    because they are decoded exactly along the rows and columns of the full grid of pairs.
    """
    k, n = check_axis_block_counts(BlockCounts(k, n), "columns of A", matrix.shape[1])
    data = operands.ValidatedMatrix(matrix, "A", operands.choose_encoding_dtype(matrix.dtype, dtype))
    encoded_columns = encode_for_reuse(operands.TransposedView(data), k, n, "auto")
    return CodedPairs(encoded_columns, encoded_columns, upper_triangle=not is_integer_dtype(dtype))


def check_weights(weights: Any, n_rows: int, max_ndim: int = 1) -> Array:
    """Validate row weights and return them as an array of shape (n_rows,).

    If `max_ndim` is 2, the shape (n_rows, m) for m sets of weights is also allowed. Raise CodeError if the
    weights are complex, or if their number differs from `n_rows`.
    """
    checked = operands.check_operand(weights, "weights")
    if not 1 <= checked.ndim <= max_ndim or len(checked) != n_rows:
        raise CodeError(
            f"weights has shape {checked.shape}, but A has {n_rows} rows: pass one weight per row"
        )
    if checked.dtype.kind == "c":
        raise CodeError("weights must be real, not complex: A^H diag(w) A is Hermitian for real weights only")
    return checked


def _fill_lower_triangle(matrix: Array, block_size: int) -> None:
    """Copy the blocks above the diagonal, conjugated and transposed, to the blocks below it, in place."""
    for start in range(0, len(matrix), block_size):
        stop = start + block_size
        matrix[stop:, start:stop] = matrix[start:stop, stop:].conj().swapaxes(0, 1)
