"""Calls on a Dask client: each runs, and each future ends.

The workers are threads of this process.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from queue import SimpleQueue
from typing import Any

import dask
import pytest
from dask_executors import dask_executor
from pool_processes import until

from polarmap.executors.dask import DaskCalls

PATIENCE = 50.0
BEGAN: SimpleQueue[int] = SimpleQueue()  # which calls did, in this process: numbers
RELEASE = threading.Event()


@pytest.fixture
def executor() -> Iterator[Any]:
    """Of two workers, which have nothing to do when it is over."""
    RELEASE.clear()
    unset = dask.config.set(scheduler=None)  # which a client that is closed before its time leaves to others
    with unset, dask_executor(2) as executor:
        yield executor
        RELEASE.set()
    while not BEGAN.empty():
        BEGAN.get()


def begins(call: int) -> None:
    BEGAN.put(call)


def waits(call: int) -> bool:
    BEGAN.put(call)
    return RELEASE.wait(PATIENCE)


def test_equal_calls_run_each(executor: Any) -> None:
    calls = DaskCalls(executor)
    for future in [calls.submit(begins, 1) for _ in range(5)]:
        assert future.result(PATIENCE) is None
    assert [BEGAN.get(timeout=PATIENCE) for _ in range(5)] == [1] * 5
    with pytest.raises(ZeroDivisionError):
        calls.submit(divmod, 1, 0).result(PATIENCE)


@pytest.mark.parametrize(
    "close", [lambda executor: executor.shutdown(wait=False), lambda executor: executor._client.close()]
)
def test_every_future_ends_when_somebody_closes_the_client(executor: Any, close: Any) -> None:
    calls = DaskCalls(executor)
    futures = [calls.submit(waits, number) for number in range(4)]
    for _ in range(2):
        BEGAN.get(timeout=PATIENCE)
    close(executor)
    for future in futures:
        with pytest.raises(CancelledError, match="Dask's client cancelled it"):
            future.result(PATIENCE)
    with pytest.raises(RuntimeError, match="its client was closed, or it was shut down"):
        calls.submit(int)
    RELEASE.set()


def test_what_is_cancelled_does_not_begin(executor: Any) -> None:
    calls = DaskCalls(executor)
    held = [calls.submit(waits, number) for number in range(2)]
    [worker] = executor._client.cluster.workers.values()
    waiting = calls.submit(begins, 2)
    assert until(lambda: len(worker.state.tasks) == 3)
    assert waiting.cancel()
    assert until(lambda: len(worker.state.tasks) == 2)
    RELEASE.set()
    assert [future.result(PATIENCE) for future in held] == [True, True]
    assert calls.submit(int).result(PATIENCE) == 0  # queued behind it
    assert {BEGAN.get(timeout=PATIENCE) for _ in range(2)} == {0, 1}
    assert BEGAN.empty()


def test_a_client_that_closes_while_it_takes_a_call_has_not_taken_it(
    executor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = executor._client.submit

    def closes(*call: Any, **options: Any) -> Any:
        theirs = submit(*call, **options)
        executor.shutdown(wait=False)
        return theirs

    monkeypatch.setattr(executor._client, "submit", closes)
    with pytest.raises(RuntimeError, match="its client was closed, or it was shut down"):
        DaskCalls(executor).submit(int)
