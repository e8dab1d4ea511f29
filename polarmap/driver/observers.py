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

from polarmap.driver.map_execution import MapExecution, Observer
from polarmap.executors.interface import Outcome
from polarmap.report import Report, format_indices

LOG = logging.getLogger("polarmap")
LOG.addHandler(logging.NullHandler())

TELEMETRY_NAME = "polarmap"  # what spans and counters of OpenTelemetry are called by
COUNTER_DESCRIPTIONS = {
    "tasks": ("{task}", "tasks that were started"),
    "late": ("{task}", "tasks that had not returned when the results were determined, or got a backup"),
    "decoded": ("{block}", "data blocks that were decoded rather than received"),
    "abandoned": ("{task}", "tasks that a worker was running when the map returned"),
    "cancelled": ("{task}", "tasks that no worker had started when the map returned"),
    "seconds": ("s", "from the call of a map to its results"),
    "dollars": ("USD", "estimated cost at list prices, where they are known"),
}

# that a map takes before a widget is made for it: it costs more than a short map
NOTEBOOK_DELAY_SECONDS = 0.3

_MAP_IDS = itertools.count(1)


class ProgressBar(Observer):
    """A line on standard error: "29/32 arrived, 24 needed". Those of several maps stand below each other."""

    poll_interval = 0.25  # it says how long the map has taken

    def __init__(self, is_in_notebook: bool) -> None:
        self._is_in_notebook = is_in_notebook
        self._bar: Any = None
        self._initial_report: Report | None = None
        self._started_at = 0.0

    def on_start(self, execution: MapExecution) -> None:
        """Show that none has arrived, as long as nobody says otherwise."""
        self._initial_report, self._started_at = execution.current_report(), time.time()
        self.on_poll(0)

    def on_finish(self, report_or_error: Report | BaseException | None) -> None:
        """Take the line away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def on_stripes_done(self, n_done: int, n_stripes: int) -> None:
        """Show how many of the stripes are done, and how long the rest will take."""
        if self._bar is None:
            bar_format = "{bar} {n_fmt}/{total_fmt} stripes [{elapsed}<{remaining}]"
            self._bar = self._create_tqdm_bar(total=n_stripes, bar_format=bar_format)
        self._bar.update(n_done - self._bar.n)

    def on_poll(self, n_arrived: int) -> None:
        """Show how many have arrived."""
        assert self._initial_report is not None
        if self._bar is None:
            if self._is_in_notebook and time.time() < self._started_at + NOTEBOOK_DELAY_SECONDS:
                return
            self._bar = self._create_tqdm_bar(
                total=self._initial_report.n, bar_format="{bar} {desc} [{elapsed}]", leave=False
            )
            self._bar.start_t = self._started_at
        self._bar.n = n_arrived
        description = f"{n_arrived}/{self._initial_report.n} arrived, {self._initial_report.needed} needed"
        self._bar.set_description_str(description)

    def _create_tqdm_bar(self, bar_format: str, **tqdm_options: Any) -> Any:
        """Return a bar of tqdm: a widget in a notebook that has ipywidgets, else a line of text."""
        if self._is_in_notebook and has_notebook_widgets():
            from tqdm.auto import tqdm as widget

            return widget(bar_format=bar_format, **tqdm_options)
        from tqdm import tqdm

        file = NotebookStatusLine() if self._is_in_notebook else None
        return tqdm(bar_format=bar_format.replace("{bar}", "{bar:20}"), file=file, **tqdm_options)


def has_notebook_widgets() -> bool:
    """Return whether ipywidgets is there to show a bar in a notebook."""
    return find_spec("ipywidgets") is not None


class NotebookStatusLine(io.TextIOBase):
    """A file whose latest line a notebook shows in one place.

    Exported notebooks would keep every line that is printed.
    """

    encoding = "utf-8"

    def __init__(self) -> None:
        self._display_handle: Any = None

    def write(self, text: str) -> int:
        """Show a line in place of the one before; nothing is left of it if it is empty."""
        line = text.replace("\r", "").rstrip()
        data = {"text/plain": line}
        if text == "\n":  # the end of a line that stays
            return len(text)
        if self._display_handle is not None:
            self._display_handle.update(data, raw=True)
        elif line:
            import IPython.display as shown

            display: Any = shown.display
            self._display_handle = display(data, raw=True, display_id=True)
        return len(text)


class LogObserver(Observer):
    """The lines of one map after another: what each does at INFO, what its tasks do at DEBUG."""

    _map_name = "map"

    def on_start(self, execution: MapExecution) -> None:
        """Say what is about to start."""
        self._map_name, self._execution, self._failed_tasks = f"map {next(_MAP_IDS)}", execution, set[int]()
        initial_report = execution.current_report()
        report = initial_report
        self._log_info(
            "start: %d tasks for %d blocks, %d results needed (%s, %s)",
            *(report.n, report.k, report.needed, report.executor, report.code),
        )

    def _log_info(self, message_format: str, *values: object) -> None:
        LOG.info(f"%s: {message_format}", self._map_name, *values)

    def on_tasks_started(self, task_indices: Collection[int], elapsed_seconds: float) -> None:
        """Say which tasks, and for which late ones."""
        assert self._execution.collector is not None
        task_table = self._execution.collector.task_table
        n_attempts_by_task = {task_index: task_table[task_index].n_attempts for task_index in task_indices}
        restarted_tasks = [task for task, n_attempts in n_attempts_by_task.items() if n_attempts > 1]
        parity_tasks = [task for task, n_attempts in n_attempts_by_task.items() if n_attempts == 1]
        if parity_tasks:
            late_tasks = format_indices(sorted(task_table.in_flight.keys() - n_attempts_by_task.keys()))
            self._log_info(
                "late: %s still out after %.2f s; started %s",
                late_tasks,
                elapsed_seconds,
                format_indices(parity_tasks),
            )
        if restarted_tasks:
            self._log_info("started again after %.2f s: %s", elapsed_seconds, format_indices(restarted_tasks))

    def on_attempt_end(self, outcome: Outcome, elapsed_seconds: float) -> None:
        """Say that a task has returned, or why its attempt gave nothing."""
        if outcome.failure is not None:
            self._failed_tasks.add(outcome.task)
            self._log_info("lost: task %d after %.2f s: %s", outcome.task, elapsed_seconds, outcome.failure)
        else:
            LOG.debug(
                "%s: task %d returned after %.3f s, %.3f s of work",
                *(self._map_name, outcome.task, elapsed_seconds, outcome.seconds),
            )

    def on_finish(self, report_or_error: Report | BaseException | None) -> None:
        """Say what has come of it."""
        if isinstance(report_or_error, Report):
            self._log_report(report_or_error)
        elif report_or_error is not None:
            self._log_info("ended without results: %s: %s", type(report_or_error).__name__, report_or_error)

    def _log_report(self, report: Report) -> None:
        for task in report.tasks:  # those whose results came, and were rejected
            if task.state == "failed" and task.index not in self._failed_tasks:
                self._log_info("lost: task %d: %s", task.index, task.failures[-1])
        if report.late_tasks:
            self._log_info("late: %s, not waited for or started twice", format_indices(report.late_tasks))
        if report.recovered:
            self._log_info("decoded blocks: %s", report.decoding_summary)
        if report.verified != "not needed":
            self._log_info("checked: %s", report.verification_summary)
        cost_text = "" if report.cost is None else f", ${report.cost.total:.2g}"
        self._log_info("ended after %.2f s%s", report.seconds, cost_text)


class TraceObserver(Observer):
    """A span of OpenTelemetry for one map after another, current while it runs; and counters."""

    _span_context: Any = None

    def on_start(self, execution: MapExecution) -> None:
        """Begin a span."""
        from opentelemetry import trace

        initial_report = execution.current_report()
        sizes = {
            "n": initial_report.n,
            "k": initial_report.k,
            "code": initial_report.code,
            "executor": initial_report.executor,
        }
        attributes: dict[str, Any] = {f"{TELEMETRY_NAME}.{name}": value for name, value in sizes.items()}
        self._span_context = trace.get_tracer(TELEMETRY_NAME).start_as_current_span(
            f"{TELEMETRY_NAME}.map", attributes=attributes
        )
        self._span = self._span_context.__enter__()

    def on_finish(self, report_or_error: Report | BaseException | None) -> None:
        """End the span: with the numbers of the report, which are added to the counters, or an exception."""
        span_context, self._span_context = self._span_context, None
        if isinstance(report_or_error, Report):
            metrics = compute_metrics(report_or_error)
            self._span.set_attributes({f"{TELEMETRY_NAME}.{name}": value for name, value in metrics.items()})
            self._span.set_attribute(f"{TELEMETRY_NAME}.verified", report_or_error.verified)
            labels = {
                f"{TELEMETRY_NAME}.executor": report_or_error.executor,
                f"{TELEMETRY_NAME}.code": report_or_error.code,
            }
            for name, counter in _create_counters().items():
                counter.add(metrics[name], labels)
            span_context.__exit__(None, None, None)
        elif span_context is not None and report_or_error is not None:
            span_context.__exit__(type(report_or_error), report_or_error, report_or_error.__traceback__)


def compute_metrics(report: Report) -> dict[str, float]:
    """What the counters count, of one map.

    >>> compute_metrics(Report(4, 3, "rotation code", "replay", (), 3))["tasks"]
    0
    """
    return {
        "tasks": sum(task.attempts > 0 for task in report.tasks),
        "late": len(report.late_tasks),
        "decoded": len(report.recovered),
        "abandoned": len(report.tasks_in_state("abandoned")),
        "cancelled": len(report.tasks_in_state("cancelled")),
        "seconds": report.seconds,
        "dollars": 0.0 if report.cost is None else report.cost.total,
    }


@cache
def _create_counters() -> dict[str, Any]:
    from opentelemetry import metrics

    meter = metrics.get_meter(TELEMETRY_NAME)
    return {
        name: meter.create_counter(f"{TELEMETRY_NAME}.{name}", unit, description)
        for name, (unit, description) in COUNTER_DESCRIPTIONS.items()
    }
