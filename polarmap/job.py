"""One job: opened on an executor, run to its end, reported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from polarmap.clouds import limits
from polarmap.clouds.limits import Worker
from polarmap.clouds.prices import Cost, cost
from polarmap.code.arguments import is_number, is_one_of
from polarmap.code.dtypes import is_integer
from polarmap.collector.collect import Collected, Collector
from polarmap.collector.settings import Settings
from polarmap.data.encoded import Encoded
from polarmap.errors import CodeError
from polarmap.executors import open_executor
from polarmap.executors.base import layout_bytes
from polarmap.progress import is_wanted, open_bar
from polarmap.remote.worker import WANTED_SECONDS
from polarmap.report import Report
from polarmap.reporting import report_of


class Job:
    """An executor that the caller chose, for one map; its time starts here.

    As a context manager it lets go of the executor when something is wrong with the data.
    """

    def __init__(self, executor: Any) -> None:
        self.executor, self._faults = open_executor(executor)
        self._began = self.executor.now()

    def __enter__(self) -> Job:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.executor.stop()

    def run(
        self,
        f: Callable[[Any], Any],
        coded: Encoded,
        settings: Settings,
        progress: bool | None,
        here: Callable[[Any], Any] | None = None,
    ) -> tuple[Collected, Report]:
        """The results of f on the coded blocks, and how they came about.

        `here`: what f is on the driver, where that differs from what workers send of it.
        """
        worker = getattr(self.executor, "worker", None)
        with self:
            _check_limits(worker, coded)
            wanted = is_wanted(progress)
        encoded = coded.encode_seconds  # by earlier maps of the same blocks
        with open_bar(coded.n, coded.code.needed, wanted) as show:
            collected = Collector(self.executor, f, coded, settings, show, here).run(self._faults)
        seconds = self.executor.now() - self._began
        report = report_of(collected, coded, self.executor.name, seconds, coded.encode_seconds - encoded)
        report = replace(report, parity=settings.parity, subtasks=settings.subtasks)
        return collected, replace(report, cost=cost_of(worker, report))


def checked_settings(
    f: Any, verify: Any, rtol: Any, timeout: Any, retries: Any, deadline: Any = None
) -> Settings:
    """The options that every map has; CodeError for f or an option that cannot be."""
    if not callable(f):
        raise CodeError(f"f must be callable, not {type(f).__name__}")
    if not isinstance(verify, (bool, np.bool_)) and not is_one_of(verify, ("auto",)):
        raise CodeError(f"verify must be 'auto', True or False, not {verify!r}")
    for name, value in (("rtol", rtol), ("timeout", timeout), ("deadline", deadline)):
        if value is not None and not (is_number(value) and value > 0):
            raise CodeError(f"{name} must be a positive number, not {value!r}")
    if not is_integer(retries) or retries < 0:
        raise CodeError(f"retries must be 0 or more, not {retries!r}")
    return Settings(
        verify if isinstance(verify, str) else bool(verify), rtol, timeout, int(retries), deadline
    )


def _check_limits(worker: Worker | None, coded: Encoded) -> None:
    """LimitError for what cannot work where the executor runs it."""
    if worker is not None:
        largest = max(layout_bytes(coded.layout(index)) for index in range(coded.n))
        limits.check(worker, limits.Job(coded.n, coded.blocks.k, largest, coded.blocks.rows))


def cost_of(worker: Worker | None, report: Report) -> Cost | None:
    """Every attempt is paid; one that never reported, until its worker sees that nobody waits."""
    if worker is None:
        return None
    unheard = report.seconds + WANTED_SECONDS
    seconds = [
        task.seconds or unheard - (task.launched or 0.0)
        for task in report.tasks
        for _ in range(task.attempts)
    ]
    return cost(worker, seconds, report.seconds)
