"""coded_sum: the sum of any function over parts, whichever few workers are missing."""

from __future__ import annotations

import reprlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy.typing as npt

from polarmap.blocks.uneven import GradientCodedBlocks, cut_data_into_parts
from polarmap.driver.events import JobContext
from polarmap.driver.map_execution import MapExecution
from polarmap.driver.options import FunctionTraits, check_function, check_on_result, check_options
from polarmap.driver.prepared_map import PreparedMap, execute_coded, map_function
from polarmap.errors import NotDecodableError, NotLinearError
from polarmap.executors import resolve_executor
from polarmap.report import Report
from polarmap.validation import check_positive_int
from polarmap.worker.task_functions import make_weighted_sum_task

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class CodedSum:
    """What `coded_sum` returns.

    Attributes
    ----------
    value
        The sum, in the structure that f returns.
    report
        Who arrived when, how accurate it is; `k` is the number of parts.
    """

    value: Any
    report: Report

    def __repr__(self) -> str:
        return f"<CodedSum of {self.report.k} parts: {' '.join(reprlib.repr(self.value).split())}>"


@map_function
def coded_sum(
    f: Callable[[Any], Any],
    parts: Any,
    *,
    tolerate: int = 1,
    tasks: int | None = None,
    executor: Any = None,
    rtol: float | None = None,
    timeout: float | None = None,
    retries: int = 1,
    retry_delay: float = 0.0,
    on_result: Callable[[int, Any], object] | None = None,
    progress: bool | None = None,
) -> PreparedMap[CodedSum]:
    """The sum of f(part) over all parts, for any f, without waiting for stragglers.

    Every worker evaluates f on `tolerate` + 1 shares of the parts and returns one combination of the
    results. Any n - `tolerate` of n workers determine the sum, and often fewer do: this is looked at
    with every arrival. Gradient coding: Tandon et al. 2017, arXiv 1612.03301.

    Parameters
    ----------
    f : callable
        Any deterministic function of a part: an array or a nested tuple, list or dict of arrays, in
        and out. All its results have one structure, and one shape or shapes that numpy can add.
    parts : sequence, or array-like
        What f is evaluated on: of one structure, in any shapes. An array is cut along its first axis
        into as many nearly equal parts as there are workers; no rows are added.
    tolerate : int
        s, how many workers may be missing, less than n. The work is s + 1 times that of a plain map.
    tasks : int, optional
        n, which must divide the number of parts: as many as there are parts by default, and 24 for
        an array.
    executor, timeout, retries, retry_delay, progress : optional
        As for `coded_map`.
    on_result : callable, optional
        Called once, as `on_result(0, value)`, when the sum has been accepted. What it raises ends the map.
    rtol : float, optional
        Relative error accepted from decoding, as for `coded_map`; one more result is awaited while
        eps times the error amplification exceeds it.

    Returns
    -------
    CodedSum
        With `value` and `report`. When s + 1 divides n, workers return plain sums: integers stay
        integers and are exact. Otherwise sums of integers come back as floats.

    Raises
    ------
    CodeError
        Parts or sizes that cannot be, e.g. `tolerate` >= n.
    NotDecodableError
        Too few results and nothing more can arrive; or results contradict each other, so f is not
        deterministic or a worker returned garbage; or f gave NaN or inf.
    CodedTimeoutError, ExecutorError
        As for `coded_map`.

    Examples
    --------
    >>> import math, numpy as np, polarmap
    >>> dead = polarmap.testing.ReplayExecutor({0: math.inf, 3: math.inf})
    >>> parts = [np.arange(3) + i for i in range(6)]
    >>> total = polarmap.coded_sum(lambda part: part**2 % 5, parts, tolerate=2, executor=dead)
    >>> total.value.tolist(), sum(part**2 % 5 for part in parts).tolist()
    ([10, 11, 14], [10, 11, 14])
    """

    def execute(context: JobContext) -> CodedSum:
        check_function(f)
        check_on_result(on_result)
        options = check_options("auto", rtol, timeout, retries, retry_delay=retry_delay)
        options = replace(options, traits=FunctionTraits(meets_requirement=True))
        execution = MapExecution(resolve_executor(executor))
        n_tasks = None if tasks is None else check_positive_int("tasks", tasks)
        coded_data = GradientCodedBlocks(*cut_data_into_parts(parts, n_tasks), n_tasks, tolerate)
        task_function = make_weighted_sum_task(f)
        execution.set_code(coded_data.code)
        try:
            collector, lazy_report = execute_coded(execution, task_function, coded_data, options, context)
        except NotLinearError as error:
            raise NotDecodableError(
                "results of workers that share parts contradict each other: f is not deterministic, or a "
                "worker returned garbage"
            ) from error
        result = collector.build_result(lazy_report)
        verified = _format_verification(result.report)
        return CodedSum(
            result[0], replace(result.report, k=coded_data.n_parts, recovered=(), verified=verified)
        )

    return PreparedMap(execute)


def _format_verification(report: Report) -> str:
    return "no" if report.residual is None else "parity"
