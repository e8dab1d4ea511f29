"""Tests of the state of a map that belongs to a future, with maps that consist of threading events."""

from __future__ import annotations

import gc
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait
from functools import partial
from typing import Any

import numpy as np
import pytest

import polarmap
from polarmap.codes import PolarCode
from polarmap.driver import coded_future
from polarmap.driver.coded_future import BackgroundMap, CodedFuture
from polarmap.driver.events import BlockReady, JobCancelled, JobContext, JobFinished, JobPolled, JobStarted
from polarmap.driver.map_execution import MapExecution
from polarmap.driver.prepared_map import PreparedMap
from polarmap.executors import resolve_executor
from polarmap.testing import ReplayExecutor

SECONDS = 30.0


class ScriptedMap:
    """A map of two blocks whose progress the test controls."""

    def __init__(self, *, is_stored: bool = False, error: Exception | None = None) -> None:
        self.began, self.go, self.woken, self.ended = (threading.Event() for _ in range(4))
        self._error = error
        self.running = MapExecution(resolve_executor(ReplayExecutor()))
        self.running.set_code(PolarCode(3, 2))
        self.prepared: PreparedMap[list[str]] = PreparedMap(
            self._run, self.running.current_report, 2, is_stored
        )

    def start(self) -> CodedFuture[list[str]]:
        return BackgroundMap(self.prepared, ()).start()

    def _run(self, context: JobContext) -> list[str]:
        events, cancellation = context.events, context.cancellation
        assert events is not None and cancellation is not None
        events.emit(JobStarted(self.running.current_report))
        cancellation.set_wake_function(self.woken.set)
        try:
            events.emit(BlockReady(1, lambda: "early", is_final=False))
            self.began.set()
            while not self.go.wait(0.01):
                cancellation.raise_if_cancelled()
                events.emit(JobPolled(1))
            if self._error is not None:
                raise self._error
            for index, result in enumerate(["zero", "one"]):
                events.emit(BlockReady(index, partial(str, result), is_final=True))
            return ["zero", "one"]
        finally:
            cancellation.set_wake_function(None)
            events.emit_final_event(JobFinished(self.running.current_report, RuntimeError()))
            self.ended.set()


def test_an_error_is_set_on_all_blocks_without_a_result() -> None:
    error = RuntimeError("no")
    scripted = ScriptedMap(error=error)
    future = scripted.start()
    scripted.go.set()
    assert future.exception(SECONDS) is error
    assert future.blocks[0].exception(0) is error
    assert future.blocks[1].result(0) == "early"


def test_a_nested_wait_of_the_same_thread_does_not_end_the_outer_wait() -> None:
    # A signal handler can wait like this, because it interrupts its thread while that waits.
    scripted = ScriptedMap()
    future = scripted.start()
    with future._background_map.keep_running_while_waiting(future):
        with future._background_map.keep_running_while_waiting(future.blocks[0]):
            pass
        future._background_map.on_futures_unreferenced()
        scripted.go.set()
        assert future.result(SECONDS) == ["zero", "one"]


def test_cancelling_wakes_the_map_and_ends_it() -> None:
    scripted, called = ScriptedMap(), list[Any]()
    future = scripted.start()
    assert scripted.began.wait(SECONDS)
    future.add_done_callback(called.append)
    with ThreadPoolExecutor(1) as threads:
        waiter = threads.submit(wait, [future, *future.blocks], SECONDS)
        assert future.cancel()
        assert len(waiter.result(SECONDS).done) == 3
    assert future.cancel()
    assert called == [future]
    assert scripted.woken.wait(SECONDS)
    assert scripted.ended.wait(SECONDS)
    assert future.cancelled()
    assert future.blocks[0].cancelled()
    assert future.blocks[1].result(0) == "early"
    with pytest.raises(CancelledError):
        future.result(0)


def test_a_map_that_is_cancelled_while_its_data_is_partitioned_does_not_start() -> None:
    scripted = ScriptedMap()
    map_ = BackgroundMap(scripted.prepared, ())
    map_.cancel()
    with pytest.raises(JobCancelled):
        map_._context.cancellation.raise_if_cancelled()  # type: ignore[union-attr]


def test_cancelling_from_many_threads_at_once() -> None:
    scripted = ScriptedMap()
    future = scripted.start()
    notified: list[bool] = []
    threads = [threading.Thread(target=lambda: notified.append(future.cancel())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert notified == [True] * 8


def test_a_block_may_be_cancelled_by_itself() -> None:
    scripted = ScriptedMap()
    future = scripted.start()
    assert scripted.began.wait(SECONDS)
    assert future.blocks[0].cancel()
    assert future.blocks[0].cancel()
    scripted.go.set()
    assert future.result(SECONDS) == ["zero", "one"]


@pytest.mark.parametrize("what", ["future", "block", "callback", "lasting"])
def test_a_map_runs_while_one_of_its_futures_is_referenced(what: str) -> None:
    scripted, results, notified = ScriptedMap(is_stored=what == "lasting"), list[Any](), threading.Event()
    future = scripted.start()
    assert scripted.began.wait(SECONDS)
    keep: Any = {"future": future, "block": future.blocks[0]}.get(what)
    if what == "callback":

        def note(done: Any) -> None:
            results.append(done.result())
            notified.set()

        future.add_done_callback(note)
    del future
    gc.collect()
    assert not scripted.woken.is_set()
    scripted.go.set()
    assert scripted.ended.wait(SECONDS)
    assert not scripted.woken.is_set()
    if what == "callback":
        assert notified.wait(SECONDS)
        assert results == [["zero", "one"]]
    del keep


def test_a_map_ends_when_its_futures_are_unreferenced() -> None:
    scripted = ScriptedMap()
    future = scripted.start()
    assert scripted.began.wait(SECONDS)
    del future  # Reference counting frees the future, without garbage collection.
    assert scripted.woken.is_set()
    assert scripted.ended.wait(SECONDS)


def test_a_callback_is_called_once_even_if_it_is_added_late() -> None:
    scripted, calls = ScriptedMap(), list[Any]()
    future = scripted.start()
    scripted.go.set()
    future.result(SECONDS)
    future.add_done_callback(calls.append)
    assert calls == [future]


def test_exit_waits_for_stored_maps_and_cancels_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(coded_future, "_has_other_threads", lambda: False)  # pytest has other threads.
    in_memory, lasting = ScriptedMap(), ScriptedMap(is_stored=True)
    futures = in_memory.start(), lasting.start()
    assert in_memory.began.wait(SECONDS)
    assert lasting.began.wait(SECONDS)
    ender = threading.Thread(target=BackgroundMap.finish_maps_at_exit)
    ender.start()
    assert in_memory.ended.wait(SECONDS)
    assert ender.is_alive()
    lasting.go.set()
    ender.join(SECONDS)
    assert futures[1].result(SECONDS) == ["zero", "one"]
    with pytest.raises(CancelledError):
        futures[0].result(SECONDS)


def test_the_repr_of_a_future_shows_its_state_and_number_of_results() -> None:
    options: dict[str, Any] = {"blocks": 3, "tasks": 4}
    future = polarmap.submit(polarmap.coded_map, np.negative, np.eye(6), executor=ReplayExecutor(), **options)
    future.result(SECONDS)
    report = future.report
    assert report is not None
    arrived = sum(task.arrived is not None for task in report.tasks)
    assert repr(future) == f"<CodedFuture: done, {arrived} of 4 results arrived, 3 needed>"
    gate = threading.Event()
    with ThreadPoolExecutor(4) as pool:
        waiting = polarmap.submit(
            polarmap.coded_map,
            lambda block: gate.wait(SECONDS) and block,
            np.eye(6),
            executor=pool,
            **options,
        )
        try:
            deadline = time.monotonic() + SECONDS
            while "running" not in repr(waiting) and time.monotonic() < deadline:
                time.sleep(0.01)
            assert repr(waiting).startswith("<CodedFuture: running")
            assert report_of(waiting).needed == 3
            assert repr(waiting) == "<CodedFuture: running, 0 of 4 results arrived, 3 needed>"
            waiting.cancel()
            assert repr(waiting).startswith("<CodedFuture: cancelled")
        finally:
            gate.set()
    failed = polarmap.submit(polarmap.coded_map, failing, np.eye(6), executor=ReplayExecutor(), **options)
    assert isinstance(failed.exception(SECONDS), KeyError)
    assert repr(failed).startswith("<CodedFuture: failed with KeyError")


def report_of(future: CodedFuture[Any]) -> Any:
    deadline = time.monotonic() + SECONDS
    while (report := future.report) is None and time.monotonic() < deadline:
        time.sleep(0.01)
    return report


def failing(block: Any) -> Any:
    raise KeyError("none")
