"""Scripted arrivals on a virtual clock: a real executor without processes, waiting or chance."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from polarmap.clouds.limits import Worker
from polarmap.clouds.prices import Stay
from polarmap.code.arguments import is_number
from polarmap.code.dtypes import is_integer
from polarmap.errors import CodeError
from polarmap.executors.base import Attempt, Began, Event, Outcome, Payload, block_of, lost
from polarmap.worker.encryption import ENCRYPTED
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


class _Running(NamedTuple):
    """One attempt of a task that runs.

    ticket : what its worker is told; a fault that this executor plays itself is not in it.
    results : of its pieces, evaluated as they arrive.
    seconds : that it takes.
    lost_by : what ends its worker, if anything does.
    """

    ticket: Ticket
    results: Iterator[Callable[[], PartialResult]]
    seconds: float
    lost_by: str | None


class ReplayRun:
    """The tasks of one map, which arrive when the script says."""

    def __init__(self, seconds: Mapping[int, float], payload: Payload) -> None:
        self._seconds, self._now = seconds, 0.0
        self._payload = replace(payload, encryption=None)  # of what would travel
        self._steps = payload.subtasks
        self._running: dict[Attempt, _Running] = {}
        self._arrivals: list[tuple[float, int, int, int]] = []  # a heap; of attempts that ended, too
        self._began: list[Event] = []  # that are told next

    def now(self) -> float:
        """The virtual clock."""
        return self._now

    def submit(self, attempts: Sequence[Attempt]) -> None:
        """Schedule their arrivals, counted from now, when all of them begin."""
        for task, attempt in attempts:
            self._began.append(Began(task, attempt, self._now))
            started = self._running[task, attempt] = self._started(task, attempt)
            for step in range(self._steps):
                arrival = self._now + started.seconds * (step + 1) / self._steps
                heapq.heappush(self._arrivals, (arrival, task, attempt, step))

    def wait(self, timeout: float) -> list[Event]:
        """Move the clock to the next arrival, or by `timeout`."""
        told, self._began = self._began, []
        while self._arrivals and self._arrivals[0][1:3] not in self._running:
            heapq.heappop(self._arrivals)
        if not self._arrivals or self._arrivals[0][0] > self._now + timeout:
            self._now += timeout
            return told
        self._now, task, attempt, step = heapq.heappop(self._arrivals)
        outcome = self._arrived(self._running[task, attempt], step)
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

    def _started(self, task: int, attempt: int) -> _Running:
        """An attempt, nothing of which is evaluated yet."""
        ticket = Ticket.parse(self._payload.order(task, attempt))
        fault, seconds = ticket.fault, self._seconds.get(task, 1.0)
        is_struck = fault is not None and fault.kind in ("kill", "exit")
        lost_by = f"was struck by {fault.kind!r}" if fault is not None and is_struck else None
        if fault is not None and fault.kind == "sleep":
            seconds += fault.seconds
        if math.isinf(seconds):
            seconds, lost_by = GIVEN_UP_SECONDS, f"has not reported for {GIVEN_UP_SECONDS:g} s"
        if fault is not None and fault.kind not in ("raise", "garbage"):
            ticket = ticket._replace(fault=None)
        return _Running(ticket, self._results(ticket), seconds, lost_by)

    def _results(self, ticket: Ticket) -> Iterator[Callable[[], PartialResult]]:
        """Of the pieces of a task; the block is made when the first is asked for."""
        block = block_of(self._payload.blocks, ticket.task, np.copy)
        yield from evaluate(packing(self._payload.f, ticket.fault, self._steps), block, ticket.subtask_order)

    def _arrived(self, running: _Running, step: int) -> Outcome:
        """What is told of an attempt now; every step but the last leaves it running."""
        task, attempt, *_ = ticket = running.ticket
        if running.lost_by is not None and step == self._steps // 2:
            return lost(task, attempt, f"its worker {running.lost_by}")
        seconds = running.seconds * (step + 1) / self._steps
        try:
            packed, subtasks = next(running.results)()
            stored = None
            if ticket.output is not None:
                packed, stored = store_result(packed, ticket.output, task, attempt, write_object, ENCRYPTED)
        except BaseException as error:
            return self._payload.outcome(task, attempt, Reply(describe(error), seconds), b"")
        reply = Reply(None, seconds, packed.structure, packed.layout, stored, subtasks)
        return self._payload.outcome(task, attempt, reply, packed.data, step + 1 == self._steps)


def _is_arrival(task: object, seconds: object) -> bool:
    return is_integer(task) and is_number(seconds) and bool(seconds >= 0)
