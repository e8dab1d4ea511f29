"""Parity rows from data rows: one path per regime, chosen by measurement (benchmarks/coding.py).

Rows are k flat blocks, a 2-D array or a sequence of 1-D arrays. Work goes tile by tile along the
columns, so that a tile of all the rows stays in cache; tiles are spread over the cores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from types import ModuleType
from typing import TypeGuard

import numpy as np
import numpy.typing as npt

from polarmap.codes import transforms
from polarmap.codes.rotation_network import RotationButterflyNetwork
from polarmap.dtypes import Array, DType, Floats, choose_accumulator_dtype, to_real_dtype
from polarmap.errors import CodeError
from polarmap.worker.environment import count_available_cores

FlatBlocks = Array | Sequence[Array]
CompiledLoop = Callable[..., None]

TILE_BYTES = 1 << 20  # of gathered rows: about the share of one core in the second-level cache
COPY_CHUNK_BYTES = 8 << 20  # by one thread at a time
CONVERSION_CHUNK_BYTES = 4 << 20  # converted for one call of compiled loops, which have tiles of their own
# Multiplications up to which OpenBLAS takes no second thread, and up to which one is not worth it: where
# workers keep the cores busy, the wait for it takes tens of milliseconds.
MAX_SINGLE_THREAD_MULTIPLIES = 1 << 18
MIN_MULTITHREAD_MULTIPLIES = 1 << 22
# of a product on one thread: of fewer, or of longer rows, it takes longer
MIN_COLUMNS, MAX_INNER_LENGTH = (
    64,
    1024,
)
MIN_TILES_PER_THREAD = 4  # fewer take no longer than another thread takes to begin
MIN_COMPILED_BYTES = 64 << 20  # below, loading the compiled loops costs more than they save


def gather_columns(
    rows: FlatBlocks, column_slice: slice, dtype: npt.DTypeLike, out: Array | None = None
) -> Array:
    """The columns of all rows, copied into one contiguous array of `dtype`."""
    width = column_slice.stop - column_slice.start
    tile = np.empty((len(rows), width), dtype) if out is None else out
    if isinstance(rows, np.ndarray):
        np.copyto(tile, rows[:, column_slice], casting="unsafe")
    elif tile.flags.c_contiguous:  # one call for all rows, which may be short
        np.concatenate([row[column_slice] for row in rows], out=tile.reshape(-1), casting="unsafe")
    else:
        for tile_row, row in zip(tile, rows, strict=True):
            np.copyto(tile_row, row[column_slice], casting="unsafe")
    return tile


def iter_column_tiles(width: int, n_rows: int, itemsize: int) -> Iterator[slice]:
    """Column slices such that `n_rows` rows of one slice take about TILE_BYTES."""
    tile_width = max(64, TILE_BYTES // max(1, n_rows * itemsize) // 64 * 64)
    for start in range(0, width, tile_width):
        yield slice(start, min(width, start + tile_width))


def split_columns_for_cores(out: Array, min_columns: int = 512) -> list[slice]:
    """Column slices of `out`, a few for each core, so that a busy core can leave some to another."""
    width = out.shape[1]
    slice_width = max(min_columns, -(-width // (4 * count_available_cores()) // 512) * 512)
    return [slice(start, min(width, start + slice_width)) for start in range(0, width, slice_width)]


def parallel_copy(rows: Array, out: Array) -> None:
    """out = rows, some of the rows on each core: new memory takes longer to be touched than to be written.

    Each page is touched by one thread; of several at once, each would clear it.
    """
    n_chunks = max(1, min(len(rows), out.nbytes // COPY_CHUNK_BYTES))
    bounds = [len(rows) * chunk // n_chunks for chunk in range(n_chunks + 1)]
    parallel_for(lambda chunk: np.copyto(out[chunk], rows[chunk]), list(map(slice, bounds[:-1], bounds[1:])))


def parallel_for(
    work: Callable[[slice], None], slices: Sequence[slice], min_slices_per_core: int = 1
) -> None:
    """Run `work` on every slice, `min_slices_per_core` or more on each of the cores that this process may
    use.
    """

    def work_ignoring_nonfinite(columns: slice) -> None:
        with ignore_nonfinite_warnings():
            work(columns)

    n_threads = min(count_available_cores(), len(slices) // min_slices_per_core)
    if n_threads <= 1:
        for columns in slices:
            work_ignoring_nonfinite(columns)
        return
    with ThreadPoolExecutor(n_threads) as thread_pool:
        for future in [thread_pool.submit(work_ignoring_nonfinite, columns) for columns in slices]:
            future.result()


def ignore_nonfinite_warnings() -> np.errstate:
    """No warnings for inf - inf: NaN and inf in blocks pass on into their sums, as they should."""
    return np.errstate(invalid="ignore", over="ignore")


def dense_matmul(matrix: Floats, rows: FlatBlocks, out: Array) -> None:
    """out = matrix @ rows through BLAS: rows of one array as they lie, others gathered tile by tile."""
    if out.dtype == matrix.dtype and is_contiguous_array(rows, out.dtype):
        with ignore_nonfinite_warnings():
            matmul(matrix, rows, out)
        return

    def multiply_tile(columns: slice) -> None:
        products = np.empty((len(out), columns.stop - columns.start), matrix.dtype)
        single_threaded_matmul(matrix, gather_columns(rows, columns, matrix.dtype), products)
        out[:, columns] = products

    slices = list(iter_column_tiles(out.shape[1], len(rows) + len(out), matrix.itemsize))
    parallel_for(multiply_tile, slices, MIN_TILES_PER_THREAD)


def is_contiguous_array(rows: FlatBlocks, dtype: DType) -> TypeGuard[Array]:
    """Whether BLAS can take the rows where they lie."""
    return isinstance(rows, np.ndarray) and rows.dtype == dtype and rows.flags.c_contiguous


def matmul(matrix: Array, tile: Array, out: Array | None = None) -> Array:
    """matrix @ tile of one inexact dtype; of few entries on this thread alone.

    >>> matmul(np.eye(2), np.ones((2, 3))).tolist()
    [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """
    if out is None:
        out = np.empty((len(matrix), tile.shape[1]), matrix.dtype)
    if matrix.size * tile.shape[1] <= MIN_MULTITHREAD_MULTIPLIES:
        single_threaded_matmul(matrix, tile, out)
    else:
        np.matmul(matrix, tile, out=out)
    return out


def single_threaded_matmul(matrix: Array, tile: Array, out: Array) -> None:
    """out = matrix @ tile, in pieces for which OpenBLAS takes no other thread."""
    inner_length, width = tile.shape
    if inner_length > MAX_INNER_LENGTH:
        partial_sums, half = np.empty_like(out), inner_length // 2
        single_threaded_matmul(matrix[:, :half], tile[:half], out)
        single_threaded_matmul(matrix[:, half:], tile[half:], partial_sums)
        out += partial_sums
        return
    max_products = MAX_SINGLE_THREAD_MULTIPLIES // max(inner_length, 1)
    n_rows = max(1, min(len(matrix), max_products // min(MIN_COLUMNS, max(width, 1))))
    n_columns = max_products // n_rows
    for first_row in range(0, len(matrix), n_rows):
        row_batch = matrix[first_row : first_row + n_rows]
        for first_column in range(0, width, n_columns):
            np.matmul(
                row_batch,
                tile[:, first_column : first_column + n_columns],
                out=out[first_row : first_row + n_rows, first_column : first_column + n_columns],
            )


def encode_rotation_parity_tiled(
    network: RotationButterflyNetwork, rows: FlatBlocks, out: Array, compiled: ModuleType | None = None
) -> None:
    """out = the parity rows by two butterflies, those of `compiled` (polarmap.codes.transforms_numba) or
    numpy's.
    """
    if compiled is not None:
        network_arrays = (
            network.input_rotations,
            network.output_rotations,
            network.permutations,
            network.kept_rows,
            network.scale,
            network.shift,
        )
        run_compiled_loop(compiled.encode_rotation_parity, rows, out, *network_arrays)
        return
    sum_dtype = choose_accumulator_dtype(out.dtype)

    def encode_tile(columns: slice) -> None:
        out[:, columns] = transforms.encode_rotation_parity(gather_columns(rows, columns, sum_dtype), network)

    parallel_for(encode_tile, list(iter_column_tiles(out.shape[1], 3 * network.size, sum_dtype.itemsize)))


def combine_rows(weights: Floats, rows: FlatBlocks, out: Array) -> None:
    """out = weights @ rows, few rows from many, in compiled loops or else through BLAS."""
    compiled = load_compiled_transforms(rows, out.dtype)
    if compiled is not None:
        n_outputs, n_inputs = weights.shape
        run_compiled_loop(
            compiled.combine_rows, rows, out, np.pad(weights, ((0, -n_outputs % 4), (0, -n_inputs % 4)))
        )
    else:
        dense_matmul(weights.astype(choose_accumulator_dtype(out.dtype), copy=False), rows, out)


def load_compiled_transforms(rows: FlatBlocks, dtype: DType) -> ModuleType | None:
    """polarmap.codes.transforms_numba, if numba is there, `rows` are worth loading it and summed in
    float64.
    """
    return (
        load_compiled_transforms_if_large(MIN_COMPILED_BYTES, rows)
        if choose_accumulator_dtype(dtype) == np.float64
        else None
    )


def load_compiled_transforms_if_large(min_bytes: int, rows: FlatBlocks) -> ModuleType | None:
    """polarmap.codes.transforms_numba, if numba is there and `rows` have `min_bytes` bytes."""
    if sum(row.nbytes for row in rows) < min_bytes or find_spec("numba") is None:
        return None
    from polarmap.codes import transforms_numba

    return transforms_numba


def run_compiled_loop(compiled_loop: CompiledLoop, rows: FlatBlocks, out: Array, *operands: Array) -> None:
    """`compiled_loop` over all columns of `out`, which read and write contiguous float64 only."""
    width = out.shape[1]
    if out.dtype == np.float64 and all(_is_contiguous_float64(row) and row.size == width for row in rows):
        row_addresses = _get_row_addresses(rows)
        parallel_for(
            lambda columns: compiled_loop(row_addresses, out, columns.start, columns.stop, *operands),
            split_columns_for_cores(out),
        )
    else:
        parallel_for(
            partial(_run_loop_on_float64_copies, compiled_loop, rows, out, operands),
            split_columns_for_cores(out),
        )


def _run_loop_on_float64_copies(
    compiled_loop: CompiledLoop, rows: FlatBlocks, out: Array, operands: tuple[Array, ...], columns: slice
) -> None:
    chunk_width = max(128, CONVERSION_CHUNK_BYTES // (8 * len(rows)) // 128 * 128)
    tile, products = np.empty((len(rows), chunk_width)), np.empty((len(out), chunk_width))
    for start in range(columns.start, columns.stop, chunk_width):
        chunk = slice(start, min(columns.stop, start + chunk_width))
        width = chunk.stop - chunk.start
        gather_columns(rows, chunk, np.float64, tile[:, :width])
        compiled_loop(_get_row_addresses(tile), products, 0, width, *operands)
        out[:, chunk] = products[:, :width]


def _is_contiguous_float64(row: Array) -> bool:
    return row.dtype == np.float64 and row.flags.c_contiguous and row.flags.aligned


def _get_row_addresses(rows: FlatBlocks) -> npt.NDArray[np.int64]:
    """Where each row starts."""
    if isinstance(rows, np.ndarray):
        return rows.ctypes.data + rows.strides[0] * np.arange(len(rows))
    return np.array([row.ctypes.data for row in rows])


def check_flat_blocks(blocks: FlatBlocks, k: int, code: object) -> None:
    """CodeError unless `blocks` are k flat blocks of one size and dtype, as `code` wants them."""
    if len(blocks) != k:
        raise CodeError(f"{code!r} encodes {k} blocks, not {len(blocks)}")
    if isinstance(blocks, np.ndarray):
        return
    for block_index, block in enumerate(blocks):
        if block.shape != (blocks[0].size,) or block.dtype != blocks[0].dtype:
            raise CodeError(
                f"block {block_index} is {block.dtype} of shape {block.shape}, "
                f"block 0 {blocks[0].dtype} of shape {blocks[0].shape}"
            )


def view_as_real(blocks: FlatBlocks, dtype: DType) -> FlatBlocks:
    """Complex blocks as real ones of twice the length."""
    real_part_dtype = to_real_dtype(dtype)
    if isinstance(blocks, np.ndarray):
        return np.ascontiguousarray(blocks, dtype).view(real_part_dtype)
    return [np.ascontiguousarray(block, dtype).view(real_part_dtype) for block in blocks]
