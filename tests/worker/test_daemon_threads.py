"""Tests that daemon threads are reused, and end once they have been idle for some time."""

from __future__ import annotations

import threading
from queue import SimpleQueue

import pytest
from pool_processes import code_of_child, until

from polarmap.worker import daemon_threads
from polarmap.worker.daemon_threads import CallTimeoutError, call_with_timeout, run_in_daemon_thread

PATIENCE = 50.0


def test_a_thread_is_reused_and_ends_when_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon_threads, "_idle_threads", [])
    monkeypatch.setattr(daemon_threads, "THREAD_IDLE_SECONDS", 3.0)
    before = len(threading.enumerate())
    ran_on: SimpleQueue[threading.Thread] = SimpleQueue()
    run_in_daemon_thread(lambda: ran_on.put(threading.current_thread()))
    first = ran_on.get(timeout=PATIENCE)
    assert first.daemon
    assert until(lambda: len(daemon_threads._idle_threads) == 1)
    run_in_daemon_thread(lambda: ran_on.put(threading.current_thread()))
    assert ran_on.get(timeout=PATIENCE) is first
    first.join(PATIENCE)
    assert not first.is_alive()
    assert len(threading.enumerate()) <= before


def test_a_forked_process_starts_new_threads() -> None:
    done = threading.Event()
    run_in_daemon_thread(done.set)
    assert done.wait(PATIENCE)

    def inside() -> None:
        done = threading.Event()
        run_in_daemon_thread(done.set)
        assert done.wait(PATIENCE)

    assert code_of_child(inside, []) == 0


def test_a_call_with_a_timeout_returns_or_raises_like_a_plain_call_and_leaves_no_thread() -> None:
    before = threading.active_count()
    assert call_with_timeout(lambda: 7, 60.0) == 7
    assert call_with_timeout(lambda: None, float("inf")) is None
    with pytest.raises(ZeroDivisionError):
        call_with_timeout(lambda: 1 // 0, 60.0)
    assert threading.active_count() == before


def test_a_call_that_hangs_is_abandoned() -> None:
    is_over = threading.Event()
    with pytest.raises(CallTimeoutError):
        call_with_timeout(is_over.wait, 0.01)
    is_over.set()
