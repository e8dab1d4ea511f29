"""A matrix as a scipy LinearOperator whose every product is one coded map."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from polarmap import api, matrices, verified
from polarmap.blocks import DEFAULT_BLOCKS, CodedBlocks, checked_count
from polarmap.code.polar import PolarCode
from polarmap.errors import CodeError
from polarmap.report import Report

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
    the same parity equations). Each side is cut and encoded with its first product and kept
    for the next ones.

    Parameters
    ----------
    A : array-like (M, N)
        numpy, memmap, zarr, h5py: float16/32/64, complex64/128 or integers, all finite. It is not
        copied where memory allows, so it must not change while the operator is in use.
    blocks : int, optional
        k, 24 by default; a side of fewer rows or columns is cut into as many blocks as it has.
    workers : int, optional
        n, a third more than `blocks` by default; in proportion where a side has fewer blocks.
    code, executor, verify, rtol, timeout, retries, progress : optional
        As for `coded_map`. A pool or a `lithops.FunctionExecutor` is used for every product and
        stays open. A product is linear, so verify="auto" checks no more than what arrives anyway:
        left-over results. verify=True waits for one whenever something has to be decoded, which
        shows up a worker that returns garbage.

    Attributes
    ----------
    shape, dtype : of A
    report : Report or None
        Of the last product.

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
        blocks: int | None = None,
        workers: int | None = None,
        code: str | PolarCode = "auto",
        executor: Any = None,
        verify: bool | str = "auto",
        rtol: float | None = None,
        timeout: float | None = None,
        retries: int = 1,
        progress: bool | None = False,
    ) -> None:
        self._matrix = matrices.checked(A, "A")
        super().__init__(self._matrix.dtype, tuple(map(int, self._matrix.shape)))
        if isinstance(code, PolarCode):
            blocks = code.k if blocks is None else blocks
            workers = code.n if workers is None else workers
        self._k, self._n = _counts(blocks, workers)
        self._code = code
        self._options: dict[str, Any] = {"executor": executor, "verify": verify, "rtol": rtol}
        self._options |= {"timeout": timeout, "retries": retries, "progress": progress}
        self._sides: dict[str, CodedBlocks] = {}
        self._closed = False
        self.report: Report | None = None

    def close(self) -> None:
        """Let go of the coded blocks; the caller's executor stays open. Safe to call twice."""
        self._closed = True
        self._sides.clear()

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

    def _product(self, side: str, operand: Any) -> Array:
        """A @ operand from blocks of rows, A.T @ operand from blocks of columns."""
        operand = matrices.checked_operand(operand)
        dtype = np.result_type(self.dtype, operand.dtype)
        if operand.size == 0:
            return np.zeros((self.shape[side == "columns"], *operand.shape[1:]), dtype)
        f = matrices.times(operand, dtype)
        verified.note_passed(f)
        coded = self._side(side)
        if dtype.kind in "fc":
            matrices.check_no_wrap(coded, "A")
        result = api.coded_map(f, coded, **self._options)
        self.report = result.report
        return np.asarray(result.concatenate())

    def _side(self, side: str) -> CodedBlocks:
        """The coded rows or columns of A, cut when first asked for."""
        if self._closed:
            raise CodeError("this CodedOperator is closed: make a new one")
        if side not in self._sides:
            data = self._matrix if side == "rows" else matrices.Transposed(self._matrix)
            self._sides[side] = self._encode(data)
        return self._sides[side]

    def _encode(self, data: Any) -> CodedBlocks:
        k = min(self._k, int(data.shape[0]))
        n = k + math.ceil((self._n - self._k) * k / self._k)
        code = self._code
        if isinstance(code, PolarCode) and k < code.k:
            code = code.kernel
        coded = api.encode_once(data, k, n, code)
        matrices.check_finite((leaf for i in range(k) for leaf in coded.leaves(i)), "A")
        return coded


def _counts(blocks: int | None, workers: int | None) -> tuple[int, int]:
    """k and n as asked for."""
    n = None if workers is None else checked_count("workers", workers)
    if blocks is not None:
        k = checked_count("blocks", blocks)
    else:
        k = DEFAULT_BLOCKS if n is None else max(1, 3 * n // 4)
    n = k + math.ceil(k / 3) if n is None else n
    if n <= k:
        raise CodeError(f"workers={n} leaves no parity for {k} blocks: use workers > {k}")
    return k, n
