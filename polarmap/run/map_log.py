"""What is said of a map while it runs, to the logger "polarmap" and to OpenTelemetry: silent by default."""

from __future__ import annotations

import itertools
import logging
import sys
from collections.abc import Collection
from functools import cache
from typing import Any

from polarmap.executors.base import Outcome
from polarmap.report import Report, listed
from polarmap.run.running_map import Observer, Observers, RunningMap

LOG = logging.getLogger("polarmap")
LOG.addHandler(logging.NullHandler())

NAME = "polarmap"  # what spans and counters of OpenTelemetry are called by
COUNTERS = {
    "tasks": ("{task}", "tasks that were started"),
    "late": ("{task}", "tasks that had not returned when the results were determined, or got a backup"),
    "decoded": ("{block}", "data blocks that were decoded rather than received"),
    "abandoned": ("{task}", "tasks that still ran when the map returned"),
    "seconds": ("s", "from the call of a map to its results"),
    "dollars": ("USD", "estimated cost at list prices, where they are known"),
}

_NUMBERS = itertools.count(1)


def log_observers() -> Observers:
    """Who is to be told of a map now: the logger if it is on, OpenTelemetry if the program uses it."""
    # In a program that has not imported OpenTelemetry there is nobody to tell.
    is_traced = "opentelemetry.trace" in sys.modules or "opentelemetry.metrics" in sys.modules
    is_logged = LOG.isEnabledFor(logging.INFO)
    return (MapSpan(),) * is_traced + (MapLog(),) * is_logged


class MapLog(Observer):
    """The lines of one map after another: what each does at INFO, what its tasks do at DEBUG."""

    def began(self, running: RunningMap) -> None:
        """Say what is about to start."""
        self._name, self._tasks, self._lost = f"map {next(_NUMBERS)}", running.tasks, set[int]()
        blank = running.blank
        self._info(
            "start: %d tasks for %d blocks, %d results needed (%s, %s)",
            *(blank.n, blank.k, blank.needed, blank.executor, blank.code),
        )

    def _info(self, text: str, *values: object) -> None:
        LOG.info(f"%s: {text}", self._name, *values)

    def started(self, indices: Collection[int], elapsed: float) -> None:
        """Say which tasks, and for which late ones."""
        attempts = {index: self._tasks[index].attempts for index in indices}
        again = [index for index, count in attempts.items() if count > 1]
        parity = [index for index, count in attempts.items() if count == 1]
        if parity:
            out = listed(sorted(self._tasks.running - attempts.keys()))
            self._info("late: %s still out after %.2f s; started %s", out, elapsed, listed(parity))
        if again:
            self._info("started again after %.2f s: %s", elapsed, listed(again))

    def ended(self, outcome: Outcome, elapsed: float) -> None:
        """Say that a task has returned, or why its attempt gave nothing."""
        if outcome.failure is not None:
            self._lost.add(outcome.task)
            self._info("lost: task %d after %.2f s: %s", outcome.task, elapsed, outcome.failure)
        else:
            LOG.debug(
                "%s: task %d returned after %.3f s, %.3f s of work",
                *(self._name, outcome.task, elapsed, outcome.seconds),
            )

    def finished(self, end: Report | BaseException | None) -> None:
        """Say what has come of it."""
        if isinstance(end, Report):
            self._tell_end(end)
        elif end is not None:
            self._info("ended without results: %s: %s", type(end).__name__, end)

    def _tell_end(self, report: Report) -> None:
        for task in report.tasks:  # those whose results came, and were rejected
            if task.state == "failed" and task.index not in self._lost:
                self._info("lost: task %d: %s", task.index, task.failures[-1])
        if report.late:
            self._info("late: %s, not waited for or started twice", listed(report.late))
        if report.recovered:
            self._info(
                "decoded: %s in %.1f ms, error bound %.1g",
                *(listed(report.recovered), 1e3 * report.decode_seconds, report.error_bound),
            )
        if report.verified != "not needed":
            self._info("verified: %s", report.verified)
        spent = "" if report.cost is None else f", ${report.cost.total:.2g}"
        self._info("ended after %.2f s%s", report.seconds, spent)


class MapSpan(Observer):
    """A span of OpenTelemetry for one map after another, current while it runs; and counters."""

    def began(self, running: RunningMap) -> None:
        """Begin a span."""
        from opentelemetry import trace

        blank = running.blank
        sizes = {"n": blank.n, "k": blank.k, "code": blank.code, "executor": blank.executor}
        attributes: dict[str, Any] = {f"{NAME}.{name}": value for name, value in sizes.items()}
        self._context = trace.get_tracer(NAME).start_as_current_span(f"{NAME}.map", attributes=attributes)
        self._span = self._context.__enter__()

    def finished(self, end: Report | BaseException | None) -> None:
        """End the span: with the numbers of the report, which are added to the counters, or an exception."""
        if isinstance(end, Report):
            numbers = numbers_of(end)
            self._span.set_attributes({f"{NAME}.{name}": number for name, number in numbers.items()})
            self._span.set_attribute(f"{NAME}.verified", end.verified)
            labels = {f"{NAME}.executor": end.executor, f"{NAME}.code": end.code}
            for name, counter in _counters().items():
                counter.add(numbers[name], labels)
            self._context.__exit__(None, None, None)
        elif end is not None:
            self._context.__exit__(type(end), end, end.__traceback__)


def numbers_of(report: Report) -> dict[str, float]:
    """What the counters count, of one map.

    >>> from polarmap.run.running_map import blank_report
    >>> numbers_of(blank_report(4, 3, 3, "rotation", "replay"))["tasks"]
    0
    """
    return {
        "tasks": sum(task.attempts > 0 for task in report.tasks),
        "late": len(report.late),
        "decoded": len(report.recovered),
        "abandoned": len(report.indices("abandoned")),
        "seconds": report.seconds,
        "dollars": 0.0 if report.cost is None else report.cost.total,
    }


@cache
def _counters() -> dict[str, Any]:
    from opentelemetry import metrics

    meter = metrics.get_meter(NAME)
    return {
        name: meter.create_counter(f"{NAME}.{name}", unit, what) for name, (unit, what) in COUNTERS.items()
    }
