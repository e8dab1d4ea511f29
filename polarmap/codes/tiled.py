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

from polarmap.codes import kernels
from polarmap.codes.design import Rotations
from polarmap.codes.dtypes import Array, DType, Floats, real_dtype, working_dtype
from polarmap.errors import CodeError
from polarmap.worker.surroundings import available_cores

Rows = Array | Sequence[Array]
Loops = Callable[..., None]

TILE_BYTES = 1 << 20  # of gathered rows: about the share of one core in the second-level cache
COPIED_BYTES = 8 << 20  # by one thread at a time
CONVERTED_BYTES = 4 << 20  # converted for one call of compiled loops, which have tiles of their own
# Multiplications up to which OpenBLAS takes no second thread, and up to which one is not worth it: where
# workers keep the cores busy, the wait for it takes tens of milliseconds.
ONE_THREAD_UP_TO = 1 << 18
MANY_THREADS_FROM = 1 << 22
FEWEST_COLUMNS, LONGEST = 64, 1024  # of a product on one thread: of fewer, or of longer rows, it takes longer
TILES_A_THREAD = 4  # fewer take no longer than another thread takes to begin
COMPILED_FROM_BYTES = 64 << 20  # below, loading the compiled loops costs more than they save


def gather(rows: Rows, columns: slice, dtype: npt.DTypeLike, out: Array | None = None) -> Array:
    """The columns of all rows, copied into one contiguous array of `dtype`."""
    width = columns.stop - columns.start
    tile = np.empty((len(rows), width), dtype) if out is None else out
    if isinstance(rows, np.ndarray):
        np.copyto(tile, rows[:, columns], casting="unsafe")
    elif tile.flags.c_contiguous:  # one call for all rows, which may be short
        np.concatenate([row[columns] for row in rows], out=tile.reshape(-1), casting="unsafe")
    else:
        for target, row in zip(tile, rows, strict=True):
            np.copyto(target, row[columns], casting="unsafe")
    return tile


def tiles(width: int, rows: int, itemsize: int) -> Iterator[slice]:
    """Column slices such that `rows` rows of one slice take about TILE_BYTES."""
    step = max(64, TILE_BYTES // max(1, rows * itemsize) // 64 * 64)
    for start in range(0, width, step):
        yield slice(start, min(width, start + step))


def shares(out: Array, least: int = 512) -> list[slice]:
    """Column slices of `out`, a few for each core, so that a busy core can leave some to another."""
    width = out.shape[1]
    step = max(least, -(-width // (4 * available_cores()) // 512) * 512)
    return [slice(start, min(width, start + step)) for start in range(0, width, step)]


def copy(rows: Array, out: Array) -> None:
    """out = rows, some of the rows on each core: new memory takes longer to be touched than to be written.

    Each page is touched by one thread; of several at once, each would clear it.
    """
    count = max(1, min(len(rows), out.nbytes // COPIED_BYTES))
    bounds = [len(rows) * part // count for part in range(count + 1)]
    over_cores(lambda part: np.copyto(out[part], rows[part]), list(map(slice, bounds[:-1], bounds[1:])))


def over_cores(work: Callable[[slice], None], slices: Sequence[slice], least: int = 1) -> None:
    """Run `work` on every slice, `least` or more on each of the cores that this process may use."""

    def quietly(columns: slice) -> None:
        with ignoring_inf():
            work(columns)

    cores = min(available_cores(), len(slices) // least)
    if cores <= 1:
        for columns in slices:
            quietly(columns)
        return
    with ThreadPoolExecutor(cores) as pool:
        for done in [pool.submit(quietly, columns) for columns in slices]:
            done.result()


def ignoring_inf() -> np.errstate:
    """No warnings for inf - inf: NaN and inf in blocks pass on into their sums, as they should."""
    return np.errstate(invalid="ignore", over="ignore")


def dense(matrix: Floats, rows: Rows, out: Array) -> None:
    """out = matrix @ rows through BLAS: rows of one array as they lie, others gathered tile by tile."""
    if out.dtype == matrix.dtype and is_one_array(rows, out.dtype):
        with ignoring_inf():
            matmul(matrix, rows, out)
        return

    def work(columns: slice) -> None:
        made = np.empty((len(out), columns.stop - columns.start), matrix.dtype)
        on_this_thread(matrix, gather(rows, columns, matrix.dtype), made)
        out[:, columns] = made

    slices = list(tiles(out.shape[1], len(rows) + len(out), matrix.itemsize))
    over_cores(work, slices, TILES_A_THREAD)


def is_one_array(rows: Rows, dtype: DType) -> TypeGuard[Array]:
    """Whether BLAS can take the rows where they lie."""
    return isinstance(rows, np.ndarray) and rows.dtype == dtype and rows.flags.c_contiguous


def matmul(matrix: Array, tile: Array, out: Array | None = None) -> Array:
    """matrix @ tile of one inexact dtype; of few entries on this thread alone.

    >>> matmul(np.eye(2), np.ones((2, 3))).tolist()
    [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """
    if out is None:
        out = np.empty((len(matrix), tile.shape[1]), matrix.dtype)
    if matrix.size * tile.shape[1] <= MANY_THREADS_FROM:
        on_this_thread(matrix, tile, out)
    else:
        np.matmul(matrix, tile, out=out)
    return out


def on_this_thread(matrix: Array, tile: Array, out: Array) -> None:
    """out = matrix @ tile, in pieces for which OpenBLAS takes no other thread."""
    length, width = tile.shape
    if length > LONGEST:
        rest, half = np.empty_like(out), length // 2
        on_this_thread(matrix[:, :half], tile[:half], out)
        on_this_thread(matrix[:, half:], tile[half:], rest)
        out += rest
        return
    entries = ONE_THREAD_UP_TO // max(length, 1)
    height = max(1, min(len(matrix), entries // min(FEWEST_COLUMNS, max(width, 1))))
    step = entries // height
    for top in range(0, len(matrix), height):
        part = matrix[top : top + height]
        for start in range(0, width, step):
            np.matmul(part, tile[:, start : start + step], out=out[top : top + height, start : start + step])


def rotation_parity(plan: Rotations, rows: Rows, out: Array, fast: ModuleType | None = None) -> None:
    """out = the parity rows by two butterflies, those of `fast` (polarmap.codes.kernels_numba) or numpy's."""
    if fast is not None:
        plain = plan.inward, plan.outward, plan.shuffles, plan.rows, plan.scale, plan.shift
        run_compiled(fast.rotation_parity, rows, out, *plain)
        return
    working = working_dtype(out.dtype)

    def work(columns: slice) -> None:
        out[:, columns] = kernels.rotation_parity(gather(rows, columns, working), plan)

    over_cores(work, list(tiles(out.shape[1], 3 * plan.size, working.itemsize)))


def product(weights: Floats, rows: Rows, out: Array) -> None:
    """out = weights @ rows, few rows from many, in compiled loops or else through BLAS."""
    fast = compiled_loops(rows, out.dtype)
    if fast is not None:
        height, length = weights.shape
        run_compiled(fast.combined, rows, out, np.pad(weights, ((0, -height % 4), (0, -length % 4))))
    else:
        dense(weights.astype(working_dtype(out.dtype), copy=False), rows, out)


def compiled_loops(rows: Rows, dtype: DType) -> ModuleType | None:
    """polarmap.codes.kernels_numba, if numba is there, `rows` are worth loading it and summed in float64."""
    return loops_from(COMPILED_FROM_BYTES, rows) if working_dtype(dtype) == np.float64 else None


def loops_from(least: int, rows: Rows) -> ModuleType | None:
    """polarmap.codes.kernels_numba, if numba is there and `rows` have `least` bytes."""
    if sum(row.nbytes for row in rows) < least or find_spec("numba") is None:
        return None
    from polarmap.codes import kernels_numba

    return kernels_numba


def run_compiled(loops: Loops, rows: Rows, out: Array, *operands: Array) -> None:
    """`loops` over all columns of `out`, which read and write contiguous float64 only."""
    width = out.shape[1]
    if out.dtype == np.float64 and all(_is_plain(row) and row.size == width for row in rows):
        places = _addresses(rows)
        over_cores(lambda columns: loops(places, out, columns.start, columns.stop, *operands), shares(out))
    else:
        over_cores(partial(_run_converted, loops, rows, out, operands), shares(out))


def _run_converted(loops: Loops, rows: Rows, out: Array, operands: tuple[Array, ...], columns: slice) -> None:
    step = max(128, CONVERTED_BYTES // (8 * len(rows)) // 128 * 128)
    tile, made = np.empty((len(rows), step)), np.empty((len(out), step))
    for start in range(columns.start, columns.stop, step):
        part = slice(start, min(columns.stop, start + step))
        width = part.stop - part.start
        gather(rows, part, np.float64, tile[:, :width])
        loops(_addresses(tile), made, 0, width, *operands)
        out[:, part] = made[:, :width]


def _is_plain(row: Array) -> bool:
    return row.dtype == np.float64 and row.flags.c_contiguous and row.flags.aligned


def _addresses(rows: Rows) -> npt.NDArray[np.int64]:
    """Where each row starts."""
    if isinstance(rows, np.ndarray):
        return rows.ctypes.data + rows.strides[0] * np.arange(len(rows))
    return np.array([row.ctypes.data for row in rows])


def check_rows(rows: Rows, k: int, code: object) -> None:
    """CodeError unless `rows` are k flat blocks of one size and dtype, as `code` wants them."""
    if len(rows) != k:
        raise CodeError(f"{code!r} encodes {k} blocks, not {len(rows)}")
    if isinstance(rows, np.ndarray):
        return
    for index, row in enumerate(rows):
        if row.shape != (rows[0].size,) or row.dtype != rows[0].dtype:
            raise CodeError(
                f"block {index} is {row.dtype} of shape {row.shape}, "
                f"block 0 {rows[0].dtype} of shape {rows[0].shape}"
            )


def real_rows(rows: Rows, dtype: DType) -> Rows:
    """Complex blocks as real ones of twice the length."""
    real = real_dtype(dtype)
    if isinstance(rows, np.ndarray):
        return np.ascontiguousarray(rows, dtype).view(real)
    return [np.ascontiguousarray(row, dtype).view(real) for row in rows]
