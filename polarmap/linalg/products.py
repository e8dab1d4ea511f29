"""Products of two matrices with one factor coded or both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np

from polarmap.blocks.code_choice import CodeName, CodeOptions, check_not_masked, encode_once
from polarmap.blocks.pairs import CodedPairs
from polarmap.blocks.sparse import SparseCodedBlocks
from polarmap.dtypes import Array, DType
from polarmap.errors import CodeError
from polarmap.executors import shares_cores
from polarmap.linalg import layouts, matrices
from polarmap.linalg.parity_start import ParityStart
from polarmap.report import Report
from polarmap.run.options import KnownFunction, MapOptions, Verify, checked_options
from polarmap.run.prepared_map import PreparedMap, prepared, run_coded, verb
from polarmap.run.reports import LazyReport
from polarmap.run.results import CodedResult
from polarmap.run.running_map import Observers
from polarmap.worker.block_products import product_of_pair, product_with
from polarmap.worker.pytree import Shape

# f, coded blocks, the shape of what f returns -> its results, and their report.
ProductMap = Callable[[Callable[[Any], Array], Any, Shape], tuple[CodedResult[Array], LazyReport]]


class CodedProduct(NamedTuple):
    """A product and how it came about."""

    array: Array
    report: Report

    def __repr__(self) -> str:
        rows, columns = self.array.shape
        decoded = len(self.report.recovered)
        return f"<CodedProduct of {rows} x {columns} {self.array.dtype}, {decoded} of its blocks decoded>"


@verb
def coded_matmul(
    A: Any,
    B: Any,
    *,
    method: Literal["auto", "rows", "columns", "grid"] = "auto",
    blocks: int | tuple[int, int] | None = None,
    tasks: int | tuple[int, int] | None = None,
    code: CodeName = "auto",
    executor: Any = None,
    verify: Verify = "auto",
    rtol: float | None = None,
    timeout: float | None = None,
    retries: int = 1,
    progress: bool | None = None,
) -> PreparedMap[CodedProduct]:
    """A @ B without waiting for stragglers, with one factor coded or both.

    Parameters
    ----------
    A, B : array-like (M, L) and (L, N)
        numpy, memmap, zarr, h5py; all entries finite. One of them may be a vector, as in numpy.
    method : {"auto", "rows", "columns", "grid"}
        "rows": A is cut and coded by rows, every worker gets one block of it and all of B. "columns": B by
        columns, every worker gets all of A. "grid": both, worker (i, j) multiplies A_i and B_j; results
        decode each other along rows and columns. "auto": the fastest by the formula in Notes.
    blocks : int or pair of ints, optional
        k; for a grid (k_A, k_B).
    tasks : int or pair of ints, optional
        n; for a grid (n_A, n_B), or the most tasks it may have, 32 by default.
    code : {"auto", "rotation", "arikan"}
        "auto" codes a product of integers with the arikan kernel: exact, modulo 2^bits as numpy.
    executor, verify, rtol, timeout, retries, progress : optional
        As for `coded_map`, but verify="auto" awaits no result, as products are linear: it compares what
        arrives beyond need. On a grid the data tasks come first, row by row.

    Returns
    -------
    CodedProduct
        `array`, as A @ B gives it, and `report`.

    Raises
    ------
    CodeError
        Shapes that do not match, two vectors, NaN or inf, sizes or dtypes that cannot be coded.
    NotDecodableError, CodedTimeoutError, ExecutorError
        As for `coded_map`.

    Notes
    -----
    "auto" compares the seconds of one task, (values read and written) * itemsize / 50 MB/s +
    multiplications / 1e10 per second, about what a cloud function of one core gets:

    =======  ==========================================  ==================
    method   values read and written                     multiplications
    =======  ==========================================  ==================
    rows     M L / k + L N + M N / k                     M L N / k
    columns  M L + L N / k + M N / k                     M L N / k
    grid     M L / k_A + L N / k_B + M N / (k_A k_B)     M L N / (k_A k_B)
    =======  ==========================================  ==================

    with k = 3 n / 4, and on the grid an eighth of either side for parity.

    Examples
    --------
    >>> from concurrent.futures import ThreadPoolExecutor
    >>> A, B = np.arange(60).reshape(10, 6), np.arange(42).reshape(6, 7)
    >>> with ThreadPoolExecutor(4) as pool:
    ...     product = coded_matmul(A, B, method="grid", tasks=(4, 3), executor=pool)
    >>> bool((product.array == A @ B).all()), product.report.code
    (True, 'arikan grid 4 x 3')
    """

    def run(observers: Observers) -> CodedProduct:
        check_not_masked(code)
        left, right, shape = _factors(A, B)
        layout = layouts.choose_layout(
            method, (*left.shape, right.shape[1]), blocks, tasks, left.dtype.itemsize
        )
        run = product_map(executor, checked_options(verify, rtol, timeout, retries), lambda: observers)
        if layout.rows and layout.columns:
            array, report = _on_grid(left, right, layout.rows, layout.columns, code, run)
        elif layout.rows:
            array, report = _one_sided(left, right, layout.rows, code, run)
        else:
            assert layout.columns is not None
            transposed = matrices.TransposedMatrix(right), matrices.TransposedMatrix(left)
            array, report = _one_sided(*transposed, layout.columns, code, run)
            array = array.T
        return CodedProduct(array.reshape(shape), report.made)

    return PreparedMap(run)


def _factors(A: Any, B: Any) -> tuple[Any, Any, tuple[int, ...]]:
    """Two matrices of fitting shapes and dtypes, and the shape of numpy's product."""
    A = matrices.as_array_like(A, "A", "CodedOperator(A) @ B, or A.toarray()")
    B = matrices.as_array_like(B, "B", "(CodedOperator(B.T) @ A.T).T, or B.toarray()")
    # Columns of a coded array are read through all its rows: once, then.
    B = B[:] if hasattr(B, "coded_blocks") else B
    if len(A.shape) == 1 and len(B.shape) == 1:
        raise CodeError("A and B are both vectors: a product of these is not worth a map, use A @ B")
    left = matrices.check_two_axes(A[:][None, :] if len(A.shape) == 1 else A, "A")
    right = matrices.check_two_axes(B[:][:, None] if len(B.shape) == 1 else B, "B")
    if left.shape[1] != right.shape[0]:
        raise CodeError(
            f"A of shape {tuple(A.shape)} and B of shape {tuple(B.shape)} do not match: "
            f"{left.shape[1]} columns against {right.shape[0]} rows"
        )
    common = np.result_type(left.dtype, right.dtype)
    left = matrices.CheckedMatrix(left, "A", matrices.factor_dtype(left.dtype, common))
    right = matrices.CheckedMatrix(right, "B", matrices.factor_dtype(right.dtype, common))
    return left, right, (*A.shape[:-1], *B.shape[1:])


def _one_sided(
    data: Any, factor: Any, cut: layouts.BlockCounts, code: CodeName, run: ProductMap
) -> tuple[Array, LazyReport]:
    """data @ factor with data coded by rows."""
    operand = factor[:]
    dtype = np.result_type(data.dtype, operand.dtype)
    return product_of_rows(encode_once(data, *cut, code), operand, dtype, run)


def product_of_rows(coded: Any, operand: Array, dtype: DType, run: ProductMap) -> tuple[Array, LazyReport]:
    """What is coded by rows @ operand."""
    is_sparse = isinstance(coded, SparseCodedBlocks)
    rows = coded.blocks.rows if is_sparse else coded.layout(0)[0][1][0]
    f = partial(product_with, operand, dtype.newbyteorder("="), is_sparse)
    result, report = run(f, coded, (rows, *operand.shape[1:]))
    return np.concatenate(list(result)), report


def _on_grid(
    left: Any,
    right: Any,
    rows: layouts.BlockCounts,
    columns: layouts.BlockCounts,
    code: CodeName,
    run: ProductMap,
) -> tuple[Array, LazyReport]:
    transposed = matrices.TransposedMatrix(right)
    coded = CodedPairs(encode_once(left, *rows, code), encode_once(transposed, *columns, code))
    f = partial(product_of_pair, np.result_type(left.dtype, right.dtype).newbyteorder("="))
    return product_of_pairs(f, coded, (left.shape[0], right.shape[1]), run)


def product_of_pairs(
    f: Callable[[Any], Array], coded: CodedPairs, shape: Shape, run: ProductMap
) -> tuple[Array, LazyReport]:
    """What f makes of pairs of blocks, the second of which are transposed, as one matrix without padding.

    Its entries may be arrays: shape[2:].
    """
    (_, (height, *_)), (_, (width, *_)) = coded.layout(0)
    result, report = run(f, coded, (height, width, *shape[2:]))
    whole = np.empty(shape, result[0].dtype)
    for (row, column), block in zip(coded.code.grid_coordinates.tolist(), result):
        target = whole[row * height : (row + 1) * height, column * width : (column + 1) * width]
        target[:] = block[: target.shape[0], : target.shape[1]]
    return whole, report


def product_map(executor: Any, options: MapOptions, observers: Callable[[], Observers]) -> ProductMap:
    """Maps an f of ours, which returns arrays of a known shape and is what the code assumes.

    `observers`: who looks on at the map that begins now.

    Where all tasks share the cores of this machine, parity waits until data is late, as the product of
    the same blocks before tells.
    """
    starts = dict[tuple[int, Shape], ParityStart]()  # of coded blocks, by id, and results
    learns = shares_cores(executor) and options.schedule == "upfront"

    def run(f: Callable[[Any], Array], coded: Any, shape: Shape) -> tuple[CodedResult[Array], LazyReport]:
        start = starts.get((id(coded), shape))
        if start is None:
            known = KnownFunction(fits=True, shape=shape, row_by_row=True)
            start = starts[id(coded), shape] = ParityStart(replace(options, known=known))
        of_this = start.options
        running, blocks = prepared(coded, CodeOptions(), executor, of_this)
        word, report = run_coded(running, f, blocks, of_this, observers())
        if learns:
            used = word.tasks.arrived.keys() - word.surplus
            start.learn(
                max(map(word.tasks.arrived.__getitem__, used)), bool(len(word.decoder.missing_indices))
            )
        return word.result(report), report

    return run
