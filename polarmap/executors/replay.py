"""Scripted arrivals on a virtual clock: a real executor without processes, waiting or chance."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from polarmap.clouds.limits import Worker
from polarmap.errors import CodeError
from polarmap.executors.base import Outcome, Payload, lost, outcome_of
from polarmap.worker.partial_results import rows, turns
from polarmap.worker.parts import DamagedError
from polarmap.worker.pytree import unflatten
from polarmap.worker.run_task import Error, Reply, apply, describe, leave


class ReplayExecutor:
    """Runs f in this process and lets each result arrive when the script says.

    Of the faults, "sleep" delays the arrival, "kill" and "exit" lose the task, the others do as they say.

    Parameters
    ----------
    seconds : mapping from task index to the virtual seconds until its arrival
        From its start, which is second 0 unless it is started later; 1.0 for tasks not named;
        `math.inf` for one that never reports.

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
        self._f, self._coded, self._faults = payload.f, payload.blocks, payload.faults
        self._keep, self._subtasks = payload.keep, payload.subtasks
        self._attempts: dict[int, int] = {}
        self._arrivals: list[tuple[float, int, int, int]] = []
        self._began: dict[int, float] = {}

    def now(self) -> float:
        """The virtual clock."""
        return self._now

    def submit(self, tasks: Sequence[int]) -> None:
        """Schedule their arrivals, counted from now."""
        for task in tasks:
            self._attempts[task] = self._attempts.get(task, -1) + 1
            self._schedule(task)

    def running(self) -> Mapping[int, float]:
        """Every task begins as soon as it is started."""
        return dict(self._began)

    def wait(self, timeout: float) -> list[Outcome]:
        """Move the clock to the next arrival, or by `timeout`."""
        if not self._arrivals or self._arrivals[0][0] > self._now + timeout:
            self._now += timeout
            return []
        self._now, task, attempt, step = heapq.heappop(self._arrivals)
        outcome = self._run(task, attempt) if self._subtasks == 1 else self._run_subtask(task, attempt, step)
        if outcome.over:
            if attempt == self._attempts[task]:
                self._began.pop(task, None)
            self._arrivals = [one for one in self._arrivals if one[1:3] != (task, attempt)]
            heapq.heapify(self._arrivals)
        return [outcome]

    def is_exhausted(self) -> bool:
        """Whether no arrival is left on the schedule."""
        return not self._arrivals

    def close(self) -> None:
        """Forget what has not arrived."""
        self._arrivals = []
        self._began.clear()

    def _schedule(self, task: int) -> None:
        attempt = self._attempts[task]
        self._began[task] = self._now
        seconds = self._seconds.get(task, 1.0)
        fault = self._faults.get(task)
        if fault is not None and fault.kind == "sleep" and attempt < fault.attempts:
            seconds += fault.seconds
        if math.isfinite(seconds):
            for step in range(self._subtasks):
                arrival = self._now + seconds * (step + 1) / self._subtasks
                heapq.heappush(self._arrivals, (arrival, task, attempt, step))

    def _run_subtask(self, task: int, attempt: int, step: int) -> Outcome:
        """The outcome of one subtask; every step but the last leaves the attempt running."""
        fault = self._faults.get(task)
        fault = None if fault is None or attempt >= fault.attempts or fault.kind == "sleep" else fault
        if fault is not None and fault.kind in ("kill", "exit") and step == self._subtasks // 2:
            return lost(task, attempt, f"its worker was struck by {fault.kind!r}")
        subtask = turns(task, self._subtasks)[step]
        leaves = [leaf[rows(len(leaf), self._subtasks, subtask)].copy() for leaf in self._coded.leaves(task)]
        if fault is not None and (fault.kind == "garbage" or step == self._subtasks // 2):
            result = apply(self._f, unflatten(self._coded.structure, leaves), fault, attempt)
        else:
            result = apply(self._f, unflatten(self._coded.structure, leaves), None, attempt)
        seconds = self._seconds.get(task, 1.0) * (step + 1) / self._subtasks
        if isinstance(result, Error):
            return outcome_of(Reply(task, attempt, None, result, 0.0, seconds))
        listed = result._replace(structure=(list, (), (result.structure,)))
        reply = Reply(task, attempt, listed, None, 0.0, seconds, None, (subtask,))
        return outcome_of(reply)._replace(over=step + 1 == self._subtasks)

    def _run(self, task: int, attempt: int) -> Outcome:
        fault = self._faults.get(task)
        if fault is not None and attempt < fault.attempts:
            if fault.kind in ("kill", "exit"):
                return lost(task, attempt, f"its worker was struck by {fault.kind!r}")
            if fault.kind == "sleep":
                fault = None
        try:
            pieces = [leaf for piece in self._coded.pieces(task) for leaf in self._coded.piece(piece)]
        except DamagedError as error:
            return outcome_of(Reply(task, attempt, None, describe(error), 0.0, 0.0))
        block = unflatten(self._coded.structure, [leaf.copy() for leaf in pieces])
        result, kept = apply(self._f, block, fault, attempt), None
        if self._keep is not None and not isinstance(result, Error):
            result, kept = leave(result, self._keep, task, attempt, None)
        seconds = self._seconds.get(task, 1.0)
        if isinstance(result, Error):
            return outcome_of(Reply(task, attempt, None, result, 0.0, seconds))
        return outcome_of(Reply(task, attempt, result, None, 0.0, seconds, kept))


def _is_arrival(task: object, seconds: object) -> bool:
    is_real = isinstance(seconds, (int, float, np.integer, np.floating)) and not isinstance(seconds, bool)
    return isinstance(task, (int, np.integer)) and is_real and bool(seconds >= 0)  # type: ignore[operator]
