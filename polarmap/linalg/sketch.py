"""Estimate least-squares solutions and Gram matrices from the results that have arrived so far.

The rows of A are multiplied by random signs, mixed by a cosine transform, shuffled and divided into blocks.
The transform is orthogonal and makes all rows equally informative, so any subset of them is a sketch of A: a
smaller matrix with about the same Gram matrix, up to scale
(Avron, Maymounkov and Toledo 2010; Bartan and Pilanci, arXiv 2309.00682). A worker returns the factor R of
the QR decomposition of its block. The QR decomposition of the factors that have arrived gives R of the
sketch. Once all factors have arrived, the result is exact.
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

from polarmap.blocks.equal import DEFAULT_N_BLOCKS
from polarmap.codes.block_prediction import compute_f_distribution_p90
from polarmap.dtypes import Array
from polarmap.errors import CodeError, trimmed_tracebacks
from polarmap.linalg import operands
from polarmap.maps.hedged import hedged_map
from polarmap.maps.submission import submit
from polarmap.optional import require_extra
from polarmap.validation import check_positive_int

with require_extra("a sketch", "scipy", "linalg"):
    from scipy.fft import dct


# This function returns the factor R of a QR decomposition. It is a partial of a NumPy function, so that
# workers can unpickle it without importing this module.
_r_factor: Callable[[Any], Any] = partial(np.linalg.qr, mode="r")


@dataclass(frozen=True)
class SketchEstimate:
    """An estimate computed from the results that have arrived so far.

    Attributes
    ----------
    value : array
        Estimate, which is exact once all results have arrived.
    error_p90 : float
        90th percentile of the relative error over random sketches; 0.0 once all results have arrived.
    n_arrived, n_tasks : int
        Number of results that have arrived, and total number of tasks.
    """

    value: Array
    error_p90: float
    n_arrived: int
    n_tasks: int


class _Sketch(NamedTuple):
    """A summary of the rows of a matrix that have been processed so far.

    The rows are mixed by a random orthogonal transform, and tasks process blocks of the mixed rows. R is the
    factor of a QR decomposition of the `n_rows` mixed rows in the results that have arrived, so R'R is the
    Gram matrix of these rows.
    """

    R: Array
    n_rows: int
    n_total_rows: int
    n_arrived: int
    n_tasks: int


def sketched_lstsq(
    A: Any,
    b: Any,
    *,
    tasks: int | None = None,
    executor: Any = None,
    timeout: float | None = None,
    retries: int = 1,
    retry_delay: float = 0.0,
    seed: int | None = None,
) -> Iterator[SketchEstimate]:
    """Estimate the least-squares solution of A x = b, more accurately with each result that arrives.

    Iterate over the estimates, and leave the loop when an estimate is accurate enough. Tasks that are still
    running are then stopped. The last estimate is exact. Late tasks get backups, as in `hedged_map`.

    Parameters
    ----------
    A : array-like (M, N)
        A real matrix with more rows than columns. The driver loads it and mixes its rows by a random
        orthogonal transform, which takes M log(M) N operations.
    b : array-like (M,)
        Right-hand side, real.
    tasks : int, optional
        Number of blocks of rows, with one task per block. By default, 24.
    executor, timeout, retries, retry_delay : optional
        As for `hedged_map`.
    seed : int, optional
        Seed of the random signs and of the shuffling.

    Yields
    ------
    SketchEstimate
        An estimate each time more results arrive, once they cover at least N + 2 rows. `value` is the
        estimate of x (N,). `error_p90` refers to the fitted values, |A (value - x)| / |b|.

    Raises
    ------
    NotDecodableError, CodedTimeoutError, ExecutorError
        As for `hedged_map`, if a task fails and has no retries left. The estimates from all other results
        are yielded first.

    Examples
    --------
    >>> import numpy as np, polarmap
    >>> A = np.random.default_rng(0).standard_normal((2000, 5))
    >>> b = A @ np.arange(5.0) + 1
    >>> for estimate in polarmap.linalg.sketched_lstsq(A, b, executor=polarmap.testing.ReplayExecutor()):
    ...     pass
    >>> estimate.n_arrived, estimate.error_p90
    (24, 0.0)
    >>> bool(np.allclose(estimate.value, np.linalg.lstsq(A, b, rcond=None)[0]))
    True
    """
    with trimmed_tracebacks:
        matrix, target = _check_real_matrix(A), operands.check_operand(b, "b")
        if target.shape != matrix.shape[:1]:
            raise CodeError(
                f"b has shape {target.shape}, but A has {len(matrix)} rows: pass one number per row"
            )
        if target.dtype.kind == "c":
            raise CodeError("b must be real, not complex: use lsqr on a CodedOperator")
        if len(matrix) <= matrix.shape[1]:
            raise CodeError(
                f"A has {len(matrix)} rows and {matrix.shape[1]} columns, but a sketch needs more rows than "
                "columns: use numpy.linalg.lstsq"
            )
        augmented = np.column_stack([matrix, target.astype(matrix.dtype)])
        n_tasks, target_norm = _check_n_tasks(tasks, len(matrix)), float(np.linalg.norm(target))
        return _estimate_solutions(
            _generate_sketches(augmented, n_tasks, executor, timeout, retries, retry_delay, _make_rng(seed)),
            target_norm,
        )


def sketched_gram(
    A: Any,
    *,
    tasks: int | None = None,
    executor: Any = None,
    timeout: float | None = None,
    retries: int = 1,
    retry_delay: float = 0.0,
    seed: int | None = None,
) -> Iterator[SketchEstimate]:
    """Estimate A' A, more accurately with each result that arrives.

    Iterate over the estimates, and leave the loop when an estimate is accurate enough. The last one is exact.

    Parameters
    ----------
    A : array-like (M, N)
        A real matrix. The driver loads it and mixes its rows by a random orthogonal transform.
    tasks, executor, timeout, retries, retry_delay, seed : optional
        As for `sketched_lstsq`, which also lists the exceptions.

    Yields
    ------
    SketchEstimate
        An estimate each time more results arrive. `value` (N, N) is the Gram matrix of the rows that have
        been processed, scaled up to all rows. `error_p90` refers to |value - A' A| / |A' A| in Frobenius
        norms.

    Examples
    --------
    >>> import numpy as np, polarmap
    >>> A = np.random.default_rng(0).standard_normal((2000, 5))
    >>> *_, last = polarmap.linalg.sketched_gram(A, tasks=12, executor=polarmap.testing.ReplayExecutor())
    >>> last.error_p90, bool(np.allclose(last.value, A.T @ A))
    (0.0, True)
    """
    with trimmed_tracebacks:
        matrix = _check_real_matrix(A)
        n_tasks = _check_n_tasks(tasks, len(matrix))
        return _estimate_grams(
            _generate_sketches(matrix, n_tasks, executor, timeout, retries, retry_delay, _make_rng(seed))
        )


def _estimate_solutions(
    sketches: Generator[_Sketch, None, None], target_norm: float
) -> Iterator[SketchEstimate]:
    """Yield an estimate of the least-squares solution of A x = b from each sketch of the matrix [A, b].

    A sketch contains the QR factor R of some mixed rows of this matrix. `target_norm` is the norm of b, by
    which errors are divided.
    """
    with trimmed_tracebacks, closing(sketches):
        for sketch in sketches:
            n_columns = sketch.R.shape[1] - 1
            if sketch.n_rows >= n_columns + 2:
                R = sketch.R[:n_columns]
                x, _, rank, _ = np.linalg.lstsq(R[:, :n_columns], R[:, -1], rcond=None)
                residual_sum_of_squares = float(np.sum((sketch.R[:, -1] - sketch.R[:, :-1] @ x) ** 2))
                error = (
                    _estimate_solution_error_p90(sketch, int(rank), residual_sum_of_squares) / target_norm
                    if target_norm
                    else 0.0
                )
                yield SketchEstimate(x, error, sketch.n_arrived, sketch.n_tasks)


def _estimate_solution_error_p90(sketch: _Sketch, rank: int, residual_sum_of_squares: float) -> float:
    """Return the 90th percentile of the error |A (estimate - x)|, where x is the exact solution.

    The percentile refers to the random choice of the rows in the sketch. `residual_sum_of_squares` is the
    squared norm of the residuals of these rows, and `rank` is the rank of A.
    """
    if sketch.n_rows == sketch.n_total_rows:
        return 0.0
    # Assume that the error of the estimate x' is normally distributed, with the covariance of least squares
    # on randomly chosen rows. Then E |A (x' - x)|^2 = s^2 rank (n_total_rows - n_rows) / (n_rows - rank - 1),
    # where s^2 is the variance of the residuals. The error is 0 once the sketch contains all rows.
    degrees_of_freedom = sketch.n_rows - rank
    correction = (sketch.n_total_rows - sketch.n_rows) / (degrees_of_freedom - 1)
    if not rank:
        return 0.0
    mean_squared_error = residual_sum_of_squares / degrees_of_freedom * rank * correction
    return sqrt(mean_squared_error * compute_f_distribution_p90(rank, degrees_of_freedom))


def _estimate_grams(sketches: Generator[_Sketch, None, None]) -> Iterator[SketchEstimate]:
    """Yield an estimate of A' A from each sketch of A.

    A sketch contains the QR factor R of some mixed rows. R' R, scaled up to all rows, estimates A' A.
    """
    with trimmed_tracebacks, closing(sketches):
        for sketch in sketches:
            gram = sketch.R.T @ sketch.R * (sketch.n_total_rows / sketch.n_rows)
            error = _estimate_gram_error_p90(gram, sketch)
            yield SketchEstimate(gram, error, sketch.n_arrived, sketch.n_tasks)


def _estimate_gram_error_p90(gram: Array, sketch: _Sketch) -> float:
    """Return the 90th percentile, over random sketches, of the relative error of an estimated Gram matrix."""
    trace, squared_norm = float(np.trace(gram)), float(np.sum(gram**2))
    if sketch.n_rows == sketch.n_total_rows or trace == 0:
        return 0.0
    # Assume that the mixed rows are normally distributed. Then `gram` is a Wishart matrix with mean G = A' A,
    # and E |gram - G|^2 = c (tr(G)^2 + |G|^2). The factor c is `relative_variance`: 1 / n_rows, corrected for
    # sampling without replacement. The same amount is subtracted from |gram|^2 to estimate |G|^2.
    relative_variance = (1 - sketch.n_rows / sketch.n_total_rows) / sketch.n_rows
    true_squared_norm = (squared_norm - relative_variance * trace**2) / (1 + relative_variance)  # |G|^2
    true_squared_norm = max(true_squared_norm, trace**2 / len(gram))
    fourth_moment = min(float(np.sum((gram @ gram) ** 2)), true_squared_norm**2)
    # Effective degrees of freedom of the sum of squared errors (Satterthwaite's approximation).
    degrees_of_freedom = (trace**2 + true_squared_norm) ** 2 / (2 * true_squared_norm**2 + 2 * fourth_moment)
    return sqrt(
        relative_variance
        * (trace**2 + true_squared_norm)
        / true_squared_norm
        * compute_f_distribution_p90(degrees_of_freedom, sketch.n_rows)
    )


def _generate_sketches(
    matrix: Array,
    n_tasks: int,
    executor: Any,
    timeout: float | None,
    retries: int,
    retry_delay: float,
    rng: np.random.Generator,
) -> Generator[_Sketch, None, None]:
    """Yield a sketch of the matrix each time more results arrive.

    Each task computes the QR factor R of one block of mixed rows. A sketch combines the factors that have
    arrived. If a task fails, its exception is raised after all other results have arrived.
    """
    n_total_rows = len(matrix)
    blocks = np.array_split(_mix_and_shuffle_rows(matrix, rng), n_tasks)
    future = submit(
        hedged_map,
        _r_factor,
        blocks,
        executor=executor,
        timeout=timeout,
        retries=retries,
        retry_delay=retry_delay,
    )
    rows_by_future = dict(zip(future.blocks, map(len, blocks)))
    R, n_arrived = np.zeros((0, matrix.shape[1]), matrix.dtype), 0
    pending, n_rows = set(future.blocks), 0
    try:
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            new_futures = [block_future for block_future in done if block_future.exception() is None]
            if new_futures:
                R = _r_factor(np.concatenate([R, *(block_future.result() for block_future in new_futures)]))
                n_arrived += len(new_futures)
                n_rows += sum(rows_by_future[block_future] for block_future in new_futures)
                yield _Sketch(R, n_rows, n_total_rows, n_arrived, n_tasks)
        future.result()
    finally:
        future.cancel()


def _mix_and_shuffle_rows(matrix: Array, rng: np.random.Generator) -> Array:
    """Mix the rows with a random orthogonal transform and shuffle them.

    Any subset of the mixed rows then represents the whole matrix about equally well.
    """
    signs = rng.choice(np.array([-1, 1], matrix.dtype), len(matrix))
    transformed = dct(matrix * signs[:, None], axis=0, norm="ortho", overwrite_x=True)
    return np.asarray(transformed[rng.permutation(len(matrix))])


def _check_real_matrix(A: Any) -> Array:
    """Return A as a matrix of real floats in memory. Raise CodeError if A is complex or not finite."""
    matrix = operands.check_matrix(A, "A")
    if matrix.dtype.kind == "c":
        raise CodeError("A must be real, not complex: use lsqr on a CodedOperator, or coded_gram")
    values = np.asarray(matrix[:], np.float32 if matrix.dtype in (np.float16, np.float32) else np.float64)
    operands.check_finite(values, "A")
    return values


def _check_n_tasks(tasks: int | None, n_rows: int) -> int:
    n_tasks = min(DEFAULT_N_BLOCKS, n_rows) if tasks is None else check_positive_int("tasks", tasks)
    if n_tasks > n_rows:
        raise CodeError(f"tasks={n_tasks} is more than the {n_rows} rows of A; use tasks <= {n_rows}")
    return n_tasks


def _make_rng(seed: int | None) -> np.random.Generator:
    try:
        return np.random.default_rng(seed)
    except (TypeError, ValueError) as error:
        raise CodeError(f"seed must be None or an integer >= 0, not {seed!r:.100}") from error
