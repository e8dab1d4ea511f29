"""The thread that drives calls."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from functools import partial
from typing import Any

import pytest
from pool_processes import until

from polarmap import ReplayExecutor
from polarmap.executors.base import Payload
from polarmap.run.call_driver import CallDriver
from polarmap.run.calls import Call, Calls
from polarmap.worker.pytree import to_block

PATIENCE = 30.0


class Counting:
    """An executor that counts the runs that are open; it may have none to give."""

    name, worker = "counting", None

    def __init__(self, error: Exception | None = None, refuses: bool = False) -> None:
        self.opened = self.open_now = 0
        self.error, self.refuses = error, refuses
        self.may_open = threading.Event()
        self.may_open.set()

    def refuse(self, attempts: Any) -> None:
        if attempts:
            raise OSError("gone")

    def open(self, payload: Payload) -> Any:
        self.may_open.wait(PATIENCE)
        if self.error is not None:
            raise self.error
        run = ReplayExecutor().open(payload)
        if self.refuses:
            run.submit = self.refuse  # type: ignore[method-assign]
        self.opened += 1
        self.open_now += 1
        close = run.close

        def closing() -> None:
            self.open_now -= 1
            close()

        run.close = closing  # type: ignore[method-assign]
        return run


def driver_of(executor: Counting, close: Callable[[], None] = lambda: None) -> CallDriver:
    return CallDriver(executor, partial(Calls, 4, 0, 0), close)


def call() -> Call:
    return Call(Future(), "f", to_block((int, (), {})))


def submit(driver: CallDriver, count: int) -> list[Future[Any]]:
    some = [call() for _ in range(count)]
    for one in some:
        driver.add(one)
    return [one.future for one in some]


@pytest.fixture
def closed() -> list[bool]:
    return []


def test_a_run_is_open_while_there_are_calls_and_no_longer(closed: list[bool]) -> None:
    executor = Counting()
    driver = driver_of(executor, lambda: closed.append(True))
    for turn in (1, 2):
        executor.may_open.clear()
        found = submit(driver, 10)
        executor.may_open.set()
        assert [one.result(PATIENCE) for one in found] == [0] * 10
        assert executor.opened == turn
        assert until(lambda: executor.open_now == 0)
    assert not closed
    driver.shut_down()
    driver.join()
    assert closed == [True]
    driver.shut_down()
    assert closed == [True]


def test_a_thread_without_calls_ends_and_another_one_takes_the_next() -> None:
    driver = driver_of(Counting())
    for _ in range(3):
        [future] = submit(driver, 1)
        assert future.result(PATIENCE) == 0
        thread = driver._thread
        assert thread is not None
        assert until(lambda thread=thread: not thread.is_alive())


@pytest.mark.parametrize(
    "executor", [Counting(OSError("gone")), Counting(refuses=True)], ids=["open", "submit"]
)
def test_calls_fail_with_what_cannot_be_opened_or_takes_none(executor: Counting, closed: list[bool]) -> None:
    driver = driver_of(executor, lambda: closed.append(True))
    assert [str(one.exception(PATIENCE)) for one in submit(driver, 10)] == ["gone"] * 10
    driver.shut_down()
    driver.join()
    assert closed == [True]


def test_calls_that_no_run_was_given_can_be_cancelled(closed: list[bool]) -> None:
    executor = Counting()
    executor.may_open.clear()
    driver = driver_of(executor, lambda: closed.append(True))
    found = submit(driver, 20)
    driver.shut_down(cancel_futures=True)
    given = [one for one in found if one.running()]
    assert given == found[:1]
    assert len(wait(found, 0.0).done) == 19
    assert all(one.cancelled() for one in found[1:])
    with pytest.raises(RuntimeError, match="after shutdown"):
        driver.add(call())
    executor.may_open.set()
    assert [one.result(PATIENCE) for one in given] == [0] * len(given)
    driver.join()
    assert closed == [True]
