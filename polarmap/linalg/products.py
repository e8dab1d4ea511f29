"""Multiply matrices without waiting for stragglers, by encoding one or both factors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np

from polarmap.blocks.code_choice import CodeName, CodeOptions, check_not_secret_sharing, encode_for_reuse
from polarmap.blocks.pairs import CodedPairs
from polarmap.blocks.sparse import SparseCodedBlocks
from polarmap.driver.events import JobContext
from polarmap.driver.options import FunctionTraits, MapOptions, Progress, Verify, check_options
from polarmap.driver.prepared_map import PreparedMap, execute_coded, map_function, prepare_coded_execution
from polarmap.driver.results import CodedResult, LazyReport
from polarmap.dtypes import Array, DType
from polarmap.errors import CodedTimeoutError, CodeError
from polarmap.executors import resolve_executor
from polarmap.executors.resolved import ResolvedExecutor
from polarmap.linalg import layouts, operands
from polarmap.linalg.adaptive_parity import AdaptiveParitySchedule
from polarmap.linalg.deadline import Deadline
from polarmap.report import Report
from polarmap.worker.pytree import Shape
from polarmap.worker.task_functions import multiply_block, multiply_block_pair

# A function that computes a product by a coded map. It is called with the function that each task applies to
# its block, the coded blocks, and the shape of a result. It returns the decoded results and the report.
ProductRunner = Callable[[Callable[[Any], Array], Any, Shape], tuple[CodedResult[Array], LazyReport]]


class CodedProduct(NamedTuple):
    """A matrix product and the report of the map that computed it."""

    array: Array
    report: Report

    def __repr__(self) -> str:
        n_rows, n_columns = self.array.shape
        n_decoded = len(self.report.recovered)
        return (
            f"<CodedProduct of {n_rows} x {n_columns} {self.array.dtype}, {n_decoded} of its blocks decoded>"
        )


@map_function
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
    retry_delay: float = 0.0,
    progress: Progress = None,
) -> PreparedMap[CodedProduct]:
    """Compute A @ B without waiting for stragglers, by encoding one or both factors.

    Parameters
    ----------
    A, B : array-like (M, L) and (L, N)
        NumPy, Zarr or h5py arrays, or memmaps. All entries must be finite. One of the factors may be a
        vector, as in NumPy.
    method : {"auto", "rows", "columns", "grid"}
        "rows" encodes A by rows: every worker gets one block of A and all of B. "columns" encodes B by
        columns: every worker gets all of A and one block of B. "grid" encodes both: worker (i, j) multiplies
        A_i and B_j, and missing results are decoded along rows and columns of the grid. "auto" chooses the
        fastest of these methods by the formula in Notes.
    blocks : int or pair of ints, optional
        The number k of blocks, or (k_A, k_B) for a grid.
    tasks : int or pair of ints, optional
        The number n of tasks. For a grid, (n_A, n_B) or the maximum number of tasks. By default, 32.
    code : {"auto", "rotation", "arikan"}
        Kernel of the polar code. "auto" uses arikan for integers, so that the product is exact modulo 2^bits
        as in NumPy.
    executor, verify, rtol, timeout, retries, retry_delay, progress : optional
        As for `coded_map`. Products are linear, so verify="auto" only checks results that arrive anyway and
        does not wait for more. In the report of a grid, the data tasks come first, row by row.

    Returns
    -------
    CodedProduct
        The product as `array`, and the `report` of the map.

    Raises
    ------
    CodeError
        If shapes do not match, both factors are vectors, data is not finite, or a size or dtype is not
        supported.
    NotDecodableError, CodedTimeoutError, ExecutorError
        As for `coded_map`.

    Notes
    -----
    "auto" compares how long one task takes: (values read and written) * itemsize / 50 MB/s +
    multiplications / 1e10 per second. These speeds are typical of a cloud function with one core.

    =======  ==========================================  ==================
    method   values read and written                     multiplications
    =======  ==========================================  ==================
    rows     M L / k + L N + M N / k                     M L N / k
    columns  M L + L N / k + M N / k                     M L N / k
    grid     M L / k_A + L N / k_B + M N / (k_A k_B)     M L N / (k_A k_B)
    =======  ==========================================  ==================

    Here k = 3 n / 4. On a grid, an eighth of the blocks along each side are parity blocks.

    Examples
    --------
    >>> from concurrent.futures import ThreadPoolExecutor
    >>> A, B = np.arange(60).reshape(10, 6), np.arange(42).reshape(6, 7)
    >>> with ThreadPoolExecutor(4) as pool:
    ...     product = coded_matmul(A, B, method="grid", tasks=(4, 3), executor=pool)
    >>> bool((product.array == A @ B).all()), product.report.code
    (True, 'arikan grid 4 x 3')
    """

    def execute(context: JobContext) -> CodedProduct:
        check_not_secret_sharing(code)
        left_factor, right_factor, shape = _check_factors(A, B)
        layout = layouts.choose_product_layout(
            method, (*left_factor.shape, right_factor.shape[1]), blocks, tasks, left_factor.dtype.itemsize
        )
        run_product = make_product_runner(
            resolve_executor(executor),
            check_options(verify, rtol, timeout, retries, retry_delay=retry_delay),
            lambda: context,
        )
        if layout.row_counts and layout.column_counts:
            product, report = _multiply_with_two_coded_factors(
                left_factor, right_factor, layout.row_counts, layout.column_counts, code, run_product
            )
        elif layout.row_counts:
            product, report = _multiply_with_one_coded_factor(
                left_factor, right_factor, layout.row_counts, code, run_product
            )
        else:
            assert layout.column_counts is not None
            transposed_factors = operands.TransposedView(right_factor), operands.TransposedView(left_factor)
            product, report = _multiply_with_one_coded_factor(
                *transposed_factors, layout.column_counts, code, run_product
            )
            product = product.T
        return CodedProduct(product.reshape(shape), report.report)

    return PreparedMap(execute)


def _check_factors(A: Any, B: Any) -> tuple[Any, Any, tuple[int, ...]]:
    """Validate both factors, and return them with the shape of the product."""
    A = operands.as_array_like(A, "A", "CodedOperator(A) @ B, or A.toarray()")
    B = operands.as_array_like(B, "B", "(CodedOperator(B.T) @ A.T).T, or B.toarray()")
    # B is read in blocks of columns. A coded array is stored by rows, so reading a few of its columns takes
    # as long as reading the whole array. Therefore, load it completely and only once.
    B = B[:] if hasattr(B, "coded_blocks") else B
    if len(A.shape) == 1 and len(B.shape) == 1:
        raise CodeError("A and B are both vectors, whose product is too small for a map: use A @ B")
    left_factor = operands.check_matrix_shape(A[:][None, :] if len(A.shape) == 1 else A, "A")
    right_factor = operands.check_matrix_shape(B[:][:, None] if len(B.shape) == 1 else B, "B")
    if left_factor.shape[1] != right_factor.shape[0]:
        raise CodeError(
            f"A of shape {tuple(A.shape)} and B of shape {tuple(B.shape)} do not match: "
            f"{left_factor.shape[1]} columns against {right_factor.shape[0]} rows"
        )
    common_dtype = np.result_type(left_factor.dtype, right_factor.dtype)
    left_factor = operands.ValidatedMatrix(
        left_factor, "A", operands.choose_encoding_dtype(left_factor.dtype, common_dtype)
    )
    right_factor = operands.ValidatedMatrix(
        right_factor, "B", operands.choose_encoding_dtype(right_factor.dtype, common_dtype)
    )
    return left_factor, right_factor, (*A.shape[:-1], *B.shape[1:])


def _multiply_with_one_coded_factor(
    coded_factor: Any,
    full_factor: Any,
    counts: layouts.BlockCounts,
    code: CodeName,
    run_product: ProductRunner,
) -> tuple[Array, LazyReport]:
    """Compute `coded_factor` @ `full_factor` in one coded map.

    The first factor is encoded by rows. Each task multiplies one of its blocks by the whole second factor.
    """
    operand = full_factor[:]
    dtype = np.result_type(coded_factor.dtype, operand.dtype)
    return multiply_row_blocks(encode_for_reuse(coded_factor, *counts, code), operand, dtype, run_product)


def multiply_row_blocks(
    coded_blocks: Any, operand: Array, dtype: DType, run_product: ProductRunner
) -> tuple[Array, LazyReport]:
    """Multiply a matrix by a vector or another matrix in one coded map.

    The first matrix is given as coded blocks of rows. Each task multiplies one of them by `operand`.
    """
    is_sparse = isinstance(coded_blocks, SparseCodedBlocks)
    if is_sparse:
        block_rows = coded_blocks.data_blocks.rows_per_block
    else:
        block_rows = coded_blocks.block_layout(0)[0][1][0]
    block_function = partial(multiply_block, operand, dtype.newbyteorder("="), is_sparse)
    result, report = run_product(block_function, coded_blocks, (block_rows, *operand.shape[1:]))
    return np.concatenate(list(result)), report


def _multiply_with_two_coded_factors(
    left_factor: Any,
    right_factor: Any,
    row_counts: layouts.BlockCounts,
    column_counts: layouts.BlockCounts,
    code: CodeName,
    run_product: ProductRunner,
) -> tuple[Array, LazyReport]:
    transposed_right = operands.TransposedView(right_factor)
    coded_pairs = CodedPairs(
        encode_for_reuse(left_factor, *row_counts, code),
        encode_for_reuse(transposed_right, *column_counts, code),
    )
    block_function = partial(
        multiply_block_pair, np.result_type(left_factor.dtype, right_factor.dtype).newbyteorder("=")
    )
    return multiply_block_pairs(
        block_function, coded_pairs, (left_factor.shape[0], right_factor.shape[1]), run_product
    )


def multiply_block_pairs(
    block_function: Callable[[Any], Array], coded_pairs: CodedPairs, shape: Shape, run_product: ProductRunner
) -> tuple[Array, LazyReport]:
    """Compute a matrix product in a single map, in which each task multiplies a pair of blocks.

    Blocks may have been padded to equal sizes. The padding is removed from the product.

    Parameters
    ----------
    block_function : callable
        Called with a pair (A_i, B_j^T). Returns a block of the product.
    coded_pairs : CodedPairs
        Coded blocks of both factors.
    shape : tuple of int
        Shape of the product. If it has more than two axes, each entry is an array of shape `shape[2:]`.
    run_product : ProductRunner
        Function that runs the map, from `make_product_runner`.
    """
    (_, (block_rows, *_)), (_, (block_columns, *_)) = coded_pairs.block_layout(0)
    result, report = run_product(block_function, coded_pairs, (block_rows, block_columns, *shape[2:]))
    product = np.empty(shape, result[0].dtype)
    for (block_row, block_column), block in zip(coded_pairs.code.grid_coordinates.tolist(), result):
        destination = product[
            block_row * block_rows : (block_row + 1) * block_rows,
            block_column * block_columns : (block_column + 1) * block_columns,
        ]
        destination[:] = block[: destination.shape[0], : destination.shape[1]]
    return product, report


def make_product_runner(
    executor: ResolvedExecutor,
    options: MapOptions,
    get_context: Callable[[], JobContext],
    deadline: Deadline | None = None,
) -> ProductRunner:
    """Return a function that computes one matrix product by a coded map each time it is called.

    If all tasks share the cores of this machine, parity tasks start only when a data task takes much longer
    than the previous product with the same blocks.

    Parameters
    ----------
    executor : ResolvedExecutor
        Executor of all products.
    options : MapOptions
        Options of all products.
    get_context : callable
        Called with no arguments when a product begins. Returns the context of its map.
    deadline : Deadline, optional
        Deadline of all products together. A product that would take longer raises DeadlineExceededError.
    """
    deadline = Deadline() if deadline is None else deadline
    # Products of the same matrix and the same size take about the same time, so they share a schedule, which
    # is adapted to their durations. The keys are the id of the coded blocks and the shape of the results.
    schedules = dict[tuple[int, Shape], AdaptiveParitySchedule]()

    def run_product(
        block_function: Callable[[Any], Array], coded_blocks: Any, result_shape: Shape
    ) -> tuple[CodedResult[Array], LazyReport]:
        parity_schedule = schedules.get((id(coded_blocks), result_shape))
        if parity_schedule is None:
            traits = FunctionTraits(meets_requirement=True, result_shape=result_shape, is_rowwise=True)
            parity_schedule = AdaptiveParitySchedule(replace(options, traits=traits))
            schedules[id(coded_blocks), result_shape] = parity_schedule
        map_options = parity_schedule.map_options
        product_options = deadline.limit_timeout(map_options)
        execution, blocks = prepare_coded_execution(coded_blocks, CodeOptions(), executor, product_options)
        try:
            collector, report = execute_coded(
                execution, block_function, blocks, product_options, get_context()
            )
        except CodedTimeoutError as error:
            if product_options is map_options:
                raise
            raise deadline.make_error() from error
        # The schedule is adapted to the duration of this product, unless the caller has passed their own
        # thread pool. Its threads may wait for something other than a free core, so its durations do not show
        # how long a product takes.
        if options.schedule == "upfront" and executor.workers_share_cores:
            arrived = collector.task_table.arrived
            has_missing = len(collector.decoder.tracker.missing_indices) > 0
            used_tasks = arrived.keys() - collector.unneeded_tasks
            parity_schedule.record_product(max(map(arrived.__getitem__, used_tasks)), has_missing)
        return collector.build_result(report), report

    return run_product
