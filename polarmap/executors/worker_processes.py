"""The worker processes of a pool on this machine: forked as they are needed, by a process of their own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from polarmap.errors import ExecutorError
from polarmap.executors.worker_table import GRACE_SECONDS, KeptWorker, Lease, WorkerTable
from polarmap.worker.liveness import END_SECONDS
from polarmap.worker.process_identity import process_status
from polarmap.worker.stream import ENDED, FORK, KILL, READY, REQUEST, Stream, ready
from polarmap.worker.surroundings import Surroundings, absolute_module_path, available_cores, working_folder
from polarmap.worker.threads import limiting_variables

FUNCTION_BYTES = 1 << 18  # a larger function is a file: what a free worker is told fits its socket
FIRST_LOOK_SECONDS = 0.005  # without news, before it is seen whether tasks leave the cores idle
LOOK_SECONDS = 0.05  # between later looks, at most
MOMENT_SECONDS = 0.02  # in which most that are busy when their map ends come to their end
SPARE_SECONDS = 5.0  # after which one that was not needed ends, beyond those that stay
SPARE_WORKERS = 2  # that stay beyond the cores, so that fetching a block overlaps with computing on another
MOST_ABANDONED = 16  # more are killed before
START_SECONDS = 60.0  # that an interpreter may take to import what workers need, on a busy machine
TELL_SECONDS = 0.1  # that it may take to tell how a worker ended
READ_BYTES = 4096
PROGRAM = """
import importlib, json, sys
options = json.loads(sys.argv[1])
sys.path[:] = [options["home"], *options["module_path"]]
import polarmap  # the driver's own, wherever it has found it
sys.path[:] = options["module_path"]
from polarmap.worker import finite_differences, fork_server
for name in options["modules"]:
    importlib.import_module(name)
fork_server.main(options["descriptor"], options["folders"])
"""


class WorkerProcesses(WorkerTable):
    """Those of one pool. Each does one task at a time.

    As many tasks are under way as were asked for. Else one more than there are cores, as a worker that has
    been told of its next task leaves no core idle, and more as soon as they leave the cores idle.

    Parameters
    ----------
    threads : int
        That each may use for linear algebra.
    most : int or None
        At a time, not counting those that are abandoned.
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
        self._looked = 0.0  # for idle cores

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
            extra = extra_tasks(available_cores(), len(busy) - idle, idle, queued)
            if extra and lease.was_idle:
                self._limit += extra
                self._call_next(lease)
            lease.was_idle = bool(extra)

    def tend(self) -> None:
        """End those that nobody has needed lately beyond what was asked for, or what keeps the cores busy."""
        with self._lock:
            self._review()
            stay = available_cores() + SPARE_WORKERS if self._most is None else self._most
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

    def _started(self) -> ForkServerProcess:
        """What forks workers; ExecutorError if it cannot be started."""
        self._check_open()
        if self._server is not None and not self._server.is_alive():
            self._server.forget()
            self._server = None
        if self._server is None:
            self._server = ForkServerProcess(self._threads, self._folders, self._modules)
        return self._server

    def _first_limit(self) -> int:
        if self._most is not None:
            return self._most
        # All where nobody can see whether they keep cores busy.
        return available_cores() + 1 if os.path.exists("/proc/self/stat") else sys.maxsize

    def _another(self) -> KeptWorker | None:
        abandoned = self._abandoned()
        if self._most is not None and len(self._workers) - len(abandoned) >= self._most:
            return None
        if abandoned and self._under_way() and abandoned[-1].abandoned_for() < MOMENT_SECONDS:
            return None  # one may be free in a moment, sooner than a new one would be there
        server = self._started()
        try:
            ours, theirs = socket_pair()
        except OSError as error:
            if self._workers:  # no descriptors for more: as many as there can be
                return None
            raise ExecutorError(f"no worker can be started: {error}") from error
        worker = KeptWorker(next(self._numbers), Stream(ours))
        server.fork(worker.number, theirs)
        self._workers[worker.number] = worker
        return worker

    def _end(self, worker: KeptWorker) -> None:
        if self._server is not None:
            self._server.kill(worker.number)

    def _give_up(self) -> None:
        abandoned = self._abandoned()
        surplus = len(abandoned) - MOST_ABANDONED
        for number, worker in enumerate(abandoned):
            if number < surplus or worker.abandoned_for() > GRACE_SECONDS:
                self._remove(worker)


class ForkServerProcess:
    """A process in a session of its own, which no signal of a terminal reaches.

    Parameters
    ----------
    threads : int
        For the libraries that numpy calls, in each worker.
    folders : list of str
        To be removed when it ends, by `close` or because this process has died.
    modules : list of str
        To be imported before workers are forked.
    """

    def __init__(self, threads: int, folders: Sequence[str], modules: Sequence[str]) -> None:
        try:
            open_standard_streams()
            self._control, theirs = socket.socketpair()
        except OSError as error:
            raise ExecutorError(f"no worker process can be started: {error}") from error
        self._lock = threading.Lock()
        self._heard = b""  # what it has said, from the beginning of what is not yet understood
        self._is_ready = False
        self._endings: dict[int, str] = {}  # of workers that ended by themselves
        self._began = time.monotonic()
        options = {
            "module_path": absolute_module_path(),
            "home": str(Path(__file__).resolve().parents[2]),
            "modules": ["cloudpickle", *modules],
            "descriptor": theirs.fileno(),
            "folders": list(folders),
        }
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, json.dumps(options)],
                stdin=subprocess.DEVNULL,
                stdout=inherited_stream(1),
                stderr=inherited_stream(2),
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                env={**os.environ, **limiting_variables(threads)},
            )
        except OSError as error:
            self._control.close()
            raise ExecutorError(f"{sys.executable} cannot be started: {error}") from error
        finally:
            theirs.close()

    def is_alive(self) -> bool:
        """Whether it runs; ExecutorError if it does not begin to serve, or ended by itself before."""
        self._listen()
        if not self._is_ready and time.monotonic() > self._began + START_SECONDS:
            self._process.kill()
            raise ExecutorError(f"the worker processes of this machine did not start in {START_SECONDS:g} s")
        if self._process.poll() is None:
            return True
        if not self._is_ready and self._process.returncode >= 0:  # nobody has killed it
            raise ExecutorError(
                f"the worker processes of this machine did not start: {sys.executable} ended with code "
                f"{self._process.returncode}; standard error says why"
            )
        return False

    def fork(self, number: int, connection: socket.socket) -> None:
        """Let a worker of this number serve at `connection`, which is its own from now on."""
        with connection:
            self._ask(FORK, number, connection)

    def kill(self, number: int) -> None:
        """End a worker, and what it has started, whatever they do."""
        self._endings.pop(number, None)
        self._ask(KILL, number)

    def ending(self, number: int) -> str | None:
        """How a worker has ended that is gone; None if that is not soon known."""
        deadline = time.monotonic() + TELL_SECONDS
        while self._listen() and number not in self._endings and (rest := deadline - time.monotonic()) > 0:
            with contextlib.suppress(ValueError, OSError):  # another thread has closed it
                ready([self._control], select.POLLIN, rest)
        return self._endings.get(number)

    def close(self) -> None:
        """End it and all workers."""
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)  # a process that was forked of this one may have it, too
        self.forget()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(END_SECONDS)

    def forget(self) -> None:
        """Let go of it, in a process that was forked of the one that started it."""
        self._control.close()

    def _listen(self) -> bool:
        """Take in what it has said; whether it may say more."""
        with self._lock:
            try:
                data = self._control.recv(READ_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return True
            except OSError:
                return False
            self._heard += data
            if not self._is_ready and self._heard.startswith(READY):
                self._is_ready, self._heard = True, self._heard[len(READY) :]
            count = len(self._heard) // ENDED.size * ENDED.size
            for number, status in ENDED.iter_unpack(self._heard[:count]):
                self._endings[number] = _ending(status)
            self._heard = self._heard[count:]
            return bool(data)

    def _ask(self, what: bytes, number: int, connection: socket.socket | None = None) -> None:
        """A request; one that is gone does nothing, as its workers are gone, too."""
        request = REQUEST.pack(what, number)
        with self._lock, contextlib.suppress(OSError):
            if connection is None:
                self._control.sendall(request, socket.MSG_DONTWAIT)
            else:
                socket.send_fds(self._control, [request], [connection.fileno()], socket.MSG_DONTWAIT)


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Ours and a worker's, in whose buffer a function and what else it is told have room.

    So a worker that has been stopped does not stop its driver. Linux grants at least twice 208 KiB.
    """
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * FUNCTION_BYTES)
    return ours, theirs


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
        return process is not None and process_status(process)[0] != b"R"
    except OSError:
        return False


def _ending(status: int) -> str:
    """How a process ended, by the status that its parent was told.

    >>> _ending(9), _ending(3 << 8)
    ('was killed by SIGKILL (9)', 'ended with code 3')
    """
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"ended with code {code}"
    names = {one.value: one.name for one in signal.Signals}
    return f"was killed by {names.get(-code, 'signal')} ({-code})"


def open_standard_streams() -> None:
    """Let those of this process that are closed lead nowhere: else a socket takes the place of one.

    Libraries write their warnings to descriptor 2, and a process that is started gets its own 0, 1 and 2.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def inherited_stream(descriptor: int) -> int | None:
    """What a process that is started gets as such a stream: None for that of this process.

    Where it was closed when this process began, a library may have a file of its own there (libffi has),
    which does not reach other processes.
    """
    return None if os.get_inheritable(descriptor) else subprocess.DEVNULL


def modules_named(pickled: bytes) -> list[str]:
    """The modules of polarmap and scipy that a pickled function names, besides those of every worker.

    >>> modules_named(b"polarmap.linalg.gram ... polarmap.worker.parts")
    ['polarmap.linalg.gram']
    """
    found = {name.decode() for name in re.findall(rb"(?:polarmap|scipy)(?:\.[a-z_]+)+", pickled)}
    return sorted(name for name in found & sys.modules.keys() if not name.startswith("polarmap.worker"))
