"""Compute gradients by finite differences on several workers, without waiting for slow or lost ones.

Slopes (directional derivatives) along a few redundant directions replace missing ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np

from polarmap.blocks.array_like import as_array_like
from polarmap.blocks.code_choice import CodeName, CodeOptions
from polarmap.blocks.equal import DEFAULT_N_BLOCKS
from polarmap.codes.polar import PolarCode
from polarmap.driver.events import JobContext
from polarmap.driver.options import FunctionTraits, Progress, Verify, check_function, check_options
from polarmap.driver.prepared_map import PreparedMap, map_function, prepare_coded_map
from polarmap.dtypes import FLOAT64_EPS, Array, Floats
from polarmap.errors import CodeError, NotDecodableError, NotLinearError
from polarmap.executors import resolve_executor
from polarmap.report import Report
from polarmap.validation import is_choice, is_positive_number
from polarmap.worker.finite_differences import (
    NotScalarError,
    SlopeErrorInputs,
    make_coordinate_slope_task,
    make_row_slope_task,
)

# The default step length h of finite differences, by scheme. At this step, the rounding error eps / h is as
# large as the truncation error, which is h^2 for central and h for forward differences.
DEFAULT_STEP: dict[str, float] = {"central": FLOAT64_EPS ** (1 / 3), "forward": FLOAT64_EPS ** (1 / 2)}
# Decoding missing slopes amplifies the error of the received ones. If the factor exceeds this limit, the map
# waits for another result.
MAX_AMPLIFICATION = 1e3
# Redundant slopes are compared with the values computed from other slopes. If they differ by more than their
# estimated error times this factor, f is considered not smooth, and NotLinearError is raised.
ERROR_SAFETY_FACTOR = 64


@dataclass(frozen=True)
class GradientResult:
    """A gradient and information about its computation.

    Attributes
    ----------
    gradient
        The gradient, in the shape of x.
    slopes
        The directional derivatives of f along the r base directions, of shape (r,).
    evaluations
        The number of times that f was evaluated for the results that arrived.
    evaluations_started
        The number of evaluations of f in all tasks that were started, whether or not their results arrived.
        It includes backups, retries, and checks in this process.
    report
        The report of the map: when results arrived, and which were decoded.
    """

    gradient: Floats
    slopes: Floats
    evaluations: int
    evaluations_started: int
    report: Report

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.gradient.shape)) or "1"
        counts = f"{self.evaluations} evaluations of f count, {self.evaluations_started} were started"
        return f"<GradientResult of shape {shape}, {counts}>"


@map_function
def coded_gradient(
    f: Callable[[Any], Any],
    x: Any,
    *,
    directions: Any = None,
    h: float | None = None,
    scale: Any = None,
    scheme: Literal["central", "forward"] = "central",
    blocks: int | None = None,
    tasks: int | None = None,
    code: CodeName | PolarCode = "auto",
    executor: Any = None,
    verify: Verify = "auto",
    rtol: float | None = None,
    timeout: float | None = None,
    retries: int = 1,
    retry_delay: float = 0.0,
    progress: Progress = None,
) -> PreparedMap[GradientResult]:
    """Compute the gradient of f at x from function values alone, without waiting for slow or lost workers.

    Each worker computes the slopes [f(x + hz) - f(x - hz)] / 2h along several directions z, some of which are
    redundant (Bartan and Pilanci, arXiv 1907.05984). Apart from an error of O(h^2), the slope is a linear
    function of z, so missing slopes can be decoded from the received ones.

    Parameters
    ----------
    f : callable
        A deterministic function that is smooth near x. It takes an array with the shape of x and returns one
        real number. It must be picklable by cloudpickle.
    x : array-like of float, any shape
        The point at which to compute the gradient. It has d numbers in all.
    directions : array-like (r, ...), optional
        Base directions, each with the shape of x. By default, they are the d coordinates. With fewer than d
        independent directions, the result is the projection of the gradient onto their span.
    h : float, optional
        The step length in units of `scale`, regardless of the norm of a direction. By default, it is 6e-6, or
        1.5e-8 for "forward". Use 5e-3 (3e-4 for "forward") for an f that computes in float32, and a larger
        step for a noisy f.
    scale : float or array-like of the shape of x, optional
        The length over which f changes, for all coordinates or for each one. By default, it is max(1, |x|)
        for each coordinate.
    scheme : {"central", "forward"}
        "central" takes 2 evaluations per direction and has an error of O(h^2). "forward" computes
        [f(x + hz) - f(x)] / h with 1 evaluation per direction and 2 more per worker. Its error is O(h), so
        at most 8 digits are correct, and its check does not detect kinks and noise.
    blocks, tasks, code : optional
        The sizes k and n and the code, as for `coded_map`. The directions are cut into k blocks.
    executor, verify, timeout, retries, retry_delay, progress : optional
        As for `coded_map`.
    rtol : float, optional
        The permitted relative error of decoding. By default, it is 1,000 times the error of a slope, which is
        about h^2 + eps / h, or h + eps / h for "forward".

    Returns
    -------
    GradientResult

    Raises
    ------
    CodeError
        If x, the directions or an option is invalid, or if f does not return one real number.
    NotLinearError
        If f is not smooth at the scale of h, or not deterministic.
    NotDecodableError, CodedTimeoutError, ExecutorError
        As for `coded_map`.

    Examples
    --------
    >>> import math, numpy as np, polarmap
    >>> late = polarmap.testing.ReplayExecutor({1: math.inf, 6: math.inf})  # two of the eight never report
    >>> found = polarmap.coded_gradient(
    ...     lambda x: np.sum(x**3), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], blocks=6, tasks=8, executor=late
    ... )
    >>> np.allclose(found.gradient, 3 * np.arange(1.0, 7.0) ** 2)
    True
    """

    def execute(context: JobContext) -> GradientResult:
        point = _check_point(x)
        length_scale = _check_scale(scale, point)
        step = _check_step(h, scheme)
        check_function(f)
        options = check_options(verify, rtol, timeout, retries, retry_delay=retry_delay)
        slope_error = step**2 + FLOAT64_EPS / step if scheme == "central" else step + FLOAT64_EPS / step
        amplification = MAX_AMPLIFICATION if rtol is None else _compute_max_amplification(rtol, slope_error)
        base_directions = None if directions is None else _check_directions(directions, point)
        n_directions = point.size if base_directions is None else len(base_directions)
        k = choose_n_blocks(blocks, tasks, code, n_directions)
        data, task = _make_blocks_and_slope_task(f, point, length_scale, step, scheme, base_directions, k)
        traits = FunctionTraits(error_bounds=partial(estimate_slope_errors, step, scheme))
        options = replace(options, rtol=amplification * FLOAT64_EPS, traits=traits)
        try:
            code_options = CodeOptions(k, tasks, code)
            prepared_map = prepare_coded_map(task, data, code_options, resolve_executor(executor), options)
            result = prepared_map.execute(context)
        except NotLinearError as error_:
            raise NotLinearError(_format_not_smooth_message(step, error_)) from error_
        except (NotScalarError, NotDecodableError) as error_:
            cause = error_.__cause__ if isinstance(error_, NotDecodableError) else error_
            if isinstance(cause, NotScalarError):
                raise CodeError(str(cause)) from None
            raise
        slopes = merge_slopes([slopes for slopes, _ in result], n_directions)
        n_evaluations, n_evaluations_started = _count_evaluations(result.report, n_directions, scheme)
        gradient = solve_gradient(slopes, base_directions, length_scale)
        return GradientResult(gradient, slopes, n_evaluations, n_evaluations_started, result.report)

    return PreparedMap(execute)


class CodedGradient:
    """A callable that computes gradients of f, for use as `jac` in `scipy.optimize.minimize`.

    Each call runs `coded_gradient`.

    Parameters
    ----------
    f : callable
        The function. It takes x, and further arguments if the optimizer passes some, and returns one real
        number.
    **options
        The options of `coded_gradient`. An executor passed as an option is used for all gradients, and is not
        shut down.

    Attributes
    ----------
    calls, evaluations, evaluations_started : int
        The number of gradients so far, and the total numbers of evaluations, as in `GradientResult`.
    report : Report or None
        The report of the last gradient.

    Examples
    --------
    >>> from concurrent.futures import ThreadPoolExecutor
    >>> from scipy.optimize import minimize, rosen
    >>> with ThreadPoolExecutor(4) as pool:
    ...     gradient = CodedGradient(rosen, tasks=6, executor=pool)
    ...     found = minimize(rosen, [1.3, 0.7, 0.8, 1.9], jac=gradient, method="BFGS")
    >>> np.allclose(found.x, 1, atol=1e-5)
    True
    """

    def __init__(self, f: Callable[..., Any], **options: Any) -> None:
        self._f, self._options = f, {"progress": False, **options}
        self.calls = self.evaluations = self.evaluations_started = 0
        self.report: Report | None = None

    def __call__(self, x: Any, *args: Any) -> Floats:
        f = self._f
        result = coded_gradient((lambda z: f(z, *args)) if args else f, x, **self._options)
        self.calls += 1
        self.evaluations += result.evaluations
        self.evaluations_started += result.evaluations_started
        self.report = result.report
        return result.gradient


def _make_blocks_and_slope_task(
    f: Callable[[Any], Any],
    x: Floats,
    scale: Floats,
    h: float,
    scheme: str,
    base_directions: Floats | None,
    n_blocks: int,
) -> tuple[Sequence[Floats], Callable[[Any], Any]]:
    """Return the k data blocks of the map, and the function that a worker applies to a block.

    The function returns the slopes of f along the directions in the block. If `base_directions` is None, the
    directions are the coordinate axes. Then block i is row i of the identity matrix, as a compact code for
    the axes of all coordinates c with c % k == i.
    """
    if base_directions is None:
        return list(np.eye(n_blocks)), make_coordinate_slope_task(f, x, scale, h, scheme, n_blocks)
    return partition_directions(base_directions, n_blocks), make_row_slope_task(f, x, scale, h, scheme)


def partition_directions(base_directions: Floats, n_blocks: int) -> list[Floats]:
    """Divide directions into k = `n_blocks` blocks of equal size. Direction j belongs to block j % k.

    Directions of zeros are appended if the number of directions is not a multiple of k.
    """
    n_padded = -(-len(base_directions) // n_blocks) * n_blocks
    padded_directions = np.zeros((n_padded, *base_directions.shape[1:]))
    padded_directions[: len(base_directions)] = base_directions
    return [padded_directions[i::n_blocks] for i in range(n_blocks)]


def merge_slopes(block_slopes: Sequence[Floats], n_directions: int) -> Floats:
    """Merge the slopes of all blocks into one array, in which they are ordered by direction.

    Direction j was assigned to block j % k by `partition_directions`. Slopes along padding are dropped.
    """
    return np.stack(block_slopes, axis=1).reshape(-1)[:n_directions]


def solve_gradient(slopes: Floats, base_directions: Floats | None, scale: Floats) -> Floats:
    """Compute a gradient from the slopes (directional derivatives) along all `base_directions`.

    It is the least-squares solution of minimum norm. If `base_directions` is None, the slopes are along the
    coordinate axes. They only have to be divided by `scale`, the unit of length of each coordinate.
    """
    if base_directions is None:
        return slopes.reshape(scale.shape) / scale
    if not np.isfinite(slopes).all():
        return np.full(scale.shape, np.nan)
    solution = np.linalg.lstsq(base_directions.reshape(len(base_directions), -1), slopes, rcond=None)[0]
    return np.asarray(solution).reshape(scale.shape)


def choose_n_blocks(blocks: Any, tasks: Any, code: CodeName | PolarCode, n_directions: int) -> int:
    """Return the number k of blocks into which the directions are divided.

    By default, it is 24 or, if `tasks` is given, three quarters of the number of tasks, but not more than
    `n_directions`.
    """
    code_options = CodeOptions(blocks, tasks, code).check()
    max_blocks = DEFAULT_N_BLOCKS if code_options.tasks is None else max(1, 3 * code_options.tasks // 4)
    k = code_options.requested_k or min(max_blocks, n_directions)
    if k > n_directions:
        raise CodeError(
            f"blocks={k} is more than the {n_directions} directions; use blocks <= {n_directions}"
        )
    return k


def estimate_slope_errors(h: float, scheme: str, received_leaves: list[list[Array]]) -> list[float]:
    """Return the absolute tolerances with which the two arrays that each worker returns are checked.

    The first array contains slopes. Its tolerance is the error expected for a smooth f, with a safety factor.
    The second array contains `SlopeErrorInputs`, the numbers from which this error is estimated. It is
    neither decoded nor checked, so its tolerance is inf. The most extreme value of each input over all
    workers is ignored, because one worker may have returned garbage.
    """
    columns = dict(zip(SlopeErrorInputs._fields, np.stack([leaves[1] for leaves in received_leaves]).T))
    min_value = -_find_second_largest(-columns["min_value"])
    max_value = _find_second_largest(columns["max_value"])
    rounding = _find_second_largest(columns["result_eps"]) * max(abs(min_value), abs(max_value))
    truncation = h * max(0.0, max_value - min_value)
    if scheme == "forward":
        truncation = _find_second_largest(columns["second_difference"])
    error = _find_second_largest(columns["max_direction_norm"]) * (rounding + truncation) / h
    return [ERROR_SAFETY_FACTOR * error, np.inf]


def _find_second_largest(column: Array) -> float:
    """Return the second largest finite value of an array, so that a single outlier has no effect.

    If there are only one or two finite values, return the largest. If there are none, return 0.0.
    """
    finite = np.sort(column[np.isfinite(column)])
    if len(finite) == 0:
        return 0.0
    return float(finite[-2] if len(finite) > 2 else finite[-1])


def _count_evaluations(report: Report, n_directions: int, scheme: str) -> tuple[int, int]:
    """Return two counts of evaluations of f: for results that arrived, and for all started tasks."""

    def count_task_evaluations(task_index: int) -> int:
        # A data block may have one direction fewer than a parity block.
        n_task_directions = -(-(n_directions - task_index * (task_index < report.k)) // report.k)
        return 2 * n_task_directions if scheme == "central" else n_task_directions + 2

    arrived_tasks = [task.index for task in report.tasks if task.arrived is not None]
    n_started = sum(map(count_task_evaluations, report.evaluated_locally))
    for task in report.tasks:
        n_attempts = task.attempts - (task.state == "cancelled")
        n_started += n_attempts * count_task_evaluations(task.index)
    return sum(map(count_task_evaluations, arrived_tasks)), n_started


def _check_point(x: Any) -> Floats:
    point = _check_real_array(x, "x")
    if point.size == 0:
        raise CodeError(f"x of shape {point.shape} has no coordinates: there is no gradient to compute")
    return point


def _check_scale(scale: Any, x: Floats) -> Floats:
    if scale is None:
        return np.maximum(1.0, np.abs(x))
    length_scale = _check_real_array(scale, "scale")
    if length_scale.shape not in ((), x.shape):
        raise CodeError(f"scale of shape {length_scale.shape} does not fit x of shape {x.shape}")
    if not (length_scale > 0).all():
        raise CodeError("scale must be positive: the lengths over which f changes")
    return np.array(np.broadcast_to(length_scale, x.shape))


def _check_step(h: Any, scheme: Any) -> float:
    if not is_choice(scheme, tuple(DEFAULT_STEP)):
        raise CodeError(f"scheme must be 'central' or 'forward', not {scheme!r}")
    if h is None:
        return DEFAULT_STEP[scheme]
    if not is_positive_number(h):
        raise CodeError(f"h must be a positive number, not {h!r}")
    return float(h)


def _check_directions(directions: Any, x: Floats) -> Floats:
    base_directions = _check_real_array(directions, "directions")
    if base_directions.ndim == 0 or base_directions.shape[1:] != x.shape or len(base_directions) == 0:
        raise CodeError(
            f"directions of shape {base_directions.shape} do not fit x of shape {x.shape}: pass (r, ...), "
            "one or more rows of the shape of x"
        )
    zero_indices = np.flatnonzero(~base_directions.reshape(len(base_directions), -1).any(axis=1))
    if len(zero_indices):
        raise CodeError(f"direction {zero_indices[0]} is zero: f does not change along it")
    return base_directions


def _check_real_array(value: Any, name: str) -> Floats:
    value = as_array_like(value, name)
    if hasattr(value, "toarray"):
        raise CodeError(f"{name} is a sparse {type(value).__name__}: use {name}.toarray()")
    try:
        if np.asarray(value).dtype.kind == "c":
            raise TypeError("complex")
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise CodeError(f"{name} is no array of real numbers: {error}") from error
    if not np.isfinite(array).all():
        raise CodeError(f"{name} holds {int((~np.isfinite(array)).sum())} NaN or inf")
    return array


def _compute_max_amplification(rtol: Any, slope_error: float) -> float:
    if rtol <= slope_error:
        raise CodeError(
            f"rtol={rtol:g} is below the error of a slope itself, about {slope_error:.1g} by this h"
        )
    return float(rtol / slope_error)


def _format_not_smooth_message(h: float, error: NotLinearError) -> str:
    return (
        f"slopes of f do not add up ({error.finding}): f is not smooth or not deterministic at steps of "
        f"h={h:.2g} times scale, or a worker returned garbage. A larger h smooths rounding and noise, a "
        "smaller one steps over fewer kinks; verify=False skips the check"
    )
