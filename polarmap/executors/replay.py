"""Scripted arrivals on a virtual clock: a real executor without processes, waiting or chance."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from polarmap.clouds.limits import Worker
from polarmap.clouds.prices import Stay
from polarmap.dtypes import is_integer
from polarmap.errors import CodeError
from polarmap.executors.base import Attempt, Began, Event, Outcome, Payload, block_of, lost
from polarmap.validation import is_real_number
from polarmap.worker.future_tasks import FutureTaskIO, ThreadCancelToken
from polarmap.worker.task_execution import run_task
from polarmap.worker.task_records import Fault, TaskRequest

GIVEN_UP_SECONDS = 3600.0  # after which a task that never reports is lost, as where platforms end it


class ReplayExecutor:
    """Runs f in this process, and lets each result arrive after as many virtual seconds as you say.

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
    >>> result = polarmap.coded_map(np.sum, np.eye(4), blocks=4, tasks=6, executor=never)
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
        self._payload = replace(payload, encryption=None)  # nothing of it travels
        # A heap: when, which, and what tells of it then.
        self._arrivals: list[tuple[float, int, int, Callable[[], Outcome]]] = []
        self._began: list[Began] = []  # that are told next

    def now(self) -> float:
        """The virtual clock."""
        return self._now

    def submit(self, attempts: Sequence[Attempt]) -> None:
        """Schedule their arrivals, counted from now, when all of them begin."""
        for task, attempt in attempts:
            self._began.append(Began(task, attempt, self._now))
            seconds, told = self._fate(self._payload.ticket(task, attempt))
            heapq.heappush(self._arrivals, (self._now + seconds, task, attempt, told))

    def wait(self, timeout: float) -> list[Event]:
        """Move the clock to the next arrival, or by `timeout`."""
        told, self._began = self._began, []
        if not self._arrivals or self._arrivals[0][0] > self._now + timeout:
            self._now += timeout
            return list(told)
        self._now, _, _, outcome = heapq.heappop(self._arrivals)
        return [*told, outcome()]

    def withdraw(self, attempts: Sequence[Attempt]) -> None:
        """Nothing: they arrive when the script says."""

    def wake(self) -> None:
        """Nothing: no wait takes any time."""

    def stop(self) -> list[Began]:
        """Return the attempts that were submitted since the last `wait`: each begins at once."""
        told, self._began = self._began, []
        return told

    def close(self) -> Stay | None:
        """Forget what has not arrived."""
        self._arrivals.clear()
        self._began.clear()
        return None

    def _fate(self, ticket: TaskRequest) -> tuple[float, Callable[[], Outcome]]:
        """The seconds that an attempt takes, and what tells of it then."""
        task, attempt, fault = ticket.task, ticket.attempt, ticket.fault or Fault("")
        seconds = self._seconds.get(task, 1.0)
        if fault.kind == "sleep":
            seconds, ticket = seconds + fault.seconds, ticket._replace(fault=None)
        if math.isinf(seconds):
            silent = f"its worker has not reported for {GIVEN_UP_SECONDS:g} s"
            return GIVEN_UP_SECONDS, partial(lost, task, attempt, silent)
        if fault.kind in ("kill", "exit"):
            return seconds, partial(lost, task, attempt, f"its worker was struck by {fault.kind!r}")
        return seconds, partial(self._outcome, ticket, seconds)

    def _outcome(self, ticket: TaskRequest, seconds: float) -> Outcome:
        """What an attempt gives, whose f is called when it arrives."""
        block = partial(block_of, self._payload.blocks, ticket.task, np.copy)  # f may change it
        message = run_task(ticket, FutureTaskIO(self._payload.f, block, ThreadCancelToken()))
        assert message is not None
        outcome = self._payload.outcome(ticket.task, ticket.attempt, message.header, message.data)
        return outcome._replace(seconds=seconds)


def _is_arrival(task: object, seconds: object) -> bool:
    return is_integer(task) and is_real_number(seconds) and bool(seconds >= 0)
