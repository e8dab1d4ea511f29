"""The tasks of one map on persistent workers."""

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
from polarmap.worker.segments import decode_segment_range, encode_segment_range
from polarmap.worker.task_records import JobHeader, ResultFileRef, TaskOptions, encode_record

if TYPE_CHECKING:
    from polarmap.executors.store_reader import FinishedRead, StoreReader

STEAL_AFTER_SECONDS = 0.002  # that a task may take before those behind it are given to others, too
MAX_PREFETCHED = 8  # tasks that a worker is told of beyond the one that it is at: they fit into a socket
LOCALITY_WINDOW = 64  # waiting tasks, for one whose block a worker has


class PoolSession:
    """The tasks of one map: each waits until a worker may take it, in the order in which they come.

    Maps that run at once on a pool share its workers. One of a map that is alone is told of its next tasks,
    several where they are short, while it is at the one before: to wake it would take longer than that.
    What waits behind a task that takes long is given to another worker, too: the first to end it is heard.

    Parameters
    ----------
    job_spec : Payload
    pickled_function : of the payload, with the structure of its blocks.
    module_sources : sources of those that it needs and workers may lack, by name.
    worker_pool, block_store : shared with the other maps of the pool.
    pool_folders : of the pool, for a folder of this map in each, which is made when it is needed.
    fetch_timeout : seconds that this process may take to read a block from a store of the user's own.
    """

    # Of maps: no two have the same, so that what is removed by its name is of this one.
    _job_ids = itertools.count(int.from_bytes(os.urandom(6), "big"))
    now = staticmethod(time.monotonic)
    deadline = inf  # when its map must be over
    _owner_pid = -1  # the process to which it belongs, as soon as there is anything to close

    def __init__(
        self,
        job_spec: JobSpec,
        pickled_function: PickledFunction,
        module_sources: Mapping[str, tuple[str, bool]],
        worker_pool: WorkerPool,
        block_store: BlockStore,
        pool_folders: Sequence[Path],
        fetch_timeout: float,
    ) -> None:
        self._job_id, self._job_spec = next(self._job_ids), job_spec
        self._job_folders = tuple(f"{folder}/map-{self._job_id}" for folder in pool_folders)
        self._worker_pool, self._block_store = worker_pool, block_store
        self._queue: deque[AttemptId] = deque()
        self._unfinished: set[AttemptId] = set()  # that have not ended
        self._stolen: set[AttemptId] = set()  # that two workers were told of
        self._wake_signal = WakeSignal()
        self._events: list[Event] = []  # that are told with the next outcomes
        self._last_progress_at = time.monotonic()  # when tasks came, or any ended
        self._published_blocks = block_store.acquire_blocks(job_spec)
        # Of tasks, to later maps of the same blocks.
        get_task_key = partial(self._published_blocks.get_task_key, job_spec.blocks)
        self._get_task_key = lru_cache(MAX_CACHED_TASKS)(get_task_key)
        self._allocation = self._worker_pool.open_allocation(self._wake_signal.set)
        self._allocation.poller.register(self._wake_signal, POLLIN)
        self._store_reader: StoreReader | None = None
        if job_spec.blocks.location is not None and job_spec.blocks.location.is_sent_by_driver:
            from polarmap.executors.store_reader import StoreReader

            self._store_reader = StoreReader.for_blocks(job_spec.blocks, fetch_timeout, self._wake_signal.set)
        if not worker_pool.shares_host:
            self._allocation.n_tasks = job_spec.blocks.n
        self._owner_pid = os.getpid()
        # No worker has a block that travels. What is stored is to come from one worker; a worker at a task
        # reads no block that is longer than the buffer of its socket.
        is_inline = job_spec.blocks.location is not None and job_spec.blocks.location.is_inline
        self._locality_window = 1 if is_inline else LOCALITY_WINDOW
        self._prefetches = not (job_spec.output_spec or is_inline)
        self._poll_interval = MIN_IDLE_CORES_POLL_INTERVAL
        environment = worker_pool.get_pickled_environment(pickled_function.pickle_bytes)
        # first: what comes meanwhile is not told to have gone
        next_block_set_id = block_store.next_block_set_id
        cache_ids = (
            self._published_blocks.cache_id,
            [*block_store.get_live_block_set_ids(), next_block_set_id],
        )
        # Lists, which the codec takes as they are.
        job_header = JobHeader(
            list(self._job_folders), job_spec.output_spec, job_spec.encryption, environment, *cache_ids
        )
        self._job_header = encode_record(job_header)
        self._pickled_modules = pickle.dumps(module_sources) if module_sources else b""
        try:
            self._function_message = self._make_function_message(pickled_function)
            # What tells it from others; a file is of one map, and is named so.
            data, is_file = self._function_message
            self._function_digest = (
                data if is_file else blake2b(self._pickled_modules + data, digest_size=16).digest()
            )
        except OSError as error:
            self.close()
            raise ExecutorError(f"no room for what workers are to read: {error}") from error

    def __del__(self) -> None:
        self.close()

    def submit(self, attempts: Sequence[AttemptId]) -> None:
        """Let them wait for a worker; those that can start now do.

        None starts if the time of the map is over before their blocks are stored.
        """
        # files here; of a storage that may hang, a thread removes what is unneeded
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
        if not any(worker.pid for worker in self._allocation.workers.values()):  # they are coming up
            self._job_spec.blocks.prepare_encoding()

    def wait(self, timeout: float) -> list[Event]:
        """What workers have replied, as soon as any has."""
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
        """Drop those that wait, and leave who is at one as at the end of a map."""
        unfinished = [attempt_id for attempt_id in attempts if attempt_id in self._unfinished]
        for attempt_id in unfinished:
            self._report_cancelled(attempt_id)
            with contextlib.suppress(ValueError):  # it does not wait
                self._queue.remove(attempt_id)
        for worker in list(self._allocation.workers.values()):
            if worker.assigned and worker.assigned[0][0][1:] in unfinished:
                self._requeue_tasks_and_release_worker(worker, self._worker_pool.abandon_worker)
        self._assign_queued_tasks()

    def _poll_workers_until(self, deadline: float) -> list[Outcome]:
        if not self._worker_pool.has_one_session():
            self._assign_queued_tasks()  # others may have left room
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
                outcomes += [] if worker is None else self._handle_replies(worker)
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
        """Write what links take of the messages that wait, and return the tasks of workers that are lost."""
        lost_outcomes: list[Outcome] = []
        for worker in list(self._allocation.receiving_workers):
            if not worker.write_unsent_messages():
                worker.channel.disconnect()
                lost_outcomes += self._handle_replies(worker)
            elif not worker.channel.has_unsent:
                self._allocation.update_polled_events(worker)
            if time.monotonic() >= deadline:  # what it takes to write all may be long
                break
        return lost_outcomes

    def count_receiving_workers(self) -> int:
        """Return the number of workers that have not been sent all that their task needs."""
        return len(self._allocation.receiving_workers)

    def cancel_queued(self) -> list[AttemptStarted]:
        """Drop what waits, and return which attempts have begun since the last `wait`.

        A worker may have ended the task that it was known to be at, and begun another that it was told ahead.
        """
        self._queue.clear()
        for descriptor, _ in self._allocation.poller.poll(0):
            worker = self._allocation.workers.get(descriptor)
            if worker is not None:
                self._drain_messages(worker)
        events, self._events = self._events, []
        return [event for event in events if isinstance(event, AttemptStarted)]

    def _drain_messages(self, worker: WorkerHandle) -> None:
        """Take the messages of a worker that nobody waits for, and note which attempts it has begun."""
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
        """Let the descriptor be readable that is polled besides those of workers."""
        self._wake_signal.set()

    def close(self) -> PersistentUsage | None:
        """Leave the workers that are busy to whoever needs them next, or kills them."""
        if os.getpid() != self._owner_pid or self._allocation.closed_at is not None:
            return None
        self._worker_pool.close_allocation(self._allocation, self._job_id)
        with contextlib.suppress(ExecutorError):  # what waits is sent later, or its workers end
            self._worker_pool.flush_messages()
        self._queue.clear()
        try:
            for folder in self._job_folders:
                remove_tree(folder)
        finally:  # an interrupt here leaves files until the workers end
            self._block_store.release_blocks(self._published_blocks)
            self._wake_signal.close()
        return self._worker_pool.take_billed_usage()

    def _assign_queued_tasks(self) -> None:
        """Hand attempts to workers as long as one is to be had; last those behind one that takes long."""
        cached_elsewhere = self._find_tasks_cached_on_busy_workers()
        while True:
            attempts = self._queue or self._find_attempts_behind_slow_task(
                time.monotonic() - STEAL_AFTER_SECONDS
            )
            if (
                cached_elsewhere
                and self._is_every_queued_task_in(cached_elsewhere)
                and self._can_delay_for_locality()
            ):
                attempts = []
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
        """Tasks that wait, and whose block none has that is free now, but one that will be."""
        get_task_keys = partial(self._get_first_task_keys, self._queue)
        return self._worker_pool.find_tasks_cached_on_abandoned_workers(get_task_keys)

    def _is_every_queued_task_in(self, task_keys: set[Hashable]) -> bool:
        """Whether tasks wait, and every one of them is one of these."""
        is_within_window = 0 < len(self._queue) <= self._locality_window
        return is_within_window and task_keys.issuperset(self._get_first_task_keys(self._queue))

    def _can_delay_for_locality(self) -> bool:
        """Whether a task has come or ended within the time that a block takes to a free worker."""
        transfer_seconds = self._published_blocks.estimate_transfer_seconds(self._job_spec.blocks)
        return time.monotonic() < self._last_progress_at + transfer_seconds

    def _get_first_task_keys(self, attempts: Iterable[AttemptId]) -> list[Hashable]:
        """The first tasks of these, in the form that means the same to later maps."""
        return [self._get_task_key(task) for task, _ in itertools.islice(attempts, self._locality_window)]

    def _assign_next_tasks(self, worker: WorkerHandle, cached_elsewhere: set[Hashable]) -> None:
        """Tell a worker of its next tasks, unless it was told of as many as it may be."""
        n_more = 1 + self._compute_prefetch_depth(worker) - len(worker.assigned)
        if n_more > 0:
            attempts = [self._pop_best_attempt(worker, cached_elsewhere) for _ in range(n_more)]
            self._send_tasks(worker, attempts)

    def _compute_prefetch_depth(self, worker: WorkerHandle) -> int:
        """Of how many tasks beyond one a worker may be told: others get one first, and the last ones last."""
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
        if not (self._prefetches and self._worker_pool.has_one_session()):
            return 0
        task_seconds = max(worker.last_task_seconds, STEAL_AFTER_SECONDS / MAX_PREFETCHED)
        n_short_tasks = int(STEAL_AFTER_SECONDS / task_seconds)
        return min(n_available, max(1, min(n_short_tasks, n_queued // (2 * n_workers))))

    def _find_attempts_behind_slow_task(self, started_before: float = inf) -> list[AttemptId]:
        """What one worker was told of and waits behind a task that began before that, the oldest first."""
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
        """Whether its end is to come, and no second worker was told of it."""
        return attempt_id in self._unfinished and attempt_id not in self._stolen

    def _pop_best_attempt(self, worker: WorkerHandle, cached_elsewhere: set[Hashable]) -> AttemptId:
        """The next attempt for a worker: one whose block it has, else the first that no other holds."""
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
        """Tell a worker to do these, after what it is at; if it does not listen, others will."""
        is_prefetch, is_sent, task_messages = bool(worker.assigned), False, list[Message]()
        try:
            for attempt_id in attempts[:]:
                try:
                    task_messages.append(self._make_task_message(*attempt_id))
                except CancelledError:  # of its block
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
            # The worker has job and function now: the next task need not send them again.
            worker.job_id = self._job_id
            worker.function_digest = self._function_digest
            for attempt in attempts:
                worker.assign_task((self._job_id, *attempt), self._get_task_key(attempt[0]))
            if not is_prefetch:
                is_connected = worker.pid is not None
                event = AttemptStarted(*attempts[0], worker.state_since, is_connected, worker.host)
                self._events.append(event)

    def _report_cancelled(self, attempt_id: AttemptId) -> None:
        """Tell of one that nobody waits for that it is lost."""
        self._unfinished.discard(attempt_id)
        self._events.append(make_lost_worker_outcome(*attempt_id, "nobody waits for it any more"))

    def _make_task_message(self, task: int, attempt: int) -> Message:
        """What a worker is told for an attempt."""
        job_spec = self._job_spec
        fault = job_spec.find_injected_fault(task, attempt)
        n_rows = None if job_spec.padded_block is None else job_spec.get_n_unpadded_rows(task)
        pickled_block_ref = self._published_blocks.get_pickled_block_ref(job_spec.blocks, task)
        has_no_options = fault is None and n_rows is None
        options = b"" if has_no_options else encode_record(TaskOptions(fault, n_rows))
        return Message(MessageKind.TASK, (self._job_id, task, attempt), pickled_block_ref, options)

    def _make_job_messages(self, worker: WorkerHandle, task_message: Message) -> list[Message]:
        """What calls of this map have in common, before the first that a worker is told."""
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

    def _handle_replies(self, worker: WorkerHandle) -> list[Outcome]:
        """Take what a worker has replied, or that it is gone."""
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
                    # An earlier map has changed the process for good. The worker has not begun the task.
                    self._queue.appendleft(message.attempt_key[1:])
                    is_usable = False
                else:
                    outcomes.append(self._to_outcome(message))
                    worker.last_task_seconds = outcomes[-1].seconds
            except (FrameError, LookupError, ValueError) as error:  # no reply, or no key of a part
                reason = f"what its worker said is no reply: {error}"
                outcomes.append(make_lost_worker_outcome(*message.attempt_key[1:], reason))
                is_usable = False  # what says such things is not to be trusted with more
        if not is_connected and worker.assigned:
            lost_attempt = worker.assigned.popleft()[0][1:]
            reason = self._worker_pool.get_exit_reason(worker)
            outcomes.append(make_lost_worker_outcome(*lost_attempt, reason))
        new_outcomes = []
        for outcome in outcomes:
            if (outcome.task, outcome.attempt) in self._unfinished:  # its end has not been told
                new_outcomes.append(outcome._replace(host=worker.host) if worker.host else outcome)
                self._unfinished.remove((outcome.task, outcome.attempt))
                is_usable &= outcome.failure is None or outcome.failure.kind != FailureKind.LOST
        if not (is_connected and is_usable):
            self._requeue_tasks_and_release_worker(worker, self._worker_pool.remove_worker)
        elif not worker.assigned:
            self._worker_pool.release_worker(worker)
        elif outcomes:  # it is at the next one that it was told ahead
            attempt_key, _ = worker.assigned[0]
            if self._is_stealable(attempt_key[1:]):
                self._events.append(AttemptStarted(*attempt_key[1:], worker.state_since, True, worker.host))
            self._assign_next_tasks(worker, self._find_tasks_cached_on_busy_workers())
        return new_outcomes

    def _send_segment(self, worker: WorkerHandle, fetch_message: Message) -> bool:
        """Send a segment that a worker asks for, or start to read it; return whether the worker is there."""
        segment = decode_segment_range(fetch_message.header)
        if self._store_reader is not None:
            self._published_blocks.check_was_referenced(segment)
            self._store_reader.start(fetch_message.attempt_key, segment)
            return True
        data = self._published_blocks.read_component(self._job_spec.blocks, segment.key)
        return self._send_to_waiting_worker(
            worker, Message(MessageKind.SEGMENT, fetch_message.attempt_key, fetch_message.header, data)
        )

    def _send_read_segments(self, finished_reads: Sequence[FinishedRead]) -> list[Outcome]:
        """Send what was read to the workers that wait for it; return the attempts that get no block."""
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
        """Send a message to a worker that waits for its block; return whether the worker is there."""
        is_sent = worker.channel.send(message)
        if worker.channel.has_unsent:
            self._allocation.update_polled_events(worker)
        self._worker_pool.flush_messages()
        return is_sent

    def _requeue_tasks_and_release_worker(
        self, worker: WorkerHandle, release_worker: Callable[[WorkerHandle], None]
    ) -> None:
        """Give up a worker that is gone or of no more use: what it was told ahead waits again."""
        self._queue.extendleft(
            attempt_key[1:] for attempt_key, _ in worker.assigned if self._is_stealable(attempt_key[1:])
        )
        release_worker(worker)

    def _to_outcome(self, message: Message) -> Outcome:
        """What a message says of an attempt; FrameError if it is no reply."""
        _, task, attempt = message.attempt_key
        if message.kind == MessageKind.CANCELLED:
            return make_lost_worker_outcome(task, attempt, "its worker took it for cancelled")
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
        """Return the result in a file of one of the job's folders, and remove the file.

        The result is empty for a folder that is not one of them.
        """
        if file_ref.folder_index not in range(len(self._job_folders)):
            return b""
        folder = self._job_folders[file_ref.folder_index]
        check_private_folder(os.path.dirname(folder))
        path = os.path.join(folder, file_ref.file_name)
        data = np.fromfile(path, np.uint8).data
        os.unlink(path)
        return data

    def _make_function_message(self, pickled_function: PickledFunction) -> tuple[bytes, bool]:
        """A function as it travels, or the file that it is to be read from, and whether it is that."""
        if pickled_function.n_bytes <= MAX_INLINE_FUNCTION_BYTES or not self._job_folders:
            return b"".join(pickled_function.get_buffers_to_send()), False
        for folder in self._job_folders:
            try:
                write_private_file(f"{folder}/function", *pickled_function.get_buffers_to_send())
                return os.fsencode(f"{folder}/function"), True
            except OSError as error:
                last_error = error
        raise last_error
