"""Observers that show a map as a progress bar, in a live view, as log messages, or by OpenTelemetry."""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

from polarmap.driver.events import (
    AttemptEnded,
    AttemptsStarted,
    JobEvent,
    JobFinished,
    JobPolled,
    JobStarted,
    Observer,
    StripesEncoded,
)
from polarmap.live import activation
from polarmap.live.hub import LiveHub, LiveMap
from polarmap.live.views import close_view, open_view
from polarmap.report import Report, TaskState, format_indices

LOG = logging.getLogger("polarmap")
LOG.addHandler(logging.NullHandler())

TELEMETRY_NAME = "polarmap"  # the prefix of all OpenTelemetry names of spans, attributes and counters

# Create the notebook widget only once a map has run for this long: creating it takes longer than a short map.
NOTEBOOK_DELAY_SECONDS = 0.3


class ProgressBar(Observer):
    """Shows the progress of a map as a line on standard error, such as "29/32 arrived, 24 needed".

    Concurrent maps have a line each.
    """

    poll_interval = 0.25  # seconds between updates of the elapsed time
    event_classes = JobStarted, JobPolled, StripesEncoded, JobFinished

    def __init__(self, is_in_notebook: bool) -> None:
        self._is_in_notebook = is_in_notebook
        self._bar: Any = None
        self._initial_report: Report | None = None
        self._started_at = 0.0

    def on_event(self, event: JobEvent) -> None:
        """Update the line, or remove it when the map has finished."""
        if isinstance(event, JobPolled):
            self._show_arrivals(event.n_results)
        elif isinstance(event, StripesEncoded):
            self._show_encoding_progress(event.n_done, event.n_stripes)
        elif isinstance(event, JobStarted):
            self._initial_report, self._started_at = event.get_report(), time.time()
            self._show_arrivals(0)
        elif isinstance(event, JobFinished) and self._bar is not None:
            self._bar.close()
            self._bar = None

    def _show_encoding_progress(self, n_done: int, n_stripes: int) -> None:
        """Show how many slices (stripes) of an array have been encoded, and the remaining time."""
        if self._bar is None:
            bar_format = "{bar} {n_fmt}/{total_fmt} stripes [{elapsed}<{remaining}]"
            self._bar = self._create_tqdm_bar(total=n_stripes, bar_format=bar_format)
        self._bar.update(n_done - self._bar.n)

    def _show_arrivals(self, n_arrived: int) -> None:
        """Show how many results have arrived."""
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
        """Create a tqdm bar: a widget in a notebook with ipywidgets, else a line of text."""
        if self._is_in_notebook and has_notebook_widgets():
            from tqdm.auto import tqdm as widget

            return widget(bar_format=bar_format, **tqdm_options)
        from tqdm import tqdm

        file = NotebookStatusLine() if self._is_in_notebook else None
        return tqdm(bar_format=bar_format.replace("{bar}", "{bar:20}"), file=file, **tqdm_options)


def has_notebook_widgets() -> bool:
    """Return whether ipywidgets is installed, so that notebooks can show progress bars as widgets."""
    return find_spec("ipywidgets") is not None


class NotebookStatusLine(io.TextIOBase):
    """A text stream for progress bars in notebooks that shows only the latest line.

    With plain printing, every update of the bar would remain in the saved notebook.
    """

    encoding = "utf-8"

    def __init__(self) -> None:
        self._display_handle: Any = None

    def write(self, text: str) -> int:
        """Replace the displayed line with `text`. Empty text removes the line."""
        line = text.replace("\r", "").rstrip()
        data = {"text/plain": line}
        if text == "\n":  # tqdm ends a bar that stays visible with a newline.
            return len(text)
        if self._display_handle is not None:
            self._display_handle.update(data, raw=True)
        elif line:
            import IPython.display as shown

            display: Any = shown.display
            self._display_handle = display(data, raw=True, display_id=True)
        return len(text)


class LiveObserver(Observer):
    """Makes a map visible to viewers, such as `polarmap top`.

    Parameters
    ----------
    opens_view : bool
        Whether to open a view in the terminal or notebook while the map runs.
    is_in_notebook : bool
        Whether this process is the kernel of a notebook.
    """

    # Poll the workers this often, in seconds. Otherwise, viewers would show a running task as queued until a
    # result arrives.
    poll_interval = 0.25
    event_classes = JobStarted, JobFinished

    def __init__(self, opens_view: bool, is_in_notebook: bool) -> None:
        self._opens_view, self._is_in_notebook = opens_view, is_in_notebook
        self._hub: LiveHub | None = None
        self._live_map: LiveMap | None = None

    def on_event(self, event: JobEvent) -> None:
        """Show the map to viewers when it starts, and record its report when it has finished."""
        if isinstance(event, JobStarted):
            if self._opens_view:
                open_view(self._is_in_notebook)
            self._hub = activation.active_hub
            if self._hub is not None:
                self._live_map = self._hub.start_map(event.map_id, event.function_name, event.get_report)
        elif isinstance(event, JobFinished) and self._live_map is not None:
            assert self._hub is not None
            live_map, self._live_map = self._live_map, None
            error_text = "" if event.error is None else str(event.error)
            self._hub.finish_map(live_map, event.get_report, event.n_results, error_text)
            if self._opens_view:
                close_view()


class LogObserver(Observer):
    """Logs the progress of each map with the `logging` module.

    The start, late or failed tasks, and the final report are logged at level INFO. Each returned task is
    logged at level DEBUG.
    """

    event_classes = JobStarted, AttemptsStarted, AttemptEnded, JobFinished

    def __init__(self) -> None:
        self._map_name = "map"
        self._failed_tasks = set[int]()

    def on_event(self, event: JobEvent) -> None:
        """Log an event in one line, or the final report in several lines."""
        if isinstance(event, AttemptEnded):
            self._log_attempt(event)
        elif isinstance(event, AttemptsStarted):
            self._log_starts(event)
        elif isinstance(event, JobStarted):
            self._map_name, self._failed_tasks = f"map {event.map_id}", set()
            report = event.get_report()
            self._log_info(
                "start: %d tasks for %d blocks, %d results needed (%s, %s)",
                *(report.n, report.k, report.needed, report.executor, report.code),
            )
        elif isinstance(event, JobFinished):
            if event.error is not None:
                self._log_info("ended without results: %s: %s", type(event.error).__name__, event.error)
            elif event.report is not None:
                self._log_report(event.report)

    def _log_info(self, message_format: str, *values: object) -> None:
        LOG.info(f"%s: {message_format}", self._map_name, *values)

    def _log_starts(self, event: AttemptsStarted) -> None:
        """Log which parity tasks start because others are late, and which tasks are restarted."""
        parity_tasks = [task for task, attempt in event.attempts if attempt == 0]
        restarted_tasks = [task for task, attempt in event.attempts if attempt > 0]
        if parity_tasks:
            self._log_info(
                "late: %s still out after %.2f s; started %s",
                format_indices(sorted(event.pending_tasks)),
                event.elapsed_seconds,
                format_indices(parity_tasks),
            )
        if restarted_tasks:
            self._log_info(
                "started again after %.2f s: %s", event.elapsed_seconds, format_indices(restarted_tasks)
            )

    def _log_attempt(self, event: AttemptEnded) -> None:
        """Log that a task has returned or why it failed."""
        outcome, elapsed_seconds = event.outcome, event.elapsed_seconds
        if outcome.failure is not None:
            self._failed_tasks.add(outcome.task)
            self._log_info("lost: task %d after %.2f s: %s", outcome.task, elapsed_seconds, outcome.failure)
        else:
            LOG.debug(
                "%s: task %d returned after %.3f s, %.3f s of work",
                *(self._map_name, outcome.task, elapsed_seconds, outcome.seconds),
            )

    def _log_report(self, report: Report) -> None:
        for task in report.tasks:  # Also log results that were rejected after their arrival.
            if task.state == TaskState.FAILED and task.index not in self._failed_tasks:
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
    """Creates an OpenTelemetry span for each map, and updates OpenTelemetry counters when it ends."""

    event_classes = JobStarted, JobFinished

    def __init__(self) -> None:
        self._span: Any = None
        self._span_context: Any = None

    def on_event(self, event: JobEvent) -> None:
        """Start a span when a map starts, and end it when the map has finished."""
        if isinstance(event, JobStarted):
            self._begin_span(event.get_report())
        elif isinstance(event, JobFinished) and self._span_context is not None:
            span_context, self._span_context, error = self._span_context, None, event.error
            if error is not None:
                span_context.__exit__(type(error), error, error.__traceback__)
            elif event.report is not None:
                self._record_report(event.report)
                span_context.__exit__(None, None, None)

    def _begin_span(self, initial_report: Report) -> None:
        from opentelemetry import trace

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

    def _record_report(self, report: Report) -> None:
        """Set a report's metrics as span attributes, and add them to the counters."""
        values = compute_metrics(report)
        self._span.set_attributes({f"{TELEMETRY_NAME}.{name}": value for name, value in values.items()})
        self._span.set_attribute(f"{TELEMETRY_NAME}.verified", report.verified)
        labels = {
            f"{TELEMETRY_NAME}.executor": report.executor,
            f"{TELEMETRY_NAME}.code": report.code,
        }
        for name, counter in _create_counters().items():
            counter.add(values[name], labels)


class Metric(NamedTuple):
    """A number computed from a map's report and added to an OpenTelemetry counter."""

    name: str
    unit: str
    description: str
    compute: Callable[[Report], float]


METRICS = (
    Metric(
        "tasks",
        "{task}",
        "tasks that were started",
        lambda report: sum(task.attempts > 0 for task in report.tasks),
    ),
    Metric(
        "late",
        "{task}",
        "tasks that had not returned when the results were determined, or got a backup",
        lambda report: len(report.late_tasks),
    ),
    Metric(
        "decoded",
        "{block}",
        "data blocks that were decoded rather than received",
        lambda report: len(report.recovered),
    ),
    Metric(
        "abandoned",
        "{task}",
        "tasks that a worker was running when the map returned",
        lambda report: len(report.tasks_in_state(TaskState.ABANDONED)),
    ),
    Metric(
        "cancelled",
        "{task}",
        "tasks that no worker had started when the map returned",
        lambda report: len(report.tasks_in_state(TaskState.CANCELLED)),
    ),
    Metric("seconds", "s", "from the call of a map to its results", lambda report: report.seconds),
    Metric(
        "dollars",
        "USD",
        "estimated cost at list prices, where they are known",
        lambda report: 0.0 if report.cost is None else report.cost.total,
    ),
)


def compute_metrics(report: Report) -> dict[str, float]:
    """Return the amounts that a map adds to the OpenTelemetry counters, by metric name.

    >>> compute_metrics(Report(4, 3, "rotation code", "replay", (), 3))["tasks"]
    0
    """
    return {metric.name: metric.compute(report) for metric in METRICS}


@cache
def _create_counters() -> dict[str, Any]:
    from opentelemetry import metrics

    meter = metrics.get_meter(TELEMETRY_NAME)
    return {
        metric.name: meter.create_counter(f"{TELEMETRY_NAME}.{metric.name}", metric.unit, metric.description)
        for metric in METRICS
    }
