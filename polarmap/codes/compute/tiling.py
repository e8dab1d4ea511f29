"""Cut blocks into tiles of columns that fit into the cache, and process the tiles on all cores.

    rows (blocks)   | tile 0 | tile 1 | tile 2 | ...      each tile contains some columns of all rows

Encoders and decoders combine flat blocks, which they get as a 2-D array or as a sequence of 1-D arrays. They
work tile by tile, because one tile of all rows stays in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeGuard

import numpy as np
import numpy.typing as npt

from polarmap.dtypes import Array, DType, to_real_dtype
from polarmap.errors import CodeError
from polarmap.worker.environment import count_available_cores

FlatBlocks = Array | Sequence[Array]

# Size of a tile in bytes. A tile is a range of columns that is processed at a time, and should fit into the
# L2 cache of a core.
TILE_BYTES = 1 << 20
COPY_CHUNK_BYTES = 8 << 20  # Minimum number of bytes that a thread copies at a time.


def gather_columns(
    rows: FlatBlocks, column_slice: slice, dtype: npt.DTypeLike, out: Array | None = None
) -> Array:
    """Copy a range of columns of all rows into one array.

    Parameters
    ----------
    rows : array (k, b) or sequence of arrays (b,)
        Flat blocks.
    column_slice : slice
        Range of columns with explicit start and stop.
    dtype : dtype
        Data type of a new array.
    out : array (k, columns), optional
        Array to copy to instead. Its own dtype is kept.

    Returns
    -------
    array (k, columns)
    """
    width = column_slice.stop - column_slice.start
    tile = np.empty((len(rows), width), dtype) if out is None else out
    if isinstance(rows, np.ndarray):
        np.copyto(tile, rows[:, column_slice], casting="unsafe")
    # Concatenating all rows in a single call is faster than copying row by row if the rows are short.
    elif tile.flags.c_contiguous:
        np.concatenate([row[column_slice] for row in rows], out=tile.reshape(-1), casting="unsafe")
    else:
        for tile_row, row in zip(tile, rows, strict=True):
            np.copyto(tile_row, row[column_slice], casting="unsafe")
    return tile


def iter_column_tiles(width: int, n_rows: int, itemsize: int) -> Iterator[slice]:
    """Yield ranges of columns (tiles) that are small enough for the cache of a core.

    A tile of `n_rows` rows takes about TILE_BYTES.

    Parameters
    ----------
    width : int
        Total number of columns.
    n_rows, itemsize : int
        Number of rows of a tile, and bytes per entry.
    """
    tile_width = max(64, TILE_BYTES // max(1, n_rows * itemsize) // 64 * 64)
    for start in range(0, width, tile_width):
        yield slice(start, min(width, start + tile_width))


def split_columns_for_cores(out: Array, min_columns: int = 512) -> list[slice]:
    """Split the columns of `out` into a few ranges per core, each of at least `min_columns` columns.

    There are several ranges per core, so that cores that finish early can take over ranges of slower cores.
    """
    width = out.shape[1]
    slice_width = max(min_columns, -(-width // (4 * count_available_cores()) // 512) * 512)
    return [slice(start, min(width, start + slice_width)) for start in range(0, width, slice_width)]


def parallel_copy(rows: Array, out: Array) -> None:
    """Copy `rows` to `out` in parallel.

    The operating system clears each memory page when it is first accessed, which takes longer than writing to
    it, so several threads share this work. Each thread copies a separate range of rows, because several
    threads that access the same new page would all clear it.
    """
    n_chunks = max(1, min(len(rows), out.nbytes // COPY_CHUNK_BYTES))
    bounds = [len(rows) * chunk // n_chunks for chunk in range(n_chunks + 1)]
    parallel_for(lambda chunk: np.copyto(out[chunk], rows[chunk]), list(map(slice, bounds[:-1], bounds[1:])))


def parallel_for(
    work: Callable[[slice], None], slices: Sequence[slice], min_slices_per_core: int = 1
) -> None:
    """Call `work` for every slice, in parallel on the cores available to this process.

    Parameters
    ----------
    work : callable
        Called with each slice, on any thread.
    slices : sequence of slice
        Ranges of columns or rows.
    min_slices_per_core : int
        Use fewer cores if each would get fewer slices than this.
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
    """Return a context manager that suppresses NumPy's warnings about NaN and inf.

    Sums of blocks that contain NaN or inf are NaN or inf themselves, which is not an error.
    """
    return np.errstate(invalid="ignore", over="ignore")


def is_contiguous_array(rows: FlatBlocks, dtype: DType) -> TypeGuard[Array]:
    """Return whether `rows` is one C-contiguous array of `dtype`, which BLAS can use without a copy."""
    return isinstance(rows, np.ndarray) and rows.dtype == dtype and rows.flags.c_contiguous


def check_flat_blocks(blocks: FlatBlocks, k: int, code: object) -> None:
    """Raise CodeError unless `blocks` are k flat blocks of one size and dtype.

    Parameters
    ----------
    blocks : array (k, b) or sequence of arrays (b,)
        Blocks to check.
    k : int
        Required number of blocks.
    code : object
        Code to name in the error message.
    """
    if len(blocks) != k:
        raise CodeError(f"{code!r} encodes {k} blocks, not {len(blocks)}")
    if isinstance(blocks, np.ndarray):
        return
    for block_index, block in enumerate(blocks):
        if block.shape != (blocks[0].size,) or block.dtype != blocks[0].dtype:
            raise CodeError(
                f"block {block_index} is {block.dtype} of shape {block.shape}, but "
                f"block 0 is {blocks[0].dtype} of shape {blocks[0].shape}"
            )


def view_as_real(blocks: FlatBlocks, dtype: DType) -> FlatBlocks:
    """Return a view of complex blocks as real blocks of twice the length.

    Blocks of another dtype are converted to `dtype` first.
    """
    real_part_dtype = to_real_dtype(dtype)
    if isinstance(blocks, np.ndarray):
        return np.ascontiguousarray(blocks, dtype).view(real_part_dtype)
    return [np.ascontiguousarray(block, dtype).view(real_part_dtype) for block in blocks]
