"""Any concurrent.futures.Executor: stdlib pools, dask.distributed, mpi4py."""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

from polarmap.clouds.limits import Worker
from polarmap.clouds.prices import Stay
from polarmap.errors import ExecutorError
from polarmap.executors.base import (
    Attempt,
    Began,
    Event,
    Function,
    Outcome,
    Payload,
    block_of,
    check_folder,
    lost,
    read_only,
)
from polarmap.executors.block_store import stored_block
from polarmap.executors.encryption_keys import check_stays_here
from polarmap.executors.owned_folder import disk_folder, remove
from polarmap.executors.pickling import pickled
from polarmap.executors.process_files import MapFiles, process_files
from polarmap.executors.spare_processes import SpareProcesses, has_initializer
from polarmap.worker.block_cache import OnReadOnlyBlocks
from polarmap.worker.cores import available_cores
from polarmap.worker.io_pools import FolderLink, LazyBlock, ThreadLink, run_in_pool
from polarmap.worker.messages import Reply, StoredBlock, parsed_reply
from polarmap.worker.parts import DamagedError

LOOK_SECONDS = 0.02  # between looks for subtasks that other processes handed in
GOODBYE_SECONDS = 1.0  # given to running tasks to notice that they are abandoned

Ended = tuple[int, int, Future[Any]]  # task, attempt and what is done now


class FuturesExecutor:
    """Tasks as futures of a pool that belongs to the caller, and stays usable afterwards.

    A thread pool gets f and the blocks themselves; any other pool gets them pickled. Stragglers
    are left when an event is set or a folder is gone: on another machine, which cannot see the
    folder, an abandoned task runs to its end and then ends unheard.

    When a process of a ProcessPoolExecutor dies, Python fails all its tasks: they go on in processes of
    ours, as many and started alike, and only the task that kills its process again is lost. Tasks that
    a pool cancels, because it is shut down by somebody else, are lost, too.
    """

    worker: Worker | None = None

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self.name = type(pool).__name__

    def open(self, payload: Payload) -> FuturesRun:
        """Tasks of one map; CodeError for an f that does not travel to the pool's processes."""
        check_folder(payload.output and payload.output.source)
        return FuturesRun(self.name, self._pool, payload)


class FuturesRun:
    """The tasks of one map as futures of a pool.

    `reads_files`: its processes are on this machine, although they are not those of a ProcessPoolExecutor.
    """

    def __init__(self, name: str, pool: Any, payload: Payload, reads_files: bool = False) -> None:
        self._name, self._pool = name, pool
        self._payload = payload
        self._ended: queue.SimpleQueue[Ended | Reply | None] = queue.SimpleQueue()  # None: wake up
        self._futures: list[Future[Any]] = []
        self._pending: dict[Attempt, Future[Any]] = {}
        self._unbegun: dict[Attempt, Future[Any]] = {}
        # Of other pools nobody knows when a task begins: they are taken to have room.
        self._tells = isinstance(pool, (ThreadPoolExecutor, ProcessPoolExecutor))
        self._spares: SpareProcesses | None = None
        self._on_spares: set[Attempt] = set()  # that run there
        self._shares_memory = isinstance(pool, ThreadPoolExecutor)
        if self._shares_memory:
            self._payload = replace(payload, encryption=None)  # of what would travel
        elif not isinstance(pool, ProcessPoolExecutor):
            check_stays_here(payload.encryption, name)
        self._f = self._function()
        self._threads = threads_each(pool)
        self._files: MapFiles | None = None
        self._link: ThreadLink | FolderLink = ThreadLink(self._ended)
        is_ours = isinstance(pool, ProcessPoolExecutor)  # processes that this one has started
        if is_ours or reads_files:
            self._files = process_files.open()
        if not self._shares_memory:
            scratch = self._files.folder if is_ours and self._files is not None else ""
            self._link = FolderLink.to(str(disk_folder()), scratch)

    def now(self) -> float:
        """The monotonic clock."""
        return time.monotonic()

    def submit(self, attempts: Sequence[Attempt]) -> None:
        """Hand them to the pool."""
        for task, attempt in attempts:
            self._submit(task, attempt)

    def wait(self, timeout: float) -> list[Event]:
        """Whatever futures are done, and the subtasks that were handed in."""
        outcomes = self._waited(timeout)
        return [*self._begun(), *outcomes]

    def _begun(self) -> list[Event]:
        """The attempts that were seen to begin since the last time."""
        if isinstance(self._link, ThreadLink):
            began, self._link.began = self._link.began, {}
            return [Began(*attempt, when) for attempt, when in began.items()]
        seen = [key for key, future in self._unbegun.items() if not self._tells or future.running()]
        for key in seen:
            del self._unbegun[key]
        return [Began(*key, time.monotonic()) for key in seen]

    def _waited(self, timeout: float) -> list[Outcome]:
        """What has ended."""
        deadline = time.monotonic() + timeout
        link = self._link if self._payload.subtasks > 1 and isinstance(self._link, FolderLink) else None
        while True:
            ended = self._drained(timeout if link is None else min(timeout, LOOK_SECONDS))
            is_woken = None in ended
            outcomes = (
                [] if link is None else list(map(self._payload.partial_outcome, link.take()))
            )  # before the ends
            told = (self._outcome(one) for one in ended if one is not None)
            outcomes += [outcome for outcome in told if outcome is not None]
            if outcomes or link is None or is_woken or time.monotonic() >= deadline:
                return outcomes

    def wake(self) -> None:
        """Let something be in the queue that is waited for."""
        self._ended.put(None)

    def _drained(self, timeout: float) -> list[Ended | Reply | None]:
        """What has ended by now, or the first that ends within `timeout` seconds; None: it was woken."""
        ended = []
        with contextlib.suppress(queue.Empty):
            ended.append(self._ended.get(timeout=None if timeout == inf else timeout))
            while True:
                ended.append(self._ended.get_nowait())
        return ended

    def close(self) -> Stay | None:
        """Cancel what is queued, leave what runs."""
        if isinstance(self._link, ThreadLink):
            self._link.cancel()
        else:
            remove(Path(self._link.folder))
        for future in self._futures:
            future.cancel()
        if self._spares is not None:
            self._spares.stop()
        wait_for(self._futures, GOODBYE_SECONDS)
        if self._files is not None:
            self._files.close()
        self._futures = []
        self._pending.clear()
        return None

    def _submit(self, task: int, attempt: int) -> None:
        try:
            block, stored = self._block(task)
            ticket = self._payload.ticket(task, attempt, stored)
            if self._spares is not None:
                self._on_spares.add((task, attempt))
            pool = self._pool if self._spares is None else self._spares
            future = pool.submit(run_in_pool, self._f, block, ticket, self._link, self._threads)
        except Exception as error:  # shut down, or broken by a worker that died; a damaged block
            if not self._futures and not isinstance(error, DamagedError):
                raise ExecutorError(f"{self._name} accepts no tasks: {error}") from error
            future = Future()
            future.set_exception(error)
        self._futures.append(future)
        self._pending[task, attempt] = self._unbegun[task, attempt] = future
        future.add_done_callback(lambda done: self._ended.put((task, attempt, done)))

    def _function(self) -> Function | bytes:
        """f as the pool gets it."""
        if not self._shares_memory:
            return pickled(self._payload.f, self._name)
        source = self._payload.blocks.source
        is_kept = source is not None and source.kind == "folder"
        return OnReadOnlyBlocks(self._payload.f) if is_kept else self._payload.f

    def _block(self, task: int) -> tuple[Any, StoredBlock | None]:
        """The block itself, or a stored one for the worker to read where it can."""
        coded = self._payload.blocks
        if coded.source is not None and coded.source.kind == "folder":
            return None, stored_block(coded, task)._replace(structure=coded.structure)
        if coded.source is not None and self._shares_memory:
            return LazyBlock(partial(block_of, coded, task)), None
        stored = None
        if self._files is not None and coded.source is None:
            stored = self._files.block(coded, task, self._payload.encryption)
        if stored is not None:
            return None, stored
        return block_of(coded, task, read_only), None  # f on a thread must not write into the caller's data

    def _outcome(self, ended: Ended | Reply) -> Outcome | None:
        """What is told of a future that is done, or of the result of a subtask."""
        if isinstance(ended, Reply):
            return self._payload.partial_outcome(ended)
        task, attempt, future = ended
        if self._pending.get((task, attempt)) is future:
            del self._pending[task, attempt]
            self._unbegun.pop((task, attempt), None)
        if future.cancelled():
            return lost(task, attempt, f"{self._name} was shut down or cancelled the task before it began")
        error = future.exception()
        if isinstance(error, BrokenProcessPool) and self._is_moved(task, attempt):
            return None
        if error is not None:
            return lost(task, attempt, f"{type(error).__name__}: {error}{self._hint(error)}")
        sent = future.result()
        if sent is None:
            return lost(task, attempt, "it was told that nobody waits for it")
        return self._payload.outcome(sent if isinstance(sent, Reply) else parsed_reply(sent))

    def _hint(self, error: BaseException) -> str:
        """Python does not say which of its causes a broken process pool has."""
        may_be = isinstance(error, BrokenProcessPool) and has_initializer(self._pool)
        return " (or the initializer of the pool raised: see standard error)" * may_be

    def _is_moved(self, task: int, attempt: int) -> bool:
        """Whether an attempt that a broken pool failed goes on in a process of ours."""
        if (task, attempt) in self._on_spares or not isinstance(self._pool, ProcessPoolExecutor):
            return False
        if self._spares is None:
            self._spares = SpareProcesses(self._pool)
        self._submit(task, attempt)
        return True


def threads_each(pool: Any) -> int:
    """That each task may use for linear algebra: its share of the cores of this machine, where that is known.

    >>> with ThreadPoolExecutor(1000) as pool:
    ...     threads_each(pool)
    1
    """
    if isinstance(pool, (ThreadPoolExecutor, ProcessPoolExecutor)):
        inside: Any = pool
        return max(1, available_cores() // int(inside._max_workers))
    return 1
