"""Persistent workers: pools of one's own, and the one that is the default."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polarmap.clouds.limits import WorkerSpec
from polarmap.dtypes import is_integer
from polarmap.errors import CodeError, ExecutorError, trimmed_tracebacks
from polarmap.executors.block_store import BlockStore, MemoryMappedBlockStore
from polarmap.executors.encryption_keys import check_key_is_portable
from polarmap.executors.executor_specs import is_dask_client, is_lithops_spec, is_ray_spec
from polarmap.executors.interface import JobSpec, MapExecutor, Session, check_location_reachable
from polarmap.executors.local_workers import CAN_FORK, LocalWorkerPool
from polarmap.executors.pickling import pickle_function_with_buffers
from polarmap.executors.pool_session import PoolSession
from polarmap.executors.temp_folders import make_shared_memory_folder, make_temp_folder, remove_owned_folder
from polarmap.executors.worker_listener import check_endpoint
from polarmap.executors.worker_pool import WorkerPool
from polarmap.validation import check_positive_int, is_positive_number
from polarmap.worker.handshake import Endpoint
from polarmap.worker.processes import LIVENESS_INTERVAL
from polarmap.worker.socket_channel import TCP_TIMEOUT

if TYPE_CHECKING:
    from polarmap.executors.remote_workers import WorkerProvider

DEFAULT_BLOCK_CACHE_BYTES = 2**30  # that blocks in memory may take by default


class Pool:
    """Persistent workers: an executor for every verb.

    The first map starts them; later maps find them, and the blocks of data that they share. Maps without
    `executor` share one pool: make your own for other places and options.

    Parameters
    ----------
    executor : None, "localhost", path, lithops.FunctionExecutor, Dask client or ray
        None: processes of this machine. "localhost", a Lithops configuration or executor: functions of
        Lithops, which are paid as long as they stay. A Dask client, or its `get_executor()` with options:
        threads of its cluster. `ray`, `ray.remote(...)` with options, or "ray://host:port":
        actors.
    workers : int, optional
        Tasks at a time. By default here as many as keep the cores busy, elsewhere as many as a map has
        tasks, or the cluster threads.
    idle_timeout : float
        Seconds without a map after which the workers end; the next map starts others.
    memory_limit : int
        Bytes that blocks may take between maps: here of memory, beyond which they lie on disk; elsewhere
        of each worker, of whose memory they take half at most.
    threads_per_worker : int
        That each worker may use for linear algebra: with more than one, many workers of one machine take
        the cores from each other.
    listen : bool or "host:port"
        Whether workers may call this process by TCP (here at 127.0.0.1 only); both sides prove that they
        have a key. An address: where they call, such as a tunnel to the same port here. False: they talk
        through the storage of their configuration, as do those that cannot call; on Dask and Ray maps are
        tasks of the engine.
    fork : bool, optional
        Whether worker processes here are forked, in milliseconds, or new interpreters. None: forked where
        that is safe, on Linux.
    tcp_timeout : float
        Seconds after which a worker elsewhere is lost if its machine or network is silent. The worker ends
        within that time as well. Pass more for a network with longer outages.

    Attributes
    ----------
    worker_spec : Worker or None
        What each worker is given and may cost; None where nothing is known.
    is_local : bool
        Whether the workers are processes of this machine.

    Raises
    ------
    CodeError
        For an option that is none.
    ExecutorError
        For an executor that has no such workers.

    Examples
    --------
    >>> import numpy as np, polarmap
    >>> with polarmap.Pool(workers=2) as pool:
    ...     y = polarmap.coded_map(np.sum, np.arange(8.0), blocks=4, executor=pool)
    >>> [round(float(part), 9) for part in y]
    [1.0, 5.0, 9.0, 13.0]
    """

    def __init__(
        self,
        executor: Any = None,
        workers: int | None = None,
        *,
        idle_timeout: float = 60.0,
        memory_limit: int = DEFAULT_BLOCK_CACHE_BYTES,
        threads_per_worker: int = 1,
        listen: bool | str = True,
        fork: bool | None = None,
        tcp_timeout: float = TCP_TIMEOUT,
    ) -> None:
        with trimmed_tracebacks:
            counts = {"workers": 1 if workers is None else workers, "threads_per_worker": threads_per_worker}
            for argument_name, n in counts.items():
                check_positive_int(argument_name, n)
            for argument_name, value in {
                "idle_timeout": idle_timeout,
                "memory_limit": memory_limit,
                "tcp_timeout": tcp_timeout,
            }.items():
                if not is_positive_number(value):
                    raise CodeError(f"{argument_name} must be a number above 0, not {value!r:.100}")
            if not isinstance(listen, (bool, str)):
                raise CodeError(f"listen must be True, False, or 'host:port', not {listen!r:.100}")
            listen_endpoint = check_endpoint(listen) if isinstance(listen, str) else listen
            if fork not in (None, False, True) or (fork and not hasattr(os, "fork")):
                raise CodeError(
                    f"fork must be None, False, or True where processes can be, not {fork!r:.100}"
                )
            self._name, self.worker_spec, make_provider = _resolve_provider(executor)
            self.executor, self.workers, self.is_local = executor, workers, executor is None
            uses_fork, tcp_timeout_seconds = CAN_FORK if fork is None else fork, float(tcp_timeout)
            limits = float(idle_timeout), int(memory_limit), threads_per_worker
            options = *limits, listen_endpoint, uses_fork, tcp_timeout_seconds
            self._open_resources = partial(PoolResources, self._name, make_provider, workers, *options)
            is_on_cluster = is_dask_client(executor) or is_ray_spec(executor)
            uses_fallback = is_on_cluster and listen is False
            self._fallback_executor = _make_task_executor(executor) if uses_fallback else None
            self._lock = threading.Lock()
            self._resources: PoolResources | None = None
            self._finalizer: Callable[[], object] = lambda: None  # what ends them, once
            self._is_closed = False
            _open_pools.add(self)

    @property
    def name(self) -> str:
        """Where the workers are, and over what they talk with this process, once that is known."""
        resources = self._resources
        if self._fallback_executor is not None:
            return self._fallback_executor.name
        channel_name = resources.worker_pool.latest_channel_name if resources else ""
        return f"{self._name} ({channel_name})" if channel_name else self._name

    @property
    def workers_by_host(self) -> dict[str, int]:
        """The number of workers on each machine, by host name; empty for processes of this machine."""
        resources = self._resources
        return {} if resources is None else resources.worker_pool.count_workers_by_host()

    def __repr__(self) -> str:
        resources = self._resources
        if self._is_closed:
            state = "closed"
        elif resources is None or not len(resources.worker_pool):
            state = "no workers running"
        else:
            n_busy = resources.worker_pool.count_busy_workers()
            state = f"{len(resources.worker_pool)} workers running, {n_busy} busy"
        limit = "" if self.workers is None else f", at most {self.workers}"
        return f"<Pool: {self.name}, {state}{limit}>"

    def open(self, job_spec: JobSpec) -> Session:
        """Tasks of one map; CodeError for an f that does not travel, ExecutorError for storage elsewhere."""
        with self._lock:
            if self._is_closed:
                raise ExecutorError("this Pool is closed: make a new one")
            if self._fallback_executor is not None:
                return self._fallback_executor.open(job_spec)
            session = None if self._resources is None else self._resources.open_session(job_spec)
            if session is None:
                self._finalizer()  # lets go of those that have ended by themselves
                self._resources = self._open_resources()  # ExecutorError if that is impossible
                self._finalizer = weakref.finalize(self, self._resources.close)
                session = self._resources.open_session(job_spec)
            assert session is not None
            return session

    def stop_workers(self) -> None:
        """End the workers and let go of all blocks; the next map starts others."""
        with self._lock:
            self._resources = None
            finalizer = self._finalizer  # not that of workers which a map on another thread may start
        finalizer()

    def close(self) -> None:
        """End the workers for good. Safe to call twice."""
        self._is_closed = True
        self.stop_workers()

    def after_fork(self) -> None:
        """Let go of the workers, in a process that was forked of the one that has them."""
        self._lock = threading.Lock()
        resources, self._resources = self._resources, None
        if resources is not None:
            resources.worker_pool.after_fork()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class PoolResources:
    """The workers, blocks and folders of a pool, from a map until it has been idle for long enough.

    Parameters
    ----------
    pool_name : of the pool.
    make_provider : what makes the place where they are started; None: they are processes of this machine.
    max_workers, idle_timeout, block_cache_bytes, n_threads, listen_endpoint, uses_fork, tcp_timeout : as
        `Pool` was told.
    """

    def __init__(
        self,
        pool_name: str,
        make_provider: Callable[[], WorkerProvider] | None,
        max_workers: int | None,
        idle_timeout: float,
        block_cache_bytes: int,
        n_threads: int,
        listen_endpoint: bool | Endpoint,
        uses_fork: bool,
        tcp_timeout: float,
    ) -> None:
        self._pool_name, self._idle_timeout = pool_name, idle_timeout
        self._folders: list[Path] = []  # in which workers read and write, if they share files with us
        self.worker_pool: WorkerPool
        self._block_store: BlockStore
        self._provider = provider = None if make_provider is None else make_provider()
        if provider is None:
            self._block_store = self._make_file_block_store(block_cache_bytes)
            self.worker_pool = LocalWorkerPool(
                n_threads, max_workers, list(map(str, self._folders)), uses_fork
            )
        else:
            from polarmap.executors.remote_workers import RemoteWorkerPool

            self.worker_pool = RemoteWorkerPool(
                provider, max_workers, listen_endpoint, block_cache_bytes, n_threads, tcp_timeout
            )
            try:
                if provider.shares_files or provider.shares_host:
                    n_sharing = 1 if provider.shares_files else max_workers or provider.max_workers or 1
                    self._block_store = self._make_file_block_store(block_cache_bytes * n_sharing)
                else:
                    self._block_store = provider.make_block_store()
            except BaseException:
                self.worker_pool.close()
                raise
        self._lock = threading.RLock()  # a pool that nobody has any more may be closed at any moment
        self._owner_pid = os.getpid()
        self._is_closed = threading.Event()
        threading.Thread(target=self._close_when_idle, name="polarmap-idle", daemon=True).start()

    def open_session(self, job_spec: JobSpec) -> PoolSession | None:
        """Tasks of one map; None if the workers have ended."""
        is_remote = self._provider is not None
        backend_and_storage = self._provider.backend_and_storage if self._provider is not None else ("", "")
        check_location_reachable(job_spec.blocks.location, "lies in", *backend_and_storage)
        location = job_spec.output_spec and job_spec.output_spec.location
        check_location_reachable(location, "is to stay in", *backend_and_storage)
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
            shares_files = self._provider is None or self._provider.shares_files
            folders = self._folders if shares_files else []
            return PoolSession(
                job_spec, pickled_function, module_sources, self.worker_pool, self._block_store, folders
            )

    def close(self) -> None:
        """End the workers, remove all files; who comes second waits until that is done."""
        if os.getpid() != self._owner_pid:
            return
        with self._lock:
            if not self._is_closed.is_set():
                self._is_closed.set()
                self.worker_pool.close()
                for folder in self._folders:
                    remove_owned_folder(folder)

    def _make_file_block_store(self, max_memory_bytes: int) -> BlockStore:
        """New folders for blocks; ExecutorError if there is no room for any."""
        disk_folder, memory_folder = make_temp_folder(), make_shared_memory_folder()
        self._folders = [folder for folder in (memory_folder, disk_folder) if folder is not None]
        return MemoryMappedBlockStore(memory_folder, disk_folder, max_memory_bytes)

    def _close_when_idle(self) -> None:
        remaining_seconds = self._idle_timeout
        while not self._is_closed.wait(max(min(remaining_seconds, LIVENESS_INTERVAL), 0.01)):
            with contextlib.suppress(Exception):  # of a site, say: what is idle is to end all the same
                self.worker_pool.maintain_workers()
            with self._lock:
                remaining_seconds = self._idle_timeout - self.worker_pool.get_idle_seconds()
                if remaining_seconds <= 0:
                    self.close()


def _make_task_executor(executor_spec: Any) -> MapExecutor:
    """What runs single maps by the tasks of an engine."""
    from polarmap.executors.futures import FuturesExecutor

    return FuturesExecutor(executor_spec)


def _resolve_provider(
    executor_spec: Any,
) -> tuple[str, WorkerSpec | None, Callable[[], WorkerProvider] | None]:
    """The name of a place for persistent workers, what each is given, and what makes the place.

    ExecutorError if none stay there.
    """
    if executor_spec is None:
        return "processes here", None, None
    if is_lithops_spec(executor_spec):
        from polarmap.executors.lithops import LithopsExecutor, LithopsWorkerProvider

        executor = LithopsExecutor(executor_spec)
        name = f"persistent workers on {executor.name}"
        return name, executor.worker_spec, partial(LithopsWorkerProvider, executor_spec)
    if is_dask_client(executor_spec):
        from polarmap.executors.dask import DaskWorkerProvider

        name = f"persistent workers on {DaskWorkerProvider.name}"
        return name, None, partial(DaskWorkerProvider, executor_spec)
    if is_ray_spec(executor_spec):
        from polarmap.executors.ray import RayWorkerProvider

        name = f"persistent workers on {RayWorkerProvider.name}"
        return name, None, partial(RayWorkerProvider, executor_spec)
    advice = "pass it as executor= of the map"
    if is_integer(executor_spec):
        advice = f"for so many of them, Pool(workers={executor_spec})"
    raise ExecutorError(f"a Pool has no persistent workers on {executor_spec!r:.200}: {advice}")


_open_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


def shutdown() -> None:
    """End the workers of maps without an executor, which otherwise end when they have been idle for a minute.

    The next such map starts others.
    """
    default_pool.stop_workers()


def _reset_pools_after_fork() -> None:
    """A process that was forked starts workers of its own."""
    for pool in list(_open_pools):
        with contextlib.suppress(Exception):
            pool.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_pools_after_fork)


default_pool = Pool()  # which all maps without an executor share
