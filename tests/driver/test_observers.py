"""Tests of the progress bar, the logger "polarmap" and the OpenTelemetry output."""

from __future__ import annotations

import logging
import math
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import polarmap
from polarmap import coded_map, hedged_map, submit
from polarmap.clouds.limits import WorkerSpec
from polarmap.driver import observers
from polarmap.driver.events import EventStream, JobContext, JobFinished, JobPolled, JobStarted
from polarmap.driver.map_execution import MapExecution
from polarmap.driver.observers import ProgressBar
from polarmap.errors import CodedTimeoutError
from polarmap.executors import resolve_executor
from polarmap.testing import Fault, FaultyExecutor, ReplayExecutor

DATA = np.random.default_rng(0).standard_normal((24, 3))


def get_log_lines(caplog: pytest.LogCaptureFixture, level: int = logging.INFO) -> list[str]:
    """Return the messages that polarmap logged at `level`, without the number of the map."""
    records = [record for record in caplog.records if record.name == "polarmap" and record.levelno == level]
    return [record.getMessage().partition(": ")[2] for record in records]


def test_a_map_is_logged_from_its_start_to_its_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "polarmap")
    faults = {1: Fault("kill", attempts=9)}
    executor = FaultyExecutor(ReplayExecutor({3: math.inf}), faults)
    report = coded_map(np.negative, DATA, blocks=6, tasks=8, executor=executor, verify=True).report
    logged = get_log_lines(caplog)
    assert logged[0] == "start: 8 tasks for 6 blocks, 6 results needed (replay, rotation code)"
    assert logged[1].startswith("lost: task 1 after ")
    assert report.tasks[1].failures[0] in logged[1]
    assert logged[2:5] == [
        "late: 3, not waited for or started twice",
        f"decoded blocks: 1, 3 in {1e3 * report.decode_seconds:.1f} ms, "
        f"error {report.error_bound:.1g} at most",
        "checked: f of a decoded block agrees",
    ]
    assert logged[5] == f"ended after {report.seconds:.2f} s"
    assert len(logged) == 6
    assert get_log_lines(caplog, logging.DEBUG) == []


def test_a_rejected_result_is_logged_as_lost(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "polarmap")
    executor = FaultyExecutor(ReplayExecutor(), {1: Fault("garbage", attempts=9)})
    report = coded_map(np.negative, DATA, blocks=6, tasks=12, executor=executor, verify=True).report
    assert report.tasks[1].state == "failed"
    assert f"lost: task 1: {report.tasks[1].failures[-1]}" in get_log_lines(caplog)
    assert sum(line.startswith("lost") for line in get_log_lines(caplog)) == 1


def test_each_task_is_logged_at_debug_level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "polarmap")
    executor = ReplayExecutor({index: 1.0 + index for index in range(6)})
    list(hedged_map(abs, [-1, 2, -3, 4, 5, 6], executor=executor, backups=0))
    assert get_log_lines(caplog, logging.DEBUG) == [
        f"task {index} returned after {1.0 + index:.3f} s, {1.0 + index:.3f} s of work" for index in range(6)
    ]


def test_the_start_of_parity_for_late_tasks_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "polarmap")
    executor = ReplayExecutor({5: 90.0})
    result = coded_map(
        np.negative, DATA, blocks=8, tasks=12, executor=executor, schedule="on_demand", verify=False
    )
    launched = result.report.tasks[8].launched
    assert f"late: 5 still out after {launched:.2f} s; started 8" in get_log_lines(caplog)


def test_backups_are_logged_as_starts(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "polarmap")
    slow = FaultyExecutor(ReplayExecutor(), {2: Fault("sleep", seconds=60)})
    result = hedged_map(np.sort, DATA, blocks=4, executor=slow)
    assert result.report.late_tasks == (2,)
    assert any(
        line.startswith("started again after") and line.endswith(": 2") for line in get_log_lines(caplog)
    )


def test_an_exception_of_a_map_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "polarmap")
    never = ReplayExecutor(dict.fromkeys(range(4), math.inf))
    with pytest.raises(CodedTimeoutError) as raised:
        coded_map(np.negative, DATA, blocks=3, tasks=4, executor=never, timeout=2.0)
    assert get_log_lines(caplog)[-1] == f"ended without results: CodedTimeoutError: {raised.value}"


def test_log_records_distinguish_maps_by_their_numbers(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "polarmap")
    for _ in range(2):
        hedged_map(abs, [1], executor=ReplayExecutor())
    names = [record.getMessage().partition(":")[0] for record in caplog.records]
    first, second = dict.fromkeys(names)
    assert int(second.removeprefix("map ")) == int(first.removeprefix("map ")) + 1


def test_nothing_is_printed_unless_logging_is_configured() -> None:
    code = (
        "import polarmap; faults = {0: polarmap.testing.Fault('raise', attempts=9)}\n"
        "executor = polarmap.testing.FaultyExecutor(polarmap.testing.ReplayExecutor(), faults)\n"
        "polarmap.coded_map(abs, [1.0, 2.0, 3.0], executor=executor, verify=False)"
    )
    code = code.replace("abs", "lambda x: 2 * x")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == run.stderr == ""


# --- OpenTelemetry -----------------------------------------------------------------------------


class Memory:
    """OpenTelemetry providers that keep spans and counters in memory."""

    def __init__(self) -> None:
        self.exporter, self.reader = InMemorySpanExporter(), InMemoryMetricReader()
        self.tracers = TracerProvider(shutdown_on_exit=False)
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.meters = MeterProvider([self.reader], shutdown_on_exit=False)

    @property
    def spans(self) -> tuple[Any, ...]:
        return self.exporter.get_finished_spans()

    def get_counters(self) -> dict[str, float]:
        """Return the sum of each counter."""
        metrics = self.reader.get_metrics_data()
        [scope] = metrics.resource_metrics[0].scope_metrics
        return {
            metric.name.removeprefix("polarmap."): sum(point.value for point in metric.data.data_points)
            for metric in scope.metrics
        }


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Memory]:
    """Replace the OpenTelemetry providers, which a process can set only once."""
    memory = Memory()
    monkeypatch.setattr(trace, "get_tracer", memory.tracers.get_tracer)
    monkeypatch.setattr(metrics, "get_meter", memory.meters.get_meter)
    observers._create_counters.cache_clear()
    yield memory
    observers._create_counters.cache_clear()


def test_a_map_is_one_span_with_the_numbers_of_its_report(memory: Memory) -> None:
    executor = FaultyExecutor(ReplayExecutor({3: math.inf}), {1: Fault("kill", attempts=9)})
    report = coded_map(np.negative, DATA, blocks=6, tasks=8, executor=executor).report
    [span] = memory.spans
    assert span.name == "polarmap.map"
    assert dict(span.attributes) == {
        "polarmap.n": 8,
        "polarmap.k": 6,
        "polarmap.code": "rotation code",
        "polarmap.executor": "replay",
        "polarmap.tasks": 8,
        "polarmap.late": 1,
        "polarmap.decoded": 2,
        "polarmap.abandoned": 1,
        "polarmap.cancelled": 0,
        "polarmap.seconds": report.seconds,
        "polarmap.dollars": 0.0,
        "polarmap.verified": report.verified,
    }
    assert span.status.is_ok


def test_counters_add_up_over_maps(memory: Memory) -> None:
    slow = FaultyExecutor(ReplayExecutor(), {2: Fault("sleep", seconds=60)})
    reports = [
        coded_map(np.negative, DATA, blocks=6, tasks=8, executor=ReplayExecutor({0: math.inf})).report,
        hedged_map(np.sort, DATA, blocks=4, executor=slow).report,
    ]
    assert memory.get_counters() == {
        "tasks": 12,
        "late": 2,
        "decoded": 1,
        "abandoned": 1,
        "cancelled": 0,
        "seconds": pytest.approx(sum(report.seconds for report in reports)),
        "dollars": 0.0,
    }


def test_dollars_are_those_of_the_report(memory: Memory) -> None:
    executor = ReplayExecutor({0: 3.0})
    executor.worker_spec = WorkerSpec("aws_lambda", "aws_s3", memory_mb=1769, timeout_seconds=900)
    report = coded_map(np.negative, DATA, blocks=6, tasks=8, executor=executor).report
    assert report.cost is not None
    assert memory.get_counters()["dollars"] == pytest.approx(report.cost.total)


def test_the_span_of_a_map_that_raises_has_an_error_status(memory: Memory) -> None:
    never = ReplayExecutor(dict.fromkeys(range(4), math.inf))
    with pytest.raises(CodedTimeoutError):
        coded_map(np.negative, DATA, blocks=3, tasks=4, executor=never, timeout=2.0)
    [span] = memory.spans
    assert not span.status.is_ok
    assert span.events[0].attributes["exception.type"].endswith("CodedTimeoutError")


def test_maps_are_children_of_the_span_around_them_on_other_threads_too(memory: Memory) -> None:
    with trace.get_tracer("program").start_as_current_span("step"):
        submit(hedged_map, abs, [1, -2], executor=ReplayExecutor()).result(60)
    inner, outer = memory.spans
    assert (inner.name, outer.name) == ("polarmap.map", "step")
    assert inner.parent.span_id == outer.context.span_id


# --- the bar -----------------------------------------------------------------------------------


def test_a_bar_counts_arrivals_and_stripes(capsys: pytest.CaptureFixture[str]) -> None:
    bar = ProgressBar(is_in_notebook=False)
    running = MapExecution(resolve_executor(ReplayExecutor()))
    running.set_code(polarmap.codes.PolarCode(8, 6))
    bar.on_event(JobStarted(running.current_report))
    bar.on_event(JobPolled(5))
    bar.on_event(JobFinished(None, RuntimeError()))
    text = capsys.readouterr().err
    assert "0/8 arrived, 6 needed" in text
    assert "5/8 arrived, 6 needed" in text
    assert text.endswith("\r")  # The bar is erased.
    with JobContext(EventStream([bar])).track_encoding_progress(4) as show:
        show(3)
    assert "3/4 stripes" in capsys.readouterr().err


def test_concurrent_maps_have_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    with ThreadPoolExecutor(4) as pool:
        sizes = (4, 6), (8, 10), (5, 7)
        futures = [
            polarmap.submit(
                polarmap.coded_map, np.negative, np.eye(40), blocks=k, tasks=n, executor=pool, progress=True
            )
            for k, n in sizes
        ]
        for future in futures:
            future.result(60.0)
    text = capsys.readouterr().err
    assert all(f"/{n} arrived, {k} needed" in text for k, n in sizes)
