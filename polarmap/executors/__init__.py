"""The running half: starts tasks and tells as each ends. Knows no codes.

Here stands what a caller may pass as an executor, and what it means.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from polarmap.errors import CodeError, ExecutorError
from polarmap.executors.base import MapExecutor, Payload, Run, WrappedExecutor
from polarmap.executors.choices import is_for_lithops, is_localhost, is_of_dask, is_of_ray, is_path
from polarmap.executors.owned_folder import private_folder
from polarmap.executors.pool import Pool, default_pool
from polarmap.validation import is_choice, is_nonnegative_int, is_real_number
from polarmap.worker.environment import count_available_cores
from polarmap.worker.task_records import FAULT_KINDS, Fault

if TYPE_CHECKING:
    from polarmap.executors.cluster_data import CutData

BLOCKS_PER_CORE = 3


@dataclass(frozen=True)
class FaultyExecutor:
    """An executor whose tasks sleep, fail or die as you say, for tests, demonstrations and benchmarks.

    In every other respect it does what the executor does that it wraps: maps are cut into as many blocks,
    and short items are batched.

    Parameters
    ----------
    executor : whatever `coded_map` accepts
    faults : mapping from task index to Fault
        The task of a coded block, of an item or block of `hedged_map`, or of a call of a
        `polarmap.Executor`, all counted from 0. If an item travels in a batch, "sleep", "exit" and "kill"
        strike the whole batch. An item with "raise" or "garbage" is a batch of its own.

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
            if not is_nonnegative_int(task) or not isinstance(fault, Fault):
                raise CodeError(f"faults map tasks by number to a Fault each, not {task!r} to {fault!r:.100}")
            _check_fault(fault)


class WithFaults(WrappedExecutor):
    """An executor some of whose tasks suffer faults; those that a run is told of come first."""

    def __init__(self, executor: MapExecutor, faults: Mapping[int, Fault]) -> None:
        super().__init__(executor)
        self.wrapped, self.faults = executor, faults

    def open(self, payload: Payload) -> Run:
        """A run of the executor underneath, which is told of the faults."""
        return self._executor.open(replace(payload, faults={**self.faults, **payload.faults}))


def _check_fault(fault: Fault) -> None:
    """Raise CodeError for a fault that no worker could have."""
    if not is_choice(fault.kind, FAULT_KINDS):
        raise CodeError(f"the kind of a Fault is one of {', '.join(FAULT_KINDS)}, not {fault.kind!r:.100}")
    if not is_real_number(fault.seconds) or fault.seconds < 0:
        raise CodeError(f"seconds of a Fault must be a number of at least 0, not {fault.seconds!r:.100}")
    if fault.kind == "sleep" and not fault.seconds:
        raise CodeError("a Fault that sleeps needs its seconds, as Fault('sleep', seconds=30)")
    if not is_nonnegative_int(fault.attempts):
        raise CodeError(f"attempts of a Fault must be an integer of at least 0, not {fault.attempts!r:.100}")


# --- which executor is meant ----------------------------------------------------------------------


def executor_of(choice: Any) -> MapExecutor:
    """The executor that `coded_map(executor=choice)` means; nothing is opened yet.

    ExecutorError, with what to pass instead, for what is none.
    """
    if isinstance(choice, FaultyExecutor):
        return WithFaults(executor_of(choice.executor), choice.faults)
    if choice is None:
        return default_pool
    name = getattr(choice, "__name__", type(choice).__name__)
    if isinstance(choice, type):
        raise ExecutorError(f"executor={name} is a class: pass an executor that was made of it, {name}(...)")
    if isinstance(choice, MapExecutor):
        return choice
    if is_for_lithops(choice):
        from polarmap.executors.lithops import LithopsExecutor

        return LithopsExecutor(choice)
    if not (hasattr(choice, "submit") or is_of_ray(choice)):
        raise ExecutorError(
            f"executor={choice!r:.200} is not an executor: pass None or 'localhost', the path of a Lithops "
            "YAML file, a lithops.FunctionExecutor, a Dask client, ray, or a concurrent.futures executor"
        )
    from polarmap.executors.futures import FuturesExecutor

    return FuturesExecutor(choice)


def without_faults(executor: Any) -> Any:
    """Return the executor that a FaultyExecutor wraps, however deep; return any other executor itself.

    Whatever depends on the kind of an executor is decided by this one, so that fault injection changes
    nothing else.

    >>> without_faults(FaultyExecutor(FaultyExecutor("localhost"))), without_faults(None)
    ('localhost', None)
    """
    while isinstance(executor, (FaultyExecutor, WithFaults)):
        executor = executor.executor if isinstance(executor, FaultyExecutor) else executor.wrapped
    return executor


def with_faults_of(choice: Any, executor: Any) -> Any:
    """Return `executor`, wrapped like `choice`, which may be a FaultyExecutor.

    >>> with_faults_of(FaultyExecutor(None), "localhost"), with_faults_of(None, "localhost")
    (FaultyExecutor(executor='localhost', faults={}), 'localhost')
    """
    if isinstance(choice, FaultyExecutor):
        return replace(choice, executor=with_faults_of(choice.executor, executor))
    return executor


def injected_faults(executor: MapExecutor) -> Mapping[int, Fault]:
    """Return the faults that an executor injects, by task."""
    if isinstance(executor, WithFaults):
        return {**injected_faults(executor.wrapped), **executor.faults}
    return {}


def keep_open(choice: Any) -> tuple[Any, Callable[[], None]]:
    """The same for many maps, and what ends it: a Lithops configuration gets workers that stay."""
    inner = without_faults(choice)
    if is_path(inner):
        pool = Pool(inner)
        return with_faults_of(choice, pool), pool.close
    executor_of(choice)  # or its error
    return choice, lambda: None


def storage_beside(choice: Any, data: Any) -> Any:
    """Where the workers of an executor read what stays for many maps: a folder here or the storage of
    a Lithops configuration; None if blocks travel with each task, or stay with the workers."""
    choice = without_faults(choice)
    if choice is None or isinstance(choice, Pool):
        if _is_in_memory(data):
            return None
        choice = "localhost" if choice is None or choice.is_here else choice.executor
    if is_localhost(choice):
        return private_folder() / "arrays"
    return choice if is_for_lithops(choice) else None


def data_beside(choice: Any, data: Any, blocks: int | None) -> CutData | None:
    """Data that lie on the cluster of an executor, as so many blocks; None for all other data."""
    choice = without_faults(choice)
    choice = choice.executor if isinstance(choice, Pool) else choice
    if not (is_of_dask(choice) or is_of_ray(choice)):
        return None
    from polarmap.executors.cluster_data import cut_on_cluster

    return cut_on_cluster(choice, data, blocks)


def usual_blocks(choice: Any, most: int) -> int:
    """Into how many blocks of equal size a matrix is cut for an executor: `most`, fewer on this machine.

    There three for each core keep all of them busy, and more only cost.
    """
    return min(most, BLOCKS_PER_CORE * count_available_cores()) if shares_cores(choice) else most


def shares_cores(choice: Any) -> bool:
    """Whether the tasks of an executor are known to share the cores of this machine."""
    choice = without_faults(choice)
    return choice is None or (isinstance(choice, Pool) and choice.is_here)


def _is_in_memory(data: Any) -> bool:
    """Whether it is an array, and not a view of a file."""
    owner = data
    while isinstance(owner, np.ndarray) and not isinstance(owner, np.memmap):
        owner = owner.base
    return isinstance(data, np.ndarray) and not isinstance(owner, np.memmap)
