"""A' A and A' diag(w) A with A coded by columns, each block of the result computed once."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from polarmap.blocks.code_choice import encode_for_reuse
from polarmap.blocks.pairs import CodedPairs
from polarmap.driver.events import JobContext
from polarmap.driver.options import Verify, check_options
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
    progress: bool | None = None,
) -> PreparedMap[CodedProduct]:
    """A^H A, or A^H diag(weights) A, without waiting for stragglers.

    A is cut by columns into k blocks, coded into n, and A_i^H diag(w) A_j is computed for i <= j: half
    of the work of `coded_matmul`, since each result gives its transpose too.

    Parameters
    ----------
    A : array-like (M, N)
        numpy, memmap, zarr, h5py; all entries finite.
    weights : array-like (M,), optional
        Real, of either sign.
    blocks : int, optional
        k, column blocks: 7 by default, or N if that is smaller.
    tasks : int, optional
        n, coded column blocks: by default k and one for each 7. Of the n (n + 1) / 2 tasks the first
        k (k + 1) / 2 are data, row by row.
    executor, verify, rtol, timeout, retries, retry_delay, progress : optional
        As for `coded_matmul`.

    Returns
    -------
    CodedProduct
        `gram` (N, N), exactly Hermitian off its diagonal blocks, and `report`. Products of integers
        are exact, modulo 2^bits as in numpy, on the whole grid of n^2 tasks.

    Raises
    ------
    CodeError
        Shapes that do not match, complex weights, NaN or inf, sizes or dtypes that cannot be coded.
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
    """A^H diag(w) A from pairs of coded blocks of the columns of A, of which there are so many.

    (columns, columns), and for several w (rows, m) of them (columns, columns, m).
    """
    block_function = partial(compute_gram_block, weights, dtype.newbyteorder("="))
    shape = (n_columns, n_columns, *(() if weights is None else weights.shape[1:]))
    gram, report = multiply_block_pairs(block_function, coded_pairs, shape, run_product)
    if not is_integer_dtype(dtype):
        _fill_lower_triangle(gram, coded_pairs.block_layout(0)[0][1][0])
    return gram, report


def _encode_column_pairs(matrix: Any, dtype: DType, k: int, n: int) -> CodedPairs:
    """Pairs of coded blocks of columns; of integers all, as these are decoded exactly line by line."""
    k, n = check_axis_block_counts(BlockCounts(k, n), "columns of A", matrix.shape[1])
    data = operands.ValidatedMatrix(matrix, "A", operands.choose_encoding_dtype(matrix.dtype, dtype))
    encoded_columns = encode_for_reuse(operands.TransposedView(data), k, n, "auto")
    return CodedPairs(encoded_columns, encoded_columns, upper_triangle=not is_integer_dtype(dtype))


def check_weights(weights: Any, n_rows: int, max_ndim: int = 1) -> Array:
    """A real weight for each row, (rows,); of at most 2 axes several, (rows, m)."""
    checked = operands.check_operand(weights, "weights")
    if not 1 <= checked.ndim <= max_ndim or len(checked) != n_rows:
        raise CodeError(
            f"weights has shape {checked.shape}, but A has {n_rows} rows: one weight for each is needed"
        )
    if checked.dtype.kind == "c":
        raise CodeError("weights are complex: A^H diag(w) A is Hermitian for real ones only")
    return checked


def _fill_lower_triangle(matrix: Array, block_size: int) -> None:
    """Fill the blocks below the diagonal from those above it."""
    for start in range(0, len(matrix), block_size):
        stop = start + block_size
        matrix[stop:, start:stop] = matrix[start:stop, stop:].conj().swapaxes(0, 1)
