"""Calls that return, as futures: of any concurrent.futures.Executor, or of an engine (Dask, Ray)."""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

from polarmap.clouds.limits import Worker
from polarmap.errors import ExecutorError
from polarmap.executors.base import (
    Attempt,
    Began,
    Event,
    Function,
    Outcome,
    Payload,
    block_of,
    check_reachable,
    lost,
    read_only,
)
from polarmap.executors.block_store import stored_block
from polarmap.executors.choices import is_of_dask, is_of_ray
from polarmap.executors.dask import DaskCalls
from polarmap.executors.keys import check_may_leave
from polarmap.executors.owned_folder import disk_folder, remove
from polarmap.executors.pickling import pickled
from polarmap.executors.ray import RayCalls
from polarmap.executors.worker_table import GRACE_SECONDS
from polarmap.worker.block_cache import CopyOnWriteFunction
from polarmap.worker.environment import count_available_cores
from polarmap.worker.future_tasks import (
    FolderCancelToken,
    ThreadCancelToken,
    load_cached_block,
    run_task_in_future,
)
from polarmap.worker.processes import LIVENESS_INTERVAL
from polarmap.worker.segments import DamagedError

BROKEN = (
    "a process died, or its initializer raised, which takes all tasks of a ProcessPoolExecutor with it; "
    "leave executor= out: the default survives that"
)

Ended = tuple[Attempt, Future[Any]]


class FuturesExecutor:
    """Tasks as futures of a pool that belongs to the caller, and stays usable afterwards.

    A thread pool gets f and the blocks themselves; any other pool gets them pickled. Stragglers
    are left: threads are told, processes see that a folder is gone. On another machine, which cannot
    see the folder, an abandoned task runs to its end and then ends unheard. What the pool drops is lost.
    """

    worker: Worker | None = None

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self.is_here = isinstance(pool, (ThreadPoolExecutor, ProcessPoolExecutor))
        engine = engine_of(pool)
        self.name = engine.name if engine is not None else type(pool).__name__

    def open(self, payload: Payload) -> FuturesRun:
        """Tasks of one map; CodeError for an f that does not travel to the pool's processes."""
        check_reachable(payload.output and payload.output.location)
        return FuturesRun(self.name, self._pool, payload)


class FuturesRun:
    """The tasks of one map as futures of a pool."""

    now = staticmethod(time.monotonic)

    def __init__(self, name: str, pool: Any, payload: Payload) -> None:
        self._name, self._payload = name, payload
        engine = engine_of(pool)
        self._engine = None if engine is None else engine(pool)
        self._pool = pool if self._engine is None else self._engine
        self._told: queue.SimpleQueue[Ended | None] = queue.SimpleQueue()  # None: wake up
        self._pending: dict[Attempt, Future[Any]] = {}
        self._unbegun: dict[Attempt, Future[Any]] = {}  # that are not known to have begun
        self._has_seen_mark = False  # of an attempt that has begun
        self._assumed: set[Attempt] = set()  # of these, that are taken to have been handed to a worker
        self._accepts = False  # whether the pool has taken a task
        # Other pools do not tell when a worker gets a task: they are taken to have room.
        self._tells = isinstance(pool, (ThreadPoolExecutor, ProcessPoolExecutor))
        self._shares_memory = isinstance(pool, ThreadPoolExecutor)
        if self._shares_memory:
            self._payload = replace(payload, encryption=None)  # nothing of it travels
        elif not isinstance(pool, ProcessPoolExecutor):
            check_may_leave(payload, name)
        source = payload.blocks.source
        self._is_stored = source is not None and source.kind == "folder"  # where workers read blocks
        self._f = self._function()
        self._threads = threads_each(pool)
        self._folder = None if self._shares_memory else FolderCancelToken.from_folder(str(disk_folder()))
        self._links: dict[Attempt, ThreadCancelToken] = {}  # where there is no folder

    def submit(self, attempts: Sequence[Attempt]) -> None:
        """Hand them to the pool."""
        for attempt in attempts:
            future = self._pending[attempt] = self._unbegun[attempt] = self._future(*attempt)
            future.add_done_callback(partial(lambda *ended: self._told.put(ended), attempt))

    def wait(self, timeout: float) -> list[Event]:
        """Which attempts were seen to begin, and whose futures are done."""
        told = self._news(timeout if self._engine is None else min(timeout, LIVENESS_INTERVAL))
        if self._engine is not None and self._pending and (reason := self._engine.gone()):
            told = self._results_before_end(told, reason)
        return [*self._begun(), *map(self._outcome, told)]

    def _results_before_end(self, told: list[Ended], reason: str) -> list[Ended]:
        """Return those that ended with a result before the engine was gone; ExecutorError if none did."""
        results = [one for one in told if not (one[1].cancelled() or one[1].exception())]
        if not results:
            raise ExecutorError(f"{self._name} runs no tasks: {reason}")
        for one in told:
            if one not in results:
                self._told.put(one)
        return results

    def withdraw(self, attempts: Sequence[Attempt]) -> None:
        """Those that have begun are told, on threads and in processes that see their folder."""
        for attempt in attempts:
            if attempt in self._pending and not self._pending[attempt].cancel():
                self._link(*attempt).cancel()

    def wake(self) -> None:
        """Let something be in the queue that is waited for."""
        self._told.put(None)

    def stop(self) -> list[Began]:
        """Cancel what is queued, and return which attempts have begun since the last `wait`.

        Workers of an engine that have left no mark at all are on other machines, which cannot see the folder:
        what they were handed counts as begun.
        """
        began = self._begun(all_of_them=True)
        for attempt, future in self._unbegun.items():
            if not (future.cancel() and self._tells):  # an engine may start a task before it hears of that
                self._link(*attempt).cancel()
        began += self._begun(all_of_them=True)
        if not (self._tells or self._has_seen_mark):
            began += [Began(*attempt, time.monotonic()) for attempt in self._unbegun]
        return began

    def close(self) -> None:
        """Cancel what is queued, leave what runs, which lifts what limits this process's libraries."""
        for link in self._links.values():
            link.cancel()
        if self._folder is not None:
            remove(Path(self._folder.folder))
        wait_for([future for future in self._pending.values() if not future.cancel()], GRACE_SECONDS)
        self._pending.clear()

    def _future(self, task: int, attempt: int) -> Future[Any]:
        """Submit an attempt; ExecutorError if the pool takes not even the first."""
        try:
            call = self._f, self._block(task, attempt), self._payload.ticket(task, attempt)
            link = self._link(task, attempt)
            future: Future[Any] = self._pool.submit(run_task_in_future, *call, link, self._threads)
            self._accepts = True
        except Exception as error:  # shut down, or broken by a worker that died; no block
            if not (self._accepts or isinstance(error, (DamagedError, CancelledError))):
                raise ExecutorError(f"{self._name} accepts no tasks: {text_of(error)}") from error
            future = Future()
            future.set_exception(error)
        return future

    def _link(self, task: int, attempt: int) -> ThreadCancelToken | FolderCancelToken:
        """What an attempt shares with the driver."""
        if self._folder is not None:
            return self._folder._replace(attempt_name=f"{task}-{attempt}")
        return self._links.setdefault((task, attempt), ThreadCancelToken())

    def _begun(self, all_of_them: bool = False) -> list[Began]:
        """Return the attempts that have begun since the last time, or that an engine was handed.

        all_of_them : whether to look beyond the first attempt that waits for a worker of a pool. Pools take
            tasks in their order.
        """
        began, started = list[Began](), list[Attempt]()
        for attempt, future in self._unbegun.items():
            when = self._link(*attempt).get_start_time()
            if when is not None:
                self._has_seen_mark = True
                started.append(attempt)
                began.append(Began(*attempt, when))
            elif self._tells and not (all_of_them or future.done()):
                break
            elif not self._tells and attempt not in self._assumed:
                self._assumed.add(attempt)
                began.append(Began(*attempt, time.monotonic(), is_certain=False))
        for attempt in started:
            del self._unbegun[attempt]
        return began

    def _news(self, timeout: float) -> list[Ended]:
        """What was told by now, or first within `timeout` seconds."""
        told = list[Ended | None]()
        with contextlib.suppress(queue.Empty):
            told.append(self._told.get(timeout=None if timeout == inf else max(0.0, timeout)))
            while True:
                told.append(self._told.get_nowait())
        return [one for one in told if one is not None]

    def _function(self) -> Function | bytes:
        """f as the pool gets it; on a thread it sees that it must not write into the caller's data."""
        if self._shares_memory and not self._is_stored:
            return self._payload.f
        f = CopyOnWriteFunction(self._payload.f)
        return f if self._shares_memory else pickled(f, self._name)

    def _block(self, task: int, attempt: int) -> Any:
        """The block, or what makes it where f runs.

        A first attempt gets a stored block that is kept, which f must not change; a further one has a block
        of its own: what f is made of may write where numpy does not see it, and die of that.
        """
        coded = self._payload.blocks
        if (reference := coded.reference(task)) is not None:
            return reference
        if self._is_stored:
            return partial(load_cached_block, stored_block(coded, task), coded.structure, attempt > 0)
        if coded.source is not None and self._shares_memory:
            return partial(block_of, coded, task)
        return block_of(coded, task, read_only)

    def _outcome(self, ended: Ended) -> Outcome:
        """The outcome of an attempt whose future is done."""
        attempt, future = ended
        for of_attempts in (self._pending, self._unbegun, self._links):
            of_attempts.pop(attempt, None)
        self._assumed.discard(attempt)
        try:
            error = future.exception()
        except CancelledError:
            return lost(*attempt, f"{self._name} was shut down or cancelled the task before it began")
        if error is not None:
            return lost(*attempt, f"{type(error).__name__}: {text_of(error)}")
        sent = future.result()
        if sent is None:
            return lost(*attempt, f"somebody removed {self._folder and self._folder.folder}")
        outcome = self._payload.outcome(*attempt, sent.header, sent.data)
        return outcome if self._engine is not None else outcome._replace(host="")  # of this machine


def engine_of(pool: Any) -> type[DaskCalls | RayCalls] | None:
    """What calls the engine of a cluster that is meant; None where none is."""
    return DaskCalls if is_of_dask(pool) else RayCalls if is_of_ray(pool) else None


def text_of(error: BaseException) -> str:
    """What an error of a pool says; of a process pool that is broken Python does not say what breaks it."""
    return BROKEN if type(error) is BrokenProcessPool else str(error)


def threads_each(pool: Any) -> int:
    """Threads of linear algebra for each task: its share of this machine's cores, where that is known.

    >>> with ThreadPoolExecutor(1000) as pool:
    ...     threads_each(pool)
    1
    """
    if isinstance(pool, (ThreadPoolExecutor, ProcessPoolExecutor)):
        inside: Any = pool
        return max(1, count_available_cores() // int(inside._max_workers))
    return 1
