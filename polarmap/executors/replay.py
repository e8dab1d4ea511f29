"""Scripted arrivals on a virtual clock: a real executor without processes, waiting or chance."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from polarmap.clouds.limits import Worker
from polarmap.clouds.prices import Stay
from polarmap.code.arguments import is_number
from polarmap.code.dtypes import is_integer
from polarmap.errors import CodeError
from polarmap.executors.base import Attempt, Began, Event, Outcome, Payload, block_of, lost
from polarmap.worker.encryption import ENCRYPTED
from polarmap.worker.faults import Fault
from polarmap.worker.messages import Reply, Ticket, describe
from polarmap.worker.parts import write_object
from polarmap.worker.run_task import PartialResult, evaluate, packing
from polarmap.worker.stored_output import store_result

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
        self._steps = payload.subtasks
        self._running: dict[Attempt, Iterator[Outcome]] = {}  # to what is told of each, as it arrives
        self._arrivals: list[tuple[float, int, int]] = []  # a heap; of attempts that ended, too
        self._began: list[Event] = []  # that are told next

    def now(self) -> float:
        """The virtual clock."""
        return self._now

    def submit(self, attempts: Sequence[Attempt]) -> None:
        """Schedule their arrivals, counted from now, when all of them begin."""
        for task, attempt in attempts:
            self._began.append(Began(task, attempt, self._now))
            ticket = Ticket.parse(self._payload.order(task, attempt))
            seconds, lost_by = self._fate(ticket)
            self._running[task, attempt] = self._outcomes(ticket, seconds, lost_by)
            for step in range(1, self._steps + 1):
                heapq.heappush(self._arrivals, (self._now + seconds * step / self._steps, task, attempt))

    def wait(self, timeout: float) -> list[Event]:
        """Move the clock to the next arrival, or by `timeout`."""
        told, self._began = self._began, []
        while self._arrivals and self._arrivals[0][1:] not in self._running:
            heapq.heappop(self._arrivals)
        if not self._arrivals or self._arrivals[0][0] > self._now + timeout:
            self._now += timeout
            return told
        self._now, task, attempt = heapq.heappop(self._arrivals)
        outcome = next(self._running[task, attempt])
        if outcome.over:
            del self._running[task, attempt]
        return [*told, outcome]

    def wake(self) -> None:
        """Nothing: no wait takes any time."""

    def close(self) -> Stay | None:
        """Forget what has not arrived."""
        self._arrivals = []
        self._running.clear()
        self._began.clear()
        return None

    def _fate(self, ticket: Ticket) -> tuple[float, str | None]:
        """The seconds that an attempt takes, and what ends its worker in their middle, if anything does."""
        kind, delay, _ = ticket.fault or Fault("")
        seconds = self._seconds.get(ticket.task, 1.0) + (delay if kind == "sleep" else 0.0)
        if math.isinf(seconds):
            return GIVEN_UP_SECONDS, f"has not reported for {GIVEN_UP_SECONDS:g} s"
        return seconds, f"was struck by {kind!r}" if kind in ("kill", "exit") else None

    def _outcomes(self, ticket: Ticket, seconds: float, lost_by: str | None) -> Iterator[Outcome]:
        """What is told of an attempt at each of its arrivals; its end is the last that is asked for."""
        at, steps, results = (ticket.task, ticket.attempt), self._steps, self._results(ticket)
        for step in range(steps):
            if lost_by is not None and step == steps // 2:
                yield lost(*at, f"its worker {lost_by}")
            spent, stored = seconds * (step + 1) / steps, None
            try:
                packed, subtasks = next(results)()
                if ticket.output is not None:
                    packed, stored = store_result(packed, ticket.output, *at, write_object, ENCRYPTED)
            except BaseException as error:
                yield self._payload.outcome(*at, Reply(describe(error), spent), b"")
            else:
                reply = Reply(None, spent, packed.structure, packed.layout, stored, subtasks)
                yield self._payload.outcome(*at, reply, packed.data, step + 1 == steps)

    def _results(self, ticket: Ticket) -> Iterator[Callable[[], PartialResult]]:
        """Of the pieces of a task; the block is made when the first is asked for."""
        block = block_of(self._payload.blocks, ticket.task, np.copy)
        # This executor plays the others itself.
        fault = ticket.fault if ticket.fault and ticket.fault.kind in ("raise", "garbage") else None
        yield from evaluate(packing(self._payload.f, fault, self._steps), block, ticket.subtask_order)


def _is_arrival(task: object, seconds: object) -> bool:
    return is_integer(task) and is_number(seconds) and bool(seconds >= 0)
