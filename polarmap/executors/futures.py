"""Sessions that run each task as a future on a `concurrent.futures.Executor` or a Dask or Ray cluster.

`FuturesExecutor` wraps a user's pool, and `EngineExecutor` wraps a cluster. Both open a `FuturesSession`.
"""

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
    "a process died, or its initializer raised, which breaks a ProcessPoolExecutor with all its tasks. "
    "Leave executor= out: the default executor survives that"
)

FinishedAttempt = tuple[AttemptId, Future[Any]]


class FuturesExecutor(ResolvedExecutor):
    """An executor that runs tasks on a user's pool, which remains usable afterwards.

    A thread pool receives the user's function and the blocks directly. Any other pool receives them pickled.
    When a map ends, tasks that are still running are abandoned: threads are notified, and processes notice
    that a folder has been removed. A process on another machine cannot see this folder, so it finishes its
    task and the result is ignored. A task that the pool drops counts as lost.

    Parameters
    ----------
    pool : concurrent.futures.Executor
        An object whose method `submit` returns a future.
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
        """The number of linear algebra threads per task, chosen so that all tasks share the cores.

        >>> with ThreadPoolExecutor(1000) as pool:
        ...     FuturesExecutor(pool).n_threads_per_task
        1
        """
        if not self.is_local:
            return 1
        return max(1, count_available_cores() // (self.max_workers or 1))

    def open(self, job_spec: JobSpec) -> FuturesSession:
        """Open a session that runs the tasks of one job on the pool.

        Raises CodeError if the pool uses processes and the job's function cannot be pickled.
        """
        return FuturesSession(self, self._pool, job_spec, self.n_threads_per_task)


class EngineExecutor(WorkerHost):
    """An executor that runs tasks on a user's Dask or Ray cluster.

    Parameters
    ----------
    engine_class : subclass of Engine
        The class that connects to Dask or to Ray.
    engine_spec : object
        The user's `executor=` argument, which is passed to the class.
    """

    name = ""
    needs_tcp = True

    def __init__(self, engine_class: type[Engine], engine_spec: Any) -> None:
        self.name, self._make_engine = engine_class.name, partial(engine_class, engine_spec)

    def open(self, job_spec: JobSpec) -> FuturesSession:
        """Open a session that runs the tasks of one job.

        Raises ExecutorError if the cluster is disconnected.
        """
        engine = self._make_engine()
        return FuturesSession(self, engine, job_spec, engine=engine)

    def partition(self, data: Any, n_blocks: int | None) -> PartitionedData | None:
        """Partition data that is on the cluster into blocks. Return None for any other data."""
        return self._make_engine().partition_data(data, n_blocks)

    def make_worker_provider(self) -> WorkerProvider:
        """Return a provider that starts persistent workers on the cluster's machines.

        Raises ExecutorError if the cluster is not connected.
        """
        engine = self._make_engine()
        engine.discover_machines()
        return engine


class FuturesSession:
    """A session that submits each task of a job to a pool or cluster as a future.

    Parameters
    ----------
    executor : ResolvedExecutor
        The executor that opens the session.
    pool : object
        An object whose method `submit` returns a future for each task.
    job_spec : JobSpec
        The job to run.
    n_threads_per_task : int
        The number of linear algebra threads per task.
    engine : Engine or None
        The connection to the cluster that serves as the pool; None for all other pools.
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
        # Finished futures that `wait` has not returned yet. `wake` adds None, which makes `wait` return.
        self._finished_queue: queue.SimpleQueue[FinishedAttempt | None] = queue.SimpleQueue()
        self._pending_futures: dict[AttemptId, Future[Any]] = {}
        # The futures of attempts that, as far as the driver knows, have not started yet.
        self._not_started: dict[AttemptId, Future[Any]] = {}
        # True once the driver has seen the start of any task. False for workers on other machines.
        self._has_seen_start_mark = False
        # Attempts in `_not_started` that are assumed to run, because a remote pool does not report the start.
        self._assumed_started: set[AttemptId] = set()
        # True once the pool has accepted a task.
        self._has_accepted = False
        # Remote pools do not report which tasks are running, so each of their tasks is assumed to start as
        # soon as it is submitted.
        self._reports_running = executor.is_local
        self._shares_memory = executor.shares_memory
        if self._shares_memory:
            # Threads get the data in memory, so no encryption is needed.
            self._job_spec = replace(job_spec, encryption=None)
        elif not executor.is_local:
            check_key_is_portable(job_spec, self._executor_name)
        location = job_spec.blocks.location
        # Workers memory-map the blocks if they are stored in files.
        self._blocks_are_files = location is not None and location.is_memory_mapped
        self._task_function = self._make_task_function()
        self._folder_token = (
            None if self._shares_memory else FolderCancelToken.from_folder(str(make_temp_folder()))
        )
        # The tokens that ask threads to stop. For processes, `_folder_token` is used instead.
        self._thread_tokens: dict[AttemptId, ThreadCancelToken] = {}

    def submit(self, attempts: Sequence[AttemptId]) -> None:
        """Submit task attempts to the pool."""
        for attempt in attempts:
            future = self._submit_attempt(*attempt)
            self._pending_futures[attempt] = self._not_started[attempt] = future
            future.add_done_callback(partial(lambda *finished: self._finished_queue.put(finished), attempt))

    def wait(self, timeout: float) -> list[Event]:
        """Block until a future is done, `timeout` seconds pass or `wake` is called. Return the new events."""
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
        """Return the attempts in `finished` whose results arrived before the cluster's connection was lost.

        The other attempts, which may have failed only because of the lost connection, are put back into the
        queue. If no result has arrived, raise ExecutorError with the `reason` why the cluster is unavailable.
        """
        results = [item for item in finished if not (item[1].cancelled() or item[1].exception())]
        if not results:
            raise ExecutorError(f"{self._executor_name} runs no tasks: {reason}")
        for finished_attempt in finished:
            if finished_attempt not in results:
                self._finished_queue.put(finished_attempt)
        return results

    def cancel(self, attempts: Sequence[AttemptId]) -> None:
        """Cancel task attempts. Attempts that are already running are asked to stop, if possible.

        Threads of this process can always be asked. A process must be able to read the session's temporary
        folder, in which the driver leaves the request, so it must run on this machine.
        """
        for attempt in attempts:
            if attempt in self._pending_futures and not self._pending_futures[attempt].cancel():
                self._get_cancel_token(*attempt).cancel()

    def wake(self) -> None:
        """Make the current or the next call of `wait` return soon. Any thread may call this."""
        self._finished_queue.put(None)

    def cancel_queued(self) -> list[AttemptStarted]:
        """Cancel the tasks that have not started. Return events for those that started since the last `wait`.

        On a cluster, tasks that started are recognized by a file that the worker creates. If no task has such
        a file, the workers are probably on other machines, where the driver cannot see the files. All tasks
        then count as started.
        """
        started = self._collect_started_attempts(check_all=True)
        for attempt, future in self._not_started.items():
            # Also ask the task itself to stop, because a cluster may start it before it is cancelled.
            if not (future.cancel() and self._reports_running):
                self._get_cancel_token(*attempt).cancel()
        started += self._collect_started_attempts(check_all=True)
        if not (self._reports_running or self._has_seen_start_mark):
            started += [AttemptStarted(*attempt, time.monotonic()) for attempt in self._not_started]
        return started

    def close(self) -> None:
        """Cancel queued tasks and abandon running ones.

        Running tasks get up to GRACE_SECONDS to finish, so that threads can restore this process's thread
        limits.
        """
        for token in self._thread_tokens.values():
            token.cancel()
        if self._folder_token is not None:
            remove_owned_folder(Path(self._folder_token.folder))
        wait_for([future for future in self._pending_futures.values() if not future.cancel()], GRACE_SECONDS)
        self._pending_futures.clear()

    def _submit_attempt(self, task: int, attempt: int) -> Future[Any]:
        """Submit a task attempt to the pool and return its future.

        Raises ExecutorError if the pool rejects the very first attempt. Later errors are set on the future.
        """
        try:
            block_argument = self._make_block_argument(task, attempt)
            request = self._job_spec.make_task_request(task, attempt)
            call_arguments = self._task_function, block_argument, request
            cancel_token = self._get_cancel_token(task, attempt)
            future: Future[Any] = self._pool.submit(
                run_task_in_future, *call_arguments, cancel_token, self._n_threads_per_task
            )
            self._has_accepted = True
        except Exception as error:
            # The pool may be shut down or broken, or the block could not be built. Raise the error only if no
            # task has been accepted before. Otherwise only this task fails.
            if not (self._has_accepted or isinstance(error, (DamagedError, CancelledError))):
                raise ExecutorError(
                    f"{self._executor_name} accepts no tasks: {format_pool_error(error)}"
                ) from error
            future = Future()
            future.set_exception(error)
        return future

    def _get_cancel_token(self, task: int, attempt: int) -> ThreadCancelToken | FolderCancelToken:
        """Return the token with which the driver asks a running task to stop."""
        if self._folder_token is not None:
            return self._folder_token._replace(attempt_name=f"{task}-{attempt}")
        return self._thread_tokens.setdefault((task, attempt), ThreadCancelToken())

    def _collect_started_attempts(self, check_all: bool = False) -> list[AttemptStarted]:
        """Return an event for each task that has started since the last call.

        A local pool starts tasks in order. The search therefore stops at the first task that has not started,
        unless `check_all` is true. The driver usually cannot see whether a remote worker has started a task,
        so such a task first gets an event with `is_confirmed=False`.
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
        """Return all finished attempts. Wait up to `timeout` seconds for the first one."""
        finished = list[FinishedAttempt | None]()
        with contextlib.suppress(queue.Empty):
            finished.append(self._finished_queue.get(timeout=None if timeout == inf else max(0.0, timeout)))
            while True:
                finished.append(self._finished_queue.get_nowait())
        return [finished_attempt for finished_attempt in finished if finished_attempt is not None]

    def _make_task_function(self) -> Function | bytes:
        """Return the user's function as a callable for a thread pool, or pickled for any other pool.

        Blocks in memory are passed to threads as read-only views. In all other cases, the function is
        wrapped, so that it gets a copy of its block if it tries to write to it.
        """
        if self._shares_memory and not self._blocks_are_files:
            return self._job_spec.f
        f = CopyOnWriteFunction(self._job_spec.f)
        return f if self._shares_memory else pickle_function(f, self._executor_name)

    def _make_block_argument(self, task: int, attempt: int) -> Any:
        """Return what is sent to the worker as a task's block.

        This is the block itself, a Dask or Ray reference to it, or a callable that reads it on the worker. If
        the blocks are files, the first attempt of each task uses the worker's cached, read-only copy. A retry
        reads its own copy, because the first attempt may have crashed when it tried to write to the block.
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
        """Convert a finished future to an `Outcome`."""
        attempt, future = finished
        for per_attempt in (self._pending_futures, self._not_started, self._thread_tokens):
            per_attempt.pop(attempt, None)
        self._assumed_started.discard(attempt)
        try:
            error = future.exception()
        except CancelledError:
            return make_lost_worker_outcome(
                *attempt, f"{self._executor_name} was shut down, or cancelled the task before it started"
            )
        if error is not None:
            return make_lost_worker_outcome(*attempt, f"{type(error).__name__}: {format_pool_error(error)}")
        reply = future.result()
        if reply is None:
            return make_lost_worker_outcome(
                *attempt, f"its folder {self._folder_token and self._folder_token.folder} was removed"
            )
        outcome = self._job_spec.decode_reply(*attempt, reply.header, reply.data)
        # Reports show host names only for clusters. All other pools count as running on this machine.
        return outcome if self._engine is not None else outcome._replace(host="")


def format_pool_error(error: BaseException) -> str:
    """Format an error of a pool. For a broken process pool, explain the likely cause."""
    return BROKEN_POOL_ADVICE if type(error) is BrokenProcessPool else str(error)
