"""The driver's end of the fork server: starts it, sends it requests, and reads the events that it reports."""

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
from polarmap.worker.fork_server_protocol import (
    EVENT_BYTES,
    SERVER_READY,
    ForkServerCommand,
    ForkServerRequest,
    WorkerExitEvent,
)
from polarmap.worker.messages import MISMATCH_EXIT_CODE, PROTOCOL_VERSION
from polarmap.worker.polling import POLLIN, wait_until_ready
from polarmap.worker.processes import SHUTDOWN_SECONDS
from polarmap.worker.socket_channel import configure_tcp

MAX_INLINE_FUNCTION_BYTES = 1 << 18  # a larger function is a file: what a free worker is told fits its socket
INTERPRETER_START_SECONDS = 60  # that an interpreter may take to import what workers need, on a busy machine
EXIT_REPORT_SECONDS = 0.1  # that it may take to tell how a worker ended
RECEIVE_BYTES = 4096
# In an interpreter that knows `options`: what workers need, from where the driver has found it.
IMPORT_SCRIPT = """
sys.path[:] = [options["home"], *options["module_path"]]
import polarmap  # the driver's own, wherever it has found it
sys.path[:] = options["module_path"]
from polarmap.worker import finite_differences, messages
messages.exit_if_protocol_differs(options["protocol_version"])
for name in options["modules"]:
    importlib.import_module(name)
"""
FORK_SERVER_SCRIPT = f"""
import importlib, json, signal, sys
options = json.loads(sys.argv[1])
handler = signal.signal(signal.SIGALRM, signal.SIG_DFL)  # which the driver may ignore, or block
blocked = signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
signal.alarm(options["seconds"])  # which ends this process
{IMPORT_SCRIPT}
from polarmap.worker import fork_server
signal.alarm(0)
signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
signal.signal(signal.SIGALRM, handler)
fork_server.main(options["descriptor"], options["folders"])
"""


def make_import_options(module_names: Sequence[str]) -> dict[str, Any]:
    """Return the `options` of IMPORT_SCRIPT.

    They hold where to look for modules, as this process does now, the names of more modules to import, and
    the version of the protocol: the installed polarmap may be newer than the one that this process imported.
    """
    package_root = str(Path(__file__).resolve().parents[2])
    return {
        "home": package_root,
        "protocol_version": PROTOCOL_VERSION,
        "module_path": get_absolute_sys_path(),
        "modules": ["cloudpickle", *module_names],
    }


class ForkServerClient:
    """A process in a session of its own, which no signal of a terminal reaches.

    Parameters
    ----------
    n_threads : for the libraries that numpy calls, in each worker.
    owned_folders : to be removed when it ends, by `close` or because this process has died.
    module_names : to be imported before workers are forked.
    """

    def __init__(self, n_threads: int, owned_folders: Sequence[str], module_names: Sequence[str]) -> None:
        try:
            ensure_standard_streams()
            self._control_socket, server_socket = socket.socketpair()
        except OSError as error:
            raise ExecutorError(f"no worker process can be started: {error}") from error
        self._lock = threading.Lock()
        self._received = b""  # what it has said, from the beginning of what is not yet understood
        self._is_ready = False
        self._exit_descriptions: dict[int, str] = {}  # of workers that ended by themselves
        options = {
            "seconds": INTERPRETER_START_SECONDS,
            **make_import_options(module_names),
            "descriptor": server_socket.fileno(),
            "folders": list(owned_folders),
        }
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", FORK_SERVER_SCRIPT, json.dumps(options)],
                stdin=subprocess.DEVNULL,
                stdout=choose_child_stream(1),
                stderr=choose_child_stream(2),
                pass_fds=[server_socket.fileno()],
                start_new_session=True,
                env={**os.environ, **get_thread_limit_variables(n_threads)},
            )
        except OSError as error:
            self._control_socket.close()
            raise ExecutorError(f"{sys.executable} cannot be started: {error}") from error
        finally:
            server_socket.close()

    def check_started(self) -> None:
        """Read what the fork server has reported; ExecutorError if it has ended before it began to serve."""
        self._read_events()
        exit_code = self._process.poll()
        check_same_version(exit_code)
        if not self._is_ready and exit_code is not None and (exit_code >= 0 or exit_code == -signal.SIGALRM):
            exit_description = f"took more than {INTERPRETER_START_SECONDS} s"
            if exit_code >= 0:
                exit_description = f"ended with code {exit_code}"
            raise ExecutorError(
                f"the worker processes of this machine did not start: {sys.executable} {exit_description}; "
                "standard error says why"
            )

    def is_alive(self) -> bool:
        """Return whether the fork server ran when `check_started` was called last."""
        return self._process.returncode is None

    def start_worker(self, worker_id: int, worker_socket: socket.socket) -> None:
        """Let a worker of this number serve at `worker_socket`, which is its own from now on."""
        with worker_socket:
            self._send_request(ForkServerRequest(ForkServerCommand.FORK, worker_id), worker_socket)

    def kill_worker(self, worker_id: int) -> None:
        """End a worker, and what it has started, whatever they do."""
        self._exit_descriptions.pop(worker_id, None)
        self._send_request(ForkServerRequest(ForkServerCommand.KILL, worker_id))

    def get_exit_reason(self, worker_id: int) -> str | None:
        """How a worker has ended that is gone; None if that is not soon known."""
        deadline = time.monotonic() + EXIT_REPORT_SECONDS
        while (
            self._read_events()
            and worker_id not in self._exit_descriptions
            and (remaining_seconds := deadline - time.monotonic()) > 0
        ):
            with contextlib.suppress(ValueError, OSError):  # another thread has closed it
                wait_until_ready([self._control_socket], POLLIN, remaining_seconds)
        return self._exit_descriptions.get(worker_id)

    def close(self) -> None:
        """End it and all workers."""
        with contextlib.suppress(OSError):
            # a process that was forked of this one may have it, too
            self._control_socket.shutdown(socket.SHUT_RDWR)
        self.after_fork()
        try:
            self._process.wait(SHUTDOWN_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(SHUTDOWN_SECONDS)

    def after_fork(self) -> None:
        """Let go of it, in a process that was forked of the one that started it."""
        self._control_socket.close()

    def _read_events(self) -> bool:
        """Read the events that have arrived. Return whether more may come."""
        with self._lock:
            try:
                data = self._control_socket.recv(RECEIVE_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return True
            except OSError:
                return False
            self._received += data
            if not self._is_ready and self._received.startswith(SERVER_READY):
                self._is_ready, self._received = True, self._received[len(SERVER_READY) :]
            n_complete_bytes = len(self._received) // EVENT_BYTES * EVENT_BYTES
            for event in WorkerExitEvent.decode_all(self._received[:n_complete_bytes]):
                exit_code = os.waitstatus_to_exitcode(event.wait_status)
                self._exit_descriptions[event.worker_id] = describe_exit(exit_code)
            self._received = self._received[n_complete_bytes:]
            return bool(data)

    def _send_request(self, request: ForkServerRequest, worker_socket: socket.socket | None = None) -> None:
        """Send a request; do nothing if the fork server is gone, as its workers are gone, too."""
        data = request.encode()
        with self._lock, contextlib.suppress(OSError):
            if worker_socket is None:
                self._control_socket.sendall(data, socket.MSG_DONTWAIT)
            else:
                descriptors = [worker_socket.fileno()]
                socket.send_fds(self._control_socket, [data], descriptors, socket.MSG_DONTWAIT)


def make_worker_socket_pair() -> tuple[socket.socket, socket.socket]:
    """Ours and a worker's, in whose buffer a function and what else it is told have room.

    So a worker that has been stopped does not stop its driver. Linux grants at least twice 208 KiB.
    """
    driver_socket, worker_socket = socket.socketpair()
    driver_socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MAX_INLINE_FUNCTION_BYTES)
    for each_socket in (driver_socket, worker_socket):
        if each_socket.family == socket.AF_INET:  # Windows has no others
            configure_tcp(each_socket)
    return driver_socket, worker_socket


def check_same_version(exit_code: int | None) -> None:
    """Raise ExecutorError if a process has ended because it has another version of polarmap."""
    if exit_code == MISMATCH_EXIT_CODE:
        raise ExecutorError(
            "the worker processes of this machine have another version of polarmap: it was replaced after "
            "this process had imported it. Restart this process."
        )


def describe_exit(exit_code: int) -> str:
    """How a process ended, by its exit code, below 0 for a signal.

    >>> describe_exit(-9), describe_exit(3)
    ('was killed by SIGKILL (9)', 'ended with code 3')
    """
    if exit_code >= 0:
        return f"ended with code {exit_code}"
    signal_names = {each_signal.value: each_signal.name for each_signal in signal.Signals}
    return f"was killed by {signal_names.get(-exit_code, 'signal')} ({-exit_code})"


def ensure_standard_streams() -> None:
    """Let those of this process that are closed lead nowhere: else a socket takes the place of one.

    Libraries write their warnings to descriptor 2, and a process that is started gets its own 0, 1 and 2.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def choose_child_stream(descriptor: int) -> int | None:
    """What a process that is started gets as such a stream: None for that of this process.

    Where it was closed when this process began, a library may have a file of its own there (libffi has),
    which does not reach other processes.
    """
    return None if os.get_inheritable(descriptor) else subprocess.DEVNULL
