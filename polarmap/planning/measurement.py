"""Measure how long tasks take on an executor, as input for `polarmap.plan`.

Two maps are run: in the first one, workers may still have to start (cold), and in the second one, they are
running already (warm).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import astuple
from functools import partial
from math import inf
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from polarmap.blocks.uneven import UncodedBlocks
from polarmap.codes.uncoded import Uncoded
from polarmap.driver.map_execution import MapExecution
from polarmap.driver.options import Progress, check_options
from polarmap.driver.prepared_map import make_context
from polarmap.driver.uncoded_collector import execute_uncoded
from polarmap.errors import CodeError
from polarmap.executors import resolve_executor
from polarmap.planning.distributions import Pareto, ShiftedExponential
from polarmap.planning.empirical import SharedCores, find_shared_cores, get_start_time
from polarmap.report import TaskReport
from polarmap.validation import check_positive_int, is_real_number
from polarmap.worker.task_functions import sort_repeatedly

# The number of seconds for which the speed of a core is measured.
CALIBRATION_SECONDS = 0.3
# The distributions that `measure` tries to fit, keyed by their names in `polarmap plan --distribution`.
DISTRIBUTION_FAMILIES: dict[str, type[ShiftedExponential] | type[Pareto]] = {
    "exponential": ShiftedExponential,
    "pareto": Pareto,
}


class Measurement(NamedTuple):
    """The measured run times of tasks on an executor, as returned by `measure`.

    A run time is the number of seconds from the start of a task until its result has arrived.

    Attributes
    ----------
    executor : str
        The name of the executor.
    task_seconds : float
        The duration of a task on an idle core of this machine, in seconds.
    cold, warm : list of float
        The run times in the first and second map; inf for tasks that returned no result.
    shared_cores : SharedCores or None
        The cores that the tasks shared, if they ran on this machine.
    """

    executor: str
    task_seconds: float
    cold: list[float]
    warm: list[float]
    shared_cores: SharedCores | None = None

    def __str__(self) -> str:
        return "\n".join(self._format_lines())

    def _format_lines(self) -> Iterator[str]:
        n_tasks = len(self.warm)
        map_text = "in a first map (cold) and in a second map (warm)"
        yield f"{n_tasks} tasks of {self.task_seconds:g} s on {self.executor}, {map_text}; times in seconds"
        columns = "".join(f"{name:>9}" for name in ("median", "90 %", "99 %", "slowest"))
        yield f"{'':6}{'lost':>6}{columns}   closest --distribution"
        for name, times in (("cold", self.cold), ("warm", self.warm)):
            completed_times = [seconds for seconds in times if seconds < inf]
            n_lost = len(times) - len(completed_times)
            quantiles = np.quantile(completed_times, [0.5, 0.9, 0.99, 1.0]) if completed_times else ()
            quantile_text = "".join(f"{seconds:9.3g}" for seconds in quantiles)
            option_text = _format_distribution_option(fit_closest_family(times))
            yield f"{name:6}{n_lost:6}{quantile_text:36}   {option_text}".rstrip()
        if any(seconds == inf for seconds in (*self.cold, *self.warm)):
            yield "lost: tasks that returned no result, which the quantiles and the distribution leave out"
        if self.shared_cores is not None:
            yield str(self.shared_cores)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the measurement to a JSON file that `polarmap.plan` and `polarmap plan --times` can read."""
        fields = self._asdict()
        fields |= {name: _replace_inf_by_none(fields[name]) for name in ("cold", "warm")}
        fields["shared_cores"] = self.shared_cores and self.shared_cores._asdict()
        Path(path).write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")


def measure(
    executor: Any = None,
    *,
    tasks: int = 200,
    task_seconds: float = 2.0,
    timeout: float | None = None,
    progress: Progress = None,
) -> Measurement:
    """Measure task run times on an executor by running the same map twice.

    A run time begins when a worker starts the task, so it excludes the time spent waiting for a free worker.
    A cloud function, however, starts when it is called, so its cold start is included. No backup tasks are
    started.

    Parameters
    ----------
    executor : optional
        As for `coded_map`.
    tasks : int
        The number of tasks in each map. Use as many tasks as in your own maps.
    task_seconds : float
        The amount of work per task: it sorts numbers for about this many seconds on a core of this machine.
    timeout : float, optional
        The time limit of each map in seconds.
    progress : bool or "live", optional
        As for `coded_map`.

    Returns
    -------
    Measurement

    Raises
    ------
    CodeError, CodedTimeoutError, ExecutorError
        As for `hedged_map`.

    Examples
    --------
    >>> from polarmap.testing import ReplayExecutor
    >>> measured = measure(ReplayExecutor({3: 7.0}), tasks=4, task_seconds=0.01)
    >>> measured.warm
    [1.0, 1.0, 1.0, 7.0]
    """
    n_tasks, options = check_positive_int("tasks", tasks), check_options(False, None, timeout, 0)
    if not (is_real_number(task_seconds) and task_seconds > 0):
        raise CodeError(f"task_seconds must be a positive number, not {task_seconds!r}")
    sort_task = partial(sort_repeatedly, max(1, round(task_seconds * _measure_sorts_per_second())))
    blocks = UncodedBlocks([[np.zeros(1)]] * n_tasks, ("array",))
    resolved_executor, reports = resolve_executor(executor), []
    for _ in range(2):
        execution = MapExecution(resolved_executor)
        execution.set_code(Uncoded(n_tasks))
        map_report = execute_uncoded(
            execution,
            sort_task,
            blocks,
            options,
            make_context(progress),
            lambda outcome: None,
            accept_failures=True,
        ).report
        reports.append(map_report)
    cold, warm = ([_get_task_seconds(task) for task in report.tasks] for report in reports)
    return Measurement(reports[0].executor, float(task_seconds), cold, warm, find_shared_cores(reports))


def _get_task_seconds(task: TaskReport) -> float:
    """Return the seconds from a task's start until its result arrived, or inf if no result arrived."""
    return inf if task.arrived is None else task.arrived - get_start_time(task)


def fit_closest_family(times: list[float]) -> ShiftedExponential | Pareto | None:
    """Fit a shifted exponential and a Pareto distribution, and return the one that fits better.

    The fit with the smaller Kolmogorov-Smirnov distance to the completed tasks is returned. Return None if no
    distribution can be fitted, for example because all run times are equal.

    >>> fit_closest_family([1.0, 2.0, 3.0, 6.0])
    ShiftedExponential(shift=1.0, scale=2.0)
    """
    completed_times = np.sort([seconds for seconds in times if seconds < inf])
    if not (len(completed_times) and 0 < completed_times[0] < completed_times[-1]):
        return None
    step_heights = np.arange(len(completed_times) + 1) / len(completed_times)

    def compute_cdf_distance(distribution: ShiftedExponential | Pareto) -> float:
        cdf = distribution.cdf(completed_times)
        return float(np.maximum(abs(cdf - step_heights[1:]), abs(cdf - step_heights[:-1])).max())

    candidates: list[ShiftedExponential | Pareto] = [
        ShiftedExponential.fit(completed_times),
        Pareto.fit(completed_times),
    ]
    return min(candidates, key=compute_cdf_distance)


def _format_distribution_option(distribution: ShiftedExponential | Pareto | None) -> str:
    """Format a fitted distribution for `polarmap plan --distribution`, for example as "exponential:1,0.5".

    Return an empty string if `distribution` is None.
    """
    if distribution is None:
        return ""
    name = next(name for name, family in DISTRIBUTION_FAMILIES.items() if isinstance(distribution, family))
    return f"{name}:{','.join(f'{parameter:.3g}' for parameter in astuple(distribution))}"


def _measure_sorts_per_second() -> float:
    """Measure how many sorts per second a core of this machine performs.

    The tasks whose run times are measured sort numbers, so this determines how many sorts a task must do.
    """
    started_at, n_sorts = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - started_at) < CALIBRATION_SECONDS:
        sort_repeatedly(10, None)
        n_sorts += 10
    return n_sorts / elapsed


def _replace_inf_by_none(times: list[float]) -> list[float | None]:
    """Replace infinite run times by None, because JSON cannot store them."""
    return [None if seconds == inf else seconds for seconds in times]
