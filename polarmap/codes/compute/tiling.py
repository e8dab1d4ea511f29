"""Cut blocks into tiles of columns that fit in cache, and process the tiles on all cores.

Rows are k flat blocks, a 2-D array or a sequence of 1-D arrays. Work goes tile by tile along the
columns, so that a tile of all the rows stays in cache.
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

TILE_BYTES = 1 << 20  # of gathered rows: about the share of one core in the second-level cache
COPY_CHUNK_BYTES = 8 << 20  # by one thread at a time


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


def is_contiguous_array(rows: FlatBlocks, dtype: DType) -> TypeGuard[Array]:
    """Whether BLAS can take the rows where they lie."""
    return isinstance(rows, np.ndarray) and rows.dtype == dtype and rows.flags.c_contiguous


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
