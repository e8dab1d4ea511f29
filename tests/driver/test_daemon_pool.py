"""Tests of the pool of threads that run maps: it reuses few threads, which end when idle."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import pytest

from polarmap.driver.daemon_pool import DaemonThreadPool

SECONDS = 30.0


def test_calls_start_in_order_and_at_most_max_workers_run_together() -> None:
    threads, go, begun, done = DaemonThreadPool(3), threading.Event(), list[int](), threading.Semaphore(0)
    lock, at_once, started = threading.Lock(), [0], threading.Semaphore(0)
    used, peak = set[threading.Thread](), [0]

    def call(number: int) -> Callable[[], None]:
        def run() -> None:
            with lock:
                begun.append(number)
                used.add(threading.current_thread())
                at_once[0] += 1
                peak[0] = max(peak[0], at_once[0])
            started.release()
            assert go.wait(SECONDS)
            with lock:
                at_once[0] -= 1
            done.release()

        return run

    for number in range(20):
        threads.submit(call(number))
    assert all(started.acquire(timeout=SECONDS) for _ in range(3))
    assert len(begun) == 3
    go.set()
    assert all(done.acquire(timeout=SECONDS) for _ in range(20))
    assert sorted(begun) == list(range(20))
    assert set(begun[:3]) == {0, 1, 2}
    assert (len(used), peak[0]) == (3, 3)


def test_threads_without_a_call_end_and_others_are_started() -> None:
    threads, seen, done = DaemonThreadPool(5), list[threading.Thread](), threading.Semaphore(0)

    def run() -> None:
        seen.append(threading.current_thread())
        done.release()

    threads.submit(run)
    assert done.acquire(timeout=SECONDS)
    seen[0].join(SECONDS)
    assert not seen[0].is_alive()
    threads.submit(run)  # No thread is left, so the pool starts another.
    assert done.acquire(timeout=SECONDS)
    assert seen[1] is not seen[0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_starts_new_threads() -> None:
    threads, done = DaemonThreadPool(1), threading.Event()
    threads.submit(done.set)
    assert done.wait(SECONDS)
    child = os.fork()
    if not child:
        threads.after_fork()
        own = threading.Event()
        threads.submit(own.set)
        os._exit(0 if own.wait(SECONDS) else 1)
    _, status = os.waitpid(child, 0)
    assert status == 0
