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


def faulty(call: Callable[[Any], Packed], fault: Fault) -> Callable[[Any], Packed]:
    """A call that suffers a fault."""

    def struck(block: Any) -> Packed:
        if fault.kind == "sleep":
            time.sleep(fault.seconds)
        _inject(fault.kind)
        packed = call(block)
        return corrupted(packed) if fault.kind == "garbage" else packed

    return struck


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
