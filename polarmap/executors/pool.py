"""Workers that stay from map to map: pools of one's own, and the one that is the default."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from polarmap.clouds.limits import Worker, kept_bytes
from polarmap.code.arguments import is_positive
from polarmap.errors import CodeError, ExecutorError, without_our_frames
from polarmap.executors.base import Payload, check_folder
from polarmap.executors.block_store import BlockStore, InFolders, WithDriver
from polarmap.executors.choices import check_path, is_for_lithops, is_localhost, is_of_dask, is_path
from polarmap.executors.encryption_keys import check_stays_here
from polarmap.executors.owned_folder import disk_folder, memory_folder, private_folder, remove, restore
from polarmap.executors.pickling import pickled_with_buffers
from polarmap.executors.pool_run import PoolRun, Shared
from polarmap.executors.remote_workers import RemoteWorkers
from polarmap.executors.worker_processes import TEND_SECONDS, WorkerProcesses
from polarmap.worker.cores import available_cores
from polarmap.worker.parts import Place

IDLE_SECONDS = 60.0
BLOCK_BYTES = 2**30  # that blocks in memory may take by default
BLOCKS_PER_CORE = 3
TEND_ELSEWHERE_SECONDS = 1.0  # between looks after workers while no map runs


class PoolOptions(NamedTuple):
    """What a pool was asked for: see `Pool`."""

    workers: int | None
    idle: float
    memory: int
    threads: int
    listen: bool


class Pool:
    """Workers that stay from map to map: an executor for every verb.

    The first map starts them; a later one finds them, and the blocks of data that it shares with an earlier
    map. Maps without `executor` run on a pool that all of a process share, so that one of your own is for
    other places and options.

    Parameters
    ----------
    executor : None, "localhost", path, lithops.FunctionExecutor or Dask executor
        None: processes of this machine. "localhost", a Lithops configuration, or an executor that was made
        of one: functions of Lithops, which are paid as long as they stay. What `client.get_executor()` gives:
        threads of the workers of a Dask cluster. The executor itself stays free for others.
    workers : int, optional
        Tasks at a time, from the first moment. By default on this machine as many as keep the cores busy
        (tasks that wait for something let others start), elsewhere as many as a map has tasks, or the
        cluster threads. Maps of several threads share them.
    idle : float
        Seconds without a map after which the workers end; the next map starts others.
    memory : int
        Bytes that blocks may take between maps: here of memory, beyond which they lie on disk; elsewhere
        of each worker, of whose memory they take half at most.
    threads : int
        That each worker may use for linear algebra: with more than one, workers of one machine take
        the cores from each other unless they are few.
    listen : bool
        Whether workers elsewhere may call this process by TCP, those on this machine at 127.0.0.1 only; both
        sides prove that they have a key. False: they talk by way of the storage of their configuration, as do
        those that do not reach this process.

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
        idle: float = IDLE_SECONDS,
        memory: int = BLOCK_BYTES,
        threads: int = 1,
        listen: bool = True,
    ) -> None:
        with without_our_frames:
            for name, count in {"workers": workers, "threads": threads}.items():
                if not (name == "workers" and count is None) and not _is_count(count):
                    raise CodeError(f"{name} must be an integer of at least 1, not {count!r:.100}")
            for name, number in {"idle": idle, "memory": memory}.items():
                if not is_positive(number):
                    raise CodeError(f"{name} must be a number above 0, not {number!r:.100}")
            if not isinstance(listen, bool):
                raise CodeError(f"listen must be True or False, not {listen!r:.100}")
            self._place = _place(executor)
            self._options = PoolOptions(workers, float(idle), int(memory), threads, listen)
            self._lock = threading.Lock()
            self._kept: KeptWorkers | None = None
            self._is_closed = False
            _pools.add(self)

    @property
    def name(self) -> str:
        """Where the workers are, and over what they talk with this process, once that is known."""
        kept = self._kept
        return self._place.name if kept is None else self._place.name + kept.channel

    @property
    def worker(self) -> Worker | None:
        """What each worker is given and may cost; None where nothing is known."""
        return self._place.worker

    @property
    def workers(self) -> int | None:
        """Tasks at a time, at most, if it was told."""
        return self._options.workers

    @property
    def executor(self) -> Any:
        """What it was made of; None: processes of this machine."""
        return self._place.choice

    @property
    def is_here(self) -> bool:
        """Whether the workers are processes of this machine."""
        return isinstance(self._place, Here)

    def storage_of_arrays(self) -> Any:
        """Where workers find data that is not in memory, as `encode(storage=)` takes it; None if nowhere."""
        return self._place.storage_of_arrays()

    def open(self, payload: Payload) -> PoolRun:
        """Tasks of one map; CodeError for an f that does not travel, ExecutorError for storage elsewhere."""
        with self._lock:
            if self._is_closed:
                raise ExecutorError("this Pool is closed: make a new one")
            run = None if self._kept is None else self._kept.open(payload)
            if run is None:
                self._kept = KeptWorkers(self._place.start(self._options), self._options.idle)
                weakref.finalize(self, self._kept.close)
                run = self._kept.open(payload)
            assert run is not None
            return run

    def end_workers(self) -> None:
        """End the workers and let go of all blocks; the next map starts others."""
        with self._lock:
            kept, self._kept = self._kept, None
        if kept is not None:
            kept.close()

    def close(self) -> None:
        """End the workers for good. Safe to call twice."""
        self._is_closed = True
        self.end_workers()

    def forget(self) -> None:
        """Let go of the workers, in a process that was forked of the one that has them."""
        self._lock = threading.Lock()
        kept, self._kept = self._kept, None
        if kept is not None:
            kept.forget()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class KeptWorkers:
    """The workers, blocks and folders of a pool, from a map until it has been idle for long enough."""

    _numbers = itertools.count()

    def __init__(self, crew: Crew, idle: float) -> None:
        self._crew, self._idle = crew, idle
        self._lock = threading.Lock()
        self._owner = os.getpid()
        self._maps = set[int]()  # that run now
        self._used = time.monotonic()
        self._ended = threading.Event()
        threading.Thread(target=self._end_when_idle, name="polarmap-idle", daemon=True).start()

    @property
    def channel(self) -> str:
        """Over what workers elsewhere talk, in brackets; empty while none has called."""
        workers = self._crew.shared.workers
        return f" ({workers.channel})" if isinstance(workers, RemoteWorkers) and workers.channel else ""

    def open(self, payload: Payload) -> PoolRun | None:
        """Tasks of one map; None if the workers have ended."""
        crew = self._crew
        crew.check(payload.blocks.source, "lies in")
        crew.check(payload.output and payload.output.source, "is to stay in")
        if crew.is_elsewhere:
            check_stays_here(payload.encryption, crew.name)
        f = pickled_with_buffers((payload.f, payload.blocks.structure), crew.name, crew.is_elsewhere)
        with self._lock:
            if self._ended.is_set():
                return None
            number = next(self._numbers)
            self._maps.add(number)
        done = partial(self._done, number)
        try:
            for folder in crew.folders:
                restore(folder)
            folders = [folder / f"map-{number}" for folder in crew.shared_folders]
            return PoolRun(number, payload, f, crew.shared, folders, done)
        except BaseException:
            done()
            raise

    def close(self) -> None:
        """End the workers, remove all files."""
        if os.getpid() != self._owner or self._ended.is_set():
            return
        self._ended.set()
        self._crew.shared.workers.close()
        for folder in self._crew.folders:
            remove(folder)

    def forget(self) -> None:
        """Let go of all, in a process that was forked of the one that has it."""
        self._crew.shared.workers.forget()

    def _done(self, number: int) -> None:
        """A map has ended. Safe to call twice."""
        with self._lock:
            self._maps.discard(number)
            self._used = time.monotonic()

    def _end_when_idle(self) -> None:
        rest = self._idle
        while not self._ended.wait(max(min(rest, self._crew.tend_seconds), 0.01)):
            self._crew.shared.workers.tend()
            with self._lock:
                rest = self._idle if self._maps else self._used + self._idle - time.monotonic()
                if rest <= 0:
                    self.close()


class Crew(NamedTuple):
    """Workers in one place, with all that belongs to them.

    name : of the place.
    shared : with all maps.
    folders : of this process that end with the workers.
    shared_folders : those of them in which workers read and write; none if they are elsewhere.
    check : raises for storage that they cannot reach.
    tend_seconds : between looks after the workers while no map runs.
    """

    name: str
    shared: Shared
    folders: Sequence[Path]
    shared_folders: Sequence[Path]
    check: Callable[[Place | None, str], None]
    tend_seconds: float

    @property
    def is_elsewhere(self) -> bool:
        """Whether functions must travel with what they need."""
        return self.shared.threads is None


class Here:
    """Processes of this machine."""

    name = "workers here"
    worker: Worker | None = None
    choice = None

    def storage_of_arrays(self) -> Any:
        """A folder of this process."""
        return private_folder() / "arrays"

    def start(self, options: PoolOptions) -> Crew:
        """Be ready to start workers."""
        in_memory, on_disk = memory_folder(), disk_folder()
        folders = [folder for folder in (in_memory, on_disk) if folder is not None]
        workers = WorkerProcesses(options.threads, options.workers, [str(folder) for folder in folders])
        blocks = BlockStore(InFolders(in_memory, on_disk, options.memory))
        return Crew(
            self.name,
            Shared(workers, blocks, options.threads),
            folders,
            folders,
            lambda source, use: check_folder(source),
            TEND_SECONDS,
        )


class Elsewhere:
    """Functions of Lithops, or tasks of Dask."""

    def __init__(self, choice: Any) -> None:
        self.choice = choice
        self._is_lithops = is_for_lithops(choice)
        self.name, self.worker = self._known()

    def storage_of_arrays(self) -> Any:
        """The storage of the configuration; a folder of this process for "localhost"."""
        if is_localhost(self.choice):
            return private_folder() / "arrays"
        return self.choice if self._is_lithops else None

    def start(self, options: PoolOptions) -> Crew:
        """Open what starts workers; ExecutorError if that is impossible."""
        on_disk = disk_folder()
        try:
            site = self._site(on_disk)
            in_memory = None if site.folder is None else memory_folder()
            folders = [folder for folder in (in_memory, on_disk) if folder is not None]
            memory = options.memory if site.limits is None else min(options.memory, kept_bytes(site.limits))
            workers = RemoteWorkers(site, options.workers, options.listen, memory, options.threads)
        except BaseException:
            remove(on_disk)
            raise
        storing: WithDriver = InFolders(in_memory, on_disk, options.memory)
        if site.folder is None:
            from polarmap.executors.lithops_storage import InBucket

            storing = WithDriver(site.prefix) if site.storage is None else InBucket(site.storage, site.prefix)
        return Crew(
            self.name,
            Shared(workers, BlockStore(storing), None, site.modules),
            folders,
            folders if site.folder is not None else [],
            site.check_source,
            TEND_ELSEWHERE_SECONDS,
        )

    def _known(self) -> tuple[str, Worker | None]:
        """The name of the place, and what a worker is given there."""
        if self._is_lithops:
            from polarmap.executors.lithops import LithopsExecutor

            executor = LithopsExecutor(self.choice)
            return f"kept workers on {executor.name}", executor.worker
        return f"kept workers on {type(self.choice).__name__}", None

    def _site(self, folder: Path) -> Any:
        if self._is_lithops:
            from polarmap.executors.lithops_site import LithopsSite

            return LithopsSite(self.choice, folder)
        from polarmap.executors.dask_site import DaskSite

        return DaskSite(self.choice)


def _place(choice: Any) -> Here | Elsewhere:
    """Where a pool of this executor has its workers; ExecutorError if it can have none."""
    if choice is None:
        return Here()
    if is_path(choice):
        check_path(choice)
    if is_for_lithops(choice) or is_of_dask(choice):
        return Elsewhere(choice)
    hint = (
        "pass client.get_executor()" if hasattr(choice, "get_executor") else "pass it as executor= of the map"
    )
    raise ExecutorError(f"a Pool has no workers that stay on {choice!r:.200}: {hint}")


_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


def usual_blocks(choice: Any, most: int) -> int:
    """Into how many blocks of equal size a matrix is cut for an executor: `most`, fewer on this machine.

    There three for each core keep all of them busy, and more only cost.
    """
    return min(most, BLOCKS_PER_CORE * available_cores()) if shares_cores(choice) else most


def shares_cores(choice: Any) -> bool:
    """Whether the tasks of an executor are known to share the cores of this machine."""
    pool = _default if choice is None else choice
    return isinstance(pool, Pool) and pool.is_here


def default_pool() -> Pool:
    """The pool that all maps without an executor share."""
    return _default


def shutdown() -> None:
    """End the workers of maps without an executor, which otherwise end when they have been idle for a minute.

    The next such map starts others.
    """
    _default.end_workers()


def _forget_all() -> None:
    """A process that was forked starts workers of its own."""
    for pool in list(_pools):
        with contextlib.suppress(Exception):
            pool.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)


def _is_count(value: object) -> bool:
    is_integer = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    return is_integer and bool(value >= 1)  # type: ignore[operator]


_default = Pool()
