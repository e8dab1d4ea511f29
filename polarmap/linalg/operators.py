"""A matrix as a SciPy `LinearOperator` that computes every product without waiting for stragglers."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from polarmap.arrays.array import CodedArray
from polarmap.blocks.array_like import is_scipy_sparse
from polarmap.blocks.code_choice import CodeName, check_not_secret_sharing, check_polar_code_or_name
from polarmap.blocks.equal import DEFAULT_N_BLOCKS
from polarmap.blocks.sparse import to_canonical_csr
from polarmap.codes.polar import PolarCode
from polarmap.driver.options import Progress, Verify, check_options
from polarmap.driver.prepared_map import make_context, open_live_view
from polarmap.driver.results import LazyReport
from polarmap.dtypes import Array, is_integer_dtype
from polarmap.errors import CodeError, PolarmapError, trimmed_tracebacks, warn
from polarmap.executors import resolve_executor
from polarmap.linalg import operands
from polarmap.linalg.coded_matrix import CodedMatrix
from polarmap.linalg.deadline import Deadline
from polarmap.linalg.gram import SPARSE_GRAM_ADVICE, check_weights, compute_gram
from polarmap.linalg.layouts import BlockCounts, check_axis_block_counts, resolve_block_counts
from polarmap.linalg.products import make_product_runner, multiply_row_blocks
from polarmap.optional import require_extra
from polarmap.report import Report

with require_extra("CodedOperator", "scipy", "linalg"):
    from scipy.sparse.linalg import LinearOperator


class CodedOperator(LinearOperator):  # type: ignore[misc]
    """A linear operator that computes matrix products without waiting for stragglers.

    It is a `scipy.sparse.linalg.LinearOperator`, so you can pass it to `svds`, `lsqr`, `cg` and other
    functions of SciPy. Workers compute A x from k blocks of rows of A, and A' y from k blocks of columns,
    each as a coded map. The matrix is encoded by rows or by columns when a product first needs it. The coded
    blocks are kept for later products until you call `close()` or leave the `with` block.

    Parameters
    ----------
    A : array-like (M, N)
        A matrix of finite floats, complex numbers or integers: a NumPy, Zarr or h5py array, a memmap, a
        table, a tensor or the path of a .npy file. A SciPy sparse matrix stays sparse. If its parity blocks
        would be too large, late tasks get backups instead (see `report.code_reason`). A `CodedArray` is used
        for A x without encoding it again. The matrix must not change while the operator is in use.
    transpose : CodedArray (N, M), optional
        The transpose of A in storage, which is used for A' y. By default, A is encoded by columns.
    blocks : int, optional
        The number k of blocks. By default, 24, or three per core if that is fewer and the workers run on this
        machine. If there are too few rows or columns for this number of equal blocks, fewer are used.
    tasks : int, optional
        The number n of tasks. By default, a third more than `blocks`. If fewer blocks are used, the number
        of tasks is reduced in proportion.
    code, executor, verify, rtol, timeout, retries, retry_delay, progress : optional
        As for `coded_map`, but without a progress bar by default. A `PolarCode` sets `blocks` and `tasks`. If
        there are too few rows or columns for its blocks, a smaller code with the same options is used. For a
        Lithops configuration, persistent workers are started. Products are linear, so verify="auto" only
        checks results that arrive anyway. verify=True waits for one more result whenever something is
        decoded, which detects a worker that returns wrong numbers.

    Attributes
    ----------
    shape, dtype
        The shape and the dtype of A.
    n_products : int
        The number of products computed so far.

    Raises
    ------
    CodeError
        If A is not a matrix of finite numbers, if `blocks` or `tasks` are invalid, or if a vector contains
        NaN or inf. Also if a vector is real, but the matrix has integers whose parity blocks overflow.

    Examples
    --------
    >>> from concurrent.futures import ThreadPoolExecutor
    >>> from scipy.sparse.linalg import svds
    >>> A = np.random.default_rng(0).standard_normal((60, 20))
    >>> with ThreadPoolExecutor(4) as pool, CodedOperator(A, blocks=6, executor=pool) as operator:
    ...     found = svds(operator, k=3, return_singular_vectors=False)
    >>> np.allclose(sorted(found), np.sort(np.linalg.svd(A, compute_uv=False))[-3:])
    True
    """

    def __init__(
        self,
        A: Any,
        *,
        transpose: CodedArray | None = None,
        blocks: int | None = None,
        tasks: int | None = None,
        code: CodeName | PolarCode = "auto",
        executor: Any = None,
        verify: Verify = "auto",
        rtol: float | None = None,
        timeout: float | None = None,
        retries: int = 1,
        retry_delay: float = 0.0,
        progress: Progress = None,
    ) -> None:
        with trimmed_tracebacks:
            check_not_secret_sharing(code)
            if isinstance(A, CodedArray):
                matrix = operands.check_matrix_shape(A, "A")
            elif is_scipy_sparse(A):
                matrix = to_canonical_csr(A, "A")
                operands.check_finite(matrix.data, "A")
            else:
                matrix = operands.check_matrix(A, "A")
            super().__init__(matrix.dtype, tuple(map(int, matrix.shape)))
            options = check_options(verify, rtol, timeout, retries, retry_delay=retry_delay)
            executor, close_executor = resolve_executor(executor), lambda: None
            if executor.prefers_persistent_workers:
                executor, close_executor = executor.with_persistent_workers()
            self._coded_matrix = CodedMatrix(
                matrix,
                executor,
                _resolve_block_counts(blocks, tasks, code, executor.suggest_n_blocks(DEFAULT_N_BLOCKS)),
                code,
            )
            self._finalizer = weakref.finalize(
                self, _release_coded_matrix, self._coded_matrix, close_executor
            )
            if isinstance(A, CodedArray):
                self._coded_matrix.encodings["rows"] = A
            if transpose is not None:
                self._coded_matrix.encodings["columns"] = _check_transpose(transpose, matrix)
            self._view_finalizer: Callable[[], object] = lambda: None
            # Products show no progress bar by default.
            get_context = partial(make_context, progress if progress == "live" else bool(progress))
            if progress == "live":  # All products share a live view, which stays open between them.
                self._view_finalizer = weakref.finalize(self, open_live_view())
            self._deadline = Deadline()
            self._run_product = make_product_runner(executor, options, get_context, self._deadline)
            self.n_products = 0
            self._report: LazyReport | None = None

    @property
    def report(self) -> Report | None:
        """The report of the last product, or None before the first one."""
        return None if self._report is None else self._report.report

    def close(self) -> None:
        """Delete the coded blocks of the matrix from memory and storage.

        The executor stays open. Calling this method again has no effect.
        """
        self._finalizer()
        self._view_finalizer()

    def set_deadline(self, seconds: float | None) -> None:
        """Limit the total time of all subsequent products to `seconds`, or remove the limit if None.

        A product that has not finished by the deadline raises `DeadlineExceededError`, as does every later
        product. Encoding the matrix for the first product is never interrupted.

        Examples
        --------
        >>> from concurrent.futures import ThreadPoolExecutor
        >>> with ThreadPoolExecutor(4) as pool, CodedOperator(np.eye(9), blocks=3, executor=pool) as operator:
        ...     operator.set_deadline(60.0)
        ...     (operator @ np.ones(9)).sum()
        np.float64(9.0)
        """
        with trimmed_tracebacks:
            self._deadline.set(seconds)

    def gram(self, weights: Any) -> Array:
        """Compute A^H diag(weights) A without waiting for stragglers.

        This is `coded_gram` for a matrix that is encoded once and multiplied repeatedly. It counts as one
        product in `n_products`.

        Parameters
        ----------
        weights : array-like (M,) or (M, m)
            One real weight per row, which may be negative. m sets of weights are computed in one map.

        Returns
        -------
        array (N, N) or (N, N, m)

        Raises
        ------
        CodeError
            If A is sparse or has integers, or if weights are complex or their number differs from M.

        Examples
        --------
        >>> from concurrent.futures import ThreadPoolExecutor
        >>> A, w = np.random.default_rng(0).standard_normal((30, 9)), np.arange(30.0)
        >>> with ThreadPoolExecutor(4) as pool, CodedOperator(A, blocks=3, executor=pool) as operator:
        ...     bool(np.allclose(operator.gram(w), A.T @ (w[:, None] * A)))
        True
        """
        with trimmed_tracebacks:
            self._check_open()
            if self._coded_matrix.is_sparse or is_integer_dtype(self.dtype):
                raise CodeError(
                    f"gram needs a dense matrix of real or complex numbers: use {SPARSE_GRAM_ADVICE}"
                )
            checked = check_weights(weights, self.shape[0], max_ndim=2)
            dtype = np.result_type(self.dtype, checked.dtype)
            gram_matrix, report = compute_gram(
                self._coded_matrix.get_column_pairs(), self.shape[1], checked, dtype, self._run_product
            )
            self._report, self.n_products = report, self.n_products + 1
            return gram_matrix

    def __enter__(self) -> CodedOperator:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # Without this declaration, type checkers infer from SciPy a union of types, which most functions reject.
    if TYPE_CHECKING:

        def __matmul__(self, x: Any) -> Any: ...

    def _matvec(self, x: Array) -> Array:
        return self._multiply("rows", np.reshape(x, -1))

    def _matmat(self, X: Array) -> Array:
        return self._multiply("rows", X)

    def _rmatvec(self, x: Array) -> Array:
        return self._multiply("columns", np.reshape(x, -1).conj()).conj()

    def _rmatmat(self, X: Array) -> Array:
        return self._multiply("columns", X.conj()).conj()

    def _check_open(self) -> None:
        if not self._finalizer.alive:
            raise CodeError("this CodedOperator is closed: create a new one")

    def _multiply(self, axis: str, operand: Any) -> Array:
        """Compute A @ operand if `axis` is "rows", or A.T @ operand if it is "columns", in one coded map."""
        with trimmed_tracebacks:
            self._check_open()
            operand = operands.check_operand(operand)
            dtype = np.result_type(self.dtype, operand.dtype)
            if operand.size == 0:
                return np.zeros((self.shape[axis == "columns"], *operand.shape[1:]), dtype)
            if is_integer_dtype(dtype):
                encoding = self._coded_matrix.get_encoding(axis)
            else:
                encoding = self._coded_matrix.get_encoding_for_real_operand(axis)
            product, self._report = multiply_row_blocks(encoding, operand, dtype, self._run_product)
            self.n_products += 1
            return product


def _release_coded_matrix(coded_matrix: CodedMatrix, close_executor: Callable[[], None]) -> None:
    """Free the coded blocks of an operator that has been closed or garbage-collected.

    Warn if blocks in storage cannot be deleted.
    """
    try:
        coded_matrix.release_encodings()
    except PolarmapError as error:
        warn(f"blocks of a CodedOperator may be left in storage: {error}")
    finally:
        close_executor()


def _check_transpose(transpose: CodedArray, matrix: Any) -> CodedArray:
    if not isinstance(transpose, CodedArray):
        raise CodeError(f"transpose must be a CodedArray, not {type(transpose).__name__}: leave it out")
    shape, dtype = transpose.shape, transpose.dtype
    if shape != tuple(matrix.shape)[::-1] or dtype != matrix.dtype:
        raise CodeError(
            f"transpose has dtype {dtype} and shape {shape}, which is not the transpose of A with dtype "
            f"{matrix.dtype} and shape {tuple(matrix.shape)}"
        )
    return transpose


def _resolve_block_counts(
    blocks: int | None, tasks: int | None, code: CodeName | PolarCode, default_blocks: int
) -> BlockCounts:
    """Return the numbers of data blocks and coded blocks of a `CodedOperator`.

    `blocks`, `tasks` and `code` are its arguments. `default_blocks` is the number of data blocks if none of
    these arguments determines it.
    """
    check_polar_code_or_name(code)
    if not isinstance(code, str):
        if blocks not in (None, code.k) or tasks not in (None, code.n):
            raise CodeError(
                f"blocks={blocks} and tasks={tasks} must match code={code!r}. Leave blocks and tasks out, or "
                "pass a code with these numbers."
            )
        blocks, tasks = code.k, code.n
    counts = resolve_block_counts(blocks, tasks, default_blocks)
    return check_axis_block_counts(counts, "A", counts.k)
