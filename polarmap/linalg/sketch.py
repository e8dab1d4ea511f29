"""Least squares and Gram matrices as results arrive: from sketches that are exact once all are there.

The rows of A are mixed by an orthogonal transform, random signs and then a cosine transform, and
shuffled. Any of them then are a sketch of A, each block as good as any other (Avron, Maymounkov and
Toledo 2010; Bartan and Pilanci, arXiv 2309.00682). A worker returns R of the QR decomposition of its
block; of the R of those that have arrived one more QR gives that of the sketch.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, wait
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from math import sqrt
from typing import Any, NamedTuple

import numpy as np

from polarmap.blocks.equal import DEFAULT_BLOCKS
from polarmap.clouds.extras import needed_by
from polarmap.codes.block_prediction import f_quantile_p90
from polarmap.dtypes import Array
from polarmap.errors import CodeError, without_our_frames
from polarmap.linalg import matrices
from polarmap.maps.hedged import hedged_map
from polarmap.maps.submission import submit
from polarmap.validation import check_positive_int

with needed_by("a sketch", "scipy", "linalg"):
    from scipy.fft import dct


# R of the QR decomposition of rows; numpy's, so that a worker need not import this module.
_triangle: Callable[[Any], Any] = partial(np.linalg.qr, mode="r")


@dataclass(frozen=True)
class SketchEstimate:
    """What is known of a result so far.

    Attributes
    ----------
    value
        The estimate; exact once all have arrived.
    error_p90
        Its relative error, which nine in ten random sketches stay below; 0.0 once all have arrived.
    arrived, tasks
        Results of workers that it is made of, of how many.
    """

    value: Array
    error_p90: float
    arrived: int
    tasks: int


class _Sketch(NamedTuple):
    """R'R is the Gram matrix of `rows` of `total` rows, of `arrived` of `tasks` blocks."""

    R: Array
    rows: int
    total: int
    arrived: int
    tasks: int


def sketched_lstsq(
    A: Any,
    b: Any,
    *,
    tasks: int | None = None,
    executor: Any = None,
    timeout: float | None = None,
    retries: int = 1,
    seed: int | None = None,
) -> Iterator[SketchEstimate]:
    """The x that minimizes |A x - b|, better and better as workers return; the last one is exact.

    Leave the loop when an estimate is good enough: workers that still run are stopped. Those that are
    late get a backup, as in `hedged_map`.

    Parameters
    ----------
    A : array-like (M, N)
        Real, with more rows than columns. It is read whole and mixed here, which takes M log M N operations.
    b : array-like (M,)
    tasks : int, optional
        Blocks of rows that it is cut into, a task each: 24 by default.
    executor, timeout, retries : optional
        As for `hedged_map`.
    seed : int, optional
        Of the signs and the shuffling.

    Yields
    ------
    SketchEstimate
        As soon as the results are of two more rows than A has columns, and then each time that more arrive.
        `value` is x (N,). `error_p90` is that of the fitted values, |A (value - x)| / |b|.

    Raises
    ------
    NotDecodableError, CodedTimeoutError, ExecutorError
        As for `hedged_map`, after the estimates from what arrived: a task failed for good.

    Examples
    --------
    >>> import numpy as np, polarmap
    >>> A = np.random.default_rng(0).standard_normal((2000, 5))
    >>> b = A @ np.arange(5.0) + 1
    >>> for estimate in polarmap.linalg.sketched_lstsq(A, b, executor=polarmap.testing.ReplayExecutor()):
    ...     pass
    >>> estimate.arrived, estimate.error_p90
    (24, 0.0)
    >>> bool(np.allclose(estimate.value, np.linalg.lstsq(A, b, rcond=None)[0]))
    True
    """
    with without_our_frames:
        matrix, target = _checked(A), matrices.check_operand(b, "b")
        if target.shape != matrix.shape[:1]:
            raise CodeError(
                f"b has shape {target.shape}, but A has {len(matrix)} rows: one number for each is needed"
            )
        if target.dtype.kind == "c":
            raise CodeError("b is complex: sketches are of real numbers; use lsqr on a CodedOperator")
        if len(matrix) <= matrix.shape[1]:
            raise CodeError(
                f"A has {len(matrix)} rows for {matrix.shape[1]} columns: a sketch needs more rows than "
                "columns; use numpy.linalg.lstsq"
            )
        both = np.column_stack([matrix, target.astype(matrix.dtype)])
        count, size = _count(tasks, len(matrix)), float(np.linalg.norm(target))
        return _solutions(_sketches(both, count, executor, timeout, retries, _stream(seed)), size)


def sketched_gram(
    A: Any,
    *,
    tasks: int | None = None,
    executor: Any = None,
    timeout: float | None = None,
    retries: int = 1,
    seed: int | None = None,
) -> Iterator[SketchEstimate]:
    """A' A, better and better as workers return; the last one is exact.

    Parameters
    ----------
    A : array-like (M, N)
        Real. It is read whole and mixed here.
    tasks, executor, timeout, retries, seed : optional
        As for `sketched_lstsq`; so are errors.

    Yields
    ------
    SketchEstimate
        Each time that more results arrive. `value` (N, N) is the Gram matrix of the rows that have, times
        all rows over these. `error_p90` is |value - A' A| / |A' A| in Frobenius norms.

    Examples
    --------
    >>> import numpy as np, polarmap
    >>> A = np.random.default_rng(0).standard_normal((2000, 5))
    >>> *_, last = polarmap.linalg.sketched_gram(A, tasks=12, executor=polarmap.testing.ReplayExecutor())
    >>> last.error_p90, bool(np.allclose(last.value, A.T @ A))
    (0.0, True)
    """
    with without_our_frames:
        matrix = _checked(A)
        count = _count(tasks, len(matrix))
        return _grams(_sketches(matrix, count, executor, timeout, retries, _stream(seed)))


def _solutions(sketches: Generator[_Sketch, None, None], size: float) -> Iterator[SketchEstimate]:
    """Least squares from sketches of [A, b], b of norm `size`."""
    with without_our_frames, closing(sketches):
        for one in sketches:
            columns = one.R.shape[1] - 1
            if one.rows >= columns + 2:
                x, _, rank, _ = np.linalg.lstsq(one.R[:columns, :columns], one.R[:columns, -1], rcond=None)
                missed = float(np.sum((one.R[:, -1] - one.R[:, :-1] @ x) ** 2))
                error = _solution_error(one, int(rank), missed) / size if size else 0.0
                yield SketchEstimate(x, error, one.arrived, one.tasks)


def _solution_error(sketch: _Sketch, rank: int, missed: float) -> float:
    """What |A (estimate - x)| stays below in nine of ten sketches; `missed`: squares of the residuals."""
    if sketch.rows == sketch.total:
        return 0.0
    # Errors of x are taken to be normal, with the covariance of least squares on so many random rows, and
    # vanish as these become all: E |A (x' - x)|^2 = s^2 rank (total - rows) / (rows - rank - 1).
    spare = sketch.rows - rank
    share = (sketch.total - sketch.rows) / (spare - 1)
    return sqrt(missed / spare * rank * share * f_quantile_p90(rank, spare)) if rank else 0.0


def _grams(sketches: Generator[_Sketch, None, None]) -> Iterator[SketchEstimate]:
    """Gram matrices from sketches of A."""
    with without_our_frames, closing(sketches):
        for one in sketches:
            value = one.R.T @ one.R * (one.total / one.rows)
            yield SketchEstimate(value, _gram_error(value, one), one.arrived, one.tasks)


def _gram_error(value: Array, sketch: _Sketch) -> float:
    """What the relative error of a Gram matrix G stays below in nine of ten sketches."""
    trace, square = float(np.trace(value)), float(np.sum(value**2))
    if sketch.rows == sketch.total or trace == 0:
        return 0.0
    # Mixed rows are taken to be normal: of a Wishart matrix of so many rows, E |value - G|^2 =
    # c (tr(G)^2 + |G|^2) with c = 1 / rows, less what has been seen of all. `value` is larger than G by that.
    c = (1 - sketch.rows / sketch.total) / sketch.rows
    size = max((square - c * trace**2) / (1 + c), trace**2 / len(value))  # |G|^2
    fourth = min(float(np.sum((value @ value) ** 2)), size**2)
    # Of as many chi-squares as eigenvalues vary.
    freedom = (trace**2 + size) ** 2 / (2 * size**2 + 2 * fourth)
    return sqrt(c * (trace**2 + size) / size * f_quantile_p90(freedom, sketch.rows))


def _sketches(
    matrix: Array,
    tasks: int,
    executor: Any,
    timeout: float | None,
    retries: int,
    stream: np.random.Generator,
) -> Generator[_Sketch, None, None]:
    """A sketch each time that more results are there; what the map raises, after all that arrived."""
    total = len(matrix)
    blocks = np.array_split(_mixed(matrix, stream), tasks)
    future = submit(hedged_map, _triangle, blocks, executor=executor, timeout=timeout, retries=retries)
    rows = dict(zip(future.blocks, map(len, blocks)))
    R, arrived = np.zeros((0, matrix.shape[1]), matrix.dtype), 0
    pending, seen = set(future.blocks), 0
    try:
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            new = [block for block in done if block.exception() is None]
            if new:
                R = _triangle(np.concatenate([R, *(block.result() for block in new)]))
                arrived, seen = arrived + len(new), seen + sum(rows[block] for block in new)
                yield _Sketch(R, seen, total, arrived, tasks)
        future.result()
    finally:
        future.cancel()


def _mixed(matrix: Array, stream: np.random.Generator) -> Array:
    """All rows, each a random combination of all, orthogonally, in a random order."""
    signs = stream.choice(np.array([-1, 1], matrix.dtype), len(matrix))
    mixed = dct(matrix * signs[:, None], axis=0, norm="ortho", overwrite_x=True)
    return np.asarray(mixed[stream.permutation(len(matrix))])


def _checked(A: Any) -> Array:
    """A real matrix in memory, of floats."""
    matrix = matrices.check_matrix(A, "A")
    if matrix.dtype.kind == "c":
        raise CodeError(
            "A is complex: sketches are of real numbers; use lsqr on a CodedOperator, or coded_gram"
        )
    found = np.asarray(matrix[:], np.float32 if matrix.dtype in (np.float16, np.float32) else np.float64)
    matrices.check_finite(found, "A")
    return found


def _count(tasks: int | None, rows: int) -> int:
    count = min(DEFAULT_BLOCKS, rows) if tasks is None else check_positive_int("tasks", tasks)
    if count > rows:
        raise CodeError(f"tasks={count} is more than the {rows} rows of A; use tasks <= {rows}")
    return count


def _stream(seed: int | None) -> np.random.Generator:
    try:
        return np.random.default_rng(seed)
    except (TypeError, ValueError) as error:
        raise CodeError(f"seed must be an integer of at least 0, or None, not {seed!r:.100}") from error
