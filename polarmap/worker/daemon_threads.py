"""Threads for calls that may never end: neither a pool nor the interpreter's exit waits for them.

Runs on workers: imports the standard library only.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue

IDLE_SECONDS = 1.0  # after which a thread without a call ends

Call = Callable[[], None]

_idle: list[SimpleQueue[Call]] = []  # of each thread that has no call: where it waits for one


def run_on_daemon(call: Call) -> None:
    """Let a daemon thread run a call that raises nothing: one that is idle, or a new one.

    To start a thread costs three times as much as to wake one.
    """
    try:
        calls = _idle.pop()
    except IndexError:
        calls = SimpleQueue()
        threading.Thread(target=_run_calls, args=(calls,), name="polarmap-task", daemon=True).start()
    calls.put(call)


def _run_calls(calls: SimpleQueue[Call]) -> None:
    while True:
        try:
            call = calls.get(timeout=IDLE_SECONDS)
        except Empty:
            try:
                _idle.remove(calls)
            except ValueError:  # somebody has just taken it
                continue
            return
        call()
        del call  # nothing that it held is to stay
        _idle.append(calls)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_idle.clear)
