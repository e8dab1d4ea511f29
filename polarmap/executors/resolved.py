"""What an argument `executor=` means once it is resolved: one object that answers every later question."""

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
    """The executor of a job, and everything that the rest of the package asks about it.

    `resolve_executor` returns one for each argument `executor=`. It is called where the call of a user enters
    the package, and no other code looks at what the argument was.

    Attributes
    ----------
    worker_spec : WorkerSpec or None
        What each task is given and may cost; None if nothing is known.
    is_local : bool
        Whether tasks share the cores of this machine, as far as is known.
    shares_memory : bool
        Whether tasks run on threads of this process, which see the objects of the caller.
    pickles_f : bool
        Whether workers get f as bytes. If not, they see what the caller does to f while a map runs.
    can_batch : bool
        Whether several short items may travel to a worker together.
    has_persistent_workers : bool
        Whether its workers stay from one map to the next. Then any number of tasks may be submitted at once,
        as those that no worker has started can be withdrawn.
    prefers_persistent_workers : bool
        Whether many maps in a row had better run on persistent workers, as each map would start its own.
    max_workers : int or None
        The number of tasks that run at a time; None if it is not known.
    faults : mapping from task index to Fault
        The faults that it injects.
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
        """The name in reports, which may change when workers have connected."""

    @property
    def workers_by_host(self) -> dict[str, int]:
        """The number of workers on each machine, by host name; empty if it is not known."""
        return {}

    @abstractmethod
    def open(self, job_spec: JobSpec) -> Session:
        """Return a session for the tasks of one job. Nothing is started yet."""

    def choose_for(self, data: Any) -> ResolvedExecutor:
        """Return the executor for a map of `data`.

        The default executor gives way to the one that stored data name, whose workers can read them.
        """
        return self

    def suggest_n_blocks(self, max_blocks: int) -> int:
        """Return the number of blocks of equal size into which to cut a matrix, at most `max_blocks`."""
        return max_blocks

    def choose_storage(self, data: Any) -> Any:
        """Return the storage from which workers can read `data` for many maps, as `encode` takes it.

        None means that blocks travel with each task, or stay with the workers.
        """
        return None

    def partition(self, data: Any, n_blocks: int | None) -> PartitionedData | None:
        """Partition data that is on the cluster of this executor into blocks; return None for other data.

        With `n_blocks` None there are about as many blocks as the data has chunks.
        """
        return None

    def with_persistent_workers(
        self, max_workers: int | None = None
    ) -> tuple[ResolvedExecutor, Callable[[], None]]:
        """Return an executor with persistent workers in the same place, and a function that ends them.

        An executor that manages workers of its own is returned as it is. Raises ExecutorError if
        `max_workers` is given for such an executor.
        """
        if max_workers is not None:
            raise ExecutorError(f"executor={self.name} has workers of its own: leave workers= out")
        return self, lambda: None


class ExecutorHandle(ABC):
    """An object of this package that users make and pass as `executor=`."""

    @abstractmethod
    def resolve(self) -> ResolvedExecutor:
        """Return the executor that it stands for."""


class DelegatingExecutor(ResolvedExecutor):
    """An executor that answers every question as another one does."""

    def __init__(self, executor: ResolvedExecutor) -> None:
        self._executor = executor
        self.worker_spec, self.max_workers, self.faults = (
            executor.worker_spec,
            executor.max_workers,
            executor.faults,
        )
        self.is_local, self.shares_memory, self.pickles_f = (
            executor.is_local,
            executor.shares_memory,
            executor.pickles_f,
        )
        self.can_batch, self.has_persistent_workers, self.prefers_persistent_workers = (
            executor.can_batch,
            executor.has_persistent_workers,
            executor.prefers_persistent_workers,
        )

    @property
    def name(self) -> str:
        """The name of the other executor."""
        return self._executor.name

    @property
    def workers_by_host(self) -> dict[str, int]:
        """The number of workers on each machine, by host name; empty if it is not known."""
        return self._executor.workers_by_host

    def open(self, job_spec: JobSpec) -> Session:
        """Return a session of the other executor."""
        return self._executor.open(job_spec)

    def suggest_n_blocks(self, max_blocks: int) -> int:
        """Return the number of blocks that the other executor suggests."""
        return self._executor.suggest_n_blocks(max_blocks)

    def choose_storage(self, data: Any) -> Any:
        """Return the storage that the other executor chooses."""
        return self._executor.choose_storage(data)

    def partition(self, data: Any, n_blocks: int | None) -> PartitionedData | None:
        """Partition data that is on the cluster of the other executor; return None for other data."""
        return self._executor.partition(data, n_blocks)


class CustomExecutor(ResolvedExecutor):
    """An executor of the user's own class, which need not know more than how to open a session.

    Parameters
    ----------
    executor : MapExecutor
        It may also have the attributes `is_local` and `workers_by_host`.
    """

    pickles_f = False

    def __init__(self, executor: MapExecutor) -> None:
        self._executor = executor
        self.worker_spec, self.is_local = executor.worker_spec, bool(getattr(executor, "is_local", False))

    @property
    def name(self) -> str:
        """The name that the executor has now."""
        return self._executor.name

    @property
    def workers_by_host(self) -> dict[str, int]:
        """The number of workers on each machine, by host name; empty if the executor does not say."""
        return dict(getattr(self._executor, "workers_by_host", {}))

    def open(self, job_spec: JobSpec) -> Session:
        """Return a session of the executor."""
        return self._executor.open(job_spec)
