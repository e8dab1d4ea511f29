"""Workers of this machine that stay from map to map: pools of one's own, and the one that is the default."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import threading
import time
import weakref
from typing import Any

import numpy as np

from polarmap.clouds.limits import Worker
from polarmap.code.arguments import is_positive
from polarmap.errors import CodeError, ExecutorError
from polarmap.executors.base import Payload, check_folder
from polarmap.executors.block_files import BlockFiles
from polarmap.executors.fork_server_process import modules_named
from polarmap.executors.owned_folder import disk_folder, memory_folder
from polarmap.executors.pickling import pickled_with_types
from polarmap.executors.pool_run import PoolRun, Shared
from polarmap.executors.worker_processes import WorkerProcesses

IDLE_SECONDS = 60.0
BLOCK_BYTES = 2**30  # that blocks in memory may take by default


class Pool:
    """Worker processes of this machine that stay from map to map: an executor for every verb.

    The first map starts them, in some tenths of a second; a later one finds them, and the blocks of data
    that it shares with an earlier map. Maps without `executor` run on a pool that all of a process share,
    so that one of your own is for other options.

    Parameters
    ----------
    executor : None or "localhost"
        This machine.
    workers : int, optional
        Tasks at a time, at most; by default as many as keep the cores busy: tasks that wait for something
        let others start.
    idle : float
        Seconds without a map after which the workers end; the next map starts others.
    memory : int
        Bytes of memory that blocks may take between maps, beyond which they lie on disk.
    threads : int
        That each worker may use for linear algebra: with more than one, workers take the cores from each
        other unless they are few.

    Examples
    --------
    >>> import numpy as np, polarmap
    >>> with polarmap.Pool(workers=2) as pool:
    ...     y = polarmap.coded_map(np.sum, np.arange(8.0), blocks=4, executor=pool)
    >>> [round(float(part), 9) for part in y]
    [1.0, 5.0, 9.0, 13.0]
    """

    name = "workers here"
    worker: Worker | None = None

    def __init__(
        self,
        executor: Any = None,
        workers: int | None = None,
        *,
        idle: float = IDLE_SECONDS,
        memory: int = BLOCK_BYTES,
        threads: int = 1,
    ) -> None:
        if not (executor is None or (isinstance(executor, str) and executor == "localhost")):
            raise ExecutorError(
                f"a Pool has workers on this machine only, not on {executor!r:.200}: pass that itself as "
                "executor= of the map"
            )
        for name, count in {"workers": workers, "threads": threads}.items():
            if not (name == "workers" and count is None) and not _is_count(count):
                raise CodeError(f"{name} must be an integer of at least 1, not {count!r:.100}")
        for name, number in {"idle": idle, "memory": memory}.items():
            if not is_positive(number):
                raise CodeError(f"{name} must be a number above 0, not {number!r:.100}")
        self._options = threads, workers, int(memory), float(idle)
        self._lock = threading.Lock()
        self._kept: KeptWorkers | None = None
        self._is_closed = False
        _pools.add(self)

    def open(self, payload: Payload) -> PoolRun:
        """Tasks of one map; CodeError for an f that does not travel, ExecutorError for storage elsewhere."""
        check_folder(payload.blocks.source)
        check_folder(payload.output and payload.output.source)
        with self._lock:
            if self._is_closed:
                raise ExecutorError("this Pool is closed: make a new one")
            run = None if self._kept is None else self._kept.open(payload)
            if run is None:
                self._kept = KeptWorkers(*self._options)
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

    def __init__(self, threads: int, most: int | None, memory: int, idle: float) -> None:
        self._idle = idle
        in_memory, on_disk = memory_folder(), disk_folder()
        self._folders = [folder for folder in (in_memory, on_disk) if folder is not None]
        workers = WorkerProcesses(threads, most, [str(folder) for folder in self._folders])
        self._shared = Shared(workers, BlockFiles(in_memory, on_disk, memory), most, threads)
        self._lock = threading.Lock()
        self._owner = os.getpid()
        self._maps = 0  # that run now
        self._used = time.monotonic()
        self._ended = threading.Event()
        threading.Thread(target=self._end_when_idle, name="polarmap-idle", daemon=True).start()

    def open(self, payload: Payload) -> PoolRun | None:
        """Tasks of one map; None if the workers have ended."""
        f = pickled_with_types(payload.f, payload.blocks.structure, Pool.name)
        with self._lock:
            if self._ended.is_set():
                return None
            self._maps += 1
        try:
            self._shared.workers.start(modules_named(f.pickled))
            number = next(self._numbers)
            folders = [folder / f"map-{number}" for folder in self._folders]
            return PoolRun(number, payload, f, self._shared, folders, self._done)
        except BaseException:
            self._done()
            raise

    def close(self) -> None:
        """End the workers, remove all files."""
        if os.getpid() != self._owner or self._ended.is_set():
            return
        self._ended.set()
        self._shared.workers.close()
        for folder in self._folders:
            shutil.rmtree(folder, ignore_errors=True)

    def forget(self) -> None:
        """Let go of all, in a process that was forked of the one that has it."""
        self._shared.workers.forget()

    def _done(self) -> None:
        """A map has ended."""
        with self._lock:
            self._maps -= 1
            self._used = time.monotonic()

    def _end_when_idle(self) -> None:
        rest = self._idle
        while not self._ended.wait(max(rest, 0.01)):
            with self._lock:
                rest = self._idle if self._maps else self._used + self._idle - time.monotonic()
                if rest <= 0:
                    self.close()


_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


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
