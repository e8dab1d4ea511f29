"""The driver's side of the fork server, the process that forks the local workers.

A `ForkServerClient` starts the server, asks it to fork or kill workers, and reads its reports on workers that
have exited. Each worker talks to the driver over a socket that is sent along with the request.
"""

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

# The maximum size in bytes of a pickled function that is sent through a worker's socket. A larger function is
# written to a file, so that the messages to an idle worker always fit into its socket buffer.
MAX_INLINE_FUNCTION_BYTES = 1 << 18
INTERPRETER_START_SECONDS = 60  # time limit in seconds for importing the modules on a busy machine
EXIT_REPORT_SECONDS = 0.1  # seconds to wait for the server to report how a worker exited
RECEIVE_BYTES = 4096
# A script that imports the modules that workers need, from the same files as the driver. It reads its options
# from the global variable `options`.
IMPORT_SCRIPT = """
sys.path[:] = [options["home"], *options["module_path"]]
import polarmap  # from the same files as the driver
sys.path[:] = options["module_path"]
from polarmap.worker import finite_differences, messages
messages.exit_if_protocol_differs(options["protocol_version"])
for name in options["modules"]:
    importlib.import_module(name)
"""
FORK_SERVER_SCRIPT = f"""
import importlib, json, signal, sys
options = json.loads(sys.argv[1])
handler = signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the driver may ignore or block SIGALRM
blocked = signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
signal.alarm(options["seconds"])  # ends this process if the imports hang
{IMPORT_SCRIPT}
from polarmap.worker import fork_server
signal.alarm(0)
signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
signal.signal(signal.SIGALRM, handler)
fork_server.main(options["descriptor"], options["folders"])
"""


def make_import_script_options(module_names: Sequence[str]) -> dict[str, Any]:
    """Return the `options` that IMPORT_SCRIPT needs to import the same modules as this process.

    They contain the module search path and `module_names`, the modules to import. They also contain the
    protocol version, by which the script notices if polarmap has been upgraded on disk in the meantime.
    """
    package_root = str(Path(__file__).resolve().parents[2])
    return {
        "home": package_root,
        "protocol_version": PROTOCOL_VERSION,
        "module_path": get_absolute_sys_path(),
        "modules": ["cloudpickle", *module_names],
    }


class ForkServerClient:
    """Starts and controls the fork server, a process that forks the workers.

    The server runs in its own process session, so that Ctrl-C in the terminal does not interrupt it.

    Parameters
    ----------
    n_threads : int
        The number of threads that NumPy may use in each worker.
    owned_folders : sequence of str
        Temporary folders that the server removes when it exits.
    module_names : sequence of str
        Modules to import before workers are forked.
    """

    def __init__(self, n_threads: int, owned_folders: Sequence[str], module_names: Sequence[str]) -> None:
        try:
            ensure_standard_streams()
            self._control_socket, server_socket = socket.socketpair()
        except OSError as error:
            raise ExecutorError(f"no worker process can be started: {error}") from error
        self._lock = threading.Lock()
        self._received = b""  # bytes received from the server that are not decoded yet
        self._is_ready = False
        # Worker id -> how the worker exited, for workers that the driver has not killed.
        self._exit_descriptions: dict[int, str] = {}
        options = {
            "seconds": INTERPRETER_START_SECONDS,
            **make_import_script_options(module_names),
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
        """Raise ExecutorError if the fork server has exited before it was ready to fork workers."""
        self._read_events()
        exit_code = self._process.poll()
        raise_if_version_mismatch_exit(exit_code)
        if not self._is_ready and exit_code is not None and (exit_code >= 0 or exit_code == -signal.SIGALRM):
            exit_description = f"took more than {INTERPRETER_START_SECONDS} s"
            if exit_code >= 0:
                exit_description = f"ended with code {exit_code}"
            raise ExecutorError(
                f"the worker processes of this machine did not start: {sys.executable} {exit_description}. "
                "See its messages on standard error"
            )

    def is_alive(self) -> bool:
        """Return True if the fork server was running when `check_started` was last called."""
        return self._process.returncode is None

    def start_worker(self, worker_id: int, worker_socket: socket.socket) -> None:
        """Start worker `worker_id`, which talks to this process over `worker_socket`.

        The socket is then closed in this process.
        """
        with worker_socket:
            self._send_request(ForkServerRequest(ForkServerCommand.FORK, worker_id), worker_socket)

    def kill_worker(self, worker_id: int) -> None:
        """Kill a worker and its child processes."""
        self._exit_descriptions.pop(worker_id, None)
        self._send_request(ForkServerRequest(ForkServerCommand.KILL, worker_id))

    def get_exit_reason(self, worker_id: int) -> str | None:
        """Return how a worker exited, or None if the server does not report it within EXIT_REPORT_SECONDS."""
        deadline = time.monotonic() + EXIT_REPORT_SECONDS
        while (
            self._read_events()
            and worker_id not in self._exit_descriptions
            and (remaining_seconds := deadline - time.monotonic()) > 0
        ):
            with contextlib.suppress(ValueError, OSError):  # Another thread may have closed the socket.
                wait_until_ready([self._control_socket], POLLIN, remaining_seconds)
        return self._exit_descriptions.get(worker_id)

    def close(self) -> None:
        """Stop the fork server and all workers."""
        with contextlib.suppress(OSError):
            # Closing the socket is not enough, because a forked child of this process may also hold it open.
            self._control_socket.shutdown(socket.SHUT_RDWR)
        self.after_fork()
        try:
            self._process.wait(SHUTDOWN_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(SHUTDOWN_SECONDS)

    def after_fork(self) -> None:
        """Close the socket to the server in a forked child process. The server belongs to the parent."""
        self._control_socket.close()

    def _read_events(self) -> bool:
        """Read the server's reports on exited workers. Return False if the server itself has exited."""
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
        """Send a request to the server. Do nothing if it has exited, because its workers exit too."""
        data = request.encode()
        with self._lock, contextlib.suppress(OSError):
            if worker_socket is None:
                self._control_socket.sendall(data, socket.MSG_DONTWAIT)
            else:
                descriptors = [worker_socket.fileno()]
                socket.send_fds(self._control_socket, [data], descriptors, socket.MSG_DONTWAIT)


def make_worker_socket_pair() -> tuple[socket.socket, socket.socket]:
    """Return two connected sockets, one for the driver and one for a new worker.

    The driver's send buffer has room for all messages of one task. Sending them therefore never blocks the
    driver, even if the worker does not read. Linux allows send buffers of at least 2 * 208 KiB by default.
    """
    driver_socket, worker_socket = socket.socketpair()
    driver_socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MAX_INLINE_FUNCTION_BYTES)
    for each_socket in (driver_socket, worker_socket):
        if each_socket.family == socket.AF_INET:  # This is the case on Windows, which has no Unix sockets.
            configure_tcp(each_socket)
    return driver_socket, worker_socket


def raise_if_version_mismatch_exit(exit_code: int | None) -> None:
    """Raise ExecutorError if a worker exited because it imported another version of polarmap."""
    if exit_code == MISMATCH_EXIT_CODE:
        raise ExecutorError(
            "the worker processes of this machine have another version of polarmap: it was replaced after "
            "this process had imported it. Restart this process."
        )


def describe_exit(exit_code: int) -> str:
    """Describe how a process exited. A negative exit code is a negated signal number.

    >>> describe_exit(-9), describe_exit(3)
    ('was killed by SIGKILL (9)', 'ended with code 3')
    """
    if exit_code >= 0:
        return f"ended with code {exit_code}"
    signal_names = {each_signal.value: each_signal.name for each_signal in signal.Signals}
    return f"was killed by {signal_names.get(-exit_code, 'signal')} ({-exit_code})"


def ensure_standard_streams() -> None:
    """Open the standard streams (file descriptors 0, 1 and 2) on the null device if they are closed.

    Otherwise a new socket could get one of these descriptors. It would then receive warnings that libraries
    write to descriptor 2, and every child process would inherit it.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def choose_child_stream(descriptor: int) -> int | None:
    """Return the `subprocess.Popen` argument for a standard stream: None to inherit it, or DEVNULL.

    If the stream was closed when this process started, its descriptor may now belong to a private file of a
    library, such as libffi. Such a file is not inheritable, so the child gets the null device instead.
    """
    return None if os.get_inheritable(descriptor) else subprocess.DEVNULL
