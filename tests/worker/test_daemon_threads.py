"""Calls that may never end: on threads that are used again, and that go."""

from __future__ import annotations

import os
import threading
from queue import SimpleQueue

import pytest
from pool_processes import until

from polarmap.worker import daemon_threads
from polarmap.worker.daemon_threads import run_on_daemon

PATIENCE = 50.0


def test_a_thread_is_used_again_and_ends_when_it_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon_threads, "_idle", [])
    monkeypatch.setattr(daemon_threads, "IDLE_SECONDS", 3.0)
    before = len(threading.enumerate())
    threads: SimpleQueue[threading.Thread] = SimpleQueue()
    run_on_daemon(lambda: threads.put(threading.current_thread()))
    first = threads.get(timeout=PATIENCE)
    assert first.daemon
    assert until(lambda: len(daemon_threads._idle) == 1)
    run_on_daemon(lambda: threads.put(threading.current_thread()))
    assert threads.get(timeout=PATIENCE) is first
    first.join(PATIENCE)
    assert not first.is_alive()
    assert len(threading.enumerate()) <= before


def test_a_forked_process_has_threads_of_its_own() -> None:
    done = threading.Event()
    run_on_daemon(done.set)
    assert done.wait(PATIENCE)
    child = os.fork()
    if not child:
        inside = threading.Event()
        run_on_daemon(inside.set)
        os._exit(0 if inside.wait(PATIENCE) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
