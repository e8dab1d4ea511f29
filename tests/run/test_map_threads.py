"""Threads of maps: few, reused, gone when idle."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import pytest

from polarmap.run.map_threads import MapThreads

SECONDS = 30.0


def names() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "polarmap-map"]


def test_calls_begin_in_order_on_no_more_threads_than_allowed() -> None:
    threads, go, begun, done = MapThreads(3), threading.Event(), list[int](), threading.Semaphore(0)
    before = len(names())

    def call(number: int) -> Callable[[], None]:
        def run() -> None:
            begun.append(number)
            assert go.wait(SECONDS)
            done.release()

        return run

    for number in range(20):
        threads.start(call(number))
    assert len(names()) - before == 3
    go.set()
    assert all(done.acquire(timeout=SECONDS) for _ in range(20))
    assert sorted(begun) == list(range(20))
    assert set(begun[:3]) == {0, 1, 2}


def test_an_idle_thread_is_used_again_and_ends() -> None:
    threads, seen, done = MapThreads(5, idle=0.2), list[threading.Thread](), threading.Semaphore(0)

    def run() -> None:
        seen.append(threading.current_thread())
        done.release()

    threads.start(run)
    assert done.acquire(timeout=SECONDS)
    with threads._changed:
        assert threads._changed.wait_for(lambda: True, SECONDS)
    seen[0].join(SECONDS)
    assert not seen[0].is_alive()
    threads.start(run)  # there is none now: another one is started
    assert done.acquire(timeout=SECONDS)
    assert seen[1] is not seen[0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_has_threads_of_its_own() -> None:
    threads, done = MapThreads(1), threading.Event()
    threads.start(done.set)
    assert done.wait(SECONDS)
    child = os.fork()
    if not child:
        threads.forget()
        own = threading.Event()
        threads.start(own.set)
        os._exit(0 if own.wait(SECONDS) else 1)
    _, status = os.waitpid(child, 0)
    assert status == 0
