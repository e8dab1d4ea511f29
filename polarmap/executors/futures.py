"""Sessions whose tasks are futures: of any concurrent.futures.Executor, or of an engine (Dask, Ray)."""

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
from typing import TYPE_CHECKING, Any

from polarmap.dtypes import is_integer
from polarmap.errors import ExecutorError
from polarmap.executors.block_store import make_block_ref
from polarmap.executors.encryption_keys import check_key_is_portable
from polarmap.executors.interface import (
    AttemptId,
    AttemptStarted,
    Event,
    Function,
    JobSpec,
    Outcome,
    Reach,
    build_block,
    make_lost_worker_outcome,
    read_only_view,
)
from polarmap.executors.persistent_executor import WorkerHost
from polarmap.executors.pickling import pickle_function
from polarmap.executors.resolved import ResolvedExecutor
from polarmap.executors.temp_folders import make_temp_folder, remove_owned_folder
from polarmap.executors.worker_pool import GRACE_SECONDS
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

if TYPE_CHECKING:
    from polarmap.executors.engine import Engine, PartitionedData
    from polarmap.executors.remote_workers import WorkerProvider

BROKEN_POOL_ADVICE = (
    "a process died, or its initializer raised, which takes all tasks of a ProcessPoolExecutor with it; "
    "leave executor= out: the default survives that"
)

FinishedAttempt = tuple[AttemptId, Future[Any]]


class FuturesExecutor(ResolvedExecutor):
    """Tasks as futures of a pool that belongs to the caller, and stays usable afterwards.

    A thread pool gets f and the blocks themselves; any other pool gets them pickled. Stragglers
    are left: threads are told, processes see that a folder is gone. On another machine, which cannot
    see the folder, an abandoned task runs to its end and then ends unheard. What the pool drops is lost.

    Parameters
    ----------
    pool : concurrent.futures.Executor
        Any object with a method `submit` that returns futures.
    """

    name = ""

    def __init__(self, pool: Any) -> None:
        self._pool, self.name = pool, type(pool).__name__
        self.shares_memory = isinstance(pool, ThreadPoolExecutor)
        self.is_local = self.shares_memory or isinstance(pool, ProcessPoolExecutor)
        self.pickles_f = not self.shares_memory
        max_workers: Any = getattr(pool, "_max_workers", None)
        self.max_workers = int(max_workers) if is_integer(max_workers) else None

    @property
    def n_threads_per_task(self) -> int:
        """The threads of linear algebra of each task: its share of this machine's cores if that is known.

        >>> with ThreadPoolExecutor(1000) as pool:
        ...     FuturesExecutor(pool).n_threads_per_task
        1
        """
        if not self.is_local:
            return 1
        return max(1, count_available_cores() // (self.max_workers or 1))

    def open(self, job_spec: JobSpec) -> FuturesSession:
        """Return a session for the tasks of one job.

        Raises CodeError if f cannot be pickled and the pool has processes.
        """
        return FuturesSession(self, self._pool, job_spec, self.n_threads_per_task)


class EngineExecutor(WorkerHost):
    """Tasks as tasks of the engine of a cluster, Dask or Ray, which belongs to the caller.

    Parameters
    ----------
    engine_class : subclass of Engine
    engine_spec : object
        The argument of the class.
    """

    name = ""
    needs_tcp = True

    def __init__(self, engine_class: type[Engine], engine_spec: Any) -> None:
        self.name, self._make_engine = engine_class.name, partial(engine_class, engine_spec)

    def open(self, job_spec: JobSpec) -> FuturesSession:
        """Return a session for the tasks of one job. Raises ExecutorError if the engine is not connected."""
        engine = self._make_engine()
        return FuturesSession(self, engine, job_spec, engine=engine)

    def partition(self, data: Any, n_blocks: int | None) -> PartitionedData | None:
        """Partition data that is on the cluster of the engine; return None for other data."""
        return self._make_engine().partition_data(data, n_blocks)

    def make_worker_provider(self) -> WorkerProvider:
        """Return an engine that knows its machines. Raises ExecutorError if it is not connected."""
        engine = self._make_engine()
        engine.discover_machines()
        return engine


class FuturesSession:
    """The tasks of one job as futures of a pool.

    Parameters
    ----------
    executor : ResolvedExecutor
        The executor of the session.
    pool : object with a method `submit`, which returns futures
    job_spec : JobSpec
    n_threads_per_task : int
        The threads of linear algebra of each task.
    engine : Engine or None
        The engine whose calls the futures are; None if the pool is another one.
    """

    now = staticmethod(time.monotonic)

    def __init__(
        self,
        executor: ResolvedExecutor,
        pool: Any,
        job_spec: JobSpec,
        n_threads_per_task: int = 1,
        engine: Engine | None = None,
    ) -> None:
        Reach().check_output(job_spec)
        self._executor_name, self._job_spec = executor.name, job_spec
        self._pool, self._engine, self._n_threads_per_task = pool, engine, n_threads_per_task
        self._finished_queue: queue.SimpleQueue[FinishedAttempt | None] = queue.SimpleQueue()  # None: wake up
        self._pending_futures: dict[AttemptId, Future[Any]] = {}
        self._not_started: dict[AttemptId, Future[Any]] = {}  # that are not known to have begun
        self._has_seen_start_mark = False  # of an attempt that has begun
        # of these, that are taken to have been handed to a worker
        self._assumed_started: set[AttemptId] = set()
        self._has_accepted = False  # whether the pool has taken a task
        # Other pools do not tell when a worker gets a task: they are taken to have room.
        self._reports_running = executor.is_local
        self._shares_memory = executor.shares_memory
        if self._shares_memory:
            self._job_spec = replace(job_spec, encryption=None)  # nothing of it travels
        elif not executor.is_local:
            check_key_is_portable(job_spec, self._executor_name)
        location = job_spec.blocks.location
        # where workers read blocks
        self._blocks_are_files = location is not None and location.is_memory_mapped
        self._task_function = self._make_task_function()
        self._folder_token = (
            None if self._shares_memory else FolderCancelToken.from_folder(str(make_temp_folder()))
        )
        self._thread_tokens: dict[AttemptId, ThreadCancelToken] = {}  # where there is no folder

    def submit(self, attempts: Sequence[AttemptId]) -> None:
        """Hand them to the pool."""
        for attempt in attempts:
            future = self._submit_attempt(*attempt)
            self._pending_futures[attempt] = self._not_started[attempt] = future
            future.add_done_callback(partial(lambda *finished: self._finished_queue.put(finished), attempt))

    def wait(self, timeout: float) -> list[Event]:
        """Which attempts were seen to begin, and whose futures are done."""
        finished = self._wait_for_finished_attempts(
            timeout if self._engine is None else min(timeout, LIVENESS_INTERVAL)
        )
        if (
            self._engine is not None
            and self._pending_futures
            and (reason := self._engine.get_unavailable_reason())
        ):
            finished = self._keep_results_before_outage(finished, reason)
        return [*self._collect_started_attempts(), *map(self._to_outcome, finished)]

    def _keep_results_before_outage(
        self, finished: list[FinishedAttempt], reason: str
    ) -> list[FinishedAttempt]:
        """Return those that ended with a result before the engine was gone; ExecutorError if none did."""
        results = [item for item in finished if not (item[1].cancelled() or item[1].exception())]
        if not results:
            raise ExecutorError(f"{self._executor_name} runs no tasks: {reason}")
        for finished_attempt in finished:
            if finished_attempt not in results:
                self._finished_queue.put(finished_attempt)
        return results

    def cancel(self, attempts: Sequence[AttemptId]) -> None:
        """Those that have begun are told, on threads and in processes that see their folder."""
        for attempt in attempts:
            if attempt in self._pending_futures and not self._pending_futures[attempt].cancel():
                self._get_cancel_token(*attempt).cancel()

    def wake(self) -> None:
        """Let something be in the queue that is waited for."""
        self._finished_queue.put(None)

    def cancel_queued(self) -> list[AttemptStarted]:
        """Cancel what is queued, and return which attempts have begun since the last `wait`.

        Workers of an engine that have left no mark at all are on other machines, which cannot see the folder:
        what they were handed counts as begun.
        """
        started = self._collect_started_attempts(check_all=True)
        for attempt, future in self._not_started.items():
            # an engine may start a task before it hears of that
            if not (future.cancel() and self._reports_running):
                self._get_cancel_token(*attempt).cancel()
        started += self._collect_started_attempts(check_all=True)
        if not (self._reports_running or self._has_seen_start_mark):
            started += [AttemptStarted(*attempt, time.monotonic()) for attempt in self._not_started]
        return started

    def close(self) -> None:
        """Cancel what is queued, leave what runs, which lifts what limits this process's libraries."""
        for token in self._thread_tokens.values():
            token.cancel()
        if self._folder_token is not None:
            remove_owned_folder(Path(self._folder_token.folder))
        wait_for([future for future in self._pending_futures.values() if not future.cancel()], GRACE_SECONDS)
        self._pending_futures.clear()

    def _submit_attempt(self, task: int, attempt: int) -> Future[Any]:
        """Submit an attempt; ExecutorError if the pool takes not even the first."""
        try:
            block_argument = self._make_block_argument(task, attempt)
            request = self._job_spec.make_task_request(task, attempt)
            call_arguments = self._task_function, block_argument, request
            cancel_token = self._get_cancel_token(task, attempt)
            future: Future[Any] = self._pool.submit(
                run_task_in_future, *call_arguments, cancel_token, self._n_threads_per_task
            )
            self._has_accepted = True
        except Exception as error:  # shut down, or broken by a worker that died; no block
            if not (self._has_accepted or isinstance(error, (DamagedError, CancelledError))):
                raise ExecutorError(
                    f"{self._executor_name} accepts no tasks: {format_pool_error(error)}"
                ) from error
            future = Future()
            future.set_exception(error)
        return future

    def _get_cancel_token(self, task: int, attempt: int) -> ThreadCancelToken | FolderCancelToken:
        """What an attempt shares with the driver."""
        if self._folder_token is not None:
            return self._folder_token._replace(attempt_name=f"{task}-{attempt}")
        return self._thread_tokens.setdefault((task, attempt), ThreadCancelToken())

    def _collect_started_attempts(self, check_all: bool = False) -> list[AttemptStarted]:
        """Return the attempts that have begun since the last time, or that an engine was handed.

        check_all : whether to look beyond the first attempt that waits for a worker of a pool. Pools take
            tasks in their order.
        """
        start_events, started_ids = list[AttemptStarted](), list[AttemptId]()
        for attempt, future in self._not_started.items():
            started_at = self._get_cancel_token(*attempt).get_start_time()
            if started_at is not None:
                self._has_seen_start_mark = True
                started_ids.append(attempt)
                start_events.append(AttemptStarted(*attempt, started_at))
            elif self._reports_running and not (check_all or future.done()):
                break
            elif not self._reports_running and attempt not in self._assumed_started:
                self._assumed_started.add(attempt)
                start_events.append(AttemptStarted(*attempt, time.monotonic(), is_confirmed=False))
        for attempt in started_ids:
            del self._not_started[attempt]
        return start_events

    def _wait_for_finished_attempts(self, timeout: float) -> list[FinishedAttempt]:
        """What was told by now, or first within `timeout` seconds."""
        finished = list[FinishedAttempt | None]()
        with contextlib.suppress(queue.Empty):
            finished.append(self._finished_queue.get(timeout=None if timeout == inf else max(0.0, timeout)))
            while True:
                finished.append(self._finished_queue.get_nowait())
        return [finished_attempt for finished_attempt in finished if finished_attempt is not None]

    def _make_task_function(self) -> Function | bytes:
        """f as the pool gets it; on a thread it sees that it must not write into the caller's data."""
        if self._shares_memory and not self._blocks_are_files:
            return self._job_spec.f
        f = CopyOnWriteFunction(self._job_spec.f)
        return f if self._shares_memory else pickle_function(f, self._executor_name)

    def _make_block_argument(self, task: int, attempt: int) -> Any:
        """The block, or what makes it where f runs.

        A first attempt gets a stored block that is kept, which f must not change; a further one has a block
        of its own: what f is made of may write where numpy does not see it, and die of that.
        """
        blocks = self._job_spec.blocks
        if (reference := blocks.cluster_reference(task)) is not None:
            return reference
        if self._blocks_are_files:
            return partial(load_cached_block, make_block_ref(blocks, task), blocks.structure, attempt > 0)
        if blocks.location is not None and self._shares_memory:
            return partial(build_block, blocks, task)
        return build_block(blocks, task, read_only_view)

    def _to_outcome(self, finished: FinishedAttempt) -> Outcome:
        """The outcome of an attempt whose future is done."""
        attempt, future = finished
        for per_attempt in (self._pending_futures, self._not_started, self._thread_tokens):
            per_attempt.pop(attempt, None)
        self._assumed_started.discard(attempt)
        try:
            error = future.exception()
        except CancelledError:
            return make_lost_worker_outcome(
                *attempt, f"{self._executor_name} was shut down or cancelled the task before it began"
            )
        if error is not None:
            return make_lost_worker_outcome(*attempt, f"{type(error).__name__}: {format_pool_error(error)}")
        reply = future.result()
        if reply is None:
            return make_lost_worker_outcome(
                *attempt, f"somebody removed {self._folder_token and self._folder_token.folder}"
            )
        outcome = self._job_spec.decode_reply(*attempt, reply.header, reply.data)
        return outcome if self._engine is not None else outcome._replace(host="")  # of this machine


def format_pool_error(error: BaseException) -> str:
    """What an error of a pool says; of a process pool that is broken Python does not say what breaks it."""
    return BROKEN_POOL_ADVICE if type(error) is BrokenProcessPool else str(error)
