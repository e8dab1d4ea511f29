"""`Pool`: an executor whose workers persist from map to map, and the executor that is the default."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Self

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


class Pool(ExecutorHandle):
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
    fetch_timeout : float
        Seconds that reading a block may take, from a bucket or from a store of your own, which this process
        reads for the workers. A block that takes longer is lost: the map goes on without it if it can, else
        its error names the block and the store.

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
        fetch_timeout: float = DEFAULT_FETCH_TIMEOUT,
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
                    f"fork must be None, False, or True where processes can be, not {fork!r:.100}"
                )
            limits = float(idle_timeout), int(memory_limit), threads_per_worker
            uses_fork = CAN_FORK if fork is None else fork
            timeouts = float(tcp_timeout), float(fetch_timeout)
            options = PoolOptions(*limits, listen_endpoint, uses_fork, *timeouts)
            host = None if executor is None else _resolve_host(executor)
            self._executor = PersistentExecutor(host, workers, options)
            self.executor, self.workers = executor, workers
            self.worker_spec, self.is_local = self._executor.worker_spec, self._executor.is_local

    def resolve(self) -> ResolvedExecutor:
        """Return the executor of the workers."""
        return self._executor

    @property
    def name(self) -> str:
        """Where the workers are, and by which channel they talk with this process once that is known."""
        return self._executor.name

    @property
    def workers_by_host(self) -> dict[str, int]:
        """The number of workers on each machine, by host name; empty for processes of this machine."""
        return self._executor.workers_by_host

    def __repr__(self) -> str:
        return repr(self._executor)

    def open(self, job_spec: JobSpec) -> Session:
        """Return a session for the tasks of one job.

        Raises CodeError if f cannot be pickled, and ExecutorError if the workers cannot reach its storage.
        """
        return self._executor.open(job_spec)

    def stop_workers(self) -> None:
        """End the workers and discard all blocks; the next map starts other workers."""
        self._executor.stop_workers()

    def close(self) -> None:
        """End the workers for good. Safe to call twice."""
        self._executor.close()

    def after_fork(self) -> None:
        """Forget the workers, in a process that was forked from the one that has them."""
        self._executor.after_fork()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class DefaultExecutor(PersistentExecutor):
    """The processes of this machine that run all maps without an executor."""

    def __init__(self) -> None:
        super().__init__(None, None, PoolOptions())

    def choose_for(self, data: Any) -> ResolvedExecutor:
        """Return this executor, or the one that stored data name: its workers can read their storage."""
        stored_executor = getattr(data, "executor", None) if hasattr(data, "coded_blocks") else None
        return self if stored_executor is None else _recognize_executor(stored_executor)

    def with_persistent_workers(
        self, max_workers: int | None = None
    ) -> tuple[ResolvedExecutor, Callable[[], None]]:
        """Return this executor, which stays open, or one of at most `max_workers` processes of its own."""
        if max_workers is None:
            return super().with_persistent_workers()
        executor = PersistentExecutor(None, max_workers, PoolOptions())
        return executor, executor.close


def _resolve_host(executor: Any) -> WorkerHost:
    """Return the executor on which the workers of a pool are started. Raises ExecutorError if none can be."""
    if is_integer(executor):
        raise ExecutorError(
            f"a Pool has no persistent workers on {executor}: for so many of them, Pool(workers={executor})"
        )
    host = _recognize_executor(executor)
    if not isinstance(host, WorkerHost):
        raise ExecutorError(
            f"a Pool has no persistent workers on {executor!r:.200}: pass it as executor= of the map"
        )
    return host


def _recognize_executor(executor: Any) -> ResolvedExecutor:
    """Return the executor that an argument means. The default pool needs no such import."""
    from polarmap.executors.recognition import recognize_executor

    return recognize_executor(executor)


def shutdown() -> None:
    """End the workers of maps without an executor, which otherwise end when they have been idle for a minute.

    The next such map starts others.
    """
    default_executor.stop_workers()


default_executor = DefaultExecutor()
