"""Multiply small matrices by wide blocks, with the fastest of several methods.

Encoders and decoders pass the blocks as rows: a 2-D array, or a sequence of 1-D arrays. Depending on sizes
and dtypes, a product is computed by BLAS, by loops compiled with Numba, or by NumPy. The thresholds were
measured with benchmarks/coding.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from types import ModuleType

import numpy as np
import numpy.typing as npt

from polarmap.codes.compute import transforms
from polarmap.codes.compute.tiling import (
    FlatBlocks,
    gather_columns,
    ignore_nonfinite_warnings,
    is_contiguous_array,
    iter_column_tiles,
    parallel_for,
    split_columns_for_cores,
)
from polarmap.codes.rotation_network import RotationButterflyNetwork
from polarmap.dtypes import Array, DType, Floats, choose_accumulator_dtype

CompiledLoop = Callable[..., None]

# Blocks of other dtypes are converted to float64 in chunks of this many bytes, because the compiled loops
# work on float64 only.
CONVERSION_CHUNK_BYTES = 4 << 20
# OpenBLAS computes a matrix product on a single thread if it takes at most this many multiplications.
MAX_SINGLE_THREAD_MULTIPLIES = 1 << 18
# Use several threads only for products of more than this many multiplications. For smaller products, a second
# thread is not worthwhile: while workers keep the cores busy, waiting for it takes tens of milliseconds.
MIN_MULTITHREAD_MULTIPLIES = 1 << 22
# Single-threaded products are computed in pieces of at least MIN_COLUMNS columns, with sums of at most
# MAX_INNER_LENGTH terms. Other shapes are slower.
MIN_COLUMNS, MAX_INNER_LENGTH = 64, 1024
MIN_TILES_PER_THREAD = 4  # With fewer tiles per thread, starting the thread takes longer than it saves.
MIN_COMPILED_BYTES = 64 << 20  # For fewer bytes, loading the compiled loops takes longer than they save.


def dense_matmul(matrix: Floats, rows: FlatBlocks, out: Array) -> None:
    """Compute matrix @ rows with BLAS and write the product to `out`.

    If the rows do not form a single contiguous array, they are copied first, one tile (range of columns) at
    a time.

    Parameters
    ----------
    matrix : array (outputs, inputs)
        Coefficients, of a floating dtype that is used for the sums.
    rows : array (inputs, b) or sequence of arrays (b,)
        Flat blocks.
    out : array (outputs, b)
        Array to write to, of any real dtype.
    """
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


def matmul(matrix: Array, tile: Array, out: Array | None = None) -> Array:
    """Compute matrix @ tile for arrays of one floating dtype, and return the product.

    Small products are computed on the calling thread. If `out` is given, the product is written to it.

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
    """Compute matrix @ tile on the calling thread and write it to `out`.

    OpenBLAS uses a single thread only for small products, so the product is computed in small pieces.
    """
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
        rows = slice(first_row, first_row + n_rows)
        for first_column in range(0, width, n_columns):
            columns = slice(first_column, first_column + n_columns)
            np.matmul(matrix[rows], tile[:, columns], out=out[rows, columns])


def encode_rotation_parity_tiled(
    network: RotationButterflyNetwork, rows: FlatBlocks, out: Array, compiled: ModuleType | None = None
) -> None:
    """Compute the parity blocks of the rotation kernel in parallel and write them to `out`.

    Each thread encodes a range of the columns, because the columns are independent.

    Parameters
    ----------
    network : RotationButterflyNetwork
        Butterflies that multiply by the parity matrix.
    rows : array (k, b) or sequence of arrays (b,)
        Flat data blocks.
    out : array (parity blocks, b)
        Array to write the parity to.
    compiled : module, optional
        Module `transforms_numba`. By default, NumPy is used.
    """
    if compiled is not None:
        rotations = network.input_rotations, network.output_rotations
        operands = *rotations, network.permutations, network.kept_rows, network.scale, network.shift
        run_compiled_loop(compiled.encode_rotation_parity, rows, out, *operands)
        return
    sum_dtype = choose_accumulator_dtype(out.dtype)

    def encode_tile(columns: slice) -> None:
        out[:, columns] = transforms.encode_rotation_parity(gather_columns(rows, columns, sum_dtype), network)

    parallel_for(encode_tile, list(iter_column_tiles(out.shape[1], 3 * network.size, sum_dtype.itemsize)))


def combine_rows(weights: Floats, rows: FlatBlocks, out: Array) -> None:
    """Compute weights @ rows and write it to `out`, with compiled loops if they are faster than BLAS.

    Parameters
    ----------
    weights : array (outputs, inputs)
        Decoding weights.
    rows : array (inputs, b) or sequence of arrays (b,)
        Flat blocks.
    out : array (outputs, b)
        Array to write to, of a real dtype.
    """
    compiled = load_compiled_transforms(rows, out.dtype)
    if compiled is not None:
        n_outputs, n_inputs = weights.shape
        padded_weights = np.pad(weights, ((0, -n_outputs % 4), (0, -n_inputs % 4)))
        run_compiled_loop(compiled.combine_rows, rows, out, padded_weights)
    else:
        dense_matmul(weights.astype(choose_accumulator_dtype(out.dtype), copy=False), rows, out)


def load_compiled_transforms(rows: FlatBlocks, dtype: DType) -> ModuleType | None:
    """Return the module `transforms_numba` if its compiled loops are faster for these rows, otherwise None.

    The loops are faster if `rows` have at least MIN_COMPILED_BYTES in total, because loading them takes time.
    They require Numba, and they are used only for a `dtype` whose sums are computed in float64.
    """
    if sum(row.nbytes for row in rows) < MIN_COMPILED_BYTES or choose_accumulator_dtype(dtype) != np.float64:
        return None
    return import_compiled_transforms()


@cache
def import_compiled_transforms() -> ModuleType | None:
    """Return the module `transforms_numba`, or None if Numba is not installed."""
    if find_spec("numba") is None:
        return None
    from polarmap.codes.compute import transforms_numba

    return transforms_numba


def run_compiled_loop(compiled_loop: CompiledLoop, rows: FlatBlocks, out: Array, *operands: Array) -> None:
    """Run a compiled loop over all columns of `out` in parallel.

    The loop works on float64. Blocks of other dtypes are copied to float64 first, a few columns at a time.

    Parameters
    ----------
    compiled_loop : callable
        Called as compiled_loop(row_addresses, out, start, stop, *operands) for a range of columns. It reads
        and writes contiguous float64 only.
    rows : array (inputs, b) or sequence of arrays (b,)
        Flat blocks of any real dtype.
    out : array (outputs, b)
        Array to write to, of any real dtype.
    *operands : array
        Additional arguments of `compiled_loop`.
    """
    width, slices = out.shape[1], split_columns_for_cores(out)
    if out.dtype == np.float64 and all(_is_contiguous_float64(row) and row.size == width for row in rows):
        row_addresses = _get_row_addresses(rows)
        parallel_for(
            lambda columns: compiled_loop(row_addresses, out, columns.start, columns.stop, *operands), slices
        )
    else:
        parallel_for(partial(_run_loop_on_float64_copies, compiled_loop, rows, out, operands), slices)


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
    """Return the memory address of each row."""
    if isinstance(rows, np.ndarray):
        return rows.ctypes.data + rows.strides[0] * np.arange(len(rows))
    return np.array([row.ctypes.data for row in rows])
