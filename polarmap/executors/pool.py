"""Workers that stay from map to map: pools of one's own, and the one that is the default."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polarmap.clouds.limits import Worker
from polarmap.dtypes import is_integer
from polarmap.errors import CodeError, ExecutorError, without_our_frames
from polarmap.executors.base import MapExecutor, Payload, Run, check_reachable
from polarmap.executors.block_store import BlockStore, InFolders
from polarmap.executors.choices import is_for_lithops, is_of_dask, is_of_ray
from polarmap.executors.keys import check_may_leave
from polarmap.executors.owned_folder import disk_folder, memory_folder, remove
from polarmap.executors.pickling import pickled_with_buffers
from polarmap.executors.pool_run import PoolRun
from polarmap.executors.tcp import checked_endpoint
from polarmap.executors.worker_processes import FORKS, WorkerProcesses
from polarmap.executors.worker_table import WorkerTable
from polarmap.validation import check_positive_int, is_positive_number
from polarmap.worker.processes import LIVENESS_INTERVAL
from polarmap.worker.socket_channel import TCP_TIMEOUT, Endpoint

if TYPE_CHECKING:
    from polarmap.executors.remote_workers import Site

BLOCK_BYTES = 2**30  # that blocks in memory may take by default


class Pool:
    """Workers that stay from map to map: an executor for every verb.

    The first map starts them; later maps find them, and the blocks of data that they share. Maps without
    `executor` share one pool: make your own for other places and options.

    Parameters
    ----------
    executor : None, "localhost", path, lithops.FunctionExecutor, Dask client or ray
        None: processes of this machine. "localhost", a Lithops configuration or executor: functions of
        Lithops, which are paid as long as they stay. A Dask client, or its `get_executor()` with options:
        threads of its cluster. `ray`, `ray.remote(...)` with options, or "ray://host:port": actors.
    workers : int, optional
        Tasks at a time. By default here as many as keep the cores busy, elsewhere as many as a map has
        tasks, or the cluster threads.
    idle : float
        Seconds without a map after which the workers end; the next map starts others.
    memory : int
        Bytes that blocks may take between maps: here of memory, beyond which they lie on disk; elsewhere
        of each worker, of whose memory they take half at most.
    threads : int
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
    worker : Worker or None
        What each worker is given and may cost; None where nothing is known.
    is_here : bool
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
        idle: float = 60.0,
        memory: int = BLOCK_BYTES,
        threads: int = 1,
        listen: bool | str = True,
        fork: bool | None = None,
        tcp_timeout: float = TCP_TIMEOUT,
    ) -> None:
        with without_our_frames:
            for name, count in {"workers": 1 if workers is None else workers, "threads": threads}.items():
                check_positive_int(name, count)
            for name, number in {"idle": idle, "memory": memory, "tcp_timeout": tcp_timeout}.items():
                if not is_positive_number(number):
                    raise CodeError(f"{name} must be a number above 0, not {number!r:.100}")
            if not isinstance(listen, (bool, str)):
                raise CodeError(f"listen must be True, False, or 'host:port', not {listen!r:.100}")
            listens = checked_endpoint(listen) if isinstance(listen, str) else listen
            if fork not in (None, False, True) or (fork and not hasattr(os, "fork")):
                raise CodeError(
                    f"fork must be None, False, or True where processes can be, not {fork!r:.100}"
                )
            self._name, self.worker, new_site = _place(executor)
            self.executor, self.workers, self.is_here = executor, workers, executor is None
            forks, seconds = FORKS if fork is None else fork, float(tcp_timeout)
            options = float(idle), int(memory), threads, listens, forks, seconds
            self._start = partial(KeptWorkers, self._name, new_site, workers, *options)
            is_of_engine = is_of_dask(executor) or is_of_ray(executor)
            self._tasks = _executor_of_tasks(executor) if is_of_engine and listen is False else None
            self._lock = threading.Lock()
            self._kept: KeptWorkers | None = None
            self._end: Callable[[], object] = lambda: None  # what ends them, once
            self._is_closed = False
            _pools.add(self)

    @property
    def name(self) -> str:
        """Where the workers are, and over what they talk with this process, once that is known."""
        kept = self._kept
        if self._tasks is not None:
            return self._tasks.name
        return self._name + (f" ({kept.workers.channel})" if kept and kept.workers.channel else "")

    @property
    def workers_on(self) -> dict[str, int]:
        """The number of workers on each machine, by host name; empty for processes of this machine."""
        kept = self._kept
        return {} if kept is None else kept.workers.count_by_host()

    def __repr__(self) -> str:
        kept = self._kept
        if self._is_closed:
            state = "closed"
        elif kept is None or not len(kept.workers):
            state = "no workers running"
        else:
            state = f"{len(kept.workers)} workers running, {kept.workers.count_busy()} busy"
        most = "" if self.workers is None else f", at most {self.workers}"
        return f"<Pool: {self.name}, {state}{most}>"

    def open(self, payload: Payload) -> Run:
        """Tasks of one map; CodeError for an f that does not travel, ExecutorError for storage elsewhere."""
        with self._lock:
            if self._is_closed:
                raise ExecutorError("this Pool is closed: make a new one")
            if self._tasks is not None:
                return self._tasks.open(payload)
            run = None if self._kept is None else self._kept.open(payload)
            if run is None:
                self._end()  # lets go of those that have ended by themselves
                self._kept = self._start()  # ExecutorError if that is impossible
                self._end = weakref.finalize(self, self._kept.close)
                run = self._kept.open(payload)
            assert run is not None
            return run

    def end_workers(self) -> None:
        """End the workers and let go of all blocks; the next map starts others."""
        with self._lock:
            self._kept, end = None, self._end  # not that of workers which a map on another thread may start
        end()

    def close(self) -> None:
        """End the workers for good. Safe to call twice."""
        self._is_closed = True
        self.end_workers()

    def forget(self) -> None:
        """Let go of the workers, in a process that was forked of the one that has them."""
        self._lock = threading.Lock()
        kept, self._kept = self._kept, None
        if kept is not None:
            kept.workers.forget()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class KeptWorkers:
    """The workers, blocks and folders of a pool, from a map until it has been idle for long enough.

    Parameters
    ----------
    name : of the pool.
    new_site : what makes the place where they are started; None: they are processes of this machine.
    most, idle, memory, threads, listens, forks, tcp_timeout : as `Pool` was told.
    """

    def __init__(
        self,
        name: str,
        new_site: Callable[[], Site] | None,
        most: int | None,
        idle: float,
        memory: int,
        threads: int,
        listens: bool | Endpoint,
        forks: bool,
        tcp_timeout: float,
    ) -> None:
        self._name, self._idle = name, idle
        self._folders: list[Path] = []  # in which workers read and write, if they share files with us
        self.workers: WorkerTable
        self._blocks: BlockStore
        self._site = site = None if new_site is None else new_site()
        if site is None:
            self._blocks = self._in_folders(memory)
            self.workers = WorkerProcesses(threads, most, list(map(str, self._folders)), forks)
        else:
            from polarmap.executors.remote_workers import RemoteWorkers

            self.workers = RemoteWorkers(site, most, listens, memory, threads, tcp_timeout)
            try:
                if site.shares_files or site.is_near:
                    count = 1 if site.shares_files else most or site.workers or 1
                    self._blocks = self._in_folders(memory * count)
                else:
                    self._blocks = site.block_store()
            except BaseException:
                self.workers.close()
                raise
        self._lock = threading.RLock()  # a pool that nobody has any more may be closed at any moment
        self._owner = os.getpid()
        self._ended = threading.Event()
        threading.Thread(target=self._end_when_idle, name="polarmap-idle", daemon=True).start()

    def open(self, payload: Payload) -> PoolRun | None:
        """Tasks of one map; None if the workers have ended."""
        is_elsewhere = self._site is not None
        reach = self._site.reach if self._site is not None else ("", "")
        check_reachable(payload.blocks.source, "lies in", *reach)
        check_reachable(payload.output and payload.output.location, "is to stay in", *reach)
        if is_elsewhere:
            check_may_leave(payload, self._name)
        by_value = self._site is not None and not self._site.has_polarmap
        f = pickled_with_buffers((payload.f, payload.blocks.structure), self._name, by_value)
        modules = {} if self._site is None else self._site.modules(f.pickled)
        with self._lock:
            if self._ended.is_set():
                return None
            shares_files = self._site is None or self._site.shares_files
            folders = self._folders if shares_files else []
            return PoolRun(payload, f, modules, self.workers, self._blocks, folders)

    def close(self) -> None:
        """End the workers, remove all files; who comes second waits until that is done."""
        if os.getpid() != self._owner:
            return
        with self._lock:
            if not self._ended.is_set():
                self._ended.set()
                self.workers.close()
                for folder in self._folders:
                    remove(folder)

    def _in_folders(self, memory: int) -> BlockStore:
        """New folders for blocks; ExecutorError if there is no room for any."""
        on_disk, in_memory = disk_folder(), memory_folder()
        self._folders = [folder for folder in (in_memory, on_disk) if folder is not None]
        return InFolders(in_memory, on_disk, memory)

    def _end_when_idle(self) -> None:
        rest = self._idle
        while not self._ended.wait(max(min(rest, LIVENESS_INTERVAL), 0.01)):
            with contextlib.suppress(Exception):  # of a site, say: what is idle is to end all the same
                self.workers.tend()
            with self._lock:
                rest = self._idle - self.workers.idle_for()
                if rest <= 0:
                    self.close()


def _executor_of_tasks(choice: Any) -> MapExecutor:
    """What runs single maps by the tasks of an engine."""
    from polarmap.executors.futures import FuturesExecutor

    return FuturesExecutor(choice)


def _place(choice: Any) -> tuple[str, Worker | None, Callable[[], Site] | None]:
    """The name of a place for workers that stay, what each is given, and what makes the place.

    ExecutorError if none stay there.
    """
    if choice is None:
        return "processes here", None, None
    if is_for_lithops(choice):
        from polarmap.executors.lithops import LithopsExecutor, LithopsSite

        executor = LithopsExecutor(choice)
        return f"kept workers on {executor.name}", executor.worker, partial(LithopsSite, choice)
    if is_of_dask(choice):
        from polarmap.executors.dask import DaskSite

        return f"kept workers on {DaskSite.name}", None, partial(DaskSite, choice)
    if is_of_ray(choice):
        from polarmap.executors.ray import RaySite

        return f"kept workers on {RaySite.name}", None, partial(RaySite, choice)
    use = (
        f"for so many of them, Pool(workers={choice})"
        if is_integer(choice)
        else "pass it as executor= of the map"
    )
    raise ExecutorError(f"a Pool has no workers that stay on {choice!r:.200}: {use}")


_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


def shutdown() -> None:
    """End the workers of maps without an executor, which otherwise end when they have been idle for a minute.

    The next such map starts others.
    """
    default_pool.end_workers()


def _forget_all() -> None:
    """A process that was forked starts workers of its own."""
    for pool in list(_pools):
        with contextlib.suppress(Exception):
            pool.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)


default_pool = Pool()  # which all maps without an executor share
