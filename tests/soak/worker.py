"""A process that runs cases: it reads a seed and seconds from each line and answers with a line of JSON.

A case that takes longer ends the process, with the stacks of all threads on standard error. When its input
ends, the process closes its pools and reports what is left behind.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import psutil

from polarmap.executors.pool import default_executor
from soak import cases
from soak.faults import SECONDS, Pools
from soak.oracle import Finding

FAREWELL = 60.0  # Seconds that the process may take to end.
LINGER = 5 * SECONDS  # Seconds that threads and processes may take to end once they are unused.


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # Other output must not be read as an answer.
    pools = Pools()
    for line in sys.stdin:
        seed, seconds = line.split()
        faulthandler.dump_traceback_later(float(seconds), exit=True)
        reply = answer(int(seed), pools)
        faulthandler.cancel_dump_traceback_later()
        answers.write(json.dumps(reply) + "\n")
    faulthandler.dump_traceback_later(FAREWELL, exit=True)
    pools.close()
    # The workers of the default executor would stay for a minute after a nested map.
    default_executor.stop_workers()
    answers.write(json.dumps({"left": left_behind()}) + "\n")


def answer(seed: int, pools: Pools) -> dict[str, Any]:
    """Run a case and return its verdict or its finding."""
    began = time.monotonic()
    try:
        return {"verdict": cases.run(cases.Named(seed), pools), "seconds": time.monotonic() - began}
    except Finding as finding:
        return {"finding": finding.kind, "text": finding.text, "traceback": traceback.format_exc()}
    except BaseException as error:
        text = f"{type(error).__name__}: {error}"
        return {"finding": "foreign exception", "text": text, "traceback": traceback.format_exc()}


def left_behind() -> list[str]:
    """Return threads and processes that outlive the cases, after giving them a moment to end."""
    return _lasting(_threads) + _lasting(_processes)


def _lasting(look: Callable[[], list[str]]) -> list[str]:
    deadline = time.monotonic() + LINGER
    while (names := look()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return names


def _threads() -> list[str]:
    return [one.name for one in threading.enumerate() if one is not threading.main_thread()]


def _processes() -> list[str]:
    """Return the child processes, except helpers that the standard library keeps until the end."""
    lines = {one.pid: _command(one) for one in psutil.Process().children(recursive=True)}
    kept = ("resource_tracker", "forkserver")
    return [
        f"{pid}: {line}" for pid, line in lines.items() if line and not any(word in line for word in kept)
    ]


def _command(process: psutil.Process) -> str:
    """Return the command line of a process, or an empty string once it has ended."""
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""


if __name__ == "__main__":
    main()
