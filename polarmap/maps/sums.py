"""Provide `coded_sum`, which sums any function over parts of data and tolerates a few lost workers."""

from __future__ import annotations

import reprlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy.typing as npt

from polarmap.blocks.uneven import GradientCodedBlocks, cut_data_into_parts
from polarmap.driver.events import JobContext
from polarmap.driver.map_execution import MapExecution
from polarmap.driver.options import FunctionTraits, Progress, check_function, check_on_result, check_options
from polarmap.driver.prepared_map import PreparedMap, execute_coded, map_function
from polarmap.errors import NotDecodableError, NotLinearError
from polarmap.executors import resolve_executor
from polarmap.report import Report
from polarmap.validation import check_positive_int
from polarmap.worker.task_functions import make_weighted_sum_task

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class CodedSum:
    """The result of `coded_sum`: the sum and a report.

    Attributes
    ----------
    value
        The sum, with the same structure as the return value of f.
    report
        The report of the map. Its `k` is the number of parts.
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
    progress: Progress = None,
) -> PreparedMap[CodedSum]:
    """Compute the sum of f(part) over all parts, for any f, without waiting for slow or lost workers.

    The parts are divided into n shares. Each of n workers evaluates f on the parts in `tolerate` + 1 shares
    and returns one linear combination of the results. The combinations from any n - `tolerate` workers
    determine the sum. Often fewer suffice, which is checked whenever one arrives. The method is gradient
    coding: Tandon et al. 2017, arXiv 1612.03301.

    Parameters
    ----------
    f : callable
        Any deterministic function of a part. It takes and returns an array, or a nested tuple, list or dict
        of arrays. All results must have the same structure, and shapes that numpy can add.
    parts : sequence, or array-like
        The parts on which f is evaluated. They must have the same structure and may have any shapes. An array
        is cut along its first axis into `tasks` nearly equal parts. No rows are added.
    tolerate : int
        The number s < n of workers that may be lost. The work is s + 1 times that of a plain map.
    tasks : int, optional
        The number n of tasks, which must divide the number of parts. By default, it is the number of parts,
        or 24 for an array.
    executor, timeout, retries, retry_delay, progress : optional
        As for `coded_map`.
    on_result : callable, optional
        Called once, as `on_result(0, value)`, when the sum has been accepted. An exception that it raises
        ends the map.
    rtol : float, optional
        The permitted relative error of decoding, as for `coded_map`. The map waits for another result while
        the machine epsilon times the error amplification of decoding exceeds `rtol`.

    Returns
    -------
    CodedSum
        The sum as `value`, with its `report`. If s + 1 divides n, workers return plain sums, so that sums of
        integers are exact integers. Otherwise sums of integers are returned as floats.

    Raises
    ------
    CodeError
        If an argument is invalid, for example if `tolerate` >= n.
    NotDecodableError
        If too few results have arrived and no more can arrive; if results contradict each other, because f is
        not deterministic or a worker returned garbage; or if f returned NaN or inf.
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
