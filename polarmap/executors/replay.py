"""Scripted arrivals on a virtual clock: a real executor without processes, waiting or chance."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from polarmap.clouds.limits import WorkerSpec
from polarmap.clouds.prices import PersistentUsage
from polarmap.dtypes import is_integer
from polarmap.errors import CodeError
from polarmap.executors.interface import (
    AttemptId,
    AttemptStarted,
    Event,
    JobSpec,
    Outcome,
    build_block,
    make_lost_worker_outcome,
)
from polarmap.validation import is_real_number
from polarmap.worker.future_tasks import FutureTaskIO, ThreadCancelToken
from polarmap.worker.task_execution import run_task
from polarmap.worker.task_records import Fault, FaultKind, TaskRequest

GIVE_UP_SECONDS = 3600.0  # after which a task that never reports is lost, as where platforms end it


class ReplayExecutor:
    """Runs f in this process, and lets each result arrive after as many virtual seconds as you say.

    Of the faults, "sleep" delays the arrival, "kill" and "exit" lose the task, the others do as they say.

    Parameters
    ----------
    arrival_seconds : mapping from task index to the virtual seconds until its arrival
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
    worker_spec: WorkerSpec | None = None

    def __init__(self, arrival_seconds: Mapping[int, float] | None = None) -> None:
        script: Any = {} if arrival_seconds is None else arrival_seconds
        if not isinstance(script, Mapping) or not all(map(_is_valid_arrival, script.keys(), script.values())):
            raise CodeError(f"seconds map tasks by number to seconds of at least 0, not {script!r:.100}")
        self._arrival_seconds = dict(script)

    def open(self, job_spec: JobSpec) -> ReplaySession:
        """Return a session with a virtual clock of its own."""
        return ReplaySession(self._arrival_seconds, job_spec)


class ReplaySession:
    """The tasks of one map, which arrive when the script says."""

    def __init__(self, arrival_seconds: Mapping[int, float], job_spec: JobSpec) -> None:
        self._arrival_seconds, self._now = arrival_seconds, 0.0
        self._job_spec = replace(job_spec, encryption=None)  # nothing of it travels
        # A heap: when, which, and what tells of it then.
        self._arrivals: list[tuple[float, int, int, Callable[[], Outcome]]] = []
        self._start_events: list[AttemptStarted] = []  # that are told next

    def now(self) -> float:
        """The virtual clock."""
        return self._now

    def submit(self, attempts: Sequence[AttemptId]) -> None:
        """Schedule their arrivals, counted from now, when all of them begin."""
        for task, attempt in attempts:
            self._start_events.append(AttemptStarted(task, attempt, self._now))
            seconds, make_outcome = self._plan_outcome(self._job_spec.make_task_request(task, attempt))
            heapq.heappush(self._arrivals, (self._now + seconds, task, attempt, make_outcome))

    def wait(self, timeout: float) -> list[Event]:
        """Move the clock to the next arrival, or by `timeout`."""
        start_events, self._start_events = self._start_events, []
        if not self._arrivals or self._arrivals[0][0] > self._now + timeout:
            self._now += timeout
            return list(start_events)
        self._now, _, _, make_outcome = heapq.heappop(self._arrivals)
        return [*start_events, make_outcome()]

    def cancel(self, attempts: Sequence[AttemptId]) -> None:
        """Nothing: they arrive when the script says."""

    def wake(self) -> None:
        """Nothing: no wait takes any time."""

    def cancel_queued(self) -> list[AttemptStarted]:
        """Return the attempts that were submitted since the last `wait`: each begins at once."""
        start_events, self._start_events = self._start_events, []
        return start_events

    def close(self) -> PersistentUsage | None:
        """Forget what has not arrived."""
        self._arrivals.clear()
        self._start_events.clear()
        return None

    def _plan_outcome(self, request: TaskRequest) -> tuple[float, Callable[[], Outcome]]:
        """The seconds that an attempt takes, and what tells of it then."""
        task, attempt, fault = request.task, request.attempt, request.fault or Fault("")
        seconds = self._arrival_seconds.get(task, 1.0)
        if fault.kind == FaultKind.SLEEP:
            seconds, request = seconds + fault.seconds, request._replace(fault=None)
        if math.isinf(seconds):
            lost_message = f"its worker has not reported for {GIVE_UP_SECONDS:g} s"
            return GIVE_UP_SECONDS, partial(make_lost_worker_outcome, task, attempt, lost_message)
        if fault.kind in (FaultKind.KILL, FaultKind.EXIT):
            reason = f"its worker was struck by {fault.kind!r}"
            return seconds, partial(make_lost_worker_outcome, task, attempt, reason)
        return seconds, partial(self._compute_outcome, request, seconds)

    def _compute_outcome(self, request: TaskRequest, seconds: float) -> Outcome:
        """What an attempt gives, whose f is called when it arrives."""
        block = partial(build_block, self._job_spec.blocks, request.task, np.copy)  # f may change it
        message = run_task(request, FutureTaskIO(self._job_spec.f, block, ThreadCancelToken()))
        assert message is not None
        outcome = self._job_spec.decode_reply(request.task, request.attempt, message.header, message.data)
        return outcome._replace(seconds=seconds)


def _is_valid_arrival(task_index: object, arrival_seconds: object) -> bool:
    return is_integer(task_index) and is_real_number(arrival_seconds) and bool(arrival_seconds >= 0)
