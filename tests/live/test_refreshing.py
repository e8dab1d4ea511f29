"""Check that a view is refreshed at a limited pace, and which maps and fits it shows."""

from __future__ import annotations

import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest

from polarmap.live import refreshing
from polarmap.live.refreshing import Refresher, ViewScope
from polarmap.live.snapshots import ExecutorSnapshot, IterationSnapshot, MapSnapshot, ProgramSnapshot

DEADLINE = 60.0

RUNNING = MapSnapshot(2, "f", "code", "pool", 4, 3, 3, 2, 0.1, True, "aarq")
FINISHED = replace(RUNNING, map_id=1, is_running=False)
FIT = IterationSnapshot("Lasso", 3, None, None, None, 12, 0.1, False)


# --- pace --------------------------------------------------------------------------------------


def test_a_view_rests_for_25_times_as_long_as_an_update_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10.0, 10.5, 20.0, 20.001])
    monkeypatch.setattr(refreshing, "time", SimpleNamespace(perf_counter=lambda: next(times)))
    waits = list[float]()

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        return len(waits) == 3

    refresher = Refresher(lambda: True, 0.25)
    monkeypatch.setattr(refresher, "_is_closed", type("Event", (), {"wait": staticmethod(wait), "set": int}))
    refresher.start()
    refresher.close()
    assert waits == [0.25, 12.5, 0.25]


def test_the_thread_ends_when_the_function_returns_false() -> None:
    results = iter([True, True, False])
    refresher = Refresher(lambda: next(results), 0.0)
    refresher.start()
    join_thread(refresher)
    assert list(results) == []
    assert refresher.close()


def test_an_exception_ends_the_thread_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "polarmap")
    refresher = Refresher(lambda: bool(1 // 0), 0.0)
    refresher.start()
    join_thread(refresher)
    assert refresher.close()
    (record,) = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


def test_closing_does_not_wait_for_a_stuck_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refreshing, "CLOSE_TIMEOUT", 0.01)
    has_started, can_return = threading.Event(), threading.Event()

    def refresh() -> bool:
        has_started.set()
        return can_return.wait(DEADLINE)

    refresher = Refresher(refresh, 0.0)
    refresher.start()
    assert has_started.wait(DEADLINE)
    assert not refresher.close()
    can_return.set()
    join_thread(refresher)
    assert refresher.close()


def test_a_refresher_can_be_closed_before_it_starts() -> None:
    assert Refresher(lambda: True).close()


def join_thread(refresher: Refresher) -> None:
    """Wait until the thread has ended."""
    assert refresher._thread is not None
    refresher._thread.join(DEADLINE)
    assert not refresher._thread.is_alive()


# --- scope -------------------------------------------------------------------------------------


def program_of(*maps: MapSnapshot, n_finished_maps: int = 0) -> ProgramSnapshot:
    return ProgramSnapshot(
        7, "fit.py", "node", 0.0, n_finished_maps=n_finished_maps, maps=maps, iterations=(FIT,)
    )


def test_maps_and_fits_that_had_finished_before_are_not_shown() -> None:
    scope = ViewScope(program_of(FINISHED, RUNNING, n_finished_maps=1))
    later = program_of(FINISHED, replace(RUNNING, is_running=False), n_finished_maps=2)
    selected = scope.select(replace(later, iterations=(FIT, replace(FIT, n_steps=5))))
    assert [one.map_id for one in selected.maps] == [2]
    assert [one.n_steps for one in selected.iterations] == [5]
    assert selected.n_finished_maps == 1


def test_calls_that_had_finished_before_are_not_shown() -> None:
    idle = ExecutorSnapshot("Executor 1", "", 3, 3, 0, 0)
    busy = ExecutorSnapshot("Executor 2", "", 3, 1, 2, 0)
    scope = ViewScope(replace(program_of(), executors=(idle, busy)))
    later = replace(program_of(), executors=(idle, replace(busy, n_done=3)))
    assert [one.name for one in scope.select(later).executors] == ["Executor 2"]
    reused = replace(program_of(), executors=(replace(idle, n_calls=4), busy))
    assert [one.name for one in scope.select(reused).executors] == ["Executor 1", "Executor 2"]


def test_without_an_initial_snapshot_everything_is_shown() -> None:
    program = program_of(FINISHED, RUNNING, n_finished_maps=1)
    assert ViewScope(None).select(program) == program
