"""Any concurrent.futures.Executor: stdlib pools, dask.distributed, mpi4py."""

from __future__ import annotations

import queue
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from functools import partial
from typing import Any

from polarmap.errors import ExecutorError
from polarmap.executors.base import Array, Coded, Function, Outcome, check_folder, lost, outcome_of, pickled
from polarmap.executors.poolworker import Deferred, Wanted, run_in_pool
from polarmap.stored import DamagedError, Keep
from polarmap.tree import unflatten
from polarmap.worker import Fault, Reply

GOODBYE_SECONDS = 1.0  # given to running tasks to notice that they are abandoned


class FuturesExecutor:
    """Tasks as futures of a pool that belongs to the caller, and stays usable afterwards.

    A thread pool gets f and the blocks themselves; any other pool gets them pickled. Stragglers
    are left when an event is set or a folder is gone: on another machine, which cannot see the
    folder, an abandoned task runs to its end and then ends unheard.
    """

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._shares_memory = isinstance(pool, ThreadPoolExecutor)
        self.name = type(pool).__name__
        self.keep: Keep | None = None
        self._ended: queue.SimpleQueue[tuple[int, int, Future[Any]]] = queue.SimpleQueue()
        self._futures: list[Future[Any]] = []
        self._pending: dict[int, Future[Any]] = {}
        self._began: dict[int, float] = {}
        # Of other pools nobody knows when a task begins: they are taken to have room.
        self._tells = isinstance(pool, (ThreadPoolExecutor, ProcessPoolExecutor))
        self._folder: str | None = None
        self._event = threading.Event()

    def now(self) -> float:
        """The monotonic clock."""
        return time.monotonic()

    def start(
        self, f: Function, coded: Coded, faults: Mapping[int, Fault], tasks: Sequence[int] | None = None
    ) -> None:
        """Submit them, data first."""
        check_folder(self.keep and self.keep.source)
        self._coded, self._faults = coded, faults
        self._attempts = [0] * coded.n
        if self._shares_memory:
            self._f: Function | bytes = f
            self._cancelled: threading.Event | Wanted = self._event
        else:
            self._f = pickled(f, self.name)
            self._folder = tempfile.mkdtemp(prefix="polarmap-")
            self._cancelled = Wanted.mark(self._folder)
        self.launch(range(coded.n) if tasks is None else tasks)

    def launch(self, tasks: Sequence[int]) -> None:
        """Submit further tasks."""
        for task in tasks:
            self._submit(task)

    def began(self) -> Mapping[int, float]:
        """When each running task was first seen to run."""
        for task, future in self._pending.items():
            if not self._tells or future.running():
                self._began.setdefault(task, time.monotonic())
        return {task: self._began[task] for task in self._pending if task in self._began}

    def wait(self, timeout: float) -> list[Outcome]:
        """Whatever futures are done."""
        outcomes = []
        try:
            outcomes.append(self._outcome(*self._ended.get(timeout=timeout)))
            while True:
                outcomes.append(self._outcome(*self._ended.get_nowait()))
        except queue.Empty:
            return [outcome for outcome in outcomes if outcome is not None]

    def retry(self, tasks: Sequence[int]) -> None:
        """Submit them again."""
        for task in tasks:
            self._attempts[task] += 1
            self._submit(task)

    def stop(self) -> None:
        """Cancel what is queued, leave what runs."""
        self._event.set()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
        for future in self._futures:
            future.cancel()
        wait_for(self._futures, GOODBYE_SECONDS)
        self._futures = []

    def _submit(self, task: int) -> None:
        attempt = self._attempts[task]
        try:
            block = self._block(task)
            future = self._pool.submit(
                run_in_pool, self._f, block, self._faults.get(task), task, attempt, self._cancelled, self.keep
            )
        except Exception as error:  # shut down, or broken by a worker that died; a damaged block
            if not self._futures and not isinstance(error, DamagedError):
                raise ExecutorError(f"{self.name} accepts no tasks: {error}") from error
            future = Future()
            future.set_exception(error)
        self._futures.append(future)
        self._pending[task] = future
        self._began.pop(task, None)
        future.add_done_callback(lambda done: self._ended.put((task, attempt, done)))

    def _block(self, task: int) -> Any:
        """The block itself, or a stored one for the worker to read where it can."""
        coded = self._coded
        if coded.source is not None and (self._shares_memory or coded.source.kind == "folder"):
            read = None if coded.source.kind == "folder" else partial(coded.piece, task)
            return Deferred(coded.source, coded.parts(task), coded.structure, coded.layout(task), read)
        leaves = [leaf for piece in coded.pieces(task) for leaf in coded.piece(piece)]
        return unflatten(coded.structure, [_frozen(leaf) for leaf in leaves])

    def _outcome(self, task: int, attempt: int, future: Future[Any]) -> Outcome | None:
        if self._pending.get(task) is future:
            del self._pending[task]
        if future.cancelled():
            return None
        error = future.exception()
        if error is not None:
            return lost(task, attempt, f"{type(error).__name__}: {error}")
        plain = future.result()
        return None if plain is None else outcome_of(Reply.parse(plain))


def _frozen(leaf: Array) -> Array:
    """A read-only view: f on a thread must not write into the caller's data."""
    view = leaf.view()
    view.flags.writeable = False
    return view
