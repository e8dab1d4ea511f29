"""Whose turn it is to start a task on the workers of a pool: decisions, without processes."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pool_processes import until

from polarmap.executors import pool_slots
from polarmap.executors.pool_slots import STANDSTILL_SECONDS, PoolSlots, first_limit, is_waiting
from polarmap.executors.worker_table import KeptWorker

CORES = 2


@pytest.fixture(autouse=True)
def cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patched:
        patched.setattr(pool_slots, "available_cores", lambda: CORES)
        yield


class Map:
    """A run that starts tasks whenever it may."""

    def __init__(self, pool: PoolSlots, tasks: int) -> None:
        self.waiting, self.calls = tasks, 0
        self.workers: list[KeptWorker] = []
        self.pool, self.lease = pool, pool.open(self.call)

    def call(self) -> None:
        self.calls += 1

    def start(self, most: int = sys.maxsize) -> int:
        """How many it may start."""
        started = 0
        while started < most and self.pool.may_take(self.lease, self.waiting):
            worker = KeptWorker(0, Any)  # type: ignore[arg-type]
            self.pool.take(self.lease, worker)
            self.workers.append(worker)
            self.waiting -= 1
            started += 1
        return started

    def end(self) -> None:
        """The oldest task ends."""
        self.pool.give_back(self.lease, self.workers.pop(0))

    def listen(self) -> None:
        self.lease.is_listening = True

    def pause(self) -> None:
        self.pool.pause(self.lease)

    def close(self) -> None:
        self.pool.close(self.lease)


def listening(pool: PoolSlots, *tasks: int) -> list[Map]:
    maps = [Map(pool, count) for count in tasks]
    for one in maps:
        one.listen()
        one.lease.waiting = one.waiting
    return maps


@pytest.mark.parametrize(
    ("most", "is_here", "expected"),
    [(None, True, CORES + 1), (2, True, 2), (24, True, 24), (None, False, 100)],
)
def test_a_map_that_is_alone_takes_all_slots(most: int | None, is_here: bool, expected: int) -> None:
    one = Map(PoolSlots(most, is_here), 100)
    assert one.pool.is_alone()
    assert one.start() == expected
    one.waiting += 1
    one.end()
    assert one.start() == 1


@pytest.mark.parametrize("is_here", [True, False])
def test_a_slot_goes_to_the_map_with_the_fewest_tasks_then_to_the_one_that_has_waited_longest(
    is_here: bool,
) -> None:
    pool = PoolSlots(3, is_here)
    first = Map(pool, 9)
    assert first.start(3) == 3
    first.listen()
    second, third = listening(pool, 9, 9)
    first.end()
    assert second.calls > 0
    assert first.start() == third.start(1) == 0
    assert second.start(1) == 1
    first.end()
    assert (first.start(), second.start(), third.start(1)) == (0, 0, 1)
    first.end()  # each of the others has one
    assert (second.start(), third.start(), first.start(1)) == (0, 0, 1)
    for one in (third, first, second):
        one.end()
    assert (first.start(), second.start()) == (0, 0)  # they had one for longer
    assert third.start(1) == 1


@pytest.mark.parametrize("is_here", [True, False])
def test_who_does_not_listen_or_has_nothing_to_start_keeps_nobody_from_starting(is_here: bool) -> None:
    pool = PoolSlots(2, is_here)
    first = Map(pool, 9)
    first.start(2)
    first.listen()
    away, idle, ended = listening(pool, 9, 0, 9)
    away.pause()
    ended.close()
    first.end()
    assert first.start(1) == 1
    away.listen()
    first.end()
    assert (first.start(), away.start(1)) == (0, 1)
    assert idle.start() == 0


def test_whose_turn_it_is_gets_told_when_another_one_stops_to_wait() -> None:
    pool = PoolSlots(2, is_here=True)
    first = Map(pool, 9)
    first.start()
    second, third = listening(pool, 9, 9)
    first.end()
    calls = third.calls
    second.pause()
    assert third.calls > calls
    calls = third.calls
    pool.may_take(third.lease, 0)
    second.listen()
    first.end()
    assert second.calls > 0
    assert third.calls == calls


def test_slots_of_a_map_that_is_closed_are_free_and_closing_twice_frees_no_more() -> None:
    pool = PoolSlots(None, is_here=True)
    first = Map(pool, 9)
    first.start()
    [second] = listening(pool, 9)
    assert second.start() == 0
    first.close()
    first.close()
    assert second.calls > 0
    assert pool.is_alone()
    assert second.start() == CORES + 1
    pool.give_back(second.lease, first.workers[0])  # of the other
    assert second.start() == 0


def test_a_map_that_nobody_has_any_more_takes_no_part() -> None:
    pool = PoolSlots(None, is_here=True)
    first = Map(pool, 9)
    Map(pool, 9)
    gc.collect()
    assert pool.is_alone()
    first.close()


def test_tasks_that_never_end_keep_no_other_map_from_going_on(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    for most, more in {None: 1, CORES + 1: 0}.items():
        pool = PoolSlots(most, is_here=True)
        first = Map(pool, 9)
        first.start()
        [second] = listening(pool, 9)
        assert second.start() == 0
        now += STANDSTILL_SECONDS + 0.1
        assert pool.is_starved(second.lease)
        assert not pool.is_starved(first.lease)
        assert (first.start(), second.start()) == (0, more)
        now += STANDSTILL_SECONDS + 0.1
        assert second.start() == 0  # it has one


def test_more_start_where_tasks_of_all_maps_leave_the_cores_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(pool_slots, "is_waiting", lambda process: process == 1)
    for processes, grows in {(1, 1, 1): True, (1, 2, 2): False}.items():
        pool = PoolSlots(None, is_here=True)
        first = Map(pool, 9)
        first.start()
        [second] = listening(pool, 9)
        for worker, process in zip(first.workers, processes, strict=True):
            worker.process = process
        assert second.start() == 0
        for _ in range(2):  # to be seen twice
            now += 0.1
            pool.look_for_idle_cores(second.lease, 9)
            pool.look_for_idle_cores(second.lease, 9)  # too soon: no look
        assert (second.start() > 0) == grows
        first.close()
        assert second.start() >= 1


@given(
    st.integers(1, 4),
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["end", "wake", "pause", "listen"])), max_size=60),
)
def test_nobody_is_forgotten_and_nobody_gets_more_than_the_others(
    most: int, is_here: bool, events: list[tuple[int, str]]
) -> None:
    """Whoever is called starts what it may; each task ends in the end, and so all get through."""
    pool = PoolSlots(most, is_here)
    maps = listening(pool, 7, 7, 7, 7)

    def free() -> int:
        return most - sum(len(one.workers) for one in maps)

    def settle() -> None:
        """Those that were called, and listen, start what they may, until nobody is called."""
        while called := [one for one in maps if one.calls and one.lease.is_listening]:
            for one in called:
                one.calls = 0
                while free() and one.start(1):
                    pass

    def end(one: Map) -> None:
        one.end()
        one.call()  # its own thread goes on
        settle()

    for one in maps:
        one.call()
    settle()
    assert free() == 0
    shares = [len(one.workers) for one in maps]
    assert max(shares) - min(shares) <= 1
    for number, event in events:
        one = maps[number]
        if event == "end" and one.workers:
            end(one)
        elif event == "pause":
            one.pause()
        elif event == "listen":
            one.listen()
            one.call()
        settle()
    for one in maps:
        one.listen()
        one.call()
    settle()
    started = Counter[int]()
    while running := [one for one in maps if one.workers]:
        end(max(running, key=lambda one: len(one.workers)))
        started.update(range(len(running)))
        assert started[0] < 100
    assert not any(one.waiting for one in maps)


def test_a_process_that_was_forked_has_none() -> None:
    pool = PoolSlots(None, is_here=True)
    maps = [Map(pool, 9), Map(pool, 9)]
    assert not pool.is_alone()
    pool.forget()
    assert pool.is_alone()
    for one in maps:
        one.close()
    assert Map(pool, 9).start() == CORES + 1


def test_a_process_that_sleeps_is_told_from_one_that_computes() -> None:
    for program, waits in {"import time; time.sleep(600)": True, "while True: pass": False}.items():
        with subprocess.Popen([sys.executable, "-c", program]) as process:
            try:
                assert until(lambda waits=waits, process=process: is_waiting(process.pid) == waits)
            finally:
                process.kill()
    assert not is_waiting(process.pid)  # nobody knows


def test_all_tasks_start_at_once_where_nobody_sees_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (first_limit(2, None), first_limit(2, 24)) == (3, 24)
    monkeypatch.setattr(os.path, "exists", lambda path: False)
    assert first_limit(2, None) > 10**6
    assert first_limit(2, 3) == 3
