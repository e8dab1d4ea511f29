"""One job: checked, opened on an executor, run to its end, reported."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np

from polarmap.blocks.base import CodedData
from polarmap.clouds import limits
from polarmap.clouds.limits import Worker
from polarmap.clouds.prices import Cost, cost
from polarmap.code.arguments import is_number, is_one_of
from polarmap.code.dtypes import is_integer
from polarmap.errors import CodeError
from polarmap.executors import executor_of
from polarmap.executors.base import Payload, Run, layout_bytes
from polarmap.report import Report
from polarmap.run.collect import Collected, Collector
from polarmap.run.options import Settings
from polarmap.run.progress import is_wanted, open_bar
from polarmap.run.summary import report_of
from polarmap.worker.parts import Keep
from polarmap.worker.run_task import WANTED_SECONDS


class Job:
    """One map on the executor that the caller chose; its time starts here."""

    def __init__(self, executor: Any) -> None:
        self._began = time.monotonic()
        self._executor = executor_of(executor)
        self.worker = self._executor.worker

    def run(
        self,
        f: Callable[[Any], Any],
        coded: CodedData,
        settings: Settings,
        progress: bool | None,
        here: Callable[[Any], Any] | None = None,
        keep: Keep | None = None,
        around: Callable[[Run], Run] = lambda run: run,
    ) -> tuple[Collected, Report]:
        """The results of f on the coded blocks, and how they came about.

        `here`: what f is on the driver, where that differs from what workers send of it; `keep`: where
        results stay; `around`: what stands between the run and the loop.
        """
        _check_limits(self.worker, coded)
        wanted = is_wanted(progress)
        encoded = coded.encode_seconds  # by earlier maps of the same blocks
        payload = Payload(f, coded, keep=keep, subtasks=settings.subtasks)
        with closing(around(self._executor.open(payload))) as run:
            began = min(self._began, run.now())  # a virtual clock begins when the run is opened
            with open_bar(coded.n, coded.code.recovery_threshold, wanted) as show:
                collected = Collector(run, f, coded, settings, show, here).run()
        seconds = run.now() - began
        report = report_of(collected, coded, self._executor.name, seconds, coded.encode_seconds - encoded)
        report = replace(report, schedule=settings.parity, subtasks=settings.subtasks)
        return collected, replace(report, cost=cost_of(self.worker, report))


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


def _check_limits(worker: Worker | None, coded: CodedData) -> None:
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
