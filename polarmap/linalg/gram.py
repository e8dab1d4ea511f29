"""A' A and A' diag(w) A with A coded by columns, each block of the result computed once."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from polarmap.blocks.code_choice import encode_once
from polarmap.blocks.pairs import CodedPairs
from polarmap.dtypes import Array, DType, is_integer_dtype
from polarmap.errors import CodeError
from polarmap.linalg import matrices
from polarmap.linalg.layouts import PAIRED, BlockCounts, check_counts, paired_tasks
from polarmap.linalg.products import CodedProduct, ProductMap, product_map, product_of_pairs
from polarmap.run.options import Verify, checked_options
from polarmap.run.prepared_map import PreparedMap, verb
from polarmap.run.reports import LazyReport
from polarmap.run.running_map import Observers
from polarmap.validation import check_positive_int
from polarmap.worker.block_products import gram_of_pair

FOR_SPARSE = "A.toarray(), or sum(hedged_map(lambda rows: rows.T @ rows, A.tocsr())), which copies late tasks"


@verb
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
    executor, verify, rtol, timeout, retries, progress : optional
        As for `coded_matmul`.

    Returns
    -------
    CodedProduct
        `array` (N, N), exactly Hermitian off its diagonal blocks, and `report`. Products of integers
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

    def run(observers: Observers) -> CodedProduct:
        matrix = matrices.check_matrix(A, "A", FOR_SPARSE)
        w = None if weights is None else checked_weights(weights, matrix.shape[0])
        dtype = np.dtype(matrix.dtype if w is None else np.result_type(matrix.dtype, w.dtype))
        k = min(PAIRED.k, matrix.shape[1]) if blocks is None else check_positive_int("blocks", blocks)
        n = paired_tasks(k) if tasks is None else check_positive_int("tasks", tasks)
        coded = _coded(matrix, dtype, k, n)
        run = product_map(executor, checked_options(verify, rtol, timeout, retries), lambda: observers)
        array, report = gram_of_pairs(coded, matrix.shape[1], w, dtype, run)
        return CodedProduct(array, report.made)

    return PreparedMap(run)


def gram_of_pairs(
    coded: CodedPairs, columns: int, w: Array | None, dtype: DType, run: ProductMap
) -> tuple[Array, LazyReport]:
    """A^H diag(w) A from pairs of coded blocks of the columns of A, of which there are so many.

    (columns, columns), and for several w (rows, m) of them (columns, columns, m).
    """
    f, several = partial(gram_of_pair, w, dtype.newbyteorder("=")), () if w is None else w.shape[1:]
    array, report = product_of_pairs(f, coded, (columns, columns, *several), run)
    if not is_integer_dtype(dtype):
        _mirror(array, coded.layout(0)[0][1][0])
    return array, report


def _coded(matrix: Any, dtype: DType, k: int, n: int) -> CodedPairs:
    """Pairs of coded blocks of columns; of integers all, as these are decoded exactly line by line."""
    k, n = check_counts(BlockCounts(k, n), "columns of A", matrix.shape[1])
    data = matrices.CheckedMatrix(matrix, "A", matrices.factor_dtype(matrix.dtype, dtype))
    factor = encode_once(matrices.TransposedMatrix(data), k, n, "auto")
    return CodedPairs(factor, factor, triangle=not is_integer_dtype(dtype))


def checked_weights(weights: Any, rows: int, most: int = 1) -> Array:
    """A real weight for each row, (rows,); of at most 2 axes several, (rows, m)."""
    w = matrices.check_operand(weights, "weights")
    if not 1 <= w.ndim <= most or len(w) != rows:
        raise CodeError(f"weights has shape {w.shape}, but A has {rows} rows: one weight for each is needed")
    if w.dtype.kind == "c":
        raise CodeError("weights are complex: A^H diag(w) A is Hermitian for real ones only")
    return w


def _mirror(array: Array, side: int) -> None:
    """Fill the blocks below the diagonal from those above it."""
    for start in range(0, len(array), side):
        stop = start + side
        array[stop:, start:stop] = array[start:stop, stop:].conj().swapaxes(0, 1)
