"""Executors with workers that persist from map to map, and executors that can host such workers."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from polarmap.errors import ExecutorError
from polarmap.executors.block_store import BlockStore, MemoryMappedBlockStore
from polarmap.executors.encryption_keys import check_key_is_portable
from polarmap.executors.interface import JobSpec, Reach, Session
from polarmap.executors.local_workers import CAN_FORK, LocalWorkerPool
from polarmap.executors.pickling import pickle_function_with_buffers
from polarmap.executors.pool_session import PoolSession
from polarmap.executors.resolved import ResolvedExecutor
from polarmap.executors.temp_folders import (
    get_process_temp_folder,
    make_shared_memory_folder,
    make_temp_folder,
    remove_owned_folder,
)
from polarmap.executors.worker_pool import WorkerHandle, WorkerPool
from polarmap.live import activation
from polarmap.worker.environment import count_available_cores
from polarmap.worker.handshake import Endpoint
from polarmap.worker.processes import LIVENESS_INTERVAL
from polarmap.worker.socket_channel import TCP_TIMEOUT

if TYPE_CHECKING:
    from polarmap.executors.engine import PartitionedData
    from polarmap.executors.remote_workers import WorkerProvider
    from polarmap.live.snapshots import WorkerSnapshot

BLOCKS_PER_CORE = 3  # This keeps all cores busy. More blocks would only add overhead.
DEFAULT_FETCH_TIMEOUT = 300.0  # time limit in seconds for reading a block from a bucket or store
DEFAULT_BLOCK_CACHE_BYTES = 2**30  # bytes of memory that cached blocks may take between maps


class PoolOptions(NamedTuple):
    """The validated options of a `Pool`, with defaults filled in.

    Attributes
    ----------
    idle_timeout : float
        The workers exit after this many seconds without a map.
    block_cache_bytes : int
        The number of bytes that cached blocks may take between maps (option `memory_limit`).
    n_threads : int
        The number of linear algebra threads of each worker (option `threads_per_worker`).
    listen_endpoint : bool or Endpoint
        Whether workers connect by TCP, or the host and port to which they connect (option `listen`).
    uses_fork : bool
        True to fork local worker processes.
    tcp_timeout, fetch_timeout : float
        The options of the same names: time limits in seconds.
    """

    idle_timeout: float = 60.0
    block_cache_bytes: int = DEFAULT_BLOCK_CACHE_BYTES
    n_threads: int = 1
    listen_endpoint: bool | Endpoint = True
    uses_fork: bool = CAN_FORK
    tcp_timeout: float = TCP_TIMEOUT
    fetch_timeout: float = DEFAULT_FETCH_TIMEOUT


class WorkerHost(ResolvedExecutor):
    """An executor on which a `Pool` can start persistent workers.

    Attributes
    ----------
    needs_tcp : bool
        True if persistent workers can reach the driver only by TCP. A pool that does not listen for TCP
        connections then runs its tasks on this executor directly.
    """

    needs_tcp = False

    @abstractmethod
    def make_worker_provider(self) -> WorkerProvider:
        """Return a provider that starts persistent workers.

        Raises ExecutorError if none can be started now.
        """

    def with_persistent_workers(
        self, max_workers: int | None = None
    ) -> tuple[ResolvedExecutor, Callable[[], None]]:
        """Return an executor with up to `max_workers` persistent workers, and a function that stops them."""
        executor = PersistentExecutor(self, max_workers, PoolOptions())
        return executor, executor.close


class PersistentExecutor(ResolvedExecutor):
    """An executor whose workers persist: the first map starts them, and later maps reuse them.

    Parameters
    ----------
    host : WorkerHost or None
        The executor on which to start the workers, or None for processes on this machine.
    max_workers : int or None
        The maximum number of concurrent tasks; None means the default of `Pool`.
    options : PoolOptions
        The validated options of the pool.
    """

    has_persistent_workers = True

    def __init__(
        self,
        host: WorkerHost | None,
        max_workers: int | None,
        options: PoolOptions,
    ) -> None:
        self._host, self.max_workers = host, max_workers
        self._name = "processes here" if host is None else f"persistent workers on {host.name}"
        self.worker_spec = None if host is None else host.worker_spec
        self.is_local = self.can_batch = host is None
        uses_tasks = host is not None and host.needs_tcp and options.listen_endpoint is False
        self._task_executor = host if uses_tasks else None
        make_provider = None if host is None else host.make_worker_provider
        self._open_resources = partial(PoolResources, self._name, make_provider, max_workers, options)
        self._lock = threading.Lock()
        self._resources: PoolResources | None = None
        self._finalizer: Callable[[], object] = lambda: None  # Closes `_resources`. Further calls do nothing.
        self._is_closed = False
        _open_executors.add(self)

    @property
    def name(self) -> str:
        """The pool's name in reports: where workers run and, once connected, through which channel."""
        resources = self._resources
        if self._task_executor is not None:
            return self._task_executor.name
        channel_name = resources.worker_pool.latest_channel_name if resources else ""
        return f"{self._name} ({channel_name})" if channel_name else self._name

    @property
    def workers_by_host(self) -> dict[str, int]:
        """The number of workers on each machine, by host name. Empty for processes on this machine."""
        resources = self._resources
        return {} if resources is None else resources.worker_pool.count_workers_by_host()

    def list_worker_snapshots(self) -> list[WorkerSnapshot]:
        """Return the state of the workers, for a live view. Any thread may call this method."""
        resources, now = self._resources, time.monotonic()
        workers = [] if resources is None else resources.worker_pool.list_workers()
        return [_make_worker_snapshot(self.name, worker, now) for worker in workers]

    @property
    def is_closed(self) -> bool:
        """True if `close` has been called. A closed pool runs no more maps."""
        return self._is_closed

    @property
    def workers_share_cores(self) -> bool:
        """True if all workers run on this machine. For a cluster, this is checked when the workers start."""
        resources = self._resources
        return self.is_local or (resources is not None and resources.is_on_this_host)

    def __repr__(self) -> str:
        resources = self._resources
        if self._is_closed:
            state = "closed"
        elif resources is None or not len(resources.worker_pool):
            state = "no workers running"
        else:
            n_busy = resources.worker_pool.count_busy_workers()
            state = f"{len(resources.worker_pool)} workers running, {n_busy} busy"
        limit = "" if self.max_workers is None else f", at most {self.max_workers}"
        return f"<Pool: {self.name}, {state}{limit}>"

    def open(self, job_spec: JobSpec) -> Session:
        """Open a session for a job, i.e. one call of a map function.

        Raises CodeError if the job's function cannot be pickled, and ExecutorError if the workers cannot
        access the job's storage.
        """
        with self._lock:
            if self._is_closed:
                raise ExecutorError("this Pool is closed: create a new one")
            if self._task_executor is not None:
                return self._task_executor.open(job_spec)
            session = None if self._resources is None else self._resources.open_session(job_spec)
            if session is None:
                self._finalizer()  # Clean up after workers that exited while idle.
                self._resources = self._open_resources()  # may raise ExecutorError
                self._finalizer = weakref.finalize(self, self._resources.close)
                session = self._resources.open_session(job_spec)
            assert session is not None
            return session

    def stop_workers(self) -> None:
        """Stop the workers and discard all cached blocks. The next map starts new workers."""
        with self._lock:
            # From now on, a map on another thread may start new workers. They are not stopped by this call.
            self._resources, finalizer = None, self._finalizer
        finalizer()

    def close(self) -> None:
        """Stop the workers and refuse further maps. Safe to call twice."""
        self._is_closed = True
        self.stop_workers()

    def after_fork(self) -> None:
        """Forget the workers in a forked child process. They belong to the parent process."""
        self._lock = threading.Lock()
        resources, self._resources = self._resources, None
        if resources is not None:
            resources.worker_pool.after_fork()

    def suggest_n_blocks(self, max_blocks: int) -> int:
        """Return the number of equal blocks into which to split a matrix, at most `max_blocks`.

        On this machine, it is also at most BLOCKS_PER_CORE for each core.
        """
        return min(max_blocks, BLOCKS_PER_CORE * count_available_cores()) if self.is_local else max_blocks

    def choose_storage(self, data: Any) -> Any:
        """Return where to store `data` for the workers, or None if `data` need not be stored.

        None is returned for an array in memory, because persistent workers cache its blocks.
        """
        if _is_in_memory_array(data):
            return None
        return get_process_temp_folder() / "arrays" if self._host is None else self._host.choose_storage(data)

    def partition(self, data: Any, n_blocks: int | None) -> PartitionedData | None:
        """Partition data that is on the workers' cluster. Return None for any other data."""
        return None if self._host is None else self._host.partition(data, n_blocks)


class PoolResources:
    """Owns the workers, stored blocks and folders of a pool.

    They are created by the first map, and removed after `idle_timeout` seconds without a map.

    Parameters
    ----------
    pool_name : str
        The name of the pool in error messages.
    make_provider : callable or None
        Called with no arguments to create the provider that starts the workers. None: the workers are
        processes on this machine.
    max_workers, options
        As for `PersistentExecutor`.

    Attributes
    ----------
    is_on_this_host : bool
        True if the workers are local processes, or all known machines of their cluster are this machine.
    """

    def __init__(
        self,
        pool_name: str,
        make_provider: Callable[[], WorkerProvider] | None,
        max_workers: int | None,
        options: PoolOptions,
    ) -> None:
        self._pool_name, self._idle_timeout = pool_name, options.idle_timeout
        self._fetch_timeout = options.fetch_timeout
        block_cache_bytes, n_threads = options.block_cache_bytes, options.n_threads
        self._folders: list[Path] = []  # folders shared with workers on this machine
        self.worker_pool: WorkerPool
        self._block_store: BlockStore
        self._provider = provider = None if make_provider is None else make_provider()
        self.is_on_this_host = provider is None or provider.shares_host
        if provider is None:
            self._block_store = self._make_file_block_store(block_cache_bytes)
            folders = list(map(str, self._folders))
            self.worker_pool = LocalWorkerPool(n_threads, max_workers, folders, options.uses_fork)
        else:
            from polarmap.executors.remote_workers import RemoteWorkerPool

            self.worker_pool = RemoteWorkerPool(
                provider,
                max_workers,
                options.listen_endpoint,
                block_cache_bytes,
                n_threads,
                options.tcp_timeout,
                options.fetch_timeout,
            )
            try:
                if provider.shares_files or provider.shares_host:
                    n_sharing = 1 if provider.shares_files else max_workers or provider.max_workers or 1
                    self._block_store = self._make_file_block_store(block_cache_bytes * n_sharing)
                else:
                    self._block_store = provider.make_block_store()
                    self._block_store.max_removed_bytes = block_cache_bytes
            except BaseException:
                self.worker_pool.close()
                raise
        reach = Reach() if provider is None else provider.reach
        self._reach = reach._replace(can_ask_driver=True)
        # The lock is reentrant because a destructor may close the pool while this thread holds the lock.
        self._lock = threading.RLock()
        self._owner_pid = os.getpid()
        self._is_closed = threading.Event()
        threading.Thread(target=self._close_when_idle, name="polarmap-idle", daemon=True).start()

    def open_session(self, job_spec: JobSpec) -> PoolSession | None:
        """Open a session for a job. Return None if the workers have been stopped in the meantime."""
        is_remote = self._provider is not None
        self._reach.check_job_storage_access(job_spec)
        if is_remote:
            check_key_is_portable(job_spec, self._pool_name)
        by_value = self._provider is not None and not self._provider.imports_polarmap
        function_and_structure = job_spec.f, job_spec.blocks.structure
        pickled_function = pickle_function_with_buffers(function_and_structure, self._pool_name, by_value)
        module_sources: Mapping[str, tuple[str, bool]] = {}
        if self._provider is not None:
            module_sources = self._provider.collect_module_sources(pickled_function.pickle_bytes)
        with self._lock:
            if self._is_closed.is_set():
                return None
            return PoolSession(
                job_spec,
                pickled_function,
                module_sources,
                self.worker_pool,
                self._block_store,
                self._folders,
                self._provider is None or self._provider.shares_files,
                self._fetch_timeout,
            )

    def close(self) -> None:
        """Stop the workers and remove all files. Concurrent calls block until this is done."""
        if os.getpid() != self._owner_pid:
            return
        with self._lock:
            if not self._is_closed.is_set():
                self._is_closed.set()
                self.worker_pool.close()
                for folder in self._folders:
                    remove_owned_folder(folder)

    def _make_file_block_store(self, max_memory_bytes: int) -> BlockStore:
        """Create folders for blocks, and return a block store in them.

        Raises ExecutorError if that fails.
        """
        disk_folder, memory_folder = make_temp_folder(), make_shared_memory_folder()
        self._folders = [folder for folder in (memory_folder, disk_folder) if folder is not None]
        return MemoryMappedBlockStore(memory_folder, disk_folder, max_memory_bytes)

    def _close_when_idle(self) -> None:
        remaining_seconds = self._idle_timeout
        while not self._is_closed.wait(max(min(remaining_seconds, LIVENESS_INTERVAL), 0.01)):
            # Ignore errors, for example from a cloud, so that an idle pool can still close.
            with contextlib.suppress(Exception):
                self.worker_pool.maintain_workers()
            with self._lock:
                remaining_seconds = self._idle_timeout - self.worker_pool.get_idle_seconds()
                if remaining_seconds <= 0:
                    self.close()


def _is_in_memory_array(data: Any) -> bool:
    """Return True if data is an array in memory, as opposed to a view of a memory-mapped file."""
    base_array = data
    while isinstance(base_array, np.ndarray) and not isinstance(base_array, np.memmap):
        base_array = base_array.base
    return isinstance(data, np.ndarray) and not isinstance(base_array, np.memmap)


_open_executors: weakref.WeakSet[PersistentExecutor] = weakref.WeakSet()


def list_worker_snapshots() -> list[WorkerSnapshot]:
    """Return the state of the workers of all pools of this process, for a live view."""
    return [snapshot for executor in list(_open_executors) for snapshot in executor.list_worker_snapshots()]


def _make_worker_snapshot(pool_name: str, worker: WorkerHandle, now: float) -> WorkerSnapshot:
    from polarmap.live.snapshots import WorkerSnapshot  # imported only here, as few programs need it

    # Another thread may change the worker at any moment, so each attribute is read only once.
    allocation, assigned, state_since = worker.allocation, tuple(worker.assigned), worker.state_since
    state, job_name = "idle", ""
    if allocation is not None:
        state = "working" if allocation.closed_at is None else "abandoned"
        job_name = allocation.job_name
    return WorkerSnapshot(
        pool=pool_name,
        worker_id=worker.worker_id,
        pid=worker.pid,
        host=worker.host,
        state=state,
        task=assigned[0][0][1] if assigned and state != "idle" else None,
        state_seconds=round(max(0.0, now - state_since), 3) if state_since < inf else 0.0,
        job=job_name,
    )


activation.worker_sources.append(list_worker_snapshots)


def _reset_after_fork() -> None:
    """Make all pools forget their workers in a forked child process, where new maps start new ones."""
    for executor in list(_open_executors):
        with contextlib.suppress(Exception):
            executor.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
