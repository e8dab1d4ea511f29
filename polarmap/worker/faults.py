"""Faults to inject into tasks: wrapped around the call, so that nothing else knows of them.

Runs on workers too: imports numpy at most.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from polarmap.worker.pytree import Packed

FAULTS = ("sleep", "raise", "exit", "kill", "garbage")


class Fault(NamedTuple):
    """A fault to inject into a task: for tests, demonstrations and benchmarks.

    Of a task with subtasks, a sleep is spread over all of them, garbage are all its results, and the
    others strike when half of the subtasks are done.

    Attributes
    ----------
    kind
        "sleep" (for `seconds`), "raise", "exit", "kill" (SIGKILL) or "garbage" (a wrong result).
    attempts
        How many attempts of the task suffer it.
    """

    kind: str
    seconds: float = 0.0
    attempts: int = 1


class FaultyCall:
    """A call that suffers a fault; `count` calls make up one attempt of a task."""

    def __init__(self, call: Callable[[Any], Packed], fault: Fault, count: int = 1) -> None:
        self._call, self._fault, self._count = call, fault, count
        self._calls = 0

    def __call__(self, block: Any) -> Packed:
        """The packed result, if the fault lets it come."""
        before, self._calls = self._calls, self._calls + 1
        if self._fault.kind == "sleep":
            time.sleep(self._fault.seconds / self._count)
        elif before == self._count // 2:
            _inject(self._fault.kind)
        packed = self._call(block)
        return corrupted(packed) if self._fault.kind == "garbage" else packed


def corrupted(result: Packed) -> Packed:
    """A result of the same layout with other bytes."""
    return result._replace(data=bytes(byte ^ 0x15 for byte in bytes(result.data)))


def _inject(kind: str) -> None:
    """End this process, or raise."""
    if kind == "raise":
        raise RuntimeError("injected fault")
    if kind == "exit":
        os._exit(3)
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
