"""Parity rows from data rows: one path per regime, chosen by measurement (benchmarks/encode.py).

Rows are k flat blocks, a 2-D array or a sequence of 1-D arrays. Work goes tile by tile along the
columns, so that a tile of all the rows stays in cache; tiles are spread over the cores.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from polarmap.code import butterfly
from polarmap.code.design import Floats, Indices, Rotations

Array = npt.NDArray[Any]
Rows = Array | Sequence[Array]

TILE_BYTES = 1 << 20  # of gathered rows: about the share of one core in the second-level cache
COMPILED_FROM_BYTES = 64 << 20  # below, loading the compiled kernel costs more than it saves


def gather(rows: Rows, columns: slice, dtype: npt.DTypeLike, out: Array | None = None) -> Array:
    """The columns of all rows, copied into one contiguous array of `dtype`."""
    width = columns.stop - columns.start
    tile = np.empty((len(rows), width), dtype) if out is None else out
    if isinstance(rows, np.ndarray):
        np.copyto(tile, rows[:, columns], casting="unsafe")
    else:
        for target, row in zip(tile, rows, strict=True):
            np.copyto(target, row[columns], casting="unsafe")
    return tile


def tiles(width: int, rows: int, itemsize: int) -> Iterator[slice]:
    """Column slices such that `rows` rows of one slice take about TILE_BYTES."""
    step = max(64, TILE_BYTES // max(1, rows * itemsize) // 64 * 64)
    for start in range(0, width, step):
        yield slice(start, min(width, start + step))


def over_cores(work: Callable[[slice], None], slices: Sequence[slice]) -> None:
    """Run `work` on every slice, on as many threads as this process may use cores."""

    def quietly(columns: slice) -> None:
        with ignoring_inf():
            work(columns)

    cores = min(available_cores(), len(slices))
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


def available_cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def dense(matrix: Floats, rows: Rows, out: Array) -> None:
    """out = matrix @ rows through BLAS, which brings its own threads."""
    if isinstance(rows, np.ndarray) and rows.dtype == out.dtype == matrix.dtype and rows.flags.c_contiguous:
        with ignoring_inf():
            np.matmul(matrix, rows, out=out)
        return
    for columns in tiles(out.shape[1], len(rows) + len(out), matrix.itemsize):
        with ignoring_inf():
            out[:, columns] = matrix @ gather(rows, columns, matrix.dtype)


def rotation_parity(plan: Rotations, rows: Rows, out: Array, working: npt.DTypeLike) -> None:
    """out = the parity rows by two butterflies, compiled if numba is there and the job large."""
    kernel = _compiled_folded() if np.dtype(working) == np.float64 and _is_large(rows) else None

    def work(columns: slice) -> None:
        if kernel is not None and isinstance(rows, np.ndarray) and rows.dtype == out.dtype == np.float64:
            kernel(rows, out, columns.start, columns.stop, *plan[1:])
        elif kernel is not None:
            tile = gather(rows, columns, np.float64)
            parity = np.empty((len(out), tile.shape[1]))
            kernel(tile, parity, 0, tile.shape[1], *plan[1:])
            out[:, columns] = parity
        else:
            out[:, columns] = butterfly.folded(gather(rows, columns, working), plan)

    width = out.shape[1]
    over_cores(work, list(tiles(width, 3 * plan.size, np.dtype(working).itemsize)))


def arikan_parity(length: int, order: Indices, frozen: Indices, rows: Rows, out: Array) -> None:
    """out = the parity rows of the Arikan code: inverse(T), freeze, T (Arikan 2011, systematic).

    `order` says on which leaf each of the n coded blocks sits, data first. The sums are taken in
    out's dtype, or in float64 when that is inexact.
    """
    working = (
        out.dtype if out.dtype.kind in "iu" else np.dtype(np.float64 if out.itemsize > 2 else np.float32)
    )
    k = len(rows)

    def work(columns: slice) -> None:
        leaves = np.zeros((length, columns.stop - columns.start), working)
        leaves[order[:k]] = gather(rows, columns, working)
        inputs = butterfly.arikan_inverse(leaves)
        inputs[frozen] = 0
        inputs[: length - len(order)] = 0
        out[:, columns] = butterfly.arikan(inputs)[order[k:]]

    over_cores(work, list(tiles(out.shape[1], length, working.itemsize)))


def has_compiled_kernels() -> bool:
    """Whether the `fast` extra (numba) is installed."""
    try:
        import numba  # noqa: F401
    except ImportError:
        return False
    return True


def _compiled_folded() -> Callable[..., None] | None:
    if not has_compiled_kernels():
        return None
    from polarmap.code.compiled import folded

    return folded


def _is_large(rows: Rows) -> bool:
    return sum(row.nbytes for row in rows) >= COMPILED_FROM_BYTES
