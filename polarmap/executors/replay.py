"""Scripted arrivals on a virtual clock: a real executor without processes, waiting or chance."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from polarmap.clouds.limits import Worker
from polarmap.clouds.prices import Stay
from polarmap.code.checks import is_number
from polarmap.code.dtypes import is_integer
from polarmap.errors import CodeError
from polarmap.executors.base import Attempt, Began, Event, Outcome, Payload, block_of, lost
from polarmap.worker.faults import Fault
from polarmap.worker.io_pools import PoolIO, ThreadLink
from polarmap.worker.messages import Ticket
from polarmap.worker.program import run_task

GIVEN_UP_SECONDS = 3600.0  # after which a task that never reports is lost, as where platforms end it


class ReplayExecutor:
    """Runs f in this process and lets each result arrive when the script says.

    Of the faults, "sleep" delays the arrival, "kill" and "exit" lose the task, the others do as they say.

    Parameters
    ----------
    seconds : mapping from task index to the virtual seconds until its arrival
        From its start, which is second 0 unless it is started later; 1.0 for tasks not named;
        `math.inf` for one that never reports, and is given up after an hour.

    Examples
    --------
    >>> import numpy as np, polarmap
    >>> never = ReplayExecutor({0: math.inf})
    >>> result = polarmap.coded_map(np.sum, np.eye(4), blocks=4, workers=6, executor=never)
    >>> [round(float(total), 9) for total in result]
    [1.0, 1.0, 1.0, 1.0]
    """

    name = "replay"
    worker: Worker | None = None

    def __init__(self, seconds: Mapping[int, float] | None = None) -> None:
        script: Any = {} if seconds is None else seconds
        if not isinstance(script, Mapping) or not all(map(_is_arrival, script.keys(), script.values())):
            raise CodeError(f"seconds map tasks by number to seconds of at least 0, not {script!r:.100}")
        self._seconds = dict(script)

    def open(self, payload: Payload) -> ReplayRun:
        """A run on a virtual clock of its own."""
        return ReplayRun(self._seconds, payload)


class ReplayRun:
    """The tasks of one map, which arrive when the script says."""

    def __init__(self, seconds: Mapping[int, float], payload: Payload) -> None:
        self._seconds, self._now = seconds, 0.0
        self._payload = replace(payload, encryption=None)  # of what would travel
        # A heap: when, which, its seconds, and how its worker was lost.
        self._arrivals: list[tuple[float, int, int, float, str | None]] = []
        self._began: list[Event] = []  # that are told next

    def now(self) -> float:
        """The virtual clock."""
        return self._now

    def submit(self, attempts: Sequence[Attempt]) -> None:
        """Schedule their arrivals, counted from now, when all of them begin."""
        for task, attempt in attempts:
            self._began.append(Began(task, attempt, self._now))
            seconds, lost_by = self._fate(self._ticket(task, attempt))
            heapq.heappush(self._arrivals, (self._now + seconds, task, attempt, seconds, lost_by))

    def wait(self, timeout: float) -> list[Event]:
        """Move the clock to the next arrival, or by `timeout`."""
        told, self._began = self._began, []
        if not self._arrivals or self._arrivals[0][0] > self._now + timeout:
            self._now += timeout
            return told
        self._now, task, attempt, seconds, lost_by = heapq.heappop(self._arrivals)
        return [*told, self._outcome(task, attempt, seconds, lost_by)]

    def withdraw(self, attempts: Sequence[Attempt]) -> None:
        """Nothing: they arrive when the script says."""

    def wake(self) -> None:
        """Nothing: no wait takes any time."""

    def close(self) -> Stay | None:
        """Forget what has not arrived."""
        self._arrivals.clear()
        self._began.clear()
        return None

    def _fate(self, ticket: Ticket) -> tuple[float, str | None]:
        """The seconds that an attempt takes, and what is said of its worker if that is lost."""
        kind, delay, _ = ticket.fault or Fault("")
        seconds = self._seconds.get(ticket.task, 1.0) + (delay if kind == "sleep" else 0.0)
        if math.isinf(seconds):
            return GIVEN_UP_SECONDS, f"its worker has not reported for {GIVEN_UP_SECONDS:g} s"
        return seconds, f"its worker was struck by {kind!r}" if kind in ("kill", "exit") else None

    def _outcome(self, task: int, attempt: int, seconds: float, lost_by: str | None) -> Outcome:
        """What an attempt gives, whose f is called when it arrives."""
        if lost_by is not None:
            return lost(task, attempt, lost_by)
        ticket = self._ticket(task, attempt)
        if ticket.fault is not None and ticket.fault.kind == "sleep":
            ticket = ticket._replace(fault=None)
        block = partial(block_of, self._payload.blocks, task, np.copy)  # f may change it
        message = run_task(ticket, PoolIO(self._payload.f, block, ThreadLink()))
        assert message is not None
        outcome = self._payload.outcome(task, attempt, message.header, message.data)
        return outcome._replace(seconds=seconds)

    def _ticket(self, task: int, attempt: int) -> Ticket:
        return Ticket.parse(self._payload.order(task, attempt))


def _is_arrival(task: object, seconds: object) -> bool:
    return is_integer(task) and is_number(seconds) and bool(seconds >= 0)
