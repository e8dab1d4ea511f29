"""Processes that stand in for those of a broken pool."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from concurrent.futures.process import BrokenProcessPool

import pytest
from plain import process_pool

from polarmap.executors.spare_processes import SpareProcesses, has_initializer


@pytest.fixture
def broken() -> Iterator[ProcessPoolExecutor]:
    with process_pool(2) as pool:
        yield pool


def test_calls_go_on_where_one_kills_its_process(broken: ProcessPoolExecutor) -> None:
    spares = SpareProcesses(broken)
    futures = [spares.submit(abs, -1), spares.submit(os._exit, 3), *(spares.submit(abs, -n) for n in (2, 3))]
    wait_for(futures, 60)
    assert [future.result() for future in futures[:1] + futures[2:]] == [1, 2, 3]
    assert isinstance(futures[1].exception(), BrokenProcessPool)
    spares.stop()


def test_stopping_kills_what_runs_and_cancels_what_waits(broken: ProcessPoolExecutor) -> None:
    spares = SpareProcesses(broken)
    futures = [spares.submit(time.sleep, 600) for _ in range(4)]
    began = time.monotonic()
    spares.stop()
    assert wait_for(futures, 60).not_done == set()
    assert time.monotonic() - began < 30
    assert [future.cancelled() for future in futures] == [False, False, True, True]


def test_only_a_process_pool_may_have_an_initializer() -> None:
    for pool, expected in (
        (ThreadPoolExecutor(1, initializer=print), False),
        (ProcessPoolExecutor(1), False),
        (ProcessPoolExecutor(1, initializer=print), True),
    ):
        with pool:
            assert has_initializer(pool) is expected
