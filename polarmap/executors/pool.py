"""`Pool`, an executor whose workers persist from map to map, and the default executor.

    with polarmap.Pool(workers=8) as pool:
        coded_map(f, A, blocks=6, executor=pool)  # starts up to 8 workers and sends them the blocks
        coded_map(g, A, blocks=6, executor=pool)  # reuses the workers, which have the blocks cached

A `Pool` validates its options, recognizes the `executor` argument, and passes both to a `PersistentExecutor`,
which owns a `WorkerPool` and opens a `PoolSession` for each map. Maps without `executor=` use the
`DefaultExecutor`, a pool of processes on this machine.
"""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from polarmap.dtypes import is_integer
from polarmap.errors import CodeError, ExecutorError, trimmed_tracebacks
from polarmap.executors.interface import JobSpec, Session
from polarmap.executors.local_workers import CAN_FORK
from polarmap.executors.persistent_executor import (
    DEFAULT_BLOCK_CACHE_BYTES,
    DEFAULT_FETCH_TIMEOUT,
    PersistentExecutor,
    PoolOptions,
    WorkerHost,
)
from polarmap.executors.resolved import ExecutorHandle, ResolvedExecutor
from polarmap.validation import check_positive_int, is_positive_number
from polarmap.worker.handshake import Endpoint
from polarmap.worker.socket_channel import TCP_TIMEOUT

if TYPE_CHECKING:
    from polarmap.live.snapshots import ProgramSnapshot


class Pool(ExecutorHandle):
    """An executor whose workers persist from one map to the next.

    The first map starts the workers. Later maps reuse them, together with the blocks that they have cached.
    All maps without `executor` share one default pool. Create your own pool to run workers elsewhere or to
    change the options.

    Parameters
    ----------
    executor : None, "localhost", path, lithops.FunctionExecutor, Dask client or ray
        Where the workers run. None: processes on this machine. "localhost", a Lithops configuration or a
        Lithops executor: Lithops functions, which are billed for as long as they run. A Dask client, or its
        `get_executor()` with options: threads on its cluster. `ray`, `ray.remote(...)` with options, or
        "ray://host:port": Ray actors.
    workers : int, optional
        The maximum number of concurrent tasks. Defaults to as many as keep this machine's cores busy. On a
        cluster or cloud, defaults to the number of tasks of the map or threads of the cluster.
    idle_timeout : float
        The workers exit after this many seconds without a map. The next map starts new workers.
    memory_limit : int
        The number of bytes that cached blocks may take between maps. On this machine, this is the total for
        all workers, and further blocks are stored on disk. Elsewhere, it applies to each worker, and at most
        half of a worker's memory is used.
    threads_per_worker : int
        The number of threads that each worker may use for linear algebra. With more than one, workers on the
        same machine may compete for its cores.
    listen : bool or "host:port"
        True: workers connect to this process by TCP (over 127.0.0.1 on this machine), and both sides prove
        that they have a secret key. An address: workers connect to it, for example a tunnel to the same port
        of this machine. False: messages travel through the storage of the Lithops configuration, and maps on
        Dask and Ray run as tasks of the engine. Lithops workers that cannot connect also use the storage.
    fork : bool, optional
        True: fork worker processes on this machine, which takes milliseconds. False: start a new interpreter
        for each worker. None: fork where it is safe, i.e. on Linux.
    tcp_timeout : float
        A remote worker counts as lost after this many seconds of silence, and exits within the same time.
        Pass a larger value if your network has longer outages.
    fetch_timeout : float
        The time limit in seconds for reading a block from a bucket, or from a store class of your own, which
        this process reads for the workers. A block that takes longer counts as lost. The map continues
        without the block if it can. Otherwise, it raises an error that names the block and the store.
    dashboard : bool
        True: show the maps of this program in a browser, on a page of this machine, until the pool is closed.
        The URL is printed to standard error. This needs the extra `live`.

    Attributes
    ----------
    worker_spec : Worker or None
        The memory, cores, time limit and price of each worker; None if they are unknown.
    is_local : bool
        True if the workers are processes on this machine.
    dashboard_url : str or None
        The URL of the dashboard. None without one, or after the pool was closed.

    Raises
    ------
    CodeError
        If an option is invalid.
    ImportError
        If `dashboard` is True and a library is missing. The message says how to install it.
    ExecutorError
        If the executor does not support persistent workers.

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
        fetch_timeout: float = DEFAULT_FETCH_TIMEOUT,
        dashboard: bool = False,
    ) -> None:
        with trimmed_tracebacks:
            counts = {"workers": 1 if workers is None else workers, "threads_per_worker": threads_per_worker}
            for argument_name, n in counts.items():
                check_positive_int(argument_name, n)
            for argument_name, value in {
                "idle_timeout": idle_timeout,
                "memory_limit": memory_limit,
                "tcp_timeout": tcp_timeout,
                "fetch_timeout": fetch_timeout,
            }.items():
                if not is_positive_number(value):
                    raise CodeError(f"{argument_name} must be a number above 0, not {value!r:.100}")
            if not isinstance(listen, (bool, str)):
                raise CodeError(f"listen must be True, False, or 'host:port', not {listen!r:.100}")
            listen_endpoint: bool | Endpoint = listen is True
            if isinstance(listen, str):
                from polarmap.executors.worker_listener import check_endpoint

                listen_endpoint = check_endpoint(listen)
            if fork not in (None, False, True) or (fork and not hasattr(os, "fork")):
                raise CodeError(
                    f"fork must be None, False, or True (where the system can fork), not {fork!r:.100}"
                )
            if not isinstance(dashboard, (bool, np.bool_)):
                raise CodeError(f"dashboard must be True or False, not {dashboard!r:.100}")
            limits = float(idle_timeout), int(memory_limit), threads_per_worker
            uses_fork = CAN_FORK if fork is None else fork
            timeouts = float(tcp_timeout), float(fetch_timeout)
            options = PoolOptions(*limits, listen_endpoint, uses_fork, *timeouts)
            host = None if executor is None else _resolve_worker_host(executor)
            self._executor = PersistentExecutor(host, workers, options)
            self.executor, self.workers = executor, workers
            self.worker_spec, self.is_local = self._executor.worker_spec, self._executor.is_local
            self.dashboard_url: str | None = None
            self._close_dashboard: Callable[[], object] = lambda: None
            if dashboard:
                self._open_dashboard()

    def _open_dashboard(self) -> None:
        from polarmap.live.activation import start_dashboard, stop_dashboard

        server = start_dashboard()
        self.dashboard_url = server.url
        self._close_dashboard = weakref.finalize(self, stop_dashboard, server)
        print(f"polarmap: the dashboard of this program is at {server.url}", file=sys.stderr)

    def resolve(self) -> ResolvedExecutor:
        """Return the `ResolvedExecutor` that runs this pool's maps.

        `ResolvedExecutor` is the base class of all executors within the package.
        """
        return self._executor

    @property
    def name(self) -> str:
        """The name of the pool in reports, such as "persistent workers on Ray (TCP)".

        The name says where the workers run. Once a remote worker has connected, it also says how messages are
        sent to the worker, i.e. by TCP or as objects in storage.
        """
        return self._executor.name

    @property
    def workers_by_host(self) -> dict[str, int]:
        """The number of workers on each machine, by host name. Empty for processes on this machine."""
        return self._executor.workers_by_host

    def __repr__(self) -> str:
        return repr(self._executor)

    def _ipython_display_(self) -> None:
        """Display the workers in a notebook, and update them until the pool is closed.

        The maps of this program are displayed, too, if a live view is active, for example a dashboard.
        """
        from polarmap.live import activation
        from polarmap.live.hub import make_program_snapshot
        from polarmap.live.views import display_in_notebook

        # Use a weak reference, so that a pool that is no longer used is closed although it is displayed.
        reference = weakref.ref(self._executor)

        def has_ended() -> bool:
            executor = reference()
            return executor is None or executor.is_closed

        def take_snapshot(is_final: bool) -> ProgramSnapshot:
            executor, hub = reference(), activation.active_hub
            workers = [] if executor is None else executor.list_worker_snapshots()
            maps = () if hub is None else hub.take_snapshot(is_final).maps
            return make_program_snapshot(maps, workers)

        display_in_notebook(self, take_snapshot, has_ended)

    def open(self, job_spec: JobSpec) -> Session:
        """Open a session that runs the tasks of a job, i.e. of one call of a map function.

        Raises CodeError if the job's function cannot be pickled, and ExecutorError if the workers cannot
        access the job's storage.
        """
        return self._executor.open(job_spec)

    def stop_workers(self) -> None:
        """Stop the workers and discard all cached blocks. The next map starts new workers."""
        self._executor.stop_workers()

    def close(self) -> None:
        """Stop the workers and the dashboard, and refuse further maps. Safe to call twice."""
        self._executor.close()
        self._close_dashboard()
        self.dashboard_url = None

    def after_fork(self) -> None:
        """Forget the workers in a forked child process. They belong to the parent process."""
        self._executor.after_fork()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class DefaultExecutor(PersistentExecutor):
    """The executor of all maps without `executor=`: a pool of processes on this machine."""

    def __init__(self) -> None:
        super().__init__(None, None, PoolOptions())

    def choose_for(self, data: Any) -> ResolvedExecutor:
        """Return the executor for a map over `data`.

        If `data` is a stored array whose storage belongs to an executor, return the executor of the storage.
        Otherwise, return this executor.
        """
        stored_executor = getattr(data, "executor", None) if hasattr(data, "coded_blocks") else None
        return self if stored_executor is None else _recognize_executor(stored_executor)

    def with_persistent_workers(
        self, max_workers: int | None = None
    ) -> tuple[ResolvedExecutor, Callable[[], None]]:
        """Return an executor with persistent workers, and a function that closes it.

        With `max_workers`, this is a new pool of at most that many processes. Without it, this executor is
        returned, and the function does nothing.
        """
        if max_workers is None:
            return super().with_persistent_workers()
        executor = PersistentExecutor(None, max_workers, PoolOptions())
        return executor, executor.close


def _resolve_worker_host(executor: Any) -> WorkerHost:
    """Convert the `executor` argument of a pool to an executor that can start persistent workers.

    Raises ExecutorError if the executor does not support persistent workers.
    """
    if is_integer(executor):
        raise ExecutorError(
            f"executor={executor} is a number, not an executor: for {executor} workers, use "
            f"Pool(workers={executor})"
        )
    host = _recognize_executor(executor)
    if not isinstance(host, WorkerHost):
        raise ExecutorError(
            f"a Pool cannot start persistent workers on {executor!r:.200}: pass it as executor= of the map"
        )
    return host


def _recognize_executor(executor: Any) -> ResolvedExecutor:
    """Convert an `executor=` argument, such as a path or a Dask client, to a `ResolvedExecutor`.

    The module `recognition` is imported inside this function, because the default pool does not need it.
    """
    from polarmap.executors.recognition import recognize_executor

    return recognize_executor(executor)


def shutdown() -> None:
    """Stop the worker processes of the default executor, which runs all maps without `executor=`.

    Without this call, the workers exit after a minute without a map. The next map starts new workers.
    """
    default_executor.stop_workers()


default_executor = DefaultExecutor()
