"""The worker processes of a pool: forked as they are needed, shared by the maps that run at the same time."""

from __future__ import annotations

import contextlib
import itertools
import pickle
import select
import socket
import threading
import time
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from polarmap.errors import ExecutorError
from polarmap.executors.fork_server_process import ForkServerProcess
from polarmap.worker.frames import FrameError, Frames, frame
from polarmap.worker.io_sockets import Call, Surroundings

GRACE_SECONDS = 1.0  # after which one that is busy with an abandoned task is killed
MOMENT_SECONDS = 0.02  # in which most that are busy when their map ends come to their end
MOST_ABANDONED = 16  # more are killed before
SEND_SECONDS = 5.0  # that a free worker may take to read what it is told
READ_BYTES = 1 << 18
REMEMBERED = 1024  # tasks of each worker


class Lease:
    """By which a map holds workers, until it ends."""

    def __init__(self) -> None:
        self.ended: float | None = None  # on the monotonic clock


@dataclass(eq=False)
class Worker:
    """A worker process as its driver sees it.

    lease : of the map whose task it does, or did when that map ended; None while it is free.
    task : what it does, in a form that means the same to later maps of the same blocks.
    process : its number on this machine, as soon as it has said so.
    map, around : the last that it was told of.
    done : the tasks that it did most recently, whose blocks it has in memory; as `task`.
    """

    number: int
    connection: socket.socket
    lease: Lease | None = None
    task: Hashable = None
    process: int | None = None
    map: int = -1
    around: Surroundings | None = None
    frames: Frames = field(default_factory=Frames)
    done: dict[Hashable, None] = field(default_factory=dict)

    def note(self, task: Hashable) -> None:
        """It is given this task."""
        self.task = task
        self.done.pop(task, None)
        self.done[task] = None
        if len(self.done) > REMEMBERED:
            del self.done[next(iter(self.done))]

    def send(self, call: Call) -> bool:
        """Whether it was told."""
        try:
            self.connection.sendall(frame(None, pickle.dumps(call, pickle.HIGHEST_PROTOCOL)))
        except OSError:
            return False
        return True

    def receive(self) -> tuple[list[tuple[Any, bytearray]], bool]:
        """What it has said since the last time, and whether it will say more."""
        said: list[tuple[Any, bytearray]] = []
        try:
            while True:
                data = self.connection.recv(READ_BYTES, socket.MSG_DONTWAIT)
                for fields, raw in self.frames.of(data):
                    if "process" in fields:
                        self.process = int(fields["process"])
                    else:
                        said.append((fields, raw))
                if len(data) < READ_BYTES:
                    return said, bool(data)
        except BlockingIOError:
            return said, True
        except (OSError, FrameError, TypeError, ValueError):
            return said, False


class WorkerProcesses:
    """Those of one pool. Each does one task at a time; maps on several threads may take them.

    Parameters
    ----------
    threads : int
        That each may use for linear algebra.
    most : int or None
        At a time, not counting those that are busy with tasks of maps that have ended.
    folders : of the pool, removed when this process dies.
    """

    def __init__(self, threads: int, most: int | None, folders: Sequence[str]) -> None:
        self._threads, self._most, self._folders = threads, most, folders
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._server: ForkServerProcess | None = None
        self._workers: dict[int, Worker] = {}
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._workers)

    def start(self, modules: Sequence[str]) -> None:
        """Be ready to fork workers; ExecutorError if that is impossible."""
        with self._lock:
            self._start(modules)

    def take(self, lease: Lease, may_wait: bool, task: Hashable = None) -> Worker | None:
        """A free worker, one that has done this task before if there is one, or a new one.

        None while there are as many as there may be.

        may_wait : None, too, while one may be free in a moment, sooner than a new one would be there.
        """
        with self._lock:
            self._review()
            free = [worker for worker in self._workers.values() if worker.lease is None]
            if free:
                worker = max(free, key=lambda one: (one.process is not None, task in one.done))
            elif not self._may_fork() or (may_wait and self._is_one_about_to_end()):
                return None
            else:
                worker = self._forked()
            worker.lease = lease
            return worker

    def give_back(self, worker: Worker) -> None:
        """It has done its task."""
        worker.lease = None

    def remove(self, worker: Worker) -> None:
        """It is gone, or is to go; ExecutorError if that is because another thread has ended them all."""
        with self._lock:
            self._remove(worker)
            self._check_open()

    def leave(self, workers: Iterable[Worker]) -> None:
        """Their map has ended, and they are still busy."""
        with self._lock:
            for worker in workers if self._is_closed else ():
                worker.connection.close()

    def abandoned_tasks(self) -> set[Hashable]:
        """What workers still do for maps that have ended."""
        with self._lock:
            self._review()
            return {worker.task for worker in self._abandoned()}

    def close(self) -> None:
        """End them all: maps that run on them now fail."""
        with self._lock:
            self._is_closed = True
            for worker in list(self._workers.values()):
                if worker.lease is None or worker.lease.ended is not None:
                    self._remove(worker)  # else its map sees it end, at a socket that is still there
            self._workers.clear()
            server, self._server = self._server, None
        if server is not None:
            server.close()

    def forget(self) -> None:
        """Let go of them, in a process that was forked of the one that has them."""
        for worker in self._workers.values():
            worker.connection.close()
        self._workers.clear()
        if self._server is not None:
            self._server.forget()

    def _check_open(self) -> None:
        if self._is_closed:
            raise ExecutorError("the workers were ended while a map ran on them, by close() or shutdown()")

    def _start(self, modules: Sequence[str]) -> ForkServerProcess:
        self._check_open()
        server = self._server
        if server is not None and not server.is_alive():
            server.forget()
            server = None
        if server is None:
            server = self._server = ForkServerProcess(self._threads, self._folders, modules)
        return server

    def _may_fork(self) -> bool:
        return self._most is None or len(self._workers) - len(self._abandoned()) < self._most

    def _forked(self) -> Worker:
        server = self._start(())
        ours, theirs = socket.socketpair()
        ours.settimeout(SEND_SECONDS)
        worker = Worker(next(self._numbers), ours)
        server.fork(worker.number, theirs)
        self._workers[worker.number] = worker
        return worker

    def _abandoned(self) -> list[Worker]:
        """Those whose map has ended, the one that is so for longest first."""
        busy = [
            one for one in self._workers.values() if one.lease is not None and one.lease.ended is not None
        ]
        return sorted(busy, key=_ended)

    def _is_one_about_to_end(self) -> bool:
        """Whether a map has ended so lately that what its workers still do is short, as far as is known."""
        return any(time.monotonic() < _ended(worker) + MOMENT_SECONDS for worker in self._abandoned())

    def _review(self) -> None:
        """Take back those that have come to the end of an abandoned task; kill those that do not."""
        abandoned = self._abandoned()
        for worker in _readable(abandoned):
            said, is_there = worker.receive()
            if not is_there:
                self._remove(worker)
            elif any(fields.get("kind") != "part" for fields, _ in said):
                worker.lease = None
        abandoned = self._abandoned()
        surplus, now = len(abandoned) - MOST_ABANDONED, time.monotonic()
        for number, worker in enumerate(abandoned):
            if number < surplus or _ended(worker) + GRACE_SECONDS < now:
                self._remove(worker)

    def _remove(self, worker: Worker) -> None:
        if self._workers.pop(worker.number, None) is not None and self._server is not None:
            self._server.kill(worker.number)
        worker.connection.close()


def _ended(worker: Worker) -> float:
    """When the map of its task did."""
    assert worker.lease is not None
    return worker.lease.ended or 0.0


def _readable(workers: Iterable[Worker]) -> list[Worker]:
    """Those that have said something, or are gone."""
    poll, found = select.poll(), {}
    for worker in workers:
        with contextlib.suppress(ValueError, OSError):
            poll.register(worker.connection, select.POLLIN)
            found[worker.connection.fileno()] = worker
    return [found[descriptor] for descriptor, _ in poll.poll(0)] if found else []
