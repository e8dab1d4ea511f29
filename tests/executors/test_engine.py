"""Calls and maps on a cluster engine, which must end even if the engine fails."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from plain import first_ends

from polarmap.blocks.uneven import UncodedBlocks
from polarmap.errors import ExecutorError
from polarmap.executors.engine import Engine, complete_future
from polarmap.executors.futures import EngineExecutor
from polarmap.executors.interface import JobSpec

BLOCKS = UncodedBlocks([[np.ones(3)]] * 3, ("array",))


class ManualEngine(Engine):
    """An engine whose calls are completed by the test. `reason` is set when it becomes unavailable."""

    name = "a test"

    def __init__(self, choice: Any = None) -> None:
        self.reason, self.started, self.cancelled = "", list[Future[Any]](), list[Future[Any]]()
        made.append(self)

    def get_unavailable_reason(self) -> str:
        return self.reason

    def _start_remote_call(
        self, future: Future[Any], call: Callable[..., Any], *arguments: Any
    ) -> Callable[[], object]:
        self.started.append(future)
        return lambda: self.cancelled.append(future)

    submit_call = fetch_values = partition_data = make_worker_reference_names = discover_machines = None  # type: ignore[assignment]


made: list[ManualEngine] = []


def test_only_unfinished_calls_are_cancelled_at_the_engine() -> None:
    engine = ManualEngine()
    first, second = engine.submit(int), engine.submit(int)
    complete_future(first, 5)
    complete_future(first, error=ZeroDivisionError())  # ignored: the call has already returned
    assert second.cancel()
    complete_future(second, 5)
    assert first.result() == 5
    assert engine.cancelled == [second]
    assert second.cancelled()


def test_unavailable_engine_ends_all_calls_and_refuses_new_ones() -> None:
    executor = EngineExecutor(ManualEngine, "its choice")
    with closing(executor.open(JobSpec(np.negative, BLOCKS))) as run:
        engine = made.pop()
        run.submit([(0, 0), (1, 0)])
        assert run.wait(0.0) != []  # The engine does not report when tasks start.
        engine.reason = "it was shut down"
        run.submit([(2, 0)])
        for _ in range(2):
            with pytest.raises(ExecutorError, match="a test runs no tasks: it was shut down"):
                run.wait(0.5)
    assert len(engine.cancelled) == 2
    with closing(executor.open(JobSpec(np.negative, BLOCKS))) as run:
        made.pop().reason = "it was shut down"
        with pytest.raises(ExecutorError, match="a test accepts no tasks: it was shut down"):
            run.submit([(0, 0)])


def test_results_before_the_end_of_the_engine_count() -> None:
    executor = EngineExecutor(ManualEngine, "its choice")
    with closing(executor.open(JobSpec(np.negative, BLOCKS))) as run:
        engine = made.pop()
        run.submit([(0, 0), (1, 0), (2, 0)])
        run.wait(0.0)
        complete_future(engine.started[0], error=RuntimeError("it was shut down"))
        complete_future(engine.started[1], None)  # a task returns None if its folder has been removed
        engine.reason = "it was shut down"
        assert [(outcome.task, outcome.attempt) for outcome in first_ends(run, 1)] == [(1, 0)]
        with pytest.raises(ExecutorError, match="a test runs no tasks: it was shut down"):
            run.wait(0.5)
