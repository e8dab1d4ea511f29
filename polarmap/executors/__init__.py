"""The running half: starts tasks and tells as each ends. Knows no codes.

Here stands what a caller may pass as an executor, and what it means.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from polarmap.errors import CodeError, ExecutorError
from polarmap.executors.executor_specs import (
    is_config_path,
    is_dask_client,
    is_lithops_spec,
    is_localhost_spec,
    is_ray_spec,
)
from polarmap.executors.interface import DelegatingExecutor, JobSpec, MapExecutor, Session
from polarmap.executors.pool import Pool, default_pool
from polarmap.executors.temp_folders import get_process_temp_folder
from polarmap.validation import is_choice, is_nonnegative_int, is_real_number
from polarmap.worker.environment import count_available_cores
from polarmap.worker.task_records import FAULT_KINDS, Fault

if TYPE_CHECKING:
    from polarmap.executors.cluster_data import PartitionedData

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
        for task_index, fault in self.faults.items():
            if not is_nonnegative_int(task_index) or not isinstance(fault, Fault):
                raise CodeError(
                    f"faults map tasks by number to a Fault each, not {task_index!r} to {fault!r:.100}"
                )
            _check_fault(fault)


class FaultInjectingExecutor(DelegatingExecutor):
    """An executor some of whose tasks suffer faults; those that a run is told of come first."""

    def __init__(self, executor: MapExecutor, faults: Mapping[int, Fault]) -> None:
        super().__init__(executor)
        self.wrapped_executor, self.faults = executor, faults

    def open(self, job_spec: JobSpec) -> Session:
        """A run of the executor underneath, which is told of the faults."""
        return self._executor.open(replace(job_spec, faults={**self.faults, **job_spec.faults}))


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


def resolve_executor(executor_spec: Any) -> MapExecutor:
    """The executor that `coded_map(executor=executor_spec)` means; nothing is opened yet.

    ExecutorError, with what to pass instead, for what is none.
    """
    if isinstance(executor_spec, FaultyExecutor):
        return FaultInjectingExecutor(resolve_executor(executor_spec.executor), executor_spec.faults)
    if executor_spec is None:
        return default_pool
    type_name = getattr(executor_spec, "__name__", type(executor_spec).__name__)
    if isinstance(executor_spec, type):
        raise ExecutorError(
            f"executor={type_name} is a class: pass an executor that was made of it, {type_name}(...)"
        )
    if isinstance(executor_spec, MapExecutor):
        return executor_spec
    if is_lithops_spec(executor_spec):
        from polarmap.executors.lithops import LithopsExecutor

        return LithopsExecutor(executor_spec)
    if not (hasattr(executor_spec, "submit") or is_ray_spec(executor_spec)):
        raise ExecutorError(
            f"executor={executor_spec!r:.200} is not an executor: pass None or 'localhost', the path "
            "of a Lithops YAML file, a lithops.FunctionExecutor, a Dask client, ray, or a "
            "concurrent.futures executor"
        )
    from polarmap.executors.futures import FuturesExecutor

    return FuturesExecutor(executor_spec)


def unwrap_faulty_executor(executor_spec: Any) -> Any:
    """Return the executor that a FaultyExecutor wraps, however deep; return any other executor itself.

    Whatever depends on the kind of an executor is decided by this one, so that fault injection changes
    nothing else.

    >>> unwrap_faulty_executor(FaultyExecutor(FaultyExecutor("localhost"))), unwrap_faulty_executor(None)
    ('localhost', None)
    """
    while isinstance(executor_spec, (FaultyExecutor, FaultInjectingExecutor)):
        executor_spec = (
            executor_spec.executor
            if isinstance(executor_spec, FaultyExecutor)
            else executor_spec.wrapped_executor
        )
    return executor_spec


def rewrap_with_faults(faulty_spec: Any, inner_executor: Any) -> Any:
    """Return `inner_executor`, wrapped like `faulty_spec`, which may be a FaultyExecutor.

    >>> rewrap_with_faults(FaultyExecutor(None), "localhost"), rewrap_with_faults(None, "localhost")
    (FaultyExecutor(executor='localhost', faults={}), 'localhost')
    """
    if isinstance(faulty_spec, FaultyExecutor):
        return replace(faulty_spec, executor=rewrap_with_faults(faulty_spec.executor, inner_executor))
    return inner_executor


def collect_injected_faults(executor: MapExecutor) -> Mapping[int, Fault]:
    """Return the faults that an executor injects, by task."""
    if isinstance(executor, FaultInjectingExecutor):
        return {**collect_injected_faults(executor.wrapped_executor), **executor.faults}
    return {}


def make_executor_persistent(executor_spec: Any) -> tuple[Any, Callable[[], None]]:
    """The same for many maps, and what ends it: a Lithops configuration gets persistent workers."""
    inner_spec = unwrap_faulty_executor(executor_spec)
    if is_config_path(inner_spec):
        pool = Pool(inner_spec)
        return rewrap_with_faults(executor_spec, pool), pool.close
    resolve_executor(executor_spec)  # or its error
    return executor_spec, lambda: None


def choose_storage_for_workers(executor_spec: Any, data: Any) -> Any:
    """Where the workers of an executor read what stays for many maps: a folder here or the storage of
    a Lithops configuration; None if blocks travel with each task, or stay with the workers."""
    executor_spec = unwrap_faulty_executor(executor_spec)
    if executor_spec is None or isinstance(executor_spec, Pool):
        if _is_in_memory_array(data):
            return None
        executor_spec = (
            "localhost" if executor_spec is None or executor_spec.is_local else executor_spec.executor
        )
    if is_localhost_spec(executor_spec):
        return get_process_temp_folder() / "arrays"
    return executor_spec if is_lithops_spec(executor_spec) else None


def partition_if_on_cluster(executor_spec: Any, data: Any, n_blocks: int | None) -> PartitionedData | None:
    """Data that lie on the cluster of an executor, as so many blocks; None for all other data."""
    executor_spec = unwrap_faulty_executor(executor_spec)
    executor_spec = executor_spec.executor if isinstance(executor_spec, Pool) else executor_spec
    if not (is_dask_client(executor_spec) or is_ray_spec(executor_spec)):
        return None
    from polarmap.executors.cluster_data import partition_on_cluster

    return partition_on_cluster(executor_spec, data, n_blocks)


def suggest_n_blocks(executor_spec: Any, max_blocks: int) -> int:
    """Into how many blocks of equal size a matrix is cut for an executor: `max_blocks`, fewer on this
    machine.

    There three for each core keep all of them busy, and more only cost.
    """
    if not is_on_local_cores(executor_spec):
        return max_blocks
    return min(max_blocks, BLOCKS_PER_CORE * count_available_cores())


def is_on_local_cores(executor_spec: Any) -> bool:
    """Whether the tasks of an executor are known to share the cores of this machine."""
    executor_spec = unwrap_faulty_executor(executor_spec)
    return executor_spec is None or (isinstance(executor_spec, Pool) and executor_spec.is_local)


def _is_in_memory_array(data: Any) -> bool:
    """Whether it is an array, and not a view of a file."""
    base_array = data
    while isinstance(base_array, np.ndarray) and not isinstance(base_array, np.memmap):
        base_array = base_array.base
    return isinstance(data, np.ndarray) and not isinstance(base_array, np.memmap)
