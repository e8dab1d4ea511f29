"""Calls on a run, by a script of when they end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from typing import Any

import pytest

from polarmap import Fault, ReplayExecutor
from polarmap.blocks.call_blocks import CallBlocks
from polarmap.errors import WorkerLostError
from polarmap.executors.base import Payload
from polarmap.run import call_run
from polarmap.run.call import Call
from polarmap.run.call_run import CallRun, Limits, no_durations
from polarmap.worker.any_value import run_call, to_block

BOUNDED = Limits(4, grows=False, backups=2, retries=1)


def calls(count: int) -> list[Call]:
    return [Call(Future(), "f", to_block((abs, (-number,), {}))) for number in range(count)]


def opened(
    seconds: Mapping[int, float] | None = None,
    faults: Mapping[int, Fault] | None = None,
    limits: Limits = BOUNDED,
) -> CallRun:
    blocks = CallBlocks()
    run = ReplayExecutor(seconds).open(Payload(run_call, blocks, faults or {}))
    return CallRun(run, blocks, limits, no_durations())


def step_all(run: CallRun) -> Iterator[int]:
    for number in range(1000):
        if run.is_idle:
            return
        run.step(may_back_up=True)
        yield number
    pytest.fail("it has no end")


def test_calls_end_as_the_run_says_and_their_blocks_go() -> None:
    run, some = opened(), calls(4)
    assert run.room == 4
    run.start(some)
    assert run.room == 0
    list(step_all(run))
    assert [one.future.result(0) for one in some] == [0, 1, 2, 3]
    assert run.room == 4
    assert not run._blocks._calls


@pytest.mark.parametrize(
    ("most", "grows", "given", "running", "room"),
    [
        (None, False, 10**6, 0, 1 << 30),
        (4, False, 4, 4, 0),
        (4, False, 1, 1, 3),
        (6, True, 6, 3, 0),
        (6, True, 20, 20, 10),
        (6, True, 30, 20, 0),
    ],
)
def test_room_grows_with_what_runs(
    most: int | None, grows: bool, given: int, running: int, room: int
) -> None:
    assert Limits(most, grows, 0, 0).room(given, running) == room


def test_a_late_call_is_started_once_more_and_the_first_to_return_counts() -> None:
    run, some = opened({3: 50.0}), calls(4)
    run.start(some)
    list(step_all(run))
    assert some[3].future.result(0) == 3
    assert some[3].backups == 2
    assert run._run.now() >= 50.0  # by this script a backup takes as long


def test_a_worker_that_is_at_what_others_have_done_wears_a_run() -> None:
    run, some = opened(faults={3: Fault("sleep", 1000.0)}), calls(4)
    run.start(some)
    list(step_all(run))
    assert some[3].backups == 1
    assert run._run.now() < 100.0
    assert 3 in run._blocks._calls  # that attempt may ask for it
    assert not run.is_worn
    assert 0.0 < run._wait_seconds(may_back_up=False) <= call_run.GHOST_SECONDS
    run._run.wait(call_run.GHOST_SECONDS + 0.1)
    assert run.is_worn
    assert run._wait_seconds(may_back_up=False) == 0.0  # for others to take what waits
    run._run.wait(2000.0)


def test_a_run_that_had_many_calls_is_worn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_run, "MOST_CALLS", 6)
    run = opened()
    for is_worn in (False, True):
        run.start(calls(3))
        assert run.is_worn == is_worn


def test_lost_calls_are_started_again_so_often_and_no_more() -> None:
    faults = {0: Fault("kill"), 1: Fault("kill", attempts=2), 2: Fault("raise"), 3: Fault("garbage")}
    run, some = opened(faults=faults), calls(4)
    run.start(some)
    list(step_all(run))
    errors = [one.future.exception(0) for one in some]
    assert errors[0] is None
    assert isinstance(errors[1], WorkerLostError)
    assert errors[2] is not None
    assert [one.losses for one in some] == [1, 2, 0, 0]


def test_all_fail_with_their_run() -> None:
    run, some = opened(), calls(3)
    run.start(some)
    run.fail(OSError("gone"))
    assert run.is_idle
    assert [str(one.future.exception(0)) for one in some] == ["gone"] * 3


def test_what_has_no_end_is_lost() -> None:
    run, some = opened({1: float("inf")}), calls(2)
    run.start(some)
    list(step_all(run))
    found: list[Any] = [one.future.exception(0) for one in some]
    assert found[0] is None
    assert isinstance(found[1], WorkerLostError)
