"""Misfortunes injected into the tasks of any executor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from polarmap.code.checks import is_count, is_number, is_one_of
from polarmap.errors import CodeError
from polarmap.executors.base import MapExecutor, Payload, Run
from polarmap.worker.messages import FAULTS, Fault


@dataclass(frozen=True)
class FaultyExecutor:
    """An executor with misfortunes injected, for tests, demonstrations and benchmarks.

    Parameters
    ----------
    executor : whatever `coded_map` accepts
    faults : mapping from task index to Fault

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
        for task, fault in self.faults.items():
            if not is_count(task) or not isinstance(fault, Fault):
                raise CodeError(f"faults map tasks by number to a Fault each, not {task!r} to {fault!r:.100}")
            _check_fault(fault)


class WithFaults:
    """An executor some of whose tasks suffer faults; those that a run is told of come first."""

    def __init__(self, executor: MapExecutor, faults: Mapping[int, Fault]) -> None:
        self._executor, self._faults = executor, faults
        self.worker = executor.worker

    @property
    def name(self) -> str:
        """That of the executor underneath, which may change: a pool learns how its workers call it."""
        return self._executor.name

    def open(self, payload: Payload) -> Run:
        """A run of the executor underneath, which is told of the faults."""
        return self._executor.open(replace(payload, faults={**self._faults, **payload.faults}))


def _check_fault(fault: Fault) -> None:
    """Raise CodeError for a fault that no worker could have."""
    if not is_one_of(fault.kind, FAULTS):
        raise CodeError(f"the kind of a Fault is one of {', '.join(FAULTS)}, not {fault.kind!r:.100}")
    if not is_number(fault.seconds) or fault.seconds < 0:
        raise CodeError(f"seconds of a Fault must be a number of at least 0, not {fault.seconds!r:.100}")
    if not is_count(fault.attempts):
        raise CodeError(f"attempts of a Fault must be an integer of at least 0, not {fault.attempts!r:.100}")
