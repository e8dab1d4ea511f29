"""Maps as OpenTelemetry's own readers, in memory, see them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from polarmap import Fault, FaultyExecutor, ReplayExecutor, coded_map, hedged_map, submit
from polarmap.clouds.limits import Worker
from polarmap.errors import CodedTimeoutError
from polarmap.run import spans

DATA = np.random.default_rng(0).standard_normal((24, 3))


class Memory:
    """A program whose spans and counters stay in memory."""

    def __init__(self) -> None:
        self.exporter, self.reader = InMemorySpanExporter(), InMemoryMetricReader()
        self.tracers = TracerProvider(shutdown_on_exit=False)
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.meters = MeterProvider([self.reader], shutdown_on_exit=False)

    @property
    def spans(self) -> tuple[Any, ...]:
        return self.exporter.get_finished_spans()

    def counted(self) -> dict[str, float]:
        """The sum of each counter."""
        found = self.reader.get_metrics_data()
        [scope] = found.resource_metrics[0].scope_metrics
        return {
            one.name.removeprefix("polarmap."): sum(point.value for point in one.data.data_points)
            for one in scope.metrics
        }


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Memory]:
    """As if the program had set these providers, which a process can do only once."""
    found = Memory()
    monkeypatch.setattr(trace, "get_tracer", found.tracers.get_tracer)
    monkeypatch.setattr(metrics, "get_meter", found.meters.get_meter)
    spans._counters.cache_clear()
    yield found
    spans._counters.cache_clear()


def test_a_map_is_one_span_with_the_numbers_of_its_report(memory: Memory) -> None:
    executor = FaultyExecutor(ReplayExecutor({3: math.inf}), {1: Fault("kill", attempts=9)})
    report = coded_map(np.negative, DATA, blocks=6, workers=8, executor=executor).report
    [span] = memory.spans
    assert span.name == "polarmap.map"
    assert dict(span.attributes) == {
        "polarmap.n": 8,
        "polarmap.k": 6,
        "polarmap.code": "rotation optimal",
        "polarmap.executor": "replay",
        "polarmap.tasks": 8,
        "polarmap.late": 1,
        "polarmap.decoded": 2,
        "polarmap.abandoned": 1,
        "polarmap.seconds": report.seconds,
        "polarmap.dollars": 0.0,
        "polarmap.verified": report.verified,
    }
    assert span.status.is_ok


def test_counters_add_up_over_maps(memory: Memory) -> None:
    slow = FaultyExecutor(ReplayExecutor(), {2: Fault("sleep", seconds=60)})
    reports = [
        coded_map(np.negative, DATA, blocks=6, workers=8, executor=ReplayExecutor({0: math.inf})).report,
        hedged_map(np.sort, DATA, blocks=4, executor=slow).report,
    ]
    assert memory.counted() == {
        "tasks": 12,
        "late": 2,
        "decoded": 1,
        "abandoned": 1,
        "seconds": pytest.approx(sum(report.seconds for report in reports)),
        "dollars": 0.0,
    }


def test_dollars_are_those_of_the_report(memory: Memory) -> None:
    executor = ReplayExecutor({0: 3.0})
    executor.worker = Worker("aws_lambda", "aws_s3", memory=1769, seconds=900)
    report = coded_map(np.negative, DATA, blocks=6, workers=8, executor=executor).report
    assert report.cost is not None
    assert memory.counted()["dollars"] == pytest.approx(report.cost.total)


def test_a_map_that_raises_is_a_span_that_says_so(memory: Memory) -> None:
    never = ReplayExecutor(dict.fromkeys(range(4), math.inf))
    with pytest.raises(CodedTimeoutError):
        coded_map(np.negative, DATA, blocks=3, workers=4, executor=never, timeout=2.0)
    [span] = memory.spans
    assert not span.status.is_ok
    assert span.events[0].attributes["exception.type"].endswith("CodedTimeoutError")


def test_maps_are_children_of_the_span_around_them_on_other_threads_too(memory: Memory) -> None:
    with trace.get_tracer("program").start_as_current_span("step"):
        submit(abs, [1, -2], verb=hedged_map, executor=ReplayExecutor()).result(60)
    inner, outer = memory.spans
    assert (inner.name, outer.name) == ("polarmap.map", "step")
    assert inner.parent.span_id == outer.context.span_id
