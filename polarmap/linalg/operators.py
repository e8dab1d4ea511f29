"""A matrix as a scipy LinearOperator whose every product is one coded map."""

from __future__ import annotations

import math
import uuid
import warnings
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from polarmap.arrays.array import CodedArray
from polarmap.arrays.encode import encode
from polarmap.blocks.block_count import DEFAULT_BLOCKS, checked_count
from polarmap.blocks.choose_code import CodeName
from polarmap.blocks.coded import CodedBlocks
from polarmap.blocks.encode_data import encode_once
from polarmap.code.dtypes import is_exact
from polarmap.code.polar import PolarCode
from polarmap.errors import CodeError, PolarmapError
from polarmap.executors import keep_open, storage_beside
from polarmap.linalg import matrices
from polarmap.linalg.products import product_map
from polarmap.report import Report
from polarmap.run.options import Verify, checked_options

try:
    from scipy.sparse.linalg import LinearOperator
except ImportError as error:
    raise ImportError("CodedOperator needs scipy: pip install 'polarmap[linalg]'") from error

Array = npt.NDArray[Any]


class CodedOperator(LinearOperator):  # type: ignore[misc]
    """A matrix whose products with vectors and matrices survive stragglers and dead workers.

    A `scipy.sparse.linalg.LinearOperator`: `svds`, `eigsh`, `lsqr`, `lsmr`, `cg`, `gmres` and
    all else that takes one run on it unchanged. A x is one coded map over k blocks of rows of A,
    A' y one over k blocks of columns (the result is a concatenation, not a sum, so its blocks obey
    the same parity equations). Each side is cut and encoded with its first product and kept for the
    next ones: where workers read it, for Lithops (a temporary folder, or objects of a private name),
    in memory for pools. `close()`, or leaving the `with` block, removes it.

    Parameters
    ----------
    A : array-like (M, N)
        numpy, memmap, zarr, h5py: float16/32/64, complex64/128 or integers, all finite. A pool's
        blocks are views of it where possible, so it must not change while the operator is in use.
        Or a `CodedArray`, which is used as it is for A x.
    transposed : CodedArray (N, M), optional
        The transpose, for A' y, where it is in storage already.
    blocks : int, optional
        k, 24 by default; a side of fewer rows or columns is cut into as many blocks as it has.
    workers : int, optional
        n, a third more than `blocks` by default; in proportion where a side has fewer blocks.
    code, executor, verify, rtol, timeout, retries, progress : optional
        As for `coded_map`, but no bar by default. The executor is used for every product: a pool or a
        `lithops.FunctionExecutor` stays open, a Lithops configuration is opened once. A product is
        linear, so verify="auto" checks no more than what arrives anyway: left-over results.
        verify=True waits for one whenever something has to be decoded, which shows up a worker
        that returns garbage.

    Attributes
    ----------
    shape, dtype : of A
    products : int
        Coded maps so far.
    report : Report or None
        Of the last one.

    Raises
    ------
    CodeError
        A that is no finite matrix of numbers; sizes that cannot be; a vector with NaN or inf; a
        real vector where integers of A are so large that their parity blocks wrap modulo 2^64.

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
        transposed: CodedArray | None = None,
        blocks: int | None = None,
        workers: int | None = None,
        code: CodeName | PolarCode = "auto",
        executor: Any = None,
        verify: Verify = "auto",
        rtol: float | None = None,
        timeout: float | None = None,
        retries: int = 1,
        progress: bool | None = None,
    ) -> None:
        matrix = matrices.checked(A, "A")
        super().__init__(matrix.dtype, tuple(map(int, matrix.shape)))
        options = checked_options(verify, rtol, timeout, retries)
        executor, end = keep_open(executor)
        self._kept = _Kept(matrix, executor, _sizes(blocks, workers, code), code)
        self._finish = weakref.finalize(self, _close, self._kept, end)
        if isinstance(A, CodedArray):
            self._kept.sides["rows"] = _Side(A)
        if transposed is not None:
            self._kept.sides["columns"] = _Side(_checked_transpose(transposed, matrix))
        self._run = product_map(executor, options, bool(progress))  # no bar for each of many products
        self.products = 0
        self.report: Report | None = None

    def close(self) -> None:
        """Remove the coded blocks; the caller's executor stays open. Safe to call twice."""
        self._finish()

    def __enter__(self) -> CodedOperator:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _matvec(self, x: Array) -> Array:
        return self._product("rows", np.reshape(x, -1))

    def _matmat(self, X: Array) -> Array:
        return self._product("rows", X)

    def _rmatvec(self, x: Array) -> Array:
        return self._product("columns", np.reshape(x, -1).conj()).conj()

    def _rmatmat(self, X: Array) -> Array:
        return self._product("columns", X.conj()).conj()

    def _product(self, name: str, operand: Any) -> Array:
        """A @ operand from blocks of rows, A.T @ operand from blocks of columns."""
        if not self._finish.alive:
            raise CodeError("this CodedOperator is closed: make a new one")
        operand = matrices.checked_operand(operand)
        dtype = np.result_type(self.dtype, operand.dtype)
        if operand.size == 0:
            return np.zeros((self.shape[name == "columns"], *operand.shape[1:]), dtype)
        coded = self._kept.real_side(name) if not is_exact(dtype) else self._kept.side(name).coded
        f = matrices.times(operand, dtype)
        shape = (coded.layout(0)[0][1][0], *operand.shape[1:])
        result = self._run(f, coded, shape)
        self.report, self.products = result.report, self.products + 1
        return np.asarray(result.concatenate())


class _Side(NamedTuple):
    """The coded rows or columns of a matrix, and the largest integer among them."""

    coded: CodedBlocks | CodedArray
    largest: int | None = None  # not known of a coded array of the caller's


class _Kept:
    """Both sides of a matrix, each encoded when it is first asked for."""

    def __init__(
        self, matrix: Any, executor: Any, sizes: tuple[int, int], code: CodeName | PolarCode
    ) -> None:
        self._matrix, self._sizes, self._code = matrix, sizes, code
        self._storage = storage_beside(executor)
        self._prefix = f"operator-{uuid.uuid4().hex}"
        self.sides: dict[str, _Side] = {}
        self._ours: list[CodedArray] = []

    def side(self, name: str) -> _Side:
        """The "rows" or the "columns"."""
        if name not in self.sides:
            self.sides[name] = self._encode(name)
        return self.sides[name]

    def real_side(self, name: str) -> CodedBlocks | CodedArray:
        """A side for products with real numbers; CodeError if its parity may have wrapped."""
        side = self.side(name)
        dtype = self._matrix.dtype
        if is_exact(dtype) and dtype.itemsize == 8:
            if side.largest is None:
                self.sides[name] = side = side._replace(largest=_largest(side.coded))
            matrices.check_no_wrap(dtype, side.largest or 0, side.coded.code.norm_inf, "A")
        return side.coded

    def remove(self) -> None:
        """Let go of memory, delete what was stored."""
        self.sides.clear()
        while self._ours:
            self._ours.pop().delete()

    def _encode(self, name: str) -> _Side:
        matrix = self._matrix[:] if isinstance(self._matrix, CodedArray) else self._matrix
        data = matrices.Watched(matrix if name == "rows" else matrices.Transposed(matrix), "A")
        k = min(self._sizes[0], int(data.shape[0]))
        n = k + math.ceil((self._sizes[1] - self._sizes[0]) * k / self._sizes[0])
        code = self._code
        if isinstance(code, PolarCode) and k < code.k:
            code = "arikan" if code.kernel == "arikan" else "rotation"
        if self._storage is None:
            return _Side(encode_once(data, k, n, code), data.largest)
        name, place = f"{self._prefix}-{name}", self._storage
        coded = encode(data, blocks=k, workers=n, code=code, name=name, storage=place, progress=False)
        self._ours.append(coded)
        return _Side(coded, data.largest)


def _largest(coded: Any) -> int:
    """The largest absolute value of a coded array of integers, read block by block."""
    watched = matrices.Watched(coded, "A")
    for start in range(0, coded.shape[0], coded.rows):
        watched[start : start + coded.rows]
    return watched.largest


def _close(kept: _Kept, end: Callable[[], None]) -> None:
    """Of an operator that is closed or gone; what cannot be removed is named."""
    try:
        kept.remove()
    except PolarmapError as error:
        warnings.warn(f"blocks of a CodedOperator may be left in storage: {error}", RuntimeWarning, 2)
    finally:
        end()


def _checked_transpose(transposed: CodedArray, matrix: Any) -> CodedArray:
    if not isinstance(transposed, CodedArray):
        raise CodeError(f"transposed must be a CodedArray, not {type(transposed).__name__}: leave it out")
    shape, dtype = transposed.shape, transposed.dtype
    if shape != tuple(matrix.shape)[::-1] or dtype != matrix.dtype:
        raise CodeError(
            f"transposed is {dtype} of shape {shape}, which is no transpose of A, {matrix.dtype} of shape "
            f"{tuple(matrix.shape)}"
        )
    return transposed


def _sizes(blocks: int | None, workers: int | None, code: CodeName | PolarCode) -> tuple[int, int]:
    """k and n as asked for."""
    if isinstance(code, PolarCode):
        blocks = code.k if blocks is None else blocks
        workers = code.n if workers is None else workers
    n = None if workers is None else checked_count("workers", workers)
    if blocks is not None:
        k = checked_count("blocks", blocks)
    else:
        k = DEFAULT_BLOCKS if n is None else max(1, 3 * n // 4)
    n = k + math.ceil(k / 3) if n is None else n
    if n <= k:
        raise CodeError(f"workers={n} leaves no parity for {k} blocks: use workers > {k}")
    return k, n
