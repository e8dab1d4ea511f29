"""The worker processes of a pool on this machine: forked as they are needed."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from polarmap.errors import ExecutorError
from polarmap.executors.fork_server_process import (
    ForkServerProcess,
    absolute_module_path,
    modules_named,
)
from polarmap.executors.links import SocketLink
from polarmap.executors.worker_table import GRACE_SECONDS, KeptWorker, WorkerTable, abandoned_for
from polarmap.worker.process_state import Surroundings, available_cores, working_folder
from polarmap.worker.threads import limiting_variables

FUNCTION_BYTES = 1 << 18  # a larger function is a file: what a free worker is told fits its socket
MOMENT_SECONDS = 0.02  # in which most that are busy when their map ends come to their end
SPARE_SECONDS = 5.0  # after which one that was not needed ends, beyond those that stay
SPARE_WORKERS = 2  # that stay beyond the cores, so that fetching a block overlaps with computing on another
MOST_ABANDONED = 16  # more are killed before


class WorkerProcesses(WorkerTable):
    """Those of one pool. Each does one task at a time.

    Parameters
    ----------
    threads : int
        That each may use for linear algebra.
    most : int or None
        At a time, not counting those that are busy with tasks of maps that have ended.
    folders : of the pool, removed when it is closed, or when this process dies.
    """

    is_here = True

    def __init__(self, threads: int, most: int | None, folders: Sequence[str]) -> None:
        super().__init__(most)
        self._threads, self._folders = threads, folders
        self._server: ForkServerProcess | None = None
        self._modules: Sequence[str] = ()
        self._seen: Any = None  # of this process, when it was looked at last
        self._surroundings: Surroundings | None = None  # what workers are told of that

    def surroundings(self) -> Surroundings:
        """Those of this process now, with limits for the libraries that workers import later."""
        environment: Any = os.environ
        # What lies below it is copied in one call, itself in several for each variable.
        seen = working_folder(), sys.path[:], dict(environment._data)
        if self._surroundings is None or seen != self._seen:
            self._seen, variables = seen, {**os.environ, **limiting_variables(self._threads)}
            self._surroundings = Surroundings(seen[0], tuple(absolute_module_path()), variables)
        return self._surroundings

    def modules(self, pickled: bytes) -> Mapping[str, tuple[str, bool]]:
        """None: what forks workers imports what the first function needs, else each of them does."""
        if self._server is None:
            self._modules = modules_named(pickled)
        return {}

    def ending(self, worker: KeptWorker) -> str:
        """How one has ended that is gone."""
        server, unknown = self._server, super().ending(worker)
        how = None if server is None else server.ending(worker.number)
        return unknown if how is None else f"its worker process {how}"

    def tend(self) -> None:
        """End those that nobody has needed lately beyond what was asked for, or what keeps the cores busy."""
        with self._lock:
            self._review()
            stay = available_cores() + SPARE_WORKERS if self._most is None else self._most
            until = time.monotonic() - SPARE_SECONDS
            self._drop(len(self._workers) - stay, lambda one: one.freed, until)

    def close(self) -> None:
        """End them all."""
        super().close()
        with self._lock:
            server, self._server = self._server, None
        if server is not None:
            server.close()

    def forget(self) -> None:
        """Let go of them, in a process that was forked of the one that has them."""
        super().forget()
        if self._server is not None:
            self._server.forget()

    def _started(self) -> ForkServerProcess:
        """What forks workers; ExecutorError if it cannot be started."""
        self._check_open()
        server = self._server
        if server is not None and not server.is_alive():
            server.forget()
            server = None
        if server is None:
            server = self._server = ForkServerProcess(self._threads, self._folders, self._modules)
        return server

    def _another(self) -> KeptWorker | None:
        if self._most is not None and len(self._workers) - len(self._abandoned) >= self._most:
            return None
        if self.slots.under_way and any(abandoned_for(one) < MOMENT_SECONDS for one in list(self._abandoned)):
            return None  # one may be free in a moment, sooner than a new one would be there
        server = self._started()
        try:
            ours, theirs = socket_pair()
        except OSError as error:
            if self._workers:  # no descriptors for more: as many as there can be
                return None
            raise ExecutorError(f"no worker can be started: {error}") from error
        worker = KeptWorker(next(self._numbers), SocketLink(ours))
        server.fork(worker.number, theirs)
        self._workers[worker.number] = worker
        return worker

    def _end(self, worker: KeptWorker) -> None:
        if self._server is not None:
            self._server.kill(worker.number)

    def _give_up(self) -> None:
        surplus = len(self._abandoned) - MOST_ABANDONED
        for number, worker in enumerate(list(self._abandoned)):
            if number < surplus or abandoned_for(worker) > GRACE_SECONDS:
                self._remove(worker)


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Ours and a worker's, in whose buffer a function and what else it is told have room.

    So a worker that has been stopped does not stop its driver. Linux grants at least twice 208 KiB.
    """
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * FUNCTION_BYTES)
    return ours, theirs
