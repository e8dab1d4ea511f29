"""Calls on an engine all end, whatever becomes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest
from pool_processes import PATIENCE

from polarmap.executors.engine_calls import EngineCalls, end_as


class Engine(EngineCalls):
    """It answers when it is told to; reason: why it does no more."""

    def __init__(self) -> None:
        self.reason, self.cancelled = "", list[Future[Any]]()
        super().__init__()

    def gone(self) -> str:
        return self.reason

    def _start(self, ours: Future[Any], call: Callable[..., Any], *arguments: Any) -> Callable[[], object]:
        return lambda: self.cancelled.append(ours)


@pytest.fixture
def engine() -> Iterator[Engine]:
    one = Engine()
    yield one
    one.close()


def test_who_is_cancelled_is_cancelled_at_the_engine_and_who_has_ended_is_not(engine: Engine) -> None:
    first, second = engine.submit(int), engine.submit(int)
    end_as(first, 5)
    end_as(first, error=ZeroDivisionError())  # too late
    assert second.cancel()
    end_as(second, 5)
    assert first.result() == 5
    assert engine.cancelled == [second]
    assert second.cancelled()


def test_all_end_when_the_engine_goes_and_it_takes_no_others(engine: Engine) -> None:
    future = engine.submit(int)
    engine.reason = "it was shut down"
    with pytest.raises(RuntimeError, match="it was shut down"):
        future.result(PATIENCE)
    with pytest.raises(RuntimeError, match="it was shut down"):
        engine.submit(int)
    assert engine.cancelled == []
