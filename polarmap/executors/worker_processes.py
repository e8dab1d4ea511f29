"""The worker processes of a pool on this machine, started as they are needed."""

from __future__ import annotations

import os
import pickle
import socket
import sys
import time
from collections.abc import Sequence
from typing import Any

from polarmap.errors import ExecutorError
from polarmap.executors.fork_server import ForkServerProcess, socket_pair
from polarmap.executors.new_processes import NewProcesses
from polarmap.executors.pickling import modules_named
from polarmap.executors.worker_table import GRACE_SECONDS, KeptWorker, Lease, WorkerTable
from polarmap.worker.blas_threads import get_thread_limit_variables
from polarmap.worker.environment import (
    ProcessEnvironment,
    count_available_cores,
    get_absolute_sys_path,
    snapshot_environment,
)
from polarmap.worker.processes import read_process_status
from polarmap.worker.socket_channel import SocketChannel

# macOS has fork, but its libraries for linear algebra may not survive one.
FORKS = hasattr(os, "fork") and hasattr(socket, "send_fds") and sys.platform != "darwin"
SEES_CORES = os.path.exists("/proc/self/stat")  # whether tasks keep them busy; else all may start
FIRST_LOOK_SECONDS = 0.005  # without news, before it is seen whether tasks leave the cores idle
LOOK_SECONDS = 0.05  # between later looks, at most
MOMENT_SECONDS = 0.02  # in which most that are busy when their map ends come to their end
NEW_SECONDS = 0.05  # that a new one takes, with the blocks that it maps
SPARE_SECONDS = 5.0  # after which one that was not needed ends, beyond those that stay
SPARE_WORKERS = 2  # that stay beyond the cores, so that fetching a block overlaps with computing on another
MOST_ABANDONED = 16  # more are killed before


class WorkerProcesses(WorkerTable):
    """Those of one pool. Each does one task at a time.

    As many tasks are under way as were asked for. Else one more than there are cores, as a worker that has
    been told of its next task leaves no core idle, and more as soon as they leave the cores idle.

    Parameters
    ----------
    threads : that each may use for linear algebra.
    most : at a time, not counting those that are abandoned.
    folders : of the pool, removed when it is closed, or when this process dies.
    forks : whether they are forked by a process of their own; else each is started anew.
    """

    are_near = True

    def __init__(self, threads: int, most: int | None, folders: Sequence[str], forks: bool = FORKS) -> None:
        super().__init__(most)
        self._threads, self._folders, self._forks = threads, folders, forks
        self._server: ForkServerProcess | NewProcesses | None = None
        self._modules: Sequence[str] = ()
        self._seen: Any = None  # of this process, when it was looked at last
        self._surroundings = b""  # what workers are told of that
        self._looked = 0.0  # for idle cores

    def surroundings(self, pickled: bytes) -> bytes:
        """Those of this process now, with limits for the libraries that workers import later.

        What forks workers imports what the first function needs, else each of them does.
        """
        if self._server is None:
            self._modules = sorted(modules_named(pickled, ("polarmap", "scipy")))
        seen = snapshot_environment()
        if seen != self._seen:
            self._seen, variables = seen, {**os.environ, **get_thread_limit_variables(self._threads)}
            around = ProcessEnvironment(seen[0], tuple(get_absolute_sys_path()), variables)
            self._surroundings = pickle.dumps(tuple(around))
        return self._surroundings

    def ending(self, worker: KeptWorker) -> str:
        """How a worker that is gone has ended."""
        unknown, server = super().ending(worker), self._server
        how = server and server.ending(worker.number)
        return f"its worker process {how}" if how else unknown

    def look(self, lease: Lease, queued: int) -> None:
        """Let more tasks run where those that do leave the cores idle, seen twice in a row by a run."""
        with self._lock:
            now, is_alone = time.monotonic(), self.is_alone()
            if self._limit >= (self._most or sys.maxsize):
                return
            if not is_alone and now < self._looked + FIRST_LOOK_SECONDS:  # another run has looked
                return
            self._looked = now
            queued += sum(one.waiting for one in self._open() if one is not lease)
            # The driver of several maps may be at others' replies when that of a worker has come.
            heard = now if is_alone else now - LOOK_SECONDS
            busy = [worker for one in self._open() for worker in list(one.workers.values())]
            idle = sum(one.since < heard and is_waiting(one.process) for one in busy)
            extra = extra_tasks(count_available_cores(), len(busy) - idle, idle, queued)
            if extra and lease.was_idle:
                self._limit += extra
                self._call_next(lease)
            lease.was_idle = bool(extra)

    def tend(self) -> None:
        """End those that nobody has needed lately beyond what was asked for, or what keeps the cores busy."""
        with self._lock:
            self._review()
            stay = count_available_cores() + SPARE_WORKERS if self._most is None else self._most
            until = time.monotonic() - SPARE_SECONDS
            self._drop(len(self._workers) - stay, lambda one: one.since, until)

    def close(self) -> None:
        """End them all."""
        super().close()
        if self._server is not None:
            self._server.close()

    def forget(self) -> None:
        """Let go of them, in a process that was forked of the one that has them."""
        super().forget()
        if self._server is not None:
            self._server.forget()

    def _started(self) -> ForkServerProcess | NewProcesses:
        """What starts workers; ExecutorError if it cannot be started."""
        self._check_open()
        if self._server is not None and not self._server.is_alive():
            self._server.forget()
            self._server = None
        if self._server is None:
            kind = ForkServerProcess if self._forks else NewProcesses
            self._server = kind(self._threads, self._folders, self._modules)
        return self._server

    def _first_limit(self) -> int:
        if self._most is not None:
            return self._most
        return count_available_cores() + 1 if SEES_CORES else sys.maxsize

    def _another(self) -> KeptWorker | None:
        abandoned = self._abandoned()
        if self._most is not None and len(self._workers) - len(abandoned) >= self._most:
            return None
        if any(map(ends_soon, abandoned)):
            if not self._under_way():
                self._review(MOMENT_SECONDS)
            return self._best_free(tuple)
        server = self._started()
        try:
            ours, theirs = socket_pair()
        except OSError as error:
            if self._workers:  # no descriptors for more: as many as there can be
                return None
            raise ExecutorError(f"no worker can be started: {error}") from error
        worker = KeptWorker(next(self._numbers), SocketChannel(ours))
        try:
            server.start(worker.number, theirs)
        except BaseException:
            ours.close()
            raise
        self._workers[worker.number] = worker
        return worker

    def _end(self, number: int) -> None:
        if self._server is not None:
            self._server.kill(number)

    def _give_up(self) -> None:
        abandoned = self._abandoned()
        surplus = len(abandoned) - MOST_ABANDONED
        for number, worker in enumerate(abandoned):
            if number < surplus or worker.abandoned_for() > GRACE_SECONDS:
                self._remove(worker)


def ends_soon(abandoned: KeptWorker) -> bool:
    """Whether a worker at a task of a map that has ended may be free sooner than a new one would be there."""
    is_short = abandoned.took < NEW_SECONDS  # as the task before was
    by_now = time.monotonic() - abandoned.since
    return abandoned.abandoned_for() < MOMENT_SECONDS or (is_short and by_now < 2 * abandoned.took)


def extra_tasks(cores: int, busy: int, idle: int, queued: int) -> int:
    """How many more to let run now: `busy` tasks compute, `idle` ones do not, `queued` ones wait.

    Where many tasks idle, more of those waiting will: their number grows by half each time.

    >>> extra_tasks(cores=2, busy=2, idle=5, queued=9), extra_tasks(2, 0, 4, 9), extra_tasks(2, 1, 8, 9)
    (0, 2, 4)
    >>> extra_tasks(cores=4, busy=0, idle=20, queued=1), extra_tasks(4, 1, 0, 50)
    (1, 3)
    """
    return min(max(cores - busy, idle // 2), queued) if busy < cores else 0


def is_waiting(process: int | None) -> bool:
    """Whether a process wants no core now: it sleeps, or waits for a disk or the network."""
    try:
        return process is not None and read_process_status(process)[0] != b"R"
    except OSError:
        return False
