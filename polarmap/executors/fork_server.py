"""The process that forks workers on this machine, as the driver starts it, asks it and hears from it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from polarmap.errors import ExecutorError
from polarmap.worker.blas_threads import get_thread_limit_variables
from polarmap.worker.environment import get_absolute_sys_path
from polarmap.worker.polling import POLLIN, wait_until_ready
from polarmap.worker.processes import SHUTDOWN_SECONDS
from polarmap.worker.socket_channel import (
    FORK_COMMAND,
    FORK_SERVER_REQUEST,
    KILL_COMMAND,
    SERVER_READY,
    WORKER_EXIT_EVENT,
    configure_tcp,
)

FUNCTION_BYTES = 1 << 18  # a larger function is a file: what a free worker is told fits its socket
START_SECONDS = 60  # that an interpreter may take to import what workers need, on a busy machine
TELL_SECONDS = 0.1  # that it may take to tell how a worker ended
READ_BYTES = 4096
# In an interpreter that knows `options`: what workers need, from where the driver has found it.
IMPORTS = """
sys.path[:] = [options["home"], *options["module_path"]]
import polarmap  # the driver's own, wherever it has found it
sys.path[:] = options["module_path"]
from polarmap.worker import finite_differences
for name in options["modules"]:
    importlib.import_module(name)
"""
PROGRAM = f"""
import importlib, json, signal, sys
options = json.loads(sys.argv[1])
handler = signal.signal(signal.SIGALRM, signal.SIG_DFL)  # which the driver may ignore, or block
blocked = signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
signal.alarm(options["seconds"])  # which ends this process
{IMPORTS}
from polarmap.worker import fork_server
signal.alarm(0)
signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
signal.signal(signal.SIGALRM, handler)
fork_server.main(options["descriptor"], options["folders"])
"""


def import_options(modules: Sequence[str]) -> dict[str, Any]:
    """What `IMPORTS` are told: where to look, as this process does now, and which modules there are more."""
    home = str(Path(__file__).resolve().parents[2])
    return {"home": home, "module_path": get_absolute_sys_path(), "modules": ["cloudpickle", *modules]}


class ForkServerProcess:
    """A process in a session of its own, which no signal of a terminal reaches.

    Parameters
    ----------
    threads : for the libraries that numpy calls, in each worker.
    folders : to be removed when it ends, by `close` or because this process has died.
    modules : to be imported before workers are forked.
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
        options = {
            "seconds": START_SECONDS,
            **import_options(modules),
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
                env={**os.environ, **get_thread_limit_variables(threads)},
            )
        except OSError as error:
            self._control.close()
            raise ExecutorError(f"{sys.executable} cannot be started: {error}") from error
        finally:
            theirs.close()

    def is_alive(self) -> bool:
        """Whether it runs; ExecutorError if it has ended by itself before it began to serve."""
        self._listen()
        code = self._process.poll()
        if not self._is_ready and code is not None and (code >= 0 or code == -signal.SIGALRM):
            how = f"ended with code {code}" if code >= 0 else f"took more than {START_SECONDS} s"
            raise ExecutorError(
                f"the worker processes of this machine did not start: {sys.executable} {how}; "
                "standard error says why"
            )
        return code is None

    def start(self, number: int, connection: socket.socket) -> None:
        """Let a worker of this number serve at `connection`, which is its own from now on."""
        with connection:
            self._ask(FORK_COMMAND, number, connection)

    def kill(self, number: int) -> None:
        """End a worker, and what it has started, whatever they do."""
        self._endings.pop(number, None)
        self._ask(KILL_COMMAND, number)

    def ending(self, number: int) -> str | None:
        """How a worker has ended that is gone; None if that is not soon known."""
        deadline = time.monotonic() + TELL_SECONDS
        while self._listen() and number not in self._endings and (rest := deadline - time.monotonic()) > 0:
            with contextlib.suppress(ValueError, OSError):  # another thread has closed it
                wait_until_ready([self._control], POLLIN, rest)
        return self._endings.get(number)

    def close(self) -> None:
        """End it and all workers."""
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)  # a process that was forked of this one may have it, too
        self.forget()
        try:
            self._process.wait(SHUTDOWN_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(SHUTDOWN_SECONDS)

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
            if not self._is_ready and self._heard.startswith(SERVER_READY):
                self._is_ready, self._heard = True, self._heard[len(SERVER_READY) :]
            count = len(self._heard) // WORKER_EXIT_EVENT.size * WORKER_EXIT_EVENT.size
            for number, status in WORKER_EXIT_EVENT.iter_unpack(self._heard[:count]):
                self._endings[number] = how_ended(os.waitstatus_to_exitcode(status))
            self._heard = self._heard[count:]
            return bool(data)

    def _ask(self, what: bytes, number: int, connection: socket.socket | None = None) -> None:
        """A request; one that is gone does nothing, as its workers are gone, too."""
        request = FORK_SERVER_REQUEST.pack(what, number)
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
    for one in (ours, theirs):
        if one.family == socket.AF_INET:  # Windows has no others
            configure_tcp(one)
    return ours, theirs


def how_ended(code: int) -> str:
    """How a process ended, by its exit code, below 0 for a signal.

    >>> how_ended(-9), how_ended(3)
    ('was killed by SIGKILL (9)', 'ended with code 3')
    """
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
