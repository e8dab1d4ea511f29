"""The workers of a pool as their driver sees them, and which of its maps may take one next.

A worker is free, or at a task of a map; when that map ends before the task, the worker is abandoned until it
has come to its end. What a worker was told and has not ended stands in `WorkerHandle.assigned`: the one that
it does, and those behind that. Nobody else keeps account of it but links by way of a storage, which count.

A map that is alone takes as many workers as may be busy. Several share them: one that becomes free goes to
the map with the fewest tasks under way, then to the one that has waited longest.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, Any

from polarmap.clouds.prices import PersistentUsage
from polarmap.errors import ExecutorError
from polarmap.worker.messages import EXIT_KINDS, REPLY_KINDS, TASK_END_KINDS, Message, MessageKind
from polarmap.worker.polling import POLLIN, POLLOUT, Poll, wait_until_ready
from polarmap.worker.task_records import WorkerIdentity

if TYPE_CHECKING:
    from polarmap.executors.storage_channels import WorkerChannel

MAX_LABEL_BYTES = 500  # the longest description of its machine, host and place that is read from a worker
MAX_CACHED_TASKS = 1024  # tasks of each worker
GRACE_SECONDS = 1.0  # that a map waits for tasks of others, and workers may take for what nobody waits for

AttemptKey = tuple[int, int, int]  # map, task and attempt


@dataclass(eq=False)
class Allocation:
    """What a run holds workers by until it ends.

    wake_session : lets the run look whether it may start a task.
    workers : that are at its tasks, also after its end, by the descriptors of their links.
    poller : of these descriptors, and of what else the run waits for.
    receiving_workers : the workers whose link has messages that are not written yet.
    n_queued : tasks that it would start.
    can_be_woken : whether it starts tasks as soon as it is woken.
    last_progress_at : when a task of it started or ended last, or it began to wait, on the monotonic clock.
    cores_were_idle : whether cores were idle when it looked last.
    closed_at : when it did; None: it has not.
    n_tasks : the number of tasks of the run; 0 if it does not matter on which machines they run.
    n_tasks_by_machine : the number of tasks that each machine has been given, for workers whose machine is
        known.
    """

    wake_session: Callable[[], None]
    workers: dict[int, WorkerHandle] = field(default_factory=dict)
    poller: Any = field(default_factory=Poll)
    receiving_workers: set[WorkerHandle] = field(default_factory=set)
    n_queued: int = 0
    can_be_woken: bool = False
    last_progress_at: float = field(default_factory=time.monotonic)
    cores_were_idle: bool = False
    closed_at: float | None = None
    n_tasks: int = 0
    n_tasks_by_machine: dict[str, int] = field(default_factory=dict)

    def update_polled_events(self, worker: WorkerHandle) -> None:
        """Poll the link of a worker for replies, and for room to write as long as messages for it wait."""
        has_unsent = worker.channel.has_unsent
        (self.receiving_workers.add if has_unsent else self.receiving_workers.discard)(worker)
        self.poller.register(worker.channel_descriptor, POLLIN | POLLOUT if has_unsent else POLLIN)


@dataclass(eq=False)
class WorkerHandle:
    """A worker that stays, as its driver sees it.

    allocation : of the map whose task it does, or did when that map ended; None while it is free.
    channel_descriptor : by which that map polls its link.
    assigned : what it was told to do and has not ended: the order, and the task in a form that means the same
        to later maps of the same blocks.
    state_since : when it began with the first of them, or else became free, on the monotonic clock.
    pid, label : its number on its machine, and how its engine calls it, as soon as it has said so.
    machine : the address of its machine, or until the worker has said that, where it was started; empty if
        the engine has no addresses.
    host : the name of its machine, for reports; empty until the worker has said that, and on the driver's.
    job_id : of which it was told last, by number.
    function_digest : digest of the one that it has.
    last_task_seconds : seconds of the latest task of which it has told.
    is_exiting : whether it has said that it ends itself.
    cached_tasks : the tasks that it did most recently, whose blocks it has in memory; in the same form.
    """

    worker_id: int
    channel: WorkerChannel
    allocation: Allocation | None = None
    channel_descriptor: int = -1
    assigned: deque[tuple[AttemptKey, Hashable]] = field(default_factory=deque)
    state_since: float = inf
    pid: int | None = None
    label: str = ""
    machine: str = ""
    host: str = ""
    job_id: int = -1
    function_digest: bytes | None = None
    last_task_seconds: float = inf
    is_exiting: bool = False
    cached_tasks: dict[Hashable, None] = field(default_factory=dict)

    @property
    def has_open_session(self) -> bool:
        """Whether a map waits for this worker."""
        return self.allocation is not None and self.allocation.closed_at is None

    def get_abandoned_seconds(self) -> float:
        """For how many seconds nobody has waited for its task; it has one, and its map has ended."""
        assert self.allocation is not None
        return time.monotonic() - (self.allocation.closed_at or 0.0)

    def assign_task(self, attempt_key: AttemptKey, task_key: Hashable) -> None:
        """Note that the worker was told of this task."""
        if not self.assigned:
            self.state_since = time.monotonic()
        self.assigned.append((attempt_key, task_key))
        if self.machine and self.allocation is not None:
            n_tasks_by_machine = self.allocation.n_tasks_by_machine
            n_tasks_by_machine[self.machine] = n_tasks_by_machine.get(self.machine, 0) + 1

    def receive_messages(self) -> tuple[list[Message], bool]:
        """What it has said of its task since the last time, and whether it will say more.

        One that speaks of another task than it was told to do is gone: nothing that it says is of use.
        """
        messages, is_connected = self.channel.receive()
        valid_messages = []
        for message in messages:
            if message.kind == MessageKind.HELLO and message.header.isdigit():
                self.pid = int(message.header)
                if message.data:
                    self._set_identity(WorkerIdentity.decode(bytes(message.data[:MAX_LABEL_BYTES])))
            elif self.assigned and message.attempt_key == self.assigned[0][0]:
                valid_messages.append(message)
                self.is_exiting |= message.kind in EXIT_KINDS
                if message.kind in TASK_END_KINDS:
                    _, task_key = self.assigned.popleft()
                    self.state_since = time.monotonic()
                    if message.kind in REPLY_KINDS:  # else it may not have looked at its block
                        self._add_cached_task(task_key)
            else:
                self.channel.disconnect()
                return valid_messages, False
        return valid_messages, is_connected

    def cancel_tasks(self) -> bool:
        """Cancel the tasks of the worker. Return False if it has none, and nothing is on its way to it.

        Messages that wait are dropped. No reply is to come of a task whose call was among them.
        """
        channel = self.channel
        if channel.has_unsent:
            for message in channel.drop_unsent():
                if message.kind in (MessageKind.JOB, MessageKind.MODULES):
                    self.job_id, self.function_digest = -1, None
                elif message.kind == MessageKind.TASK:
                    remaining = [item for item in self.assigned if item[0] != message.attempt_key]
                    self.assigned = deque(remaining)
        if self.assigned:
            channel.send(Message(MessageKind.CANCEL, self.assigned[0][0]))
        return bool(self.assigned or channel.has_unsent)

    def write_unsent_messages(self) -> bool:
        """Write what the link takes of the messages that wait. Return False if the worker is lost."""
        channel = self.channel
        if channel.flush() and not channel.is_stalled():
            return True
        channel.failure = channel.failure or TimeoutError("it took no further byte of its block")
        return False

    def _set_identity(self, identity: WorkerIdentity) -> None:
        machine, host, self.label = identity
        self.machine = machine
        self.host = host if machine in ("", host) else f"{host} ({machine})"

    def _add_cached_task(self, task_key: Hashable) -> None:
        self.cached_tasks.pop(task_key, None)
        self.cached_tasks[task_key] = None
        if len(self.cached_tasks) > MAX_CACHED_TASKS:
            del self.cached_tasks[next(iter(self.cached_tasks))]


class WorkerPool:
    """What the workers of all pools have in common. Maps on several threads may take them.

    shares_host : whether it takes no time to tell them something.
    latest_channel_name : over which the latest worker elsewhere has called; empty if none has.

    Parameters
    ----------
    max_workers : at a time, not counting those that are abandoned.
    """

    shares_host = False
    latest_channel_name = ""

    def __init__(self, max_workers: int | None) -> None:
        self._max_workers = max_workers
        self._lock = threading.RLock()  # a run that is closed by its destructor may interrupt anything
        self._worker_ids = itertools.count()
        self._workers: dict[int, WorkerHandle] = {}
        # Weak: an interrupt may have kept an allocation from being closed.
        self._allocation_refs = set[weakref.ref[Allocation]]()
        self._concurrency_limit = self._get_initial_concurrency_limit()  # of tasks under way
        self._last_change_at = time.monotonic()  # when a task was started or ended last
        self._is_closed = False
        self._owner_pid = os.getpid()

    def __len__(self) -> int:
        return len(self._workers)

    def count_busy_workers(self) -> int:
        """Return the number of workers that are at a task, also at one that nobody waits for any more."""
        return sum(worker.allocation is not None for worker in list(self._workers.values()))

    def count_workers_by_host(self) -> dict[str, int]:
        """Return how many workers run on each host, by the names in reports, as far as these are known."""
        return dict(Counter(worker.host for worker in list(self._workers.values()) if worker.host))

    def get_pickled_environment(self, pickled_function: bytes) -> bytes:
        """The `ProcessEnvironment` that workers are to find around a function, pickled; empty for what is
        there.
        """
        return b""

    def request_workers(self, n_workers: int) -> None:
        """So many would be of use now."""

    def maybe_scale_up(self, allocation: Allocation, n_queued: int) -> None:
        """See, where there is no news, whether more tasks could run of so many that might start."""

    def explain_missing_workers(self) -> str:
        """Return why no worker has been there yet, and what to do; empty if one has, or can start at once."""
        return ""

    def flush_messages(self) -> None:
        """Send all messages that wait to be sent, without waiting; ExecutorError if that is impossible."""

    def maintain_workers(self) -> None:
        """What is to be done now and then while no map runs; what raises an error is tried again."""

    def take_billed_usage(self) -> PersistentUsage | None:
        """What they have been paid for since this was asked before; None where nobody pays for them."""
        return None

    def open_allocation(self, wake_session: Callable[[], None]) -> Allocation:
        """For one more run; `wake_session` lets it look whether it may start a task."""
        with self._lock:
            if not self._allocation_refs:
                self._concurrency_limit = self._get_initial_concurrency_limit()
            allocation = Allocation(wake_session)
            self._allocation_refs.add(weakref.ref(allocation, self._allocation_refs.discard))
            return allocation

    def has_one_session(self) -> bool:
        """Whether one run is open at most."""
        return len(self._allocation_refs) < 2

    def get_idle_seconds(self) -> float:
        """For how many seconds no run has been open."""
        return 0.0 if self._allocation_refs else time.monotonic() - self._last_change_at

    def acquire_worker(
        self, allocation: Allocation, n_queued: int, get_task_keys: Callable[[], Collection[Hashable]] = tuple
    ) -> WorkerHandle | None:
        """One for so many tasks that wait: that has done one of these before, is free, or is new.

        None where it is the turn of another run, where as many tasks are under way as may be, or where there
        are as many workers as there may be.
        """
        with self._lock:
            if n_queued and not allocation.n_queued:
                allocation.last_progress_at = time.monotonic()
            allocation.n_queued = n_queued
            if len(self._allocation_refs) > 1:
                may_acquire = self._wake_next_session(allocation) is allocation
            else:
                may_acquire = n_queued > 0 and len(allocation.workers) < self._concurrency_limit
            if not may_acquire:
                return None
            worker = self._choose_idle_worker(get_task_keys, allocation)
            if worker is None:
                self._poll_unallocated_workers()
                worker = self._choose_idle_worker(get_task_keys, allocation) or self._start_worker()
            if worker is None:
                return None
            worker.allocation, worker.channel_descriptor = allocation, worker.channel.fileno()
            allocation.workers[worker.channel_descriptor] = worker
            allocation.poller.register(worker.channel_descriptor, POLLIN)
            if worker.channel.has_unsent:
                allocation.update_polled_events(worker)
            self._last_change_at = allocation.last_progress_at = time.monotonic()
            return worker

    def release_worker(self, worker: WorkerHandle) -> None:
        """It does nothing for its map any more, which may have ended; another may start a task."""
        with self._lock:
            allocation, worker.state_since = worker.allocation, time.monotonic()
            worker.assigned.clear()
            if allocation is None:
                return
            if allocation.workers.pop(worker.channel_descriptor, None) is not None:
                allocation.poller.unregister(worker.channel_descriptor)
            allocation.receiving_workers.discard(worker)
            worker.allocation = None  # at last: an interrupt before leaves it abandoned
            if allocation.closed_at is None:
                self._last_change_at = allocation.last_progress_at = worker.state_since
                if len(self._allocation_refs) > 1:
                    self._wake_next_session(allocation)

    def remove_worker(self, worker: WorkerHandle) -> None:
        """It is gone, or is to go; ExecutorError if that is because another thread has ended them all.

        Others of its process or machine may have gone with it.
        """
        with self._lock:
            self._remove_worker(worker)
            self._poll_unallocated_workers()
            self._check_open()

    def stop_waking_session(self, allocation: Allocation) -> None:
        """Nobody waits for its run now: it cannot be told that it may start a task."""
        allocation.can_be_woken = False
        if len(self._allocation_refs) > 1:
            with self._lock:
                self._wake_next_session()

    def close_allocation(self, allocation: Allocation, job_id: int | None = None) -> None:
        """A map, of this number, ends: who is at its tasks is left to whoever needs it next, or kills it.

        All that did its tasks and are near are told, as there is something to do for them before the next.
        """
        with self._lock:
            self._allocation_refs.discard(weakref.ref(allocation))
            allocation.closed_at = self._last_change_at = time.monotonic()
            if self._allocation_refs:  # what the others need beyond is seen when they leave cores idle
                initial_limit = self._get_initial_concurrency_limit()
                self._concurrency_limit = max(self._count_in_flight_tasks(), initial_limit)
                self._wake_next_session()
            for worker in list(allocation.workers.values()):
                if self._is_closed:
                    worker.channel.close()
                elif worker.assigned and not worker.cancel_tasks():
                    self.release_worker(worker)
            for worker in self._workers.values() if self.shares_host else ():
                if worker.allocation is None and worker.job_id == job_id:
                    worker.channel.send(Message(MessageKind.CANCEL, (job_id, -1, -1)))

    def abandon_worker(self, worker: WorkerHandle) -> None:
        """Nobody waits for its task any more: it is left as if its map had ended."""
        with self._lock:
            is_busy, assigned = worker.cancel_tasks(), worker.assigned.copy()
            self.release_worker(worker)
            if is_busy:
                worker.assigned = assigned
                worker.allocation = Allocation(lambda: None, closed_at=time.monotonic())

    def get_exit_reason(self, worker: WorkerHandle) -> str:
        """How one has ended that is gone; ExecutorError if that is because all were ended."""
        self._check_open()
        return "its worker process ended without reporting" + (worker.label and f" ({worker.label})")

    def find_tasks_cached_on_abandoned_workers(
        self, get_task_keys: Callable[[], Collection[Hashable]]
    ) -> set[Hashable]:
        """Those of these whose block no free worker has, but one that is still at an abandoned task."""
        with self._lock:
            if not self._get_abandoned_workers():
                return set()
            self._poll_unallocated_workers()
            abandoned = self._get_abandoned_workers()
            running_tasks = {item.assigned[0][1] for item in abandoned if item.assigned}
            idle_caches = [item.cached_tasks for item in self._workers.values() if item.allocation is None]
            cached_on_abandoned = {
                key
                for key in get_task_keys()
                if key in running_tasks or any(key in worker.cached_tasks for worker in abandoned)
            }
            return {key for key in cached_on_abandoned if not any(key in cache for cache in idle_caches)}

    def is_allocation_starved(self, allocation: Allocation) -> bool:
        """Whether no task of its run is under way, and none of others was started or ended for long."""
        return not allocation.workers and time.monotonic() > self._last_change_at + GRACE_SECONDS

    def close(self) -> None:
        """End them all: maps that run on them now fail."""
        with self._lock:
            self._is_closed = True
            for worker in list(self._workers.values()):
                if worker.has_open_session:  # its map sees it end, at a descriptor that is still there
                    self._terminate_worker(worker.worker_id)
                    worker.channel.disconnect()
                else:
                    self._remove_worker(worker)
            self._workers.clear()

    def after_fork(self) -> None:
        """Let go of workers and runs, in a process that was forked of the one that has them."""
        self._is_closed, self._lock = True, threading.RLock()  # that another thread may have held
        self._allocation_refs.clear()
        for worker in self._workers.values():
            worker.channel.close()
        self._workers.clear()

    def _check_open(self) -> None:
        if os.getpid() != self._owner_pid:
            raise ExecutorError("this process was forked while a map ran, which goes on in its parent only")
        if self._is_closed:
            raise ExecutorError("the workers were ended while a map ran on them, by close() or shutdown()")

    def _get_initial_concurrency_limit(self) -> int:
        """How many tasks may be under way to begin with."""
        return sys.maxsize

    def _start_worker(self) -> WorkerHandle | None:
        """A new one, or one that is free in a moment, if it can be had at once."""
        raise NotImplementedError

    def _terminate_worker(self, worker_id: int) -> None:
        """Let the process of a worker end."""

    def _remove_unneeded_workers(self) -> None:
        """Remove those that are to go: abandoned ones, or others that took the place of these."""

    def _get_open_allocations(self) -> list[Allocation]:
        """The leases of runs that have not ended."""
        refs = list(self._allocation_refs)
        return [allocation for ref in refs if (allocation := ref()) is not None]

    def _count_in_flight_tasks(self) -> int:
        """Tasks of all runs that workers are at."""
        return sum(len(allocation.workers) for allocation in self._get_open_allocations())

    def _wake_next_session(self, requester: Allocation | None = None) -> Allocation | None:
        """The run whose turn it is to start a task, if one more may be under way; told but for `requester`.

        Of those with tasks that wait and a thread that can start them. Tasks of others that never end keep
        no map from going on.
        """
        candidates = [
            item
            for item in self._get_open_allocations()
            if item.n_queued and (item.can_be_woken or item is requester)
        ]
        next_allocation = min(
            candidates, key=lambda item: (len(item.workers), item.last_progress_at), default=None
        )
        if next_allocation is None:
            return None
        n_in_flight, max_workers = self._count_in_flight_tasks(), self._max_workers or sys.maxsize
        if n_in_flight >= self._concurrency_limit and (
            n_in_flight >= max_workers or not self.is_allocation_starved(next_allocation)
        ):
            return None
        if next_allocation is not requester:
            next_allocation.wake_session()
        return next_allocation

    def _choose_idle_worker(
        self, get_task_keys: Callable[[], Collection[Hashable]], allocation: Allocation | None = None
    ) -> WorkerHandle | None:
        """Return a free worker that has done one of these tasks, else one that is up, else any or None.

        allocation : of the map that is to use the worker, where tables spread its tasks over machines.
        """
        idle_workers = [worker for worker in self._workers.values() if worker.allocation is None]
        task_keys = get_task_keys() if len(idle_workers) > 1 else ()

        def rank_worker(worker: WorkerHandle) -> tuple[bool, bool]:
            return not worker.cached_tasks.keys().isdisjoint(task_keys), worker.pid is not None

        best_worker = next((worker for worker in idle_workers if all(rank_worker(worker))), None)
        return best_worker or max(idle_workers, key=rank_worker, default=None)

    def _get_abandoned_workers(self) -> list[WorkerHandle]:
        """Those at tasks of maps that have ended, the one that is so for longest first."""
        # A destructor may end a map at any moment.
        workers = list(self._workers.values())
        abandoned = [item for item in workers if item.allocation and item.allocation.closed_at is not None]
        return sorted(abandoned, key=WorkerHandle.get_abandoned_seconds, reverse=True)

    def _poll_unallocated_workers(self, timeout: float = 0.0) -> None:
        """Take back those that come to the end of an abandoned task by now, or one within so many seconds.

        Let go of those that do not, and of free ones that are gone.
        """
        unallocated = [item for item in list(self._workers.values()) if item.allocation is None]
        unallocated += self._get_abandoned_workers()
        readable_channels = set(wait_until_ready([worker.channel for worker in unallocated], POLLIN, timeout))
        ready_workers = [
            item for item in unallocated if item.channel in readable_channels or item.channel.has_unsent
        ]
        for worker in ready_workers:
            is_connected = not worker.channel.has_unsent or worker.write_unsent_messages()
            if is_connected and worker.channel in readable_channels:
                _, is_connected = worker.receive_messages()
            if worker.is_exiting or not is_connected:
                self._remove_worker(worker)
            elif not (worker.assigned or worker.channel.has_unsent):
                self.release_worker(worker)
        self._remove_unneeded_workers()

    def _remove_idle_workers(
        self, n_excess: int, sort_key: Callable[[WorkerHandle], float], max_sort_key: float = inf
    ) -> None:
        """Let so many free workers go, those for which `sort_key` is least and no more than
        `max_sort_key`.
        """
        unallocated = [item for item in self._workers.values() if item.allocation is None]
        idle_workers = sorted(unallocated, key=sort_key)
        for worker in idle_workers[: max(0, n_excess)]:
            if sort_key(worker) <= max_sort_key:
                self._remove_worker(worker)

    def _remove_worker(self, worker: WorkerHandle) -> None:
        self.release_worker(worker)
        if self._workers.get(worker.worker_id) is worker:
            del self._workers[worker.worker_id]
            self._terminate_worker(worker.worker_id)
        worker.channel.close()
