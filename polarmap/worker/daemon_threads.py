"""Daemon threads for calls that may never end.

Runs on workers: imports the standard library only.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import TypeVar

THREAD_IDLE_SECONDS = 1.0  # after which a thread without a call ends

T = TypeVar("T")
Thunk = Callable[[], None]

_idle_threads: list[SimpleQueue[Thunk]] = []  # of each thread that has no call: where it waits for one


def run_in_daemon_thread(thunk: Thunk) -> None:
    """Let a daemon thread run a call that raises nothing: one that is idle, or a new one.

    Neither a pool nor the interpreter's exit waits for it. To start a thread costs three times as much as to
    wake one.
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
    """A call has not returned in time."""


def call_with_timeout(function: Callable[[], T], seconds: float) -> T:
    """Call a function on a daemon thread, and return what it returns or raise what it raises.

    Raises CallTimeoutError after this many seconds. The call then continues, and its result is dropped.
    """
    results, errors = list[T](), list[BaseException]()

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)

    # A thread of its own, which ends with the call: a worker whose number of threads has grown is replaced.
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
            except ValueError:  # somebody has just taken it
                continue
            return
        thunk()
        del thunk  # nothing that it held is to stay
        _idle_threads.append(call_queue)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_idle_threads.clear)
