"""Run calls that may never return on daemon threads, so that neither executors nor exit wait for them.

This module runs on workers, so it imports only the standard library.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import TypeVar

THREAD_IDLE_SECONDS = 1.0  # idle time in seconds after which a thread exits

T = TypeVar("T")
Thunk = Callable[[], None]

# One queue per idle thread, from which the thread takes its next call.
_idle_threads: list[SimpleQueue[Thunk]] = []


def run_in_daemon_thread(thunk: Thunk) -> None:
    """Call `thunk` on a daemon thread, and return immediately.

    `thunk` is a function without arguments, which must not raise an exception. Idle threads are reused,
    because starting a thread takes three times as long as waking one.
    """
    try:
        call_queue = _idle_threads.pop()
    except IndexError:
        call_queue = SimpleQueue()
        threading.Thread(
            target=_run_queued_calls, args=(call_queue,), name="polarmap-task", daemon=True
        ).start()
    call_queue.put(thunk)


class CallTimeoutError(Exception):
    """Raised by `call_with_timeout` if the call does not return in time."""


def call_with_timeout(function: Callable[[], T], seconds: float) -> T:
    """Call `function` on a daemon thread, and return its result or raise its exception.

    Raises CallTimeoutError if the call takes longer than `seconds`. In that case, the call keeps running on
    its thread, and its result is discarded.
    """
    results, errors = list[T](), list[BaseException]()

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)

    # Use a new thread that exits after the call. A reusable thread would stay alive, and a persistent worker
    # is replaced if it has more threads after a job than before.
    thread = threading.Thread(target=run, name="polarmap-timed", daemon=True)
    thread.start()
    thread.join(max(0.0, min(seconds, threading.TIMEOUT_MAX)))
    if errors:
        raise errors[0]
    if not results:
        raise CallTimeoutError
    return results[0]


def _run_queued_calls(call_queue: SimpleQueue[Thunk]) -> None:
    while True:
        try:
            thunk = call_queue.get(timeout=THREAD_IDLE_SECONDS)
        except Empty:
            try:
                _idle_threads.remove(call_queue)
            except ValueError:  # `run_in_daemon_thread` has just removed it and is about to send a call.
                continue
            return
        thunk()
        del thunk  # An idle thread must not keep the objects of its last call alive.
        _idle_threads.append(call_queue)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_idle_threads.clear)
