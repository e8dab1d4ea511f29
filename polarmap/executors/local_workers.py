"""The worker processes of a pool on this machine, started as they are needed."""

from __future__ import annotations

import os
import pickle
import socket
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from polarmap.errors import ExecutorError
from polarmap.executors.fork_server_client import ForkServerClient, make_worker_socket_pair
from polarmap.executors.pickling import find_referenced_modules
from polarmap.executors.worker_pool import GRACE_SECONDS, Allocation, WorkerHandle, WorkerPool
from polarmap.worker.blas_threads import get_thread_limit_variables
from polarmap.worker.environment import (
    ProcessEnvironment,
    count_available_cores,
    get_absolute_sys_path,
    snapshot_environment,
)
from polarmap.worker.processes import read_process_status
from polarmap.worker.socket_channel import SocketChannel

if TYPE_CHECKING:
    from polarmap.executors.spawned_processes import ProcessSpawner

# macOS has fork, but its libraries for linear algebra may not survive one.
CAN_FORK = hasattr(os, "fork") and hasattr(socket, "send_fds") and sys.platform != "darwin"
CAN_SEE_IDLE_CORES = os.path.exists("/proc/self/stat")  # whether tasks keep them busy; else all may start
MIN_IDLE_CORES_POLL_INTERVAL = 0.005  # without news, before it is seen whether tasks leave the cores idle
MAX_IDLE_CORES_POLL_INTERVAL = 0.05  # between later looks, at most
FINISH_SOON_SECONDS = 0.02  # in which most that are busy when their map ends come to their end
WORKER_START_SECONDS = 0.05  # that a new one takes, with the blocks that it maps
SPARE_WORKER_IDLE_SECONDS = 5.0  # after which one that was not needed ends, beyond those that stay
N_SPARE_WORKERS = 2  # that stay beyond the cores, so that fetching a block overlaps with computing on another
MAX_ABANDONED_WORKERS = 16  # more are killed before


class LocalWorkerPool(WorkerPool):
    """Those of one pool. Each does one task at a time.

    As many tasks are under way as were asked for. Else one more than there are cores, as a worker that has
    been told of its next task leaves no core idle, and more as soon as they leave the cores idle.

    Parameters
    ----------
    n_threads : that each may use for linear algebra.
    max_workers : at a time, not counting those that are abandoned.
    owned_folders : of the pool, removed when it is closed, or when this process dies.
    uses_fork : whether they are forked by a process of their own; else each is started anew.
    """

    shares_host = True

    def __init__(
        self,
        n_threads: int,
        max_workers: int | None,
        owned_folders: Sequence[str],
        uses_fork: bool = CAN_FORK,
    ) -> None:
        super().__init__(max_workers)
        self._n_threads, self._owned_folders, self._uses_fork = n_threads, owned_folders, uses_fork
        self._starter: ForkServerClient | ProcessSpawner | None = None
        self._module_names: Sequence[str] = ()
        self._environment_snapshot: Any = None  # of this process, when it was looked at last
        self._pickled_environment = b""  # what workers are told of that
        self._idle_cores_polled_at = 0.0  # for idle cores

    def get_pickled_environment(self, pickled_function: bytes) -> bytes:
        """Those of this process now, with limits for the libraries that workers import later.

        What forks workers imports what the first function needs, else each of them does.
        """
        if self._starter is None:
            self._module_names = sorted(find_referenced_modules(pickled_function, ("polarmap", "scipy")))
        snapshot = snapshot_environment()
        if snapshot != self._environment_snapshot:
            variables = {**os.environ, **get_thread_limit_variables(self._n_threads)}
            self._environment_snapshot = snapshot
            environment = ProcessEnvironment(snapshot[0], tuple(get_absolute_sys_path()), variables)
            self._pickled_environment = pickle.dumps(tuple(environment))
        return self._pickled_environment

    def get_exit_reason(self, worker: WorkerHandle) -> str:
        """How a worker that is gone has ended."""
        default_reason, starter = super().get_exit_reason(worker), self._starter
        exit_description = starter and starter.get_exit_reason(worker.worker_id)
        return f"its worker process {exit_description}" if exit_description else default_reason

    def maybe_scale_up(self, allocation: Allocation, n_queued: int) -> None:
        """Let more tasks run where those that do leave the cores idle, seen twice in a row by a run."""
        with self._lock:
            now, is_only_session = time.monotonic(), self.has_one_session()
            if self._concurrency_limit >= (self._max_workers or sys.maxsize):
                return
            # another run has looked
            if not is_only_session and now < self._idle_cores_polled_at + MIN_IDLE_CORES_POLL_INTERVAL:
                return
            self._idle_cores_polled_at = now
            n_queued += sum(
                other.n_queued for other in self._get_open_allocations() if other is not allocation
            )
            # The driver of several maps may be at others' replies when that of a worker has come.
            idle_since = now if is_only_session else now - MAX_IDLE_CORES_POLL_INTERVAL
            busy_workers = [
                worker for other in self._get_open_allocations() for worker in list(other.workers.values())
            ]
            n_idle = sum(item.state_since < idle_since and is_process_idle(item.pid) for item in busy_workers)
            n_busy = len(busy_workers) - n_idle
            n_extra = compute_n_extra_tasks(count_available_cores(), n_busy, n_idle, n_queued)
            if n_extra and allocation.cores_were_idle:
                self._concurrency_limit += n_extra
                self._wake_next_session(allocation)
            allocation.cores_were_idle = bool(n_extra)

    def maintain_workers(self) -> None:
        """End those that nobody has needed lately beyond what was asked for, or what keeps the cores busy."""
        with self._lock:
            self._poll_unallocated_workers()
            n_persistent = self._max_workers
            if n_persistent is None:
                n_persistent = count_available_cores() + N_SPARE_WORKERS
            n_surplus = len(self._workers) - n_persistent
            idle_before = time.monotonic() - SPARE_WORKER_IDLE_SECONDS
            self._remove_idle_workers(n_surplus, lambda worker: worker.state_since, idle_before)

    def close(self) -> None:
        """End them all."""
        super().close()
        if self._starter is not None:
            self._starter.close()

    def after_fork(self) -> None:
        """Let go of them, in a process that was forked of the one that has them."""
        super().after_fork()
        if self._starter is not None:
            self._starter.after_fork()

    def _get_or_create_process_starter(self) -> ForkServerClient | ProcessSpawner:
        """Return what starts workers, started anew if it has ended; ExecutorError if that is impossible."""
        self._check_open()
        if self._starter is not None:
            self._starter.check_started()
            if not self._starter.is_alive():
                self._starter.after_fork()
                self._starter = None
        if self._starter is None:
            self._starter = self._start_process_starter()
        return self._starter

    def _start_process_starter(self) -> ForkServerClient | ProcessSpawner:
        arguments = self._n_threads, self._owned_folders, self._module_names
        if self._uses_fork:
            return ForkServerClient(*arguments)
        from polarmap.executors.spawned_processes import ProcessSpawner  # only where processes cannot fork

        return ProcessSpawner(*arguments)

    def _get_initial_concurrency_limit(self) -> int:
        if self._max_workers is not None:
            return self._max_workers
        return count_available_cores() + 1 if CAN_SEE_IDLE_CORES else sys.maxsize

    def _start_worker(self) -> WorkerHandle | None:
        abandoned = self._get_abandoned_workers()
        if self._max_workers is not None and len(self._workers) - len(abandoned) >= self._max_workers:
            return None
        if any(map(is_about_to_finish, abandoned)):
            if not self._count_in_flight_tasks():
                self._poll_unallocated_workers(FINISH_SOON_SECONDS)
            return self._choose_idle_worker(tuple)
        starter = self._get_or_create_process_starter()
        try:
            driver_socket, worker_socket = make_worker_socket_pair()
        except OSError as error:
            if self._workers:  # no descriptors for more: as many as there can be
                return None
            raise ExecutorError(f"no worker can be started: {error}") from error
        worker = WorkerHandle(next(self._worker_ids), SocketChannel(driver_socket))
        try:
            starter.start_worker(worker.worker_id, worker_socket)
        except BaseException:
            driver_socket.close()
            raise
        self._workers[worker.worker_id] = worker
        return worker

    def _terminate_worker(self, worker_id: int) -> None:
        if self._starter is not None:
            self._starter.kill_worker(worker_id)

    def _remove_unneeded_workers(self) -> None:
        abandoned = self._get_abandoned_workers()
        n_excess = len(abandoned) - MAX_ABANDONED_WORKERS
        for position, worker in enumerate(abandoned):
            if position < n_excess or worker.get_abandoned_seconds() > GRACE_SECONDS:
                self._remove_worker(worker)


def is_about_to_finish(worker: WorkerHandle) -> bool:
    """Whether a worker at a task of a map that has ended may be free sooner than a new one would be there."""
    is_short = worker.last_task_seconds < WORKER_START_SECONDS  # as the task before was
    running_seconds = time.monotonic() - worker.state_since
    return worker.get_abandoned_seconds() < FINISH_SOON_SECONDS or (
        is_short and running_seconds < 2 * worker.last_task_seconds
    )


def compute_n_extra_tasks(n_cores: int, n_busy: int, n_idle: int, n_queued: int) -> int:
    """How many more to let run now: `n_busy` tasks compute, `n_idle` ones do not, `n_queued` ones wait.

    Where many tasks idle, more of those waiting will: their number grows by half each time.

    >>> compute_n_extra_tasks(n_cores=2, n_busy=2, n_idle=5, n_queued=9), compute_n_extra_tasks(
    ...     2, 0, 4, 9), compute_n_extra_tasks(2, 1, 8, 9)
    (0, 2, 4)
    >>> compute_n_extra_tasks(n_cores=4, n_busy=0, n_idle=20, n_queued=1), compute_n_extra_tasks(4, 1, 0, 50)
    (1, 3)
    """
    return min(max(n_cores - n_busy, n_idle // 2), n_queued) if n_busy < n_cores else 0


def is_process_idle(pid: int | None) -> bool:
    """Whether a process wants no core now: it sleeps, or waits for a disk or the network."""
    try:
        return pid is not None and read_process_status(pid)[0] != b"R"
    except OSError:
        return False
