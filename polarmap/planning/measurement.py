"""How long tasks take on an executor, measured: in its first map, and in one that finds it warm."""

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

from polarmap.blocks.uneven import PartBlocks
from polarmap.codes.checks import checked_count, is_number
from polarmap.codes.uncoded import Uncoded
from polarmap.errors import CodeError
from polarmap.planning.distributions import Pareto, ShiftedExponential
from polarmap.planning.empirical import SharedCores, shared_cores_of, start_of
from polarmap.report import TaskReport
from polarmap.run.first_results import run_uncoded
from polarmap.run.options import checked_options
from polarmap.run.prepared_map import observers_of
from polarmap.run.running_map import RunningMap
from polarmap.worker.block_functions import repeated_sorts

CALIBRATION_SECONDS = 0.3
# As `polarmap plan --distribution` calls them.
LAWS: dict[str, type[ShiftedExponential] | type[Pareto]] = {
    "exponential": ShiftedExponential,
    "pareto": Pareto,
}


class Measurement(NamedTuple):
    """Seconds from when a worker began each task until its result was here.

    Attributes
    ----------
    executor : str
    seconds : float
        That a task computes on an idle core of the machine that asked.
    cold, warm : lists of float
        Of the tasks of the first map, and of the second; inf for those that were lost.
    shared_cores : SharedCores or None
        The cores that the tasks shared, if they ran on this machine.
    """

    executor: str
    seconds: float
    cold: list[float]
    warm: list[float]
    shared_cores: SharedCores | None = None

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        tasks = len(self.warm)
        yield f"{tasks} tasks of {self.seconds:g} s on {self.executor}, in a first map and in a second one"
        columns = "".join(f"{name:>9}" for name in ("median", "90 %", "99 %", "slowest"))
        yield f"{'':6}{'lost':>6}{columns}   nearest law, as --distribution has it"
        for name, times in (("cold", self.cold), ("warm", self.warm)):
            back, law = [one for one in times if one < inf], nearest_law(times)
            at = "".join(f"{one:9.3g}" for one in np.quantile(back, [0.5, 0.9, 0.99, 1.0])) if back else ""
            yield f"{name:6}{len(times) - len(back):6}{at:36}   {_said(law)}".rstrip()
        if self.shared_cores is not None:
            yield str(self.shared_cores)

    def save(self, path: str | PathLike[str]) -> None:
        """Write it as JSON, which `polarmap.plan` and `polarmap plan --times` take."""
        fields = self._asdict() | {name: _finite(getattr(self, name)) for name in ("cold", "warm")}
        fields["shared_cores"] = self.shared_cores and self.shared_cores._asdict()
        Path(path).write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")


def measure(
    executor: Any = None,
    *,
    tasks: int = 200,
    seconds: float = 2.0,
    timeout: float | None = None,
    progress: bool | None = None,
) -> Measurement:
    """Run tasks that compute for so long, twice, and tell how long each took.

    No task is started twice. Times count from when a worker began the task, not from when the task was
    submitted: waiting for a worker is not counted. A cloud function begins when it is called, so its cold
    start is counted. Let `tasks` be as many as your maps have at a time.

    Parameters
    ----------
    executor : optional
        As for `coded_map`.
    tasks : int
        In each of the two maps.
    seconds : float
        How long a task computes, by the speed of one core here: it sorts numbers.
    timeout : float, optional
        Seconds that a map may take.
    progress : bool, optional
        As for `coded_map`.

    Returns
    -------
    Measurement

    Raises
    ------
    CodeError, CodedTimeoutError, ExecutorError
        As `hedged_map` does.

    Examples
    --------
    >>> from polarmap.testing import ReplayExecutor
    >>> measured = measure(ReplayExecutor({3: 7.0}), tasks=4, seconds=0.01)
    >>> measured.warm
    [1.0, 1.0, 1.0, 7.0]
    """
    count, options = checked_count("tasks", tasks), checked_options(False, None, timeout, 0)
    if not (is_number(seconds) and seconds > 0):
        raise CodeError(f"seconds must be a positive number, not {seconds!r}")
    f = partial(repeated_sorts, max(1, round(seconds * _sorts_per_second())))
    blocks = PartBlocks([[np.zeros(1)]] * count, ("array",))
    reports = []
    for _ in range(2):
        running = RunningMap(executor)
        running.expect(Uncoded(count))
        made = run_uncoded(
            running, f, blocks, options, observers_of(progress), lambda outcome: None, keeps_failures=True
        ).made
        reports.append(made)
    cold, warm = ([_seconds_of(task) for task in report.tasks] for report in reports)
    return Measurement(reports[0].executor, float(seconds), cold, warm, shared_cores_of(reports))


def _seconds_of(task: TaskReport) -> float:
    """Return how long a task took since its worker began it, inf if it was lost."""
    return inf if task.arrived is None else task.arrived - start_of(task)


def nearest_law(times: list[float]) -> ShiftedExponential | Pareto | None:
    """Of the laws that `plan` knows, each fitted to the tasks that ended, the one with the least distance.

    The distance of Kolmogorov and Smirnov. None where all took equally long.

    >>> nearest_law([1.0, 2.0, 3.0, 6.0])
    ShiftedExponential(shift=1.0, scale=2.0)
    """
    back = np.sort([one for one in times if one < inf])
    if not (len(back) and 0 < back[0] < back[-1]):
        return None
    steps = np.arange(len(back) + 1) / len(back)

    def distance(law: ShiftedExponential | Pareto) -> float:
        below = law.cdf(back)
        return float(np.maximum(abs(below - steps[1:]), abs(below - steps[:-1])).max())

    laws: list[ShiftedExponential | Pareto] = [ShiftedExponential.fit(back), Pareto.fit(back)]
    return min(laws, key=distance)


def _said(law: ShiftedExponential | Pareto | None) -> str:
    """As an argument of --distribution; empty without a law."""
    if law is None:
        return ""
    name = next(name for name, kind in LAWS.items() if isinstance(law, kind))
    return f"{name}:{','.join(f'{one:.3g}' for one in astuple(law))}"


def _sorts_per_second() -> float:
    """How often one core of this machine does what a task repeats."""
    began, count = time.perf_counter(), 0
    while (spent := time.perf_counter() - began) < CALIBRATION_SECONDS:
        repeated_sorts(10, None)
        count += 10
    return count / spent


def _finite(times: list[float]) -> list[float | None]:
    """As JSON has them: nothing for a task that was lost."""
    return [None if one == inf else one for one in times]
