"""Who may look on at a map: a progress bar, the logger "polarmap", OpenTelemetry."""

from __future__ import annotations

import io
import itertools
import logging
import time
from collections.abc import Collection
from functools import cache
from importlib.util import find_spec
from typing import Any

from polarmap.executors.interface import Outcome
from polarmap.report import Report, listed
from polarmap.run.running_map import Observer, RunningMap

LOG = logging.getLogger("polarmap")
LOG.addHandler(logging.NullHandler())

NAME = "polarmap"  # what spans and counters of OpenTelemetry are called by
COUNTERS = {
    "tasks": ("{task}", "tasks that were started"),
    "late": ("{task}", "tasks that had not returned when the results were determined, or got a backup"),
    "decoded": ("{block}", "data blocks that were decoded rather than received"),
    "abandoned": ("{task}", "tasks that a worker was running when the map returned"),
    "cancelled": ("{task}", "tasks that no worker had started when the map returned"),
    "seconds": ("s", "from the call of a map to its results"),
    "dollars": ("USD", "estimated cost at list prices, where they are known"),
}

NOTEBOOK_SECONDS = 0.3  # that a map takes before a widget is made for it: it costs more than a short map

_NUMBERS = itertools.count(1)


class ProgressBar(Observer):
    """A line on standard error: "29/32 arrived, 24 needed". Those of several maps stand below each other."""

    tick = 0.25  # it says how long the map has taken

    def __init__(self, is_in_notebook: bool) -> None:
        self._is_in_notebook = is_in_notebook
        self._bar: Any = None
        self._blank: Report | None = None
        self._began = 0.0

    def began(self, running: RunningMap) -> None:
        """Show that none has arrived, as long as nobody says otherwise."""
        self._blank, self._began = running.report(), time.time()
        self.looked(0)

    def finished(self, end: Report | BaseException | None) -> None:
        """Take the line away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def counted(self, done: int, total: int) -> None:
        """Show how many of the stripes are done, and how long the rest will take."""
        if self._bar is None:
            text = "{bar} {n_fmt}/{total_fmt} stripes [{elapsed}<{remaining}]"
            self._bar = self._new_bar(total=total, bar_format=text)
        self._bar.update(done - self._bar.n)

    def looked(self, arrived: int) -> None:
        """Show how many have arrived."""
        assert self._blank is not None
        if self._bar is None:
            if self._is_in_notebook and time.time() < self._began + NOTEBOOK_SECONDS:
                return
            self._bar = self._new_bar(total=self._blank.n, bar_format="{bar} {desc} [{elapsed}]", leave=False)
            self._bar.start_t = self._began
        self._bar.n = arrived
        text = f"{arrived}/{self._blank.n} arrived, {self._blank.needed} needed"
        self._bar.set_description_str(text)

    def _new_bar(self, bar_format: str, **options: Any) -> Any:
        """Return a bar of tqdm: a widget in a notebook that has ipywidgets, else a line of text."""
        if self._is_in_notebook and has_widgets():
            from tqdm.auto import tqdm as widget

            return widget(bar_format=bar_format, **options)
        from tqdm import tqdm

        file = DisplayedLine() if self._is_in_notebook else None
        return tqdm(bar_format=bar_format.replace("{bar}", "{bar:20}"), file=file, **options)


def has_widgets() -> bool:
    """Return whether ipywidgets is there to show a bar in a notebook."""
    return find_spec("ipywidgets") is not None


class DisplayedLine(io.TextIOBase):
    """A file whose latest line a notebook shows in one place.

    Exported notebooks would keep every line that is printed.
    """

    encoding = "utf-8"

    def __init__(self) -> None:
        self._place: Any = None

    def write(self, text: str) -> int:
        """Show a line in place of the one before; nothing is left of it if it is empty."""
        line = text.replace("\r", "").rstrip()
        data = {"text/plain": line}
        if text == "\n":  # the end of a line that stays
            return len(text)
        if self._place is not None:
            self._place.update(data, raw=True)
        elif line:
            import IPython.display as shown

            display: Any = shown.display
            self._place = display(data, raw=True, display_id=True)
        return len(text)


class MapLog(Observer):
    """The lines of one map after another: what each does at INFO, what its tasks do at DEBUG."""

    _name = "map"

    def began(self, running: RunningMap) -> None:
        """Say what is about to start."""
        self._name, self._running, self._lost = f"map {next(_NUMBERS)}", running, set[int]()
        blank = running.report()
        self._info(
            "start: %d tasks for %d blocks, %d results needed (%s, %s)",
            *(blank.n, blank.k, blank.needed, blank.executor, blank.code),
        )

    def _info(self, text: str, *values: object) -> None:
        LOG.info(f"%s: {text}", self._name, *values)

    def started(self, indices: Collection[int], elapsed: float) -> None:
        """Say which tasks, and for which late ones."""
        assert self._running.need is not None
        tasks = self._running.need.tasks
        attempts = {index: tasks[index].attempts for index in indices}
        again = [index for index, count in attempts.items() if count > 1]
        parity = [index for index, count in attempts.items() if count == 1]
        if parity:
            out = listed(sorted(tasks.running.keys() - attempts.keys()))
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
            self._info("decoded blocks: %s", report.decoding)
        if report.verified != "not needed":
            self._info("checked: %s", report.check)
        spent = "" if report.cost is None else f", ${report.cost.total:.2g}"
        self._info("ended after %.2f s%s", report.seconds, spent)


class MapSpan(Observer):
    """A span of OpenTelemetry for one map after another, current while it runs; and counters."""

    _context: Any = None

    def began(self, running: RunningMap) -> None:
        """Begin a span."""
        from opentelemetry import trace

        blank = running.report()
        sizes = {"n": blank.n, "k": blank.k, "code": blank.code, "executor": blank.executor}
        attributes: dict[str, Any] = {f"{NAME}.{name}": value for name, value in sizes.items()}
        self._context = trace.get_tracer(NAME).start_as_current_span(f"{NAME}.map", attributes=attributes)
        self._span = self._context.__enter__()

    def finished(self, end: Report | BaseException | None) -> None:
        """End the span: with the numbers of the report, which are added to the counters, or an exception."""
        context, self._context = self._context, None
        if isinstance(end, Report):
            numbers = numbers_of(end)
            self._span.set_attributes({f"{NAME}.{name}": number for name, number in numbers.items()})
            self._span.set_attribute(f"{NAME}.verified", end.verified)
            labels = {f"{NAME}.executor": end.executor, f"{NAME}.code": end.code}
            for name, counter in _counters().items():
                counter.add(numbers[name], labels)
            context.__exit__(None, None, None)
        elif context is not None and end is not None:
            context.__exit__(type(end), end, end.__traceback__)


def numbers_of(report: Report) -> dict[str, float]:
    """What the counters count, of one map.

    >>> numbers_of(Report(4, 3, "rotation code", "replay", (), 3))["tasks"]
    0
    """
    return {
        "tasks": sum(task.attempts > 0 for task in report.tasks),
        "late": len(report.late),
        "decoded": len(report.recovered),
        "abandoned": len(report.indices("abandoned")),
        "cancelled": len(report.indices("cancelled")),
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
