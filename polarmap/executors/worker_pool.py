"""Keeps track of a pool's persistent workers, and allocates them to sessions (one for each running map).

    PoolSession --acquire_worker--> WorkerPool ----> WorkerHandle.channel ----> worker process
                <-- WorkerHandle --            <----       replies        <----

A worker is always in one of three states:

    idle        `allocation` is None
    working     `allocation` belongs to an open session, and `assigned` begins with the running task
    abandoned   its session has closed, but the running task has not ended yet

`acquire_worker` changes the state of a worker from idle to working, and `release_worker` changes it back.
`close_allocation` changes the state of workers that are still busy to abandoned.

A single session may use as many workers as the concurrency limit permits. Concurrent sessions share the
workers: a worker that becomes idle goes to the session with the fewest running tasks or, among several such
sessions, to the one that has waited longest.
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

# The maximum number of bytes that are read of the text in which a worker describes itself and its machine.
MAX_LABEL_BYTES = 500
# The number of recent tasks of each worker that are remembered, in order to know which blocks the worker has
# cached.
MAX_CACHED_TASKS = 1024
# If all workers are busy with other maps, a map waits this many seconds for one of them. Only then does it
# get an additional worker. A worker has the same time to finish a task of a map that has ended.
GRACE_SECONDS = 1.0

# A key for one execution (attempt) of a task: the job id, the index of the task, and the number of earlier
# attempts to execute it.
AttemptKey = tuple[int, int, int]


@dataclass(eq=False)
class Allocation:
    """The workers of a pool that are allocated to a session, and the session's requests for more workers.

    A session runs the tasks of one map. Sessions that are open at the same time share the pool's workers.

    Attributes
    ----------
    wake_session : callable
        Called with no arguments to make the session check whether it can start a task.
    workers : dict of int to WorkerHandle
        The workers that run the session's tasks, by the file descriptor of their channel. Workers that are
        still busy when the session closes remain in this mapping.
    poller : Poll
        Polls the workers' channels, and the other file descriptors for which the session waits.
    receiving_workers : set of WorkerHandle
        The workers to which messages are still being written.
    n_queued : int
        The number of tasks that the session would start now.
    can_be_woken : bool
        True if a thread is waiting in the session, and starts tasks when it is woken.
    last_progress_at : float
        When a task of the session last started or ended, or tasks began to wait, on the monotonic clock.
    cores_were_idle : bool
        True if the last poll found idle cores.
    closed_at : float or None
        When the session was closed, on the monotonic clock; None while it is open.
    n_tasks : int
        The number of the session's tasks; 0 if it does not matter on which machines they run.
    n_tasks_by_machine : dict of str to int
        The number of tasks assigned to each machine, for workers whose machine is known.
    job_name : str
        The name of the session's map or `polarmap.Executor`, such as "map 3"; empty if it has none.
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
    job_name: str = ""

    def update_polled_events(self, worker: WorkerHandle) -> None:
        """Update the events for which the poller waits on the channel to a worker.

        The poller always waits until the channel can be read. While there are unsent messages, it also waits
        until the channel can be written.
        """
        has_unsent = worker.channel.has_unsent
        (self.receiving_workers.add if has_unsent else self.receiving_workers.discard)(worker)
        self.poller.register(worker.channel_descriptor, POLLIN | POLLOUT if has_unsent else POLLIN)


@dataclass(eq=False)
class WorkerHandle:
    """The driver's record of one persistent worker: its connection, its tasks and its state.

    The driver is the process that runs the user's program. In this class, a task is identified by a key of
    its block. Keys stay valid in later maps over the same blocks, which the worker may have cached.

    Attributes
    ----------
    worker_id : int
        The id of the worker in its pool.
    channel : WorkerChannel
        The connection to the worker.
    allocation : Allocation or None
        The allocation of the session whose task the worker runs, even after the session is closed. None while
        the worker is idle.
    channel_descriptor : int
        The file descriptor by which the session polls the channel.
    assigned : deque of (AttemptKey, task key)
        The unfinished tasks that were sent to the worker, starting with the running task.
    state_since : float
        When the running task started, or the worker became idle, on the monotonic clock.
    pid : int or None
        The process id on the worker's machine; None until the worker has connected.
    label : str
        The name that Dask, Ray or Lithops gives the worker; empty until the worker has reported it.
    machine : str
        The address of the worker's machine: the one on which it was launched, until the worker reports its
        actual address. Empty if unknown.
    host : str
        The name of the worker's machine, for reports; empty until the worker has reported it, and on the
        driver's machine.
    job_id : int
        The id of the job whose settings the worker received last.
    function_digest : bytes or None
        The digest of the function that the worker received last.
    last_task_seconds : float
        The run time of the latest task in seconds; inf before the first task.
    is_exiting : bool
        True if the worker has announced that it is exiting.
    cached_tasks : dict
        The keys of the latest tasks, whose blocks the worker has cached, oldest first.
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
        """True if the worker is running a task of a map that has not ended, i.e. whose session is open."""
        return self.allocation is not None and self.allocation.closed_at is None

    def get_seconds_since_session_closed(self) -> float:
        """Return how many seconds ago the session of the worker's running task was closed.

        This method is only called if the session has been closed before the task has ended.
        """
        assert self.allocation is not None
        return time.monotonic() - (self.allocation.closed_at or 0.0)

    def assign_task(self, attempt_key: AttemptKey, task_key: Hashable) -> None:
        """Record that a task was sent to the worker.

        `attempt_key` identifies this execution of the task, and `task_key` the block that the worker reads.
        """
        if not self.assigned:
            self.state_since = time.monotonic()
        self.assigned.append((attempt_key, task_key))
        if self.machine and self.allocation is not None:
            n_tasks_by_machine = self.allocation.n_tasks_by_machine
            n_tasks_by_machine[self.machine] = n_tasks_by_machine.get(self.machine, 0) + 1

    def receive_messages(self) -> tuple[list[Message], bool]:
        """Return the new messages from the worker, and whether it is still connected.

        The state of this object is updated from the messages, for example if a task has ended. A worker that
        sends a message about any task but its current one is disconnected.
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
                    # A worker that replies has read the block of its task, and has probably cached it.
                    if message.kind in REPLY_KINDS:
                        self._add_cached_task(task_key)
            else:
                self.channel.disconnect()
                return valid_messages, False
        return valid_messages, is_connected

    def cancel_tasks(self) -> bool:
        """Cancel the worker's tasks. Return True if the worker may still be busy, and False if it is idle.

        Tasks that have not been sent yet are dropped. If other tasks remain, the worker is told to cancel
        them, which may take some time. The worker also counts as busy while it receives a message.
        """
        channel = self.channel
        if channel.has_unsent:
            for message in channel.drop_unsent_messages():
                if message.kind in (MessageKind.JOB, MessageKind.MODULES):
                    self.job_id, self.function_digest = -1, None
                elif message.kind == MessageKind.TASK:
                    remaining = [item for item in self.assigned if item[0] != message.attempt_key]
                    self.assigned = deque(remaining)
        if self.assigned:
            channel.send(Message(MessageKind.CANCEL, self.assigned[0][0]))
        return bool(self.assigned or channel.has_unsent)

    def write_unsent_messages(self) -> bool:
        """Write as many of the unsent messages as the channel to the worker accepts now.

        Return False if the worker is lost, because it is disconnected or has stopped reading messages.
        """
        channel = self.channel
        if channel.flush() and not channel.is_stalled():
            return True
        channel.failure = channel.failure or TimeoutError("it stopped reading its block")
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
    """The base class of pools of local and remote workers.

    A pool allocates workers to sessions, each of which runs the tasks of one map. Sessions on several threads
    may share a pool.

    Parameters
    ----------
    max_workers : int or None
        The maximum number of concurrent tasks; None for no limit.

    Attributes
    ----------
    shares_host : bool
        True if the workers are on the driver's machine, so that messages to them take almost no time.
    latest_channel_name : str
        How the latest remote worker is connected ("TCP" or "objects"); empty if there is none.
    """

    shares_host = False
    latest_channel_name = ""

    def __init__(self, max_workers: int | None) -> None:
        self._max_workers = max_workers
        # The lock must be reentrant. While a thread holds it, the garbage collector may run a destructor on
        # this thread that closes a session, which needs the lock again.
        self._lock = threading.RLock()
        self._worker_ids = itertools.count()
        self._workers: dict[int, WorkerHandle] = {}
        # Weak references to the allocations of open sessions. If Ctrl-C prevents a session from being closed,
        # its allocation still disappears from this set.
        self._allocation_refs = set[weakref.ref[Allocation]]()
        # The current maximum number of concurrent tasks. A local pool raises it if cores are idle.
        self._concurrency_limit = self._get_initial_concurrency_limit()
        # The time at which a task last started or ended, or a session was closed.
        self._last_change_at = time.monotonic()
        self._is_closed = False
        self._owner_pid = os.getpid()

    def __len__(self) -> int:
        return len(self._workers)

    def count_busy_workers(self) -> int:
        """Return the number of workers that are running a task, including tasks of maps that have ended."""
        return sum(worker.allocation is not None for worker in list(self._workers.values()))

    def list_workers(self) -> list[WorkerHandle]:
        """Return a list of the workers. Safe to call on any thread.

        Other threads may change the state of the workers at any time.
        """
        return list(self._workers.values())

    def count_workers_by_host(self) -> dict[str, int]:
        """Return the number of workers on each machine, by host name.

        Workers are not counted if the name of their machine is unknown, or if it is the driver's machine.
        """
        return dict(Counter(worker.host for worker in list(self._workers.values()) if worker.host))

    def get_pickled_environment(self, pickled_function: bytes) -> bytes:
        """Return the settings of this process that workers adopt before they run a function, as a pickle.

        These are the environment variables and the module search path, for example. The result is empty if
        workers keep their own settings.
        """
        return b""

    def request_workers(self, n_workers: int) -> None:
        """Tell the pool that `n_workers` workers could be used now.

        A pool of remote workers then starts the missing workers. Other pools do nothing.
        """

    def maybe_scale_up(self, allocation: Allocation, n_queued: int) -> None:
        """Allow more concurrent tasks if this is useful, for example because cores of this machine are idle.

        A session with `n_queued` waiting tasks calls this method periodically while no worker replies.
        """

    def explain_missing_workers(self) -> str:
        """Return a text for the user that says why no worker has connected yet, and what to do about it.

        The text is empty if a worker has connected.
        """
        return ""

    def flush_messages(self) -> None:
        """Make sure that all queued messages to workers are sent soon. Return without waiting for this.

        Raises ExecutorError if messages cannot be sent.
        """

    def maintain_workers(self) -> None:
        """Do periodic maintenance, such as stopping workers that have been idle for long.

        This method is called from time to time, even while no map runs. If it raises an error, it is called
        again later.
        """

    def take_billed_usage(self) -> PersistentUsage | None:
        """Return how much the workers were used since the last call, to compute the cost.

        None if the workers are not billed.
        """
        return None

    def open_allocation(self, wake_session: Callable[[], None], job_name: str = "") -> Allocation:
        """Register a new session with the pool. Return the object that records the session's workers.

        The session has no workers at first. `wake_session` is called with no arguments when the session may
        be able to start a task. `job_name` is the name of the session's map, such as "map 3".
        """
        with self._lock:
            if not self._allocation_refs:
                self._concurrency_limit = self._get_initial_concurrency_limit()
            allocation = Allocation(wake_session, job_name=job_name)
            self._allocation_refs.add(weakref.ref(allocation, self._allocation_refs.discard))
            return allocation

    def has_several_sessions(self) -> bool:
        """Return True if several sessions are open, i.e. if several maps share the workers."""
        return len(self._allocation_refs) > 1

    def get_idle_seconds(self) -> float:
        """Return for how many seconds no session has been open. Return 0 while a session is open."""
        return 0.0 if self._allocation_refs else time.monotonic() - self._last_change_at

    def acquire_worker(
        self, allocation: Allocation, n_queued: int, get_task_keys: Callable[[], Collection[Hashable]] = tuple
    ) -> WorkerHandle | None:
        """Allocate a worker to a session for its next task. Return None if the session cannot have one now.

        Idle workers that have the block of a queued task cached are preferred, then idle workers whose
        process is running, then new workers. The result is None if it is another session's turn, if the limit
        on concurrent tasks is reached, or if no worker can be started.

        Parameters
        ----------
        allocation : Allocation
            The allocation of the session.
        n_queued : int
            The number of tasks that the session would start now.
        get_task_keys : callable
            Returns the keys of the first of these tasks. Called with no arguments, and only if the choice of
            an idle worker depends on the keys.
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

    def yield_turn(self, allocation: Allocation) -> None:
        """Record that a session has no task to start now, so that another session can use an idle worker.

        Concurrent sessions take turns to start tasks. The session whose turn it is now is woken.
        """
        allocation.n_queued = 0
        if len(self._allocation_refs) > 1:
            with self._lock:
                self._wake_next_session()

    def release_worker(self, worker: WorkerHandle) -> None:
        """Mark a worker as idle, so that any session can use it.

        The session for which the worker has run its last task may already be closed.
        """
        with self._lock:
            allocation, worker.state_since = worker.allocation, time.monotonic()
            worker.assigned.clear()
            if allocation is None:
                return
            if allocation.workers.pop(worker.channel_descriptor, None) is not None:
                allocation.poller.unregister(worker.channel_descriptor)
            allocation.receiving_workers.discard(worker)
            # Mark the worker as idle last. If Ctrl-C interrupts this method before, the worker is still
            # marked as busy.
            worker.allocation = None
            if allocation.closed_at is None:
                self._last_change_at = allocation.last_progress_at = worker.state_since
                if len(self._allocation_refs) > 1:
                    self._wake_next_session(allocation)

    def remove_worker(self, worker: WorkerHandle) -> None:
        """Remove a worker that has exited or must exit, and check whether other workers have exited.

        Raises ExecutorError if another thread has closed the pool.
        """
        with self._lock:
            self._remove_worker(worker)
            self._poll_unallocated_workers()
            self._check_open()

    def stop_waking_session(self, allocation: Allocation) -> None:
        """Record that no thread waits in a session any more, so that the session could not start a task.

        Other sessions can therefore use idle workers. The session whose turn it is now is woken.
        """
        allocation.can_be_woken = False
        if len(self._allocation_refs) > 1:
            with self._lock:
                self._wake_next_session()

    def close_allocation(self, allocation: Allocation, job_id: int | None = None) -> None:
        """Release the workers of a session that has ended, and cancel their running tasks.

        Idle workers on this machine are told that the session's job, `job_id`, has ended, so that they can
        clean up before their next task.
        """
        with self._lock:
            self._allocation_refs.discard(weakref.ref(allocation))
            allocation.closed_at = self._last_change_at = time.monotonic()
            if self._allocation_refs:
                # The limit on concurrent tasks may have been raised because tasks of this session left cores
                # idle. Lower it. It is raised again if the remaining sessions also leave cores idle.
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
        """Cancel a worker's tasks, and remove the worker from its session.

        The worker becomes idle once its running task has ended.
        """
        with self._lock:
            is_busy, assigned = worker.cancel_tasks(), worker.assigned.copy()
            job_name = "" if worker.allocation is None else worker.allocation.job_name
            self.release_worker(worker)
            if is_busy:
                worker.assigned = assigned
                worker.allocation = Allocation(lambda: None, closed_at=time.monotonic(), job_name=job_name)

    def get_exit_reason(self, worker: WorkerHandle) -> str:
        """Return a text for error messages that says how a worker exited.

        Raises ExecutorError if the pool has been closed, because this is then the reason.
        """
        self._check_open()
        return "its worker process ended without reporting" + (worker.label and f" ({worker.label})")

    def find_tasks_cached_on_abandoned_workers(
        self, get_task_keys: Callable[[], Collection[Hashable]]
    ) -> set[Hashable]:
        """Return the keys of tasks whose blocks are cached by abandoned workers, but not by idle workers.

        An abandoned worker is still busy with a task of a map that has ended. `get_task_keys` returns the
        keys of the tasks to check. It is called only if there are abandoned workers.
        """
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
        """Return True if a session has no worker, and is not expected to get one soon.

        This is assumed if no task has started or ended, and no session has been closed, for GRACE_SECONDS.
        """
        return not allocation.workers and time.monotonic() > self._last_change_at + GRACE_SECONDS

    def close(self) -> None:
        """Terminate all workers. Jobs that are still running on the workers fail."""
        with self._lock:
            self._is_closed = True
            for worker in list(self._workers.values()):
                if worker.has_open_session:
                    # Only disconnect. The session that uses the worker notices this and closes the channel.
                    self._terminate_worker(worker.worker_id)
                    worker.channel.disconnect()
                else:
                    self._remove_worker(worker)
            self._workers.clear()

    def after_fork(self) -> None:
        """Forget all workers and sessions in a forked child process. They belong to the parent process."""
        # Replace the lock, because another thread of the parent process may have held it during the fork.
        self._is_closed, self._lock = True, threading.RLock()
        self._allocation_refs.clear()
        for worker in self._workers.values():
            worker.channel.close()
        self._workers.clear()

    def _check_open(self) -> None:
        if os.getpid() != self._owner_pid:
            raise ExecutorError(
                "this process was forked while a map ran, which continues only in the parent process"
            )
        if self._is_closed:
            raise ExecutorError("close() or shutdown() ended the workers while a map was running on them")

    def _get_initial_concurrency_limit(self) -> int:
        """Return the initial limit on concurrent tasks. A local pool raises it later if cores are idle."""
        return sys.maxsize

    def _start_worker(self) -> WorkerHandle | None:
        """Start a new worker and return it, or return a worker that has become idle meanwhile.

        Return None if no worker can be started and none is idle.
        """
        raise NotImplementedError

    def _terminate_worker(self, worker_id: int) -> None:
        """Terminate the process of a worker. A pool that cannot do this only forgets the worker."""

    def _remove_unneeded_workers(self) -> None:
        """Remove workers that are not needed, such as those still running a task of a map that has ended."""

    def _get_open_allocations(self) -> list[Allocation]:
        """Return the allocations of the open sessions."""
        refs = list(self._allocation_refs)
        return [allocation for ref in refs if (allocation := ref()) is not None]

    def _count_in_flight_tasks(self) -> int:
        """Return the number of workers that are running tasks of open sessions."""
        return sum(len(allocation.workers) for allocation in self._get_open_allocations())

    def _wake_next_session(self, requester: Allocation | None = None) -> Allocation | None:
        """Return the session whose turn it is to start a task, and wake it unless it is `requester`.

        This is the session with the fewest workers among those that have queued tasks and are able to start
        them, because a thread waits in them. Return None if there is no such session, or if the limit on
        concurrent tasks is reached. A session that has had no worker for some time may exceed the limit, so
        that it does not have to wait for endless tasks of other sessions.
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
        """Choose the idle worker that suits a session's next task best. Return None if no worker is idle.

        Workers that have cached the block of one of the next tasks are preferred, then workers whose process
        is already running.

        Parameters
        ----------
        get_task_keys : callable
            Returns the keys of the next tasks. Called with no arguments.
        allocation : Allocation, optional
            The session's allocation, for pools that spread tasks evenly over machines.
        """
        idle_workers = [worker for worker in self._workers.values() if worker.allocation is None]
        if len(idle_workers) > 1:
            task_keys = get_task_keys()
            for worker in idle_workers:
                if not worker.cached_tasks.keys().isdisjoint(task_keys):
                    return worker
        running_worker = next((worker for worker in idle_workers if worker.pid is not None), None)
        return running_worker or next(iter(idle_workers), None)

    def _get_abandoned_workers(self) -> list[WorkerHandle]:
        """Return the workers that are still running tasks of closed sessions.

        Workers whose session was closed first come first.
        """
        # Copy the workers first. The garbage collector may run a destructor at any point, which closes a
        # session and thereby changes the dictionary.
        workers = list(self._workers.values())
        abandoned = [item for item in workers if item.allocation and item.allocation.closed_at is not None]
        return sorted(abandoned, key=WorkerHandle.get_seconds_since_session_closed, reverse=True)

    def _poll_unallocated_workers(self, timeout: float = 0.0) -> None:
        """Receive replies from workers that do not belong to an open session, and update their state.

        Workers that have finished a task of a closed session become idle. Workers that have exited or are no
        longer needed are removed. Wait up to `timeout` seconds until the first worker replies.
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
        """Remove up to `n_excess` idle workers, those with the lowest `sort_key` first.

        `sort_key` is called with a worker, and returns for example when the worker expires. Workers with a
        key above `max_sort_key` are kept.
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
