"""How many tasks one machine should run at once: decisions only, clocks and counts passed in.

A task that computes needs a core; one that sleeps or waits for the network does not, and must not
keep the tasks behind it from starting.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

SPARE_SLOTS = 2  # beyond the cores, so that fetching a block overlaps with computing on another
BUSY_SHARE = 0.2  # of one core; below it a task counts as idle
LOOK_SECONDS = 0.25  # between two looks at the processor time of tasks


def first_slots(cores: int) -> int:
    """Slots of the first job: the cores and a little more (measured: benchmarks/slots.py).

    >>> first_slots(2)
    4
    """
    return cores + SPARE_SLOTS


def extra_slots(cores: int, busy: int, idle: int, queued: int) -> int:
    """Slots to open now: `busy` tasks compute, `idle` ones have started and do not, the rest waits.

    Where many tasks idle, more of those waiting will: their number grows by half each time.

    >>> extra_slots(cores=2, busy=2, idle=5, queued=9), extra_slots(2, 0, 4, 9), extra_slots(2, 1, 8, 9)
    (0, 2, 4)
    """
    return min(max(cores - busy, idle // 2), queued) if busy < cores else 0


class BusyTasks:
    """Which running tasks compute, from two looks at the processor time each has used."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[float, float]] = {}  # process -> (when, processor seconds)
        self._idle: dict[int, int] = {}  # process -> looks in a row without work

    def look(self, now: float, seconds: Mapping[int, float]) -> int:
        """How many of these processes have worked since the last look, or are new to us.

        `seconds` maps each running process to the processor time it has used so far. A process is
        taken as idle only after two looks in a row, so that one slow read does not count.

        >>> tasks = BusyTasks()
        >>> [tasks.look(now, {1: used, 2: 0.0}) for now, used in [(0, 0), (1, 0.9), (2, 1.8)]]
        [2, 2, 1]
        """
        for process, used in seconds.items():
            before, spent = self._seen.get(process, (now, used))
            worked = now == before or used - spent >= BUSY_SHARE * (now - before)
            self._idle[process] = 0 if worked else self._idle.get(process, 0) + 1
            self._seen[process] = (now, used)
        return sum(self._idle[process] < 2 for process in seconds)


def processor_seconds_of(processes: Iterable[int]) -> dict[int, float]:
    """User and system time of each process that still runs; nothing where /proc does not tell."""
    found = ((process, processor_seconds(process)) for process in processes)
    return {process: seconds for process, seconds in found if seconds is not None}


def processor_seconds(process: int) -> float | None:
    """User and system time of a process so far; None where /proc does not tell."""
    try:
        with open(f"/proc/{process}/stat", "rb") as stat:
            fields = stat.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
