"""A map as OpenTelemetry sees it: one span, and counters. Only where the program uses OpenTelemetry."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from polarmap.report import Report

NAME = "polarmap"
COUNTERS = {
    "tasks": ("{task}", "tasks that were started"),
    "late": ("{task}", "tasks that had not returned when the results were determined, or got a backup"),
    "decoded": ("{block}", "data blocks that were decoded rather than received"),
    "abandoned": ("{task}", "tasks that still ran when the map returned"),
    "seconds": ("s", "from the call of a map to its results"),
    "dollars": ("USD", "estimated cost at list prices, where they are known"),
}


class SpanOfMap:
    """The span of one map, which gets its numbers when the map returns."""

    def __init__(self, span: Any) -> None:
        self._span = span

    def returned(self, report: Report) -> None:
        """Add the numbers of the report to the span and to the counters."""
        numbers = numbers_of(report)
        self._span.set_attributes({f"{NAME}.{name}": number for name, number in numbers.items()})
        self._span.set_attribute(f"{NAME}.verified", report.verified)
        labels = {f"{NAME}.executor": report.executor, f"{NAME}.code": report.code}
        for name, counter in _counters().items():
            counter.add(numbers[name], labels)


def numbers_of(report: Report) -> dict[str, float]:
    """What the counters count, of one map.

    >>> from polarmap.run.summary import blank_report
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


@contextmanager
def span_of(blank: Report) -> Iterator[SpanOfMap]:
    """The span of a map, current as long as the context is open."""
    from opentelemetry import trace

    attributes: dict[str, str | int] = {
        f"{NAME}.n": blank.n,
        f"{NAME}.k": blank.k,
        f"{NAME}.code": blank.code,
        f"{NAME}.executor": blank.executor,
    }
    with trace.get_tracer(NAME).start_as_current_span(f"{NAME}.map", attributes=attributes) as span:
        yield SpanOfMap(span)


@cache
def _counters() -> dict[str, Any]:
    from opentelemetry import metrics

    meter = metrics.get_meter(NAME)
    return {
        name: meter.create_counter(f"{NAME}.{name}", unit, what) for name, (unit, what) in COUNTERS.items()
    }
