"""An executor on a virtual clock, for tests: results arrive at given times, without any waiting."""

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

GIVE_UP_SECONDS = 3600.0  # virtual seconds after which a task without a result counts as lost


class ReplayExecutor:
    """An executor for tests that simulates when the result of each task arrives.

    The mapped function runs in this process, and arrival times refer to a virtual clock. Tests of slow or
    lost workers therefore take no time. Injected faults take effect: "sleep" delays the arrival of a result,
    whereas "kill" and "exit" lose it.

    Parameters
    ----------
    arrival_seconds : mapping of int to float, optional
        The virtual seconds from the start of a task to the arrival of its result, by task index. Defaults to
        1.0 for each task. With `math.inf`, the result never arrives, and the task is lost after an hour.

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
            raise CodeError(
                f"arrival_seconds must map task indices to seconds of at least 0, not {script!r:.100}"
            )
        self._arrival_seconds = dict(script)

    def open(self, job_spec: JobSpec) -> ReplaySession:
        """Open a session with a new virtual clock."""
        return ReplaySession(self._arrival_seconds, job_spec)


class ReplaySession:
    """A session that runs the tasks of one job, and returns each result at a given virtual time."""

    def __init__(self, arrival_seconds: Mapping[int, float], job_spec: JobSpec) -> None:
        self._arrival_seconds, self._now = arrival_seconds, 0.0
        # Results never leave this process, so they need no encryption.
        self._job_spec = replace(job_spec, encryption=None)
        # A heap of future arrivals, ordered by time. Each entry is a tuple of the arrival time, the task, the
        # attempt and a function that returns the outcome.
        self._arrivals: list[tuple[float, int, int, Callable[[], Outcome]]] = []
        self._start_events: list[AttemptStarted] = []  # the events that the next call of `wait` returns

    def now(self) -> float:
        """Return the virtual time in seconds."""
        return self._now

    def submit(self, attempts: Sequence[AttemptId]) -> None:
        """Start task attempts at the current virtual time, and schedule the arrival of their results."""
        for task, attempt in attempts:
            self._start_events.append(AttemptStarted(task, attempt, self._now))
            seconds, make_outcome = self._plan_outcome(self._job_spec.make_task_request(task, attempt))
            heapq.heappush(self._arrivals, (self._now + seconds, task, attempt, make_outcome))

    def wait(self, timeout: float) -> list[Event]:
        """Advance the virtual clock to the next arrival, or by `timeout` seconds. Return the new events."""
        start_events, self._start_events = self._start_events, []
        if not self._arrivals or self._arrivals[0][0] > self._now + timeout:
            self._now += timeout
            return list(start_events)
        self._now, _, _, make_outcome = heapq.heappop(self._arrivals)
        return [*start_events, make_outcome()]

    def cancel(self, attempts: Sequence[AttemptId]) -> None:
        """Do nothing: results arrive at their scheduled times even if they are no longer needed."""

    def wake(self) -> None:
        """Do nothing: `wait` never blocks."""

    def cancel_queued(self) -> list[AttemptStarted]:
        """Return events for the tasks that started since the last `wait`.

        There are no queued tasks to cancel, because each task starts at once.
        """
        start_events, self._start_events = self._start_events, []
        return start_events

    def close(self) -> PersistentUsage | None:
        """Discard the results that have not arrived yet."""
        self._arrivals.clear()
        self._start_events.clear()
        return None

    def _plan_outcome(self, request: TaskRequest) -> tuple[float, Callable[[], Outcome]]:
        """Return a task's duration in virtual seconds, and a function that returns its outcome."""
        task, attempt, fault = request.task, request.attempt, request.fault or Fault("")
        seconds = self._arrival_seconds.get(task, 1.0)
        if fault.kind == FaultKind.SLEEP:
            seconds, request = seconds + fault.seconds, request._replace(fault=None)
        if math.isinf(seconds):
            lost_message = f"its worker has not reported for {GIVE_UP_SECONDS:g} s"
            return GIVE_UP_SECONDS, partial(make_lost_worker_outcome, task, attempt, lost_message)
        if fault.kind in (FaultKind.KILL, FaultKind.EXIT):
            reason = f"its worker was lost by the injected fault {fault.kind!r}"
            return seconds, partial(make_lost_worker_outcome, task, attempt, reason)
        return seconds, partial(self._compute_outcome, request, seconds)

    def _compute_outcome(self, request: TaskRequest, seconds: float) -> Outcome:
        """Call the mapped function on a task's block. Return the outcome, i.e. the result or the failure."""
        # f may write to its block, so pass a copy.
        block = partial(build_block, self._job_spec.blocks, request.task, np.copy)
        message = run_task(request, FutureTaskIO(self._job_spec.f, block, ThreadCancelToken()))
        assert message is not None
        outcome = self._job_spec.decode_reply(request.task, request.attempt, message.header, message.data)
        return outcome._replace(seconds=seconds)


def _is_valid_arrival(task_index: object, arrival_seconds: object) -> bool:
    return is_integer(task_index) and is_real_number(arrival_seconds) and bool(arrival_seconds >= 0)
