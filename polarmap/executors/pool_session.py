"""Sessions on persistent workers: each `PoolSession` runs one job's tasks on a pool.

    submit(attempts)                                       wait(timeout) -> events
        |                                                      ^
        v                                                      |
    queue of attempts --acquire_worker--> WorkerHandle --> replies --> outcomes
                                           assigned: [running task, prefetched tasks ...]

For example, two workers get six tasks of 0.1 ms each. Both receive one task, and prefetch further tasks
before they have finished it, so that they never wait for the driver. If worker 0 then hangs in task 0, the
tasks that it has prefetched are also sent to worker 1, and the first result of each task counts.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import CancelledError
from functools import lru_cache, partial
from hashlib import blake2b
from math import inf
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from polarmap.clouds.prices import PersistentUsage
from polarmap.errors import ExecutorError
from polarmap.executors.block_store import BlockStore
from polarmap.executors.fork_server_client import MAX_INLINE_FUNCTION_BYTES
from polarmap.executors.interface import (
    AttemptId,
    AttemptStarted,
    Event,
    FailureKind,
    JobSpec,
    NoWorkers,
    Outcome,
    make_lost_worker_outcome,
)
from polarmap.executors.local_workers import MAX_IDLE_CORES_POLL_INTERVAL, MIN_IDLE_CORES_POLL_INTERVAL
from polarmap.executors.pickling import PickledFunction
from polarmap.executors.temp_folders import remove_tree
from polarmap.executors.wake_signal import WakeSignal
from polarmap.executors.worker_pool import MAX_CACHED_TASKS, WorkerHandle, WorkerPool
from polarmap.worker.messages import FrameError, Message, MessageKind
from polarmap.worker.polling import POLLIN, POLLOUT
from polarmap.worker.private_files import check_private_folder, write_private_file
from polarmap.worker.segments import decode_segment_range, encode_segment_range, read_file_segment
from polarmap.worker.task_records import JobHeader, ResultFileRef, TaskOptions, encode_record

if TYPE_CHECKING:
    from polarmap.executors.store_reader import FinishedRead, StoreReader

# A running task counts as slow after this many seconds. The tasks that its worker has received in advance
# (prefetched) may then also be sent to a second worker.
STEAL_AFTER_SECONDS = 0.002
# The maximum number of tasks that are sent to a worker in advance, while it runs another task. The messages
# of so few tasks fit into a socket buffer.
MAX_PREFETCHED = 8
# If a worker needs a task, this many queued tasks are searched for one whose block the worker has cached.
LOCALITY_WINDOW = 64


class PoolSession:
    """A session that runs the tasks of one job on the persistent workers of a pool.

    Tasks are assigned in order of submission, preferably to a worker that has their block cached. If no other
    session uses the pool, workers prefetch tasks: they receive further tasks while one is still running. If
    the running task takes longer than STEAL_AFTER_SECONDS, the prefetched tasks are also sent to another
    worker, and the first result counts.

    Parameters
    ----------
    job_spec : JobSpec
        The job to run.
    pickled_function : PickledFunction
        The job's function, pickled together with the structure of its blocks.
    module_sources : mapping of str to tuple
        The source code of modules that workers may lack, by module name.
    worker_pool : WorkerPool
        The workers, shared with the pool's other sessions.
    block_store : BlockStore
        The store from which workers read the blocks, shared with the pool's other sessions.
    pool_folders : sequence of Path
        The pool's folders. The job gets a subfolder in each, created on demand. Empty if all workers are on
        other machines.
    shares_files : bool
        True if all workers are on this machine, and can return results in files.
    fetch_timeout : float
        The time limit in seconds for this process to read a block from a user-defined store.
    """

    # Job ids are unique across drivers, so that no driver removes files of another driver's job.
    _job_ids = itertools.count(int.from_bytes(os.urandom(6), "big"))
    now = staticmethod(time.monotonic)
    deadline = inf  # the time at which the job must end, on the monotonic clock
    # The id of the process that has opened the session. Only this process may close it. The id remains -1
    # until `__init__` has created everything that `close` needs.
    _owner_pid = -1

    def __init__(
        self,
        job_spec: JobSpec,
        pickled_function: PickledFunction,
        module_sources: Mapping[str, tuple[str, bool]],
        worker_pool: WorkerPool,
        block_store: BlockStore,
        pool_folders: Sequence[Path],
        shares_files: bool,
        fetch_timeout: float,
    ) -> None:
        self._job_id, self._job_spec = next(self._job_ids), job_spec
        self._job_folders = tuple(f"{folder}/map-{self._job_id}" for folder in pool_folders)
        self._result_folders = self._job_folders if shares_files else ()
        self._worker_pool, self._block_store = worker_pool, block_store
        self._queue: deque[AttemptId] = deque()
        self._unfinished: set[AttemptId] = set()  # submitted attempts without an outcome
        self._stolen: set[AttemptId] = set()  # attempts that were also sent to a second worker
        self._wake_signal = WakeSignal()
        # The events that the next call of `wait` returns.
        self._events: list[Event] = []
        # The time, on the monotonic clock, at which tasks were last submitted or a task last ended.
        self._last_progress_at = time.monotonic()
        self._published_blocks = block_store.acquire_blocks(job_spec)
        # A task key identifies a task's block, so that later jobs on the same blocks find the workers that
        # have cached the block.
        get_task_key = partial(self._published_blocks.get_task_key, job_spec.blocks)
        self._get_task_key = lru_cache(MAX_CACHED_TASKS)(get_task_key)
        self._allocation = self._worker_pool.open_allocation(self._wake_signal.set, job_spec.name)
        self._allocation.poller.register(self._wake_signal, POLLIN)
        self._store_reader: StoreReader | None = None
        if job_spec.blocks.location is not None and job_spec.blocks.location.is_sent_by_driver:
            from polarmap.executors.store_reader import StoreReader

            self._store_reader = StoreReader.for_blocks(job_spec.blocks, fetch_timeout, self._wake_signal.set)
        if not worker_pool.shares_host:
            self._allocation.n_tasks = job_spec.blocks.n
        self._owner_pid = os.getpid()
        # Inline blocks are sent in the messages of their tasks, and workers do not cache them. Any worker
        # therefore suits such a task. The task is not sent before the worker is idle, because its message may
        # exceed the socket buffer. If workers store the results, tasks are not sent in advance either,
        # because two workers could then run the same task, but only one worker may store each result.
        is_inline = job_spec.blocks.location is not None and job_spec.blocks.location.is_inline
        self._locality_window = 0 if is_inline else LOCALITY_WINDOW
        self._prefetches = not (job_spec.output_spec or is_inline)
        self._poll_interval = MIN_IDLE_CORES_POLL_INTERVAL
        environment = worker_pool.get_pickled_environment(pickled_function.pickle_bytes)
        # Workers discard the cached blocks of sets that have an id below the next one, but are not listed as
        # live. Read the next id before the list: otherwise, this could apply to a set that another thread
        # adds in between.
        next_block_set_id = block_store.next_block_set_id
        cache_ids = (
            self._published_blocks.cache_id,
            [*block_store.get_live_block_set_ids(), next_block_set_id],
        )
        # Pass lists, not tuples: `encode_record` converts a tuple item by item, which is slow if it is long.
        job_header = JobHeader(
            list(self._result_folders), job_spec.output_spec, job_spec.encryption, environment, *cache_ids
        )
        self._job_header = encode_record(job_header)
        self._pickled_modules = pickle.dumps(module_sources) if module_sources else b""
        try:
            self._function_message = self._make_function_message(pickled_function)
            # The digest identifies the function, so that it is not sent again to a worker that has it. If the
            # function is in a file, the path identifies it, because each file belongs to only one job.
            data, is_file = self._function_message
            self._function_digest = (
                data if is_file else blake2b(self._pickled_modules + data, digest_size=16).digest()
            )
        except OSError as error:
            self.close()
            raise ExecutorError(f"the function cannot be stored for the workers: {error}") from error

    def __del__(self) -> None:
        self.close()

    def submit(self, attempts: Sequence[AttemptId]) -> None:
        """Queue task attempts, and send as many of them as possible to workers.

        An attempt is one execution of a task. The tasks' blocks are first stored where workers can read them.
        If the job's deadline passes meanwhile, no attempt is started.
        """
        # Remove unused blocks now if they are files on this machine. A background thread removes them from
        # other kinds of storage, because access to these may hang.
        if self._block_store.location.is_memory_mapped:
            self._block_store.collect_garbage()
        self._unfinished.update(attempts)
        try:
            tasks = [task for task, _ in attempts]
            self._published_blocks.publish_in_parallel(self._job_spec.blocks, tasks, self.deadline)
        except TimeoutError:
            return
        self._queue += attempts
        self._last_progress_at = time.monotonic()
        self._worker_pool.request_workers(len(self._queue) + len(self._allocation.workers))
        self._assign_queued_tasks()
        if not any(worker.pid for worker in self._allocation.workers.values()):
            # No worker has connected yet. Use this time for the slow part of the encoding.
            self._job_spec.blocks.prepare_encoding()

    def wait(self, timeout: float) -> list[Event]:
        """Block until a worker replies, `timeout` seconds pass or `wake` is called. Return the new events."""
        self._allocation.can_be_woken = True
        try:
            outcomes = self._poll_workers_until(time.monotonic() + timeout)
        finally:
            self._worker_pool.stop_waking_session(self._allocation)
        events, self._events = self._events, []
        if self._queue and not outcomes and (reason := self._worker_pool.explain_missing_workers()):
            events.append(NoWorkers(reason))
        return [*events, *outcomes]

    def cancel(self, attempts: Sequence[AttemptId]) -> None:
        """Cancel task attempts. Queued attempts are dropped, and running ones are asked to stop."""
        unfinished = [attempt_id for attempt_id in attempts if attempt_id in self._unfinished]
        for attempt_id in unfinished:
            self._report_cancelled(attempt_id)
            with contextlib.suppress(ValueError):  # The attempt may have left the queue already.
                self._queue.remove(attempt_id)
        for worker in list(self._allocation.workers.values()):
            if worker.assigned and worker.assigned[0][0][1:] in unfinished:
                self._requeue_tasks_and_release_worker(worker, self._worker_pool.abandon_worker)
        self._assign_queued_tasks()

    def _poll_workers_until(self, deadline: float) -> list[Outcome]:
        if self._worker_pool.has_several_sessions():
            self._assign_queued_tasks()  # Another session may have released workers.
        while True:
            outcomes: list[Outcome] = []
            remaining_seconds = max(0.0, deadline - time.monotonic())
            may_start = bool(self._queue or self._find_attempts_behind_slow_task())
            poll_timeout = min(remaining_seconds, self._poll_interval) if may_start else remaining_seconds
            poll_milliseconds = None if poll_timeout == inf else 1000 * poll_timeout
            ready_descriptors = self._allocation.poller.poll(poll_milliseconds)
            readable_workers = [
                self._allocation.workers.get(descriptor)
                for descriptor, poll_event in ready_descriptors
                if poll_event != POLLOUT
            ]
            for worker in readable_workers:
                outcomes += [] if worker is None else self._receive_replies(worker)
            if self._store_reader is not None:
                outcomes += self._send_read_segments(self._store_reader.collect_finished())
            if self._allocation.receiving_workers:
                outcomes += self._write_unsent_messages(deadline)
            is_finished = (
                outcomes
                or (None in readable_workers and self._wake_signal.clear())
                or time.monotonic() >= deadline
            )
            if outcomes:
                self._allocation.cores_were_idle, self._poll_interval = False, MIN_IDLE_CORES_POLL_INTERVAL
                self._last_progress_at = time.monotonic()
            elif may_start and not is_finished:
                self._poll_interval = min(MAX_IDLE_CORES_POLL_INTERVAL, 1.5 * self._poll_interval)
                self._worker_pool.maybe_scale_up(
                    self._allocation, len(self._queue) + len(self._find_attempts_behind_slow_task())
                )
            self._assign_queued_tasks()
            if is_finished:
                return outcomes

    def _write_unsent_messages(self, deadline: float) -> list[Outcome]:
        """Continue to send messages that the workers could not receive at once.

        Stop when `time.monotonic()` reaches `deadline`. Return the outcomes of tasks on workers that turn out
        to be lost.
        """
        lost_outcomes: list[Outcome] = []
        for worker in list(self._allocation.receiving_workers):
            if not worker.write_unsent_messages():
                worker.channel.disconnect()
                lost_outcomes += self._receive_replies(worker)
            elif not worker.channel.has_unsent:
                self._allocation.update_polled_events(worker)
            if time.monotonic() >= deadline:  # The next call writes the remaining messages.
                break
        return lost_outcomes

    def count_receiving_workers(self) -> int:
        """Return the number of workers to which messages are still being sent."""
        return len(self._allocation.receiving_workers)

    def cancel_queued(self) -> list[AttemptStarted]:
        """Drop the queued tasks. Return a start event for each task that has started since the last `wait`.

        Tasks also start without the driver: a worker that has finished a task starts the next one that it has
        received in advance (prefetched).
        """
        self._queue.clear()
        for descriptor, _ in self._allocation.poller.poll(0):
            worker = self._allocation.workers.get(descriptor)
            if worker is not None:
                self._drain_messages(worker)
        events, self._events = self._events, []
        return [event for event in events if isinstance(event, AttemptStarted)]

    def _drain_messages(self, worker: WorkerHandle) -> None:
        """Read and discard a worker's replies, but record start events for the tasks that it has started."""
        attempt_keys = [attempt_key for attempt_key, _ in worker.assigned]
        _, is_connected = worker.receive_messages()
        if worker.pid is not None:
            started_keys = attempt_keys[: len(attempt_keys) - len(worker.assigned) + 1]
            self._events += [
                AttemptStarted(*attempt_key[1:], worker.state_since, True, worker.host)
                for attempt_key in started_keys
            ]
        if worker.is_exiting or not is_connected:
            self._worker_pool.remove_worker(worker)
        elif not worker.assigned:
            self._worker_pool.release_worker(worker)

    def wake(self) -> None:
        """Make the current or the next call of `wait` return soon. Any thread may call this."""
        self._wake_signal.set()

    def close(self) -> PersistentUsage | None:
        """Release the workers, remove the job's files, and return the workers' billed time.

        Running tasks are cancelled. Further calls do nothing and return None.
        """
        if os.getpid() != self._owner_pid or self._allocation.closed_at is not None:
            return None
        self._worker_pool.close_allocation(self._allocation, self._job_id)
        # Ignore errors: the messages are sent later, or the workers exit and do not need them.
        with contextlib.suppress(ExecutorError):
            self._worker_pool.flush_messages()
        self._queue.clear()
        try:
            for folder in self._job_folders:
                remove_tree(folder)
        finally:  # If Ctrl-C interrupts the loop, the files are removed when the workers exit.
            self._block_store.release_blocks(self._published_blocks)
            self._wake_signal.close()
        return self._worker_pool.take_billed_usage()

    def _assign_queued_tasks(self) -> None:
        """Send queued tasks to available workers.

        If the queue is empty, idle workers help a worker that is busy with a slow task: they also get the
        tasks that this worker has received in advance (prefetched) but cannot start yet.
        """
        cached_elsewhere = self._find_tasks_cached_on_busy_workers()
        while True:
            attempts = self._queue or self._find_attempts_behind_slow_task(
                time.monotonic() - STEAL_AFTER_SECONDS
            )
            if not attempts or (
                cached_elsewhere
                and self._is_every_queued_task_in(cached_elsewhere)
                and self._can_delay_for_locality()
            ):
                self._worker_pool.yield_turn(self._allocation)
                break
            get_task_keys = partial(self._get_first_task_keys, attempts)
            worker = self._worker_pool.acquire_worker(self._allocation, len(attempts), get_task_keys)
            if worker is None:
                break
            if attempts is self._queue:
                self._assign_next_tasks(worker, cached_elsewhere)
            else:
                self._stolen.add(attempts[0])
                self._send_tasks(worker, [attempts[0]])
        self._worker_pool.flush_messages()

    def _find_tasks_cached_on_busy_workers(self) -> set[Hashable]:
        """Return the keys of queued tasks whose blocks are cached only by abandoned workers.

        An abandoned worker is still busy with a task of a session that has closed, but may become idle soon.
        A key identifies the block of a task.
        """
        if not (self._queue and self._locality_window):
            return set()
        get_task_keys = partial(self._get_first_task_keys, self._queue)
        return self._worker_pool.find_tasks_cached_on_abandoned_workers(get_task_keys)

    def _is_every_queued_task_in(self, task_keys: set[Hashable]) -> bool:
        """Return True if the queue is not empty and contains only tasks whose keys are in `task_keys`.

        A key identifies the block of a task. A queue with more than `_locality_window` tasks is not searched,
        and the result is False.
        """
        is_within_window = 0 < len(self._queue) <= self._locality_window
        return is_within_window and task_keys.issuperset(self._get_first_task_keys(self._queue))

    def _can_delay_for_locality(self) -> bool:
        """Return True if waiting for a worker with a cached block may be faster than sending the block.

        Waiting is worthwhile for at most as long as it takes to send a block. This time starts again whenever
        tasks are submitted or a task ends.
        """
        transfer_seconds = self._published_blocks.estimate_transfer_seconds(self._job_spec.blocks)
        return time.monotonic() < self._last_progress_at + transfer_seconds

    def _get_first_task_keys(self, attempts: Iterable[AttemptId]) -> list[Hashable]:
        """Return the keys of the first tasks, at most `_locality_window`. A key identifies a task's block."""
        return [self._get_task_key(task) for task, _ in itertools.islice(attempts, self._locality_window)]

    def _assign_next_tasks(self, worker: WorkerHandle, cached_elsewhere: set[Hashable]) -> None:
        """Send a worker its next task, and further tasks that it can start without waiting for the driver.

        Tasks whose keys are in `cached_elsewhere` are chosen last. Other workers have their blocks cached,
        and may become idle soon.
        """
        n_more = 1 + self._compute_prefetch_depth(worker) - len(worker.assigned)
        if n_more > 0:
            attempts = [self._pop_best_attempt(worker, cached_elsewhere) for _ in range(n_more)]
            self._send_tasks(worker, attempts)

    def _compute_prefetch_depth(self, worker: WorkerHandle) -> int:
        """Return how many tasks a worker may prefetch, i.e. receive in advance while it runs another task.

        One queued task is reserved for each idle worker. The last tasks of a job, one for each worker, are
        not prefetched either, so that they are run by the workers that become idle first.
        """
        n_queued = len(self._queue)
        n_workers = len(self._worker_pool)
        n_acquired = len(self._allocation.workers)
        n_available = n_queued - (not worker.assigned) - (n_workers - n_acquired) - n_workers
        if (
            n_available <= 0
            or not n_workers
            or worker.pid is None
            or worker.function_digest != self._function_digest
        ):
            return 0
        if not self._prefetches or self._worker_pool.has_several_sessions():
            return 0
        task_seconds = max(worker.last_task_seconds, STEAL_AFTER_SECONDS / MAX_PREFETCHED)
        n_short_tasks = int(STEAL_AFTER_SECONDS / task_seconds)
        return min(n_available, max(1, min(n_short_tasks, n_queued // (2 * n_workers))))

    def _find_attempts_behind_slow_task(self, started_before: float = inf) -> list[AttemptId]:
        """Return prefetched tasks that cannot start because their worker is busy with a slow task.

        A task is slow if it started before the time `started_before`. Tasks that were already sent to a
        second worker are left out. The tasks behind the longest-running task come first.
        """
        if not self._prefetches:
            return []
        slow_workers = [
            item
            for item in self._allocation.workers.values()
            if len(item.assigned) > 1 and item.state_since < started_before
        ]
        if not slow_workers:
            return []
        slow_workers.sort(key=attrgetter("state_since"))
        attempts = [
            attempt_key[1:]
            for item in slow_workers
            for attempt_key, _ in itertools.islice(item.assigned, 1, None)
        ]
        return [item for item in attempts if self._is_stealable(item)]

    def _is_stealable(self, attempt_id: AttemptId) -> bool:
        """Return True if a task attempt may be sent to another worker as well.

        This is the case if the attempt has no outcome yet, and was not sent to a second worker before.
        """
        return attempt_id in self._unfinished and attempt_id not in self._stolen

    def _pop_best_attempt(self, worker: WorkerHandle, cached_elsewhere: set[Hashable]) -> AttemptId:
        """Remove the queued task that suits a worker best, and return it.

        This is the first task whose block the worker has cached. If there is none, it is the first task whose
        key is not in `cached_elsewhere` or, failing that, the first task in the queue.
        """
        best_position = None
        for position, (task, _) in enumerate(itertools.islice(self._queue, self._locality_window)):
            task_key = self._get_task_key(task)
            if task_key in worker.cached_tasks:
                best_position = position
                break
            if best_position is None and task_key not in cached_elsewhere:
                best_position = position
        attempt_id = self._queue[best_position or 0]
        del self._queue[best_position or 0]
        return attempt_id

    def _send_tasks(self, worker: WorkerHandle, attempts: list[AttemptId]) -> None:
        """Send tasks to a worker. If the worker is disconnected, put the tasks back into the queue."""
        is_prefetch, is_sent, task_messages = bool(worker.assigned), False, list[Message]()
        try:
            for attempt_id in attempts[:]:
                try:
                    task_messages.append(self._make_task_message(*attempt_id))
                except CancelledError:
                    # The task was cancelled while its block was being built, so it is not sent.
                    attempts.remove(attempt_id)
                    self._report_cancelled(attempt_id)
            if task_messages:
                job_messages = self._make_job_messages(worker, task_messages[0])
                is_sent = worker.channel.send(*job_messages, *task_messages)
                if worker.channel.has_unsent:
                    self._allocation.update_polled_events(worker)
            elif not is_prefetch:
                self._worker_pool.release_worker(worker)
        finally:
            if attempts and not is_sent:
                self._queue.extendleft(reversed(attempts))
                if not is_prefetch:
                    self._worker_pool.remove_worker(worker)
        if is_sent:
            # Record that the worker has the job's settings and function, so that they are not sent again.
            worker.job_id = self._job_id
            worker.function_digest = self._function_digest
            for attempt in attempts:
                worker.assign_task((self._job_id, *attempt), self._get_task_key(attempt[0]))
            if not is_prefetch:
                is_connected = worker.pid is not None
                event = AttemptStarted(*attempts[0], worker.state_since, is_connected, worker.host)
                self._events.append(event)

    def _report_cancelled(self, attempt_id: AttemptId) -> None:
        """Record that a task attempt was cancelled. The next call of `wait` reports the attempt as lost."""
        self._unfinished.discard(attempt_id)
        self._events.append(make_lost_worker_outcome(*attempt_id, "it was cancelled"))

    def _make_task_message(self, task: int, attempt: int) -> Message:
        """Return the message that asks a worker to run a task."""
        job_spec = self._job_spec
        fault = job_spec.find_injected_fault(task, attempt)
        n_rows = None if job_spec.padded_block is None else job_spec.get_n_unpadded_rows(task)
        pickled_block_ref = self._published_blocks.get_pickled_block_ref(job_spec.blocks, task)
        has_no_options = fault is None and n_rows is None
        options = b"" if has_no_options else encode_record(TaskOptions(fault, n_rows))
        return Message(MessageKind.TASK, (self._job_id, task, attempt), pickled_block_ref, options)

    def _make_job_messages(self, worker: WorkerHandle, task_message: Message) -> list[Message]:
        """Return the messages that a worker must receive before its first task of this job.

        The messages contain the job's settings. They also contain the function and the modules that it needs,
        unless the worker has received these already. `task_message` is the message for the worker's first
        task of this job.
        """
        if worker.job_id == self._job_id:
            return []
        if worker.function_digest == self._function_digest:
            return [Message(MessageKind.JOB, task_message.attempt_key, self._job_header)]
        modules = []
        if self._pickled_modules:
            modules = [Message(MessageKind.MODULES, task_message.attempt_key, data=self._pickled_modules)]
        return [
            *modules,
            Message(MessageKind.JOB, task_message.attempt_key, self._job_header, *self._function_message),
        ]

    def _receive_replies(self, worker: WorkerHandle) -> list[Outcome]:
        """Receive a worker's replies, and return the outcomes of tasks that had no outcome before.

        If the worker has exited, its running task is reported as lost, and its prefetched tasks are put back
        into the queue.
        """
        first_attempt_key = worker.assigned[0][0] if worker.pid is None and worker.assigned else None
        messages, is_connected = worker.receive_messages()
        outcomes, is_usable = list[Outcome](), True
        if first_attempt_key is not None and worker.pid is not None:
            self._events.append(AttemptStarted(*first_attempt_key[1:], time.monotonic(), True, worker.host))
        for message in messages:
            try:
                if message.kind == MessageKind.FETCH:
                    is_connected = self._send_segment(worker, message) and is_connected
                elif message.kind == MessageKind.UNUSABLE:
                    # An earlier job has changed the state of the worker process, and the change cannot be
                    # undone. The worker has therefore not started this task, so put it back into the queue.
                    self._queue.appendleft(message.attempt_key[1:])
                    is_usable = False
                else:
                    outcomes.append(self._to_outcome(message))
                    worker.last_task_seconds = outcomes[-1].seconds
            except (FrameError, LookupError, ValueError) as error:
                # The reply is invalid or requests an unknown part of a block.
                reason = f"its worker sent an invalid reply: {error}"
                outcomes.append(make_lost_worker_outcome(*message.attempt_key[1:], reason))
                is_usable = False  # Do not send any more tasks to this worker.
        if not is_connected and worker.assigned:
            lost_attempt = worker.assigned.popleft()[0][1:]
            reason = self._worker_pool.get_exit_reason(worker)
            outcomes.append(make_lost_worker_outcome(*lost_attempt, reason))
        new_outcomes = []
        for outcome in outcomes:
            if (outcome.task, outcome.attempt) in self._unfinished:
                # If a task was sent to two workers, only the first outcome is reported.
                new_outcomes.append(outcome._replace(host=worker.host) if worker.host else outcome)
                self._unfinished.remove((outcome.task, outcome.attempt))
                is_usable &= outcome.failure is None or outcome.failure.kind != FailureKind.LOST
        if not (is_connected and is_usable):
            self._requeue_tasks_and_release_worker(worker, self._worker_pool.remove_worker)
        elif not worker.assigned:
            self._worker_pool.release_worker(worker)
        elif outcomes:  # The worker has started its next prefetched task.
            attempt_key, _ = worker.assigned[0]
            if self._is_stealable(attempt_key[1:]):
                self._events.append(AttemptStarted(*attempt_key[1:], worker.state_since, True, worker.host))
            self._assign_next_tasks(worker, self._find_tasks_cached_on_busy_workers())
        return new_outcomes

    def _send_segment(self, worker: WorkerHandle, fetch_message: Message) -> bool:
        """Answer a worker's request for a part of a block or for the job's function.

        If the part must be read from a store, start to read it. `_send_read_segments` sends the part later.
        Return False if the worker is lost.
        """
        segment = decode_segment_range(fetch_message.header)
        function_data, is_file = self._function_message
        if is_file and segment.key == os.fsdecode(function_data):
            data = read_file_segment("/", segment._replace(size=os.stat(function_data).st_size))
        elif self._store_reader is not None:
            self._published_blocks.check_segment_is_referenced(segment)
            self._store_reader.start(fetch_message.attempt_key, segment)
            return True
        else:
            data = self._published_blocks.read_component(self._job_spec.blocks, segment.key)
        return self._send_to_waiting_worker(
            worker, Message(MessageKind.SEGMENT, fetch_message.attempt_key, fetch_message.header, data)
        )

    def _send_read_segments(self, finished_reads: Sequence[FinishedRead]) -> list[Outcome]:
        """Send the parts of blocks that were read from a store to the workers that requested them.

        Return the outcomes of tasks whose block could not be read.
        """
        outcomes = list[Outcome]()
        for attempt_key, segment, data, failure in finished_reads:
            _, task, attempt = attempt_key
            kind = MessageKind.SEGMENT if failure is None else MessageKind.NO_SEGMENT
            for worker in list(self._allocation.workers.values()):
                if worker.assigned and worker.assigned[0][0] == attempt_key:
                    self._send_to_waiting_worker(
                        worker, Message(kind, attempt_key, encode_segment_range(segment), data)
                    )
            if failure is not None and (task, attempt) in self._unfinished:
                self._unfinished.remove((task, attempt))
                outcomes.append(Outcome(task, attempt, [], (), failure, 0.0))
                if failure.kind == FailureKind.DAMAGED:
                    self._job_spec.blocks.on_damage_found()
                    self._published_blocks.invalidate_if_damaged(self._job_spec.blocks, task, failure)
        return outcomes

    def _send_to_waiting_worker(self, worker: WorkerHandle, message: Message) -> bool:
        """Send a message to a worker that is waiting for its block. Return False if the worker is lost."""
        is_sent = worker.channel.send(message)
        if worker.channel.has_unsent:
            self._allocation.update_polled_events(worker)
        self._worker_pool.flush_messages()
        return is_sent

    def _requeue_tasks_and_release_worker(
        self, worker: WorkerHandle, release_worker: Callable[[WorkerHandle], None]
    ) -> None:
        """Put a worker's prefetched tasks back into the queue, then call `release_worker(worker)`.

        `release_worker` is the method of the worker pool that abandons or removes the worker.
        """
        self._queue.extendleft(
            attempt_key[1:] for attempt_key, _ in worker.assigned if self._is_stealable(attempt_key[1:])
        )
        release_worker(worker)

    def _to_outcome(self, message: Message) -> Outcome:
        """Convert a worker's reply to an outcome. Raises FrameError if the reply is invalid."""
        _, task, attempt = message.attempt_key
        if message.kind == MessageKind.CANCELLED:
            return make_lost_worker_outcome(task, attempt, "its worker treated it as cancelled")
        try:
            data = message.data
            if message.is_file:
                data = self._read_result_file(ResultFileRef.decode(bytes(data)))
            outcome = self._job_spec.decode_reply(task, attempt, message.header, data)
        except Exception as error:
            raise FrameError(f"{type(error).__name__}: {error}") from error
        if outcome.failure is not None:
            self._published_blocks.invalidate_if_damaged(self._job_spec.blocks, outcome.task, outcome.failure)
        return outcome

    def _read_result_file(self, file_ref: ResultFileRef) -> memoryview | bytes:
        """Read and remove the file in which a worker on this machine has stored its result.

        Return empty bytes if `file_ref` does not refer to a folder of this job.
        """
        if file_ref.folder_index not in range(len(self._result_folders)):
            return b""
        folder = self._result_folders[file_ref.folder_index]
        check_private_folder(os.path.dirname(folder))
        path = os.path.join(folder, file_ref.file_name)
        data = np.fromfile(path, np.uint8).data
        os.unlink(path)
        return data

    def _make_function_message(self, pickled_function: PickledFunction) -> tuple[bytes, bool]:
        """Return the function as it is sent to workers, and True if it is sent as the path of a file.

        A small function is sent in pickled form. A large function is written once to a file, which all
        workers on this machine read. Workers on other machines cannot read the file, and request its contents
        from this process.
        """
        if pickled_function.n_bytes <= MAX_INLINE_FUNCTION_BYTES or not self._job_folders:
            return b"".join(pickled_function.get_buffers_to_send()), False
        for folder in self._job_folders:
            try:
                write_private_file(f"{folder}/function", *pickled_function.get_buffers_to_send())
                return os.fsencode(f"{folder}/function"), True
            except OSError as error:
                last_error = error
        raise last_error
