"""Fault injection: an executor that makes another executor's tasks sleep, fail or die."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from polarmap.errors import CodeError
from polarmap.executors.interface import JobSpec, Session
from polarmap.executors.resolved import DelegatingExecutor, ResolvedExecutor
from polarmap.validation import is_choice, is_nonnegative_int, is_real_number
from polarmap.worker.task_records import FAULT_KINDS, Fault


@dataclass(frozen=True)
class FaultyExecutor:
    """Wraps an executor and makes chosen tasks sleep, fail or die, for tests, demonstrations and benchmarks.

    All other tasks run unchanged on the wrapped executor.

    Parameters
    ----------
    executor : optional
        The executor that runs the tasks: anything that `coded_map` accepts as `executor=`.
    faults : mapping of int to Fault
        The faults, by the index of the task, from 0. A task is a coded block, an item or block of
        `hedged_map`, or a call of a `polarmap.Executor`. If several items are sent to a worker as a batch,
        "sleep", "exit" and "kill" affect the whole batch, whereas an item with "raise" or "garbage" gets a
        batch of its own.

    Examples
    --------
    >>> FaultyExecutor("localhost", {3: Fault("sleep", seconds=20), 7: Fault("kill")}).executor
    'localhost'
    """

    executor: Any = None
    faults: Mapping[int, Fault] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.faults, Mapping):
            raise CodeError(f"faults must be a mapping from task to Fault, not {self.faults!r:.100}")
        for task_index, fault in self.faults.items():
            if not is_nonnegative_int(task_index) or not isinstance(fault, Fault):
                raise CodeError(
                    f"faults must map task indices to Fault objects, not {task_index!r} to {fault!r:.100}"
                )
            _check_fault(fault)


class FaultInjectingExecutor(DelegatingExecutor):
    """An executor that runs tasks on another executor, and makes some of them sleep, fail or die.

    Faults specified by a job take precedence over the faults given here.

    Parameters
    ----------
    executor : ResolvedExecutor
        The wrapped executor. If it injects faults itself, `faults` take precedence.
    faults : mapping of int to Fault
        The faults to inject, by the index of the task.
    """

    def __init__(self, executor: ResolvedExecutor, faults: Mapping[int, Fault]) -> None:
        super().__init__(executor)
        self._own_faults = faults
        self.faults = {**executor.faults, **faults}

    def open(self, job_spec: JobSpec) -> Session:
        """Add the faults to a job and open a session of the wrapped executor for it."""
        return self._executor.open(replace(job_spec, faults={**self.faults, **job_spec.faults}))

    def choose_for(self, data: Any) -> ResolvedExecutor:
        """Return the executor that the wrapped executor chooses for a map of `data`, with the same faults.

        The default executor, for example, chooses other workers for an array in cloud storage.
        """
        return FaultInjectingExecutor(self._executor.choose_for(data), self._own_faults)

    def with_persistent_workers(
        self, max_workers: int | None = None
    ) -> tuple[ResolvedExecutor, Callable[[], None]]:
        """Return an executor with persistent workers and the same faults, and a function that stops them."""
        executor, close = self._executor.with_persistent_workers(max_workers)
        return FaultInjectingExecutor(executor, self._own_faults), close


def _check_fault(fault: Fault) -> None:
    """Raise CodeError if any field of a fault is invalid."""
    if not is_choice(fault.kind, FAULT_KINDS):
        raise CodeError(
            f"the kind of a Fault must be one of {', '.join(FAULT_KINDS)}, not {fault.kind!r:.100}"
        )
    if not is_real_number(fault.seconds) or fault.seconds < 0:
        raise CodeError(f"seconds of a Fault must be a number of at least 0, not {fault.seconds!r:.100}")
    if fault.kind == "sleep" and not fault.seconds:
        raise CodeError("a Fault that sleeps needs its seconds, as Fault('sleep', seconds=30)")
    if not is_nonnegative_int(fault.attempts):
        raise CodeError(f"attempts of a Fault must be an integer of at least 0, not {fault.attempts!r:.100}")
