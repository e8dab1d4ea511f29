"""The pool of worker processes on this machine.

Workers are started on demand, by a fork server or as new Python interpreters. If the running tasks leave
cores idle, more tasks run concurrently.
"""

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

# macOS can fork, but its linear algebra libraries may crash in the child.
CAN_FORK = hasattr(os, "fork") and hasattr(socket, "send_fds") and sys.platform != "darwin"
# True if idle cores can be detected, as on Linux. Otherwise, the number of concurrent tasks is not limited.
CAN_SEE_IDLE_CORES = os.path.exists("/proc/self/stat")
# While no worker replies, the driver checks whether cores are idle. This is the pause in seconds before the
# first check. The pauses then grow up to MAX_IDLE_CORES_POLL_INTERVAL.
MIN_IDLE_CORES_POLL_INTERVAL = 0.005
MAX_IDLE_CORES_POLL_INTERVAL = 0.05
# When a map ends, some workers are still busy. Most of them become idle within this many seconds, so it is
# better to wait for them than to start new workers.
FINISH_SOON_SECONDS = 0.02
# The typical time in seconds to start a new worker and memory-map its blocks.
WORKER_START_SECONDS = 0.05
# Surplus workers are stopped after this many idle seconds.
SPARE_WORKER_IDLE_SECONDS = 5.0
# The number of workers in excess of the number of cores, so that some can fetch blocks while others compute.
N_SPARE_WORKERS = 2
# Workers that are still busy with tasks of finished maps are killed after GRACE_SECONDS. If there are more of
# them than this number, the excess workers are killed earlier.
MAX_ABANDONED_WORKERS = 16


class LocalWorkerPool(WorkerPool):
    """A pool of worker processes on this machine. Each worker runs one task at a time.

    With `max_workers`, at most that many tasks run concurrently. Without it, the limit starts at one more
    than the number of cores, and grows when tasks leave cores idle.

    Parameters
    ----------
    n_threads : int
        The number of threads that each worker may use for linear algebra.
    max_workers : int or None
        The maximum number of concurrent tasks. None: adapt the number to the cores.
    owned_folders : sequence of str
        The pool's temporary folders, which are removed when the pool is closed or this process dies.
    uses_fork : bool
        True to fork workers from a fork server; False to start a new interpreter for each.
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
        self._environment_snapshot: Any = None  # this process's environment when the last map started
        self._pickled_environment = b""  # the same environment, as sent to the workers
        self._idle_cores_polled_at = 0.0  # the time of the last check for idle cores, on the monotonic clock

    def get_pickled_environment(self, pickled_function: bytes) -> bytes:
        """Return the pickled settings of this process that workers adopt before they run a function.

        These are the environment variables, the module search path and the thread limits. The first call also
        chooses which modules are imported before workers are forked: those to which the function refers.
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
        """Return how a worker's process exited, for error messages."""
        default_reason, starter = super().get_exit_reason(worker), self._starter
        exit_description = starter and starter.get_exit_reason(worker.worker_id)
        return f"its worker process {exit_description}" if exit_description else default_reason

    def maybe_scale_up(self, allocation: Allocation, n_queued: int) -> None:
        """Raise the concurrency limit if cores are idle, for example because running tasks sleep.

        The limit is raised only if two consecutive calls find idle cores. A session calls this method
        regularly while it has `n_queued` tasks that wait for a worker.
        """
        with self._lock:
            now, is_only_session = time.monotonic(), not self.has_several_sessions()
            if self._concurrency_limit >= (self._max_workers or sys.maxsize):
                return
            # Return if a session on another thread has just checked for idle cores.
            if not is_only_session and now < self._idle_cores_polled_at + MIN_IDLE_CORES_POLL_INTERVAL:
                return
            self._idle_cores_polled_at = now
            n_queued += sum(
                other.n_queued for other in self._get_open_allocations() if other is not allocation
            )
            # With several sessions, a worker may seem idle only because another session has not read its
            # reply yet. Ignore recent changes in that case.
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
        """Stop surplus workers that have been idle for SPARE_WORKER_IDLE_SECONDS.

        The pool keeps `max_workers` workers or, without this limit, N_SPARE_WORKERS more than there are
        cores.
        """
        with self._lock:
            self._poll_unallocated_workers()
            n_persistent = self._max_workers
            if n_persistent is None:
                n_persistent = count_available_cores() + N_SPARE_WORKERS
            n_surplus = len(self._workers) - n_persistent
            idle_before = time.monotonic() - SPARE_WORKER_IDLE_SECONDS
            self._remove_idle_workers(n_surplus, lambda worker: worker.state_since, idle_before)

    def close(self) -> None:
        """Stop all workers and the process that starts them."""
        super().close()
        if self._starter is not None:
            self._starter.close()

    def after_fork(self) -> None:
        """Forget the workers in a forked child process. They belong to the parent process."""
        super().after_fork()
        if self._starter is not None:
            self._starter.after_fork()

    def _get_or_create_process_starter(self) -> ForkServerClient | ProcessSpawner:
        """Return the object that starts worker processes, replacing it if its fork server has exited.

        Raises ExecutorError if no processes can be started.
        """
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
        # Imported lazily, because the module is only needed if workers are not forked.
        from polarmap.executors.spawned_processes import ProcessSpawner

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
            if self._workers:  # No file descriptors are left, so continue with the existing workers.
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
            if position < n_excess or worker.get_seconds_since_session_closed() > GRACE_SECONDS:
                self._remove_worker(worker)


def is_about_to_finish(worker: WorkerHandle) -> bool:
    """Return True if a busy worker will probably be idle before a new worker could start.

    The worker still runs a task of a map that has already ended.
    """
    # Assume that the running task takes about as long as the worker's previous one.
    is_short = worker.last_task_seconds < WORKER_START_SECONDS
    running_seconds = time.monotonic() - worker.state_since
    return worker.get_seconds_since_session_closed() < FINISH_SOON_SECONDS or (
        is_short and running_seconds < 2 * worker.last_task_seconds
    )


def compute_n_extra_tasks(n_cores: int, n_busy: int, n_idle: int, n_queued: int) -> int:
    """Return how many of the queued tasks to start in addition, because running tasks leave cores idle.

    Of the running tasks, `n_busy` use a core and `n_idle` sleep or wait. If many running tasks sleep, the
    `n_queued` tasks will probably sleep too. Up to `n_idle` / 2 of them may therefore start at once.

    >>> compute_n_extra_tasks(n_cores=2, n_busy=2, n_idle=5, n_queued=9), compute_n_extra_tasks(
    ...     2, 0, 4, 9), compute_n_extra_tasks(2, 1, 8, 9)
    (0, 2, 4)
    >>> compute_n_extra_tasks(n_cores=4, n_busy=0, n_idle=20, n_queued=1), compute_n_extra_tasks(4, 1, 0, 50)
    (1, 3)
    """
    return min(max(n_cores - n_busy, n_idle // 2), n_queued) if n_busy < n_cores else 0


def is_process_idle(pid: int | None) -> bool:
    """Return True if a process uses no core now because it sleeps or waits for a disk or the network."""
    try:
        return pid is not None and read_process_status(pid)[0] != b"R"
    except OSError:
        return False
