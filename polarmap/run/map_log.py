"""What is said of a map while it runs, to the logger "polarmap" and to OpenTelemetry: silent by default."""

from __future__ import annotations

import itertools
import logging
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext

from polarmap.executors.base import Outcome
from polarmap.report import Report, listed
from polarmap.run.spans import SpanOfMap, span_of
from polarmap.run.tasks import TaskTable

LOG = logging.getLogger("polarmap")
LOG.addHandler(logging.NullHandler())

_NUMBERS = itertools.count(1)


class MapLog:
    """The lines of one map: what it does at INFO, what its tasks do at DEBUG.

    Whether the logger is on is asked once for each map: tasks cost nothing where it is off.

    >>> MapLog(7).name
    'map 7'
    """

    def __init__(self, number: int = 0, span: SpanOfMap | None = None) -> None:
        self.name, self._span = f"map {number}", span
        self._tells_tasks = LOG.isEnabledFor(logging.DEBUG)
        self._lost = set[int]()

    def began(self, blank: Report) -> None:
        """The map is about to start."""
        if LOG.isEnabledFor(logging.INFO):
            LOG.info(
                "%s: start: %d tasks for %d blocks, %d results needed (%s, %s)",
                *(self.name, blank.n, blank.k, blank.needed, blank.executor, blank.code),
            )

    def started(self, indices: Iterable[int], tasks: TaskTable, elapsed: float) -> None:
        """Tasks were started after the first ones: parity on demand, backups, failed ones again."""
        if not LOG.isEnabledFor(logging.INFO):
            return
        attempts = {index: tasks[index].attempts for index in indices}
        again = [index for index, count in attempts.items() if count > 1]
        parity = [index for index, count in attempts.items() if count == 1]
        out = listed(sorted(tasks.running - attempts.keys()))
        if parity:
            LOG.info(
                "%s: late: %s still out after %.2f s; started %s",
                *(self.name, out, elapsed, listed(parity)),
            )
        if again:
            LOG.info("%s: started again after %.2f s: %s", self.name, elapsed, listed(again))

    def ended(self, outcome: Outcome, elapsed: float) -> None:
        """An attempt of a task, or a part of it, has ended."""
        if outcome.failure is not None:
            self._lost.add(outcome.task)
            LOG.info("%s: lost: task %d after %.2f s: %s", self.name, outcome.task, elapsed, outcome.failure)
        elif self._tells_tasks:
            LOG.debug(
                "%s: task %d returned after %.3f s, %.3f s of work",
                *(self.name, outcome.task, elapsed, outcome.seconds),
            )

    def returned(self, report: Report) -> None:
        """The map has its results."""
        if self._span is not None:
            self._span.returned(report)
        if LOG.isEnabledFor(logging.INFO):
            self._tell_end(report)

    def _tell_end(self, report: Report) -> None:
        for task in report.tasks:  # those whose results came, and were rejected
            if task.state == "failed" and task.index not in self._lost:
                LOG.info("%s: lost: task %d: %s", self.name, task.index, task.failures[-1])
        if report.late:
            LOG.info("%s: late: %s, not waited for or started twice", self.name, listed(report.late))
        if report.recovered:
            LOG.info(
                "%s: decoded: %s in %.1f ms, error bound %.1g",
                *(self.name, listed(report.recovered), 1e3 * report.decode_seconds),
                report.error_bound,
            )
        if report.verified != "not needed":
            LOG.info("%s: verified: %s", self.name, report.verified)
        spent = "" if report.cost is None else f", ${report.cost.total:.2g}"
        LOG.info("%s: ended after %.2f s%s", self.name, report.seconds, spent)


@contextmanager
def logged(blank: Report) -> Iterator[MapLog]:
    """The log of a map that runs as long as the context is open; says also what it raises."""
    # In a program that has not imported OpenTelemetry there is nobody to tell.
    is_traced = "opentelemetry.trace" in sys.modules or "opentelemetry.metrics" in sys.modules
    with span_of(blank) if is_traced else nullcontext() as span:
        log = MapLog(next(_NUMBERS), span)
        log.began(blank)
        try:
            yield log
        except BaseException as error:
            LOG.info("%s: ended without results: %s: %s", log.name, type(error).__name__, error)
            raise
