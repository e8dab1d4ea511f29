"""The package's internal interface of executors.

`resolve_executor` converts every `executor=` argument to a `ResolvedExecutor`, and the rest of the package
only uses its attributes and methods.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from polarmap.clouds.limits import WorkerSpec
from polarmap.errors import ExecutorError
from polarmap.executors.interface import JobSpec, MapExecutor, Session
from polarmap.worker.task_records import Fault

if TYPE_CHECKING:
    from polarmap.executors.engine import PartitionedData

NO_FAULTS: Mapping[int, Fault] = MappingProxyType({})


class ResolvedExecutor(ABC):
    """The base class of all executors within the package.

    Users pass many kinds of objects as `executor=`. At the package's entry points, `resolve_executor`
    converts each of them to a subclass of this class. No other code inspects the argument.

    Attributes
    ----------
    worker_spec : WorkerSpec or None
        The memory, cores, time limit and price of each task; None if they are unknown.
    is_local : bool
        True if tasks are known to share this machine's cores.
    shares_memory : bool
        True if tasks run on threads of this process and use the caller's objects directly.
    pickles_f : bool
        True if workers receive a pickle of f. Otherwise, they see changes that the caller makes to f during a
        map.
    can_batch : bool
        True if several short items may be sent to a worker as one task.
    has_persistent_workers : bool
        True if the workers persist from map to map. Any number of tasks can then be submitted in advance,
        because queued tasks can be cancelled.
    prefers_persistent_workers : bool
        True if each map starts new workers, so that persistent workers are faster for a series of maps.
    max_workers : int or None
        The maximum number of concurrent tasks; None if it is unknown.
    faults : mapping of int to Fault
        The faults that a test injects, by the index of the task.
    """

    worker_spec: WorkerSpec | None = None
    is_local = shares_memory = can_batch = False
    pickles_f = True
    has_persistent_workers = prefers_persistent_workers = False
    max_workers: int | None = None
    faults: Mapping[int, Fault] = NO_FAULTS

    @property
    @abstractmethod
    def name(self) -> str:
        """The name of the executor in reports. It may change once workers have connected."""

    @property
    def workers_by_host(self) -> dict[str, int]:
        """The number of workers on each machine, by host name. Empty if it is unknown."""
        return {}

    @property
    def workers_share_cores(self) -> bool:
        """True if the workers persist from map to map, and all known workers share this machine's cores."""
        return self.is_local and self.has_persistent_workers

    @abstractmethod
    def open(self, job_spec: JobSpec) -> Session:
        """Open a session that runs the tasks of a job, i.e. of one call of a map function.

        No task starts before it is submitted to the session.
        """

    def choose_for(self, data: Any) -> ResolvedExecutor:
        """Return the executor on which to run a map of `data`, which is this executor by default.

        For a stored array, the default executor chooses an executor whose workers can read its storage.
        """
        return self

    def suggest_n_blocks(self, max_blocks: int) -> int:
        """Return the number of equal blocks into which to split a matrix, at most `max_blocks`."""
        return max_blocks

    def choose_storage(self, data: Any) -> Any:
        """Return where to store `data` if many maps use it, for example a folder.

        The result is a value for the parameter `storage` of `encode`. It is None if `data` need not be
        stored, because each block is sent with its task or is cached by the workers.
        """
        return None

    def partition(self, data: Any, n_blocks: int | None) -> PartitionedData | None:
        """Partition data that is on the cluster of this executor into blocks.

        Return None for any other data. If `n_blocks` is None, there are about as many blocks as the data has
        chunks, such as the chunks of a Dask array.
        """
        return None

    def with_persistent_workers(
        self, max_workers: int | None = None
    ) -> tuple[ResolvedExecutor, Callable[[], None]]:
        """Return an executor like this one with persistent workers, and a function that stops the workers.

        An executor that manages its workers itself is returned unchanged. Raises ExecutorError if
        `max_workers` is given for such an executor.
        """
        if max_workers is not None:
            raise ExecutorError(f"executor={self.name} manages its workers itself: leave workers= out")
        return self, lambda: None


class ExecutorHandle(ABC):
    """The base class of polarmap's own objects that users pass as `executor=`, such as `Pool`."""

    @abstractmethod
    def resolve(self) -> ResolvedExecutor:
        """Return the executor that runs the tasks of maps to which this object is passed as `executor=`."""


class DelegatingExecutor(ResolvedExecutor):
    """The base class of executors that wrap another executor to change a part of its behavior.

    The attributes, and most methods, are those of the wrapped executor. Subclasses override the rest.
    """

    def __init__(self, executor: ResolvedExecutor) -> None:
        self._executor = executor
        self.worker_spec, self.max_workers = executor.worker_spec, executor.max_workers
        self.faults = executor.faults
        self.is_local, self.shares_memory = executor.is_local, executor.shares_memory
        self.pickles_f, self.can_batch = executor.pickles_f, executor.can_batch
        self.has_persistent_workers = executor.has_persistent_workers
        self.prefers_persistent_workers = executor.prefers_persistent_workers

    @property
    def name(self) -> str:
        """The name of the wrapped executor in reports."""
        return self._executor.name

    @property
    def workers_by_host(self) -> dict[str, int]:
        """The number of workers on each machine, by host name. Empty if it is unknown."""
        return self._executor.workers_by_host

    @property
    def workers_share_cores(self) -> bool:
        """True if the workers of the wrapped executor share the cores of this machine."""
        return self._executor.workers_share_cores

    def open(self, job_spec: JobSpec) -> Session:
        """Open a session of the wrapped executor."""
        return self._executor.open(job_spec)

    def suggest_n_blocks(self, max_blocks: int) -> int:
        """Return the number of blocks that the wrapped executor suggests."""
        return self._executor.suggest_n_blocks(max_blocks)

    def choose_storage(self, data: Any) -> Any:
        """Return where the wrapped executor would store `data` if many maps use it."""
        return self._executor.choose_storage(data)

    def partition(self, data: Any, n_blocks: int | None) -> PartitionedData | None:
        """Partition data that is on the wrapped executor's cluster into blocks, or return None."""
        return self._executor.partition(data, n_blocks)


class CustomExecutor(ResolvedExecutor):
    """An adapter that makes a user-defined executor usable as a `ResolvedExecutor`.

    The user's class only has to provide what `MapExecutor` requires. All other attributes and methods keep
    the defaults of the base class.

    Parameters
    ----------
    executor : MapExecutor
        The user's executor, which may also have the attributes `is_local` and `workers_by_host`.
    """

    pickles_f = False

    def __init__(self, executor: MapExecutor) -> None:
        self._executor = executor
        self.worker_spec, self.is_local = executor.worker_spec, bool(getattr(executor, "is_local", False))

    @property
    def name(self) -> str:
        """The name of the user's executor in reports."""
        return self._executor.name

    @property
    def workers_by_host(self) -> dict[str, int]:
        """The number of workers on each machine, by host name.

        Empty if the user's executor has no attribute `workers_by_host`.
        """
        return dict(getattr(self._executor, "workers_by_host", {}))

    def open(self, job_spec: JobSpec) -> Session:
        """Open a session of the user's executor."""
        return self._executor.open(job_spec)
