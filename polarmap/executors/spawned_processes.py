"""Starts each local worker as a new Python interpreter, for platforms without fork or with `fork=False`."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from polarmap.errors import ExecutorError
from polarmap.executors.fork_server_client import (
    EXIT_REPORT_SECONDS,
    IMPORT_SCRIPT,
    choose_child_stream,
    describe_exit,
    ensure_standard_streams,
    make_import_script_options,
    raise_if_version_mismatch_exit,
)
from polarmap.worker.blas_threads import get_thread_limit_variables
from polarmap.worker.processes import SHUTDOWN_SECONDS

SPAWNED_WORKER_SCRIPT = f"""
import importlib, json, sys
options = json.loads(sys.stdin.buffer.raw.readline())
{IMPORT_SCRIPT}
from polarmap.worker import spawned_worker
spawned_worker.main(options["connection"], options["folders"])
"""


class ProcessSpawner:
    """Starts worker processes on this machine, each as a new Python interpreter.

    Used on platforms where processes cannot be forked, or with the option `fork=False`. The workers exit when
    this process does.

    Parameters
    ----------
    n_threads : int
        The number of threads that NumPy may use in each worker.
    owned_folders : sequence of str
        Folders that the workers remove when this process has died.
    module_names : sequence of str
        Modules that each worker imports before its first task.
    """

    def __init__(self, n_threads: int, owned_folders: Sequence[str], module_names: Sequence[str]) -> None:
        self._environment = {**os.environ, **get_thread_limit_variables(n_threads)}
        self._owned_folders, self._module_names = list(owned_folders), module_names
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def check_started(self) -> None:
        """Do nothing. Unlike a fork server, this object needs no server process that must be checked."""

    def is_alive(self) -> bool:
        """Return True. Unlike a fork server, this object needs no server process that could exit."""
        return True

    def start_worker(self, worker_id: int, worker_socket: socket.socket) -> None:
        """Start worker `worker_id`, which exchanges messages with this process over a socket.

        `worker_socket` is the worker's end of the connection. It is passed to the worker and then closed in
        this process.
        """
        try:
            ensure_standard_streams()
            with worker_socket:
                socket_handle, popen_options = self._share_socket(worker_socket)
                self._processes[worker_id] = process = subprocess.Popen(
                    [sys.executable, "-c", SPAWNED_WORKER_SCRIPT],
                    stdin=subprocess.PIPE,
                    stdout=choose_child_stream(1),
                    stderr=choose_child_stream(2),
                    env=self._environment,
                    **popen_options,
                )
                worker_options = make_import_script_options(self._module_names) | {
                    "folders": self._owned_folders
                }
                worker_options["connection"] = (
                    socket_handle if isinstance(socket_handle, int) else socket_handle(process.pid)
                )
            assert process.stdin is not None
            # Writing fails if the worker has already exited. Ignore this here: the map that uses the worker
            # notices that the socket is closed.
            with contextlib.suppress(OSError):
                process.stdin.write(json.dumps(worker_options).encode() + b"\n")
                process.stdin.flush()
        except OSError as error:
            raise ExecutorError(f"{sys.executable} cannot be started: {error}") from error

    def kill_worker(self, worker_id: int) -> None:
        """Kill a worker and, on POSIX, its child processes."""
        process = self._processes.pop(worker_id, None)
        if process is None:
            return
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(SHUTDOWN_SECONDS)
        _close_stdin(process)

    def get_exit_reason(self, worker_id: int) -> str | None:
        """Return how a worker process exited, such as "ended with code 3".

        Return None if the process does not exit within EXIT_REPORT_SECONDS. Raises ExecutorError if it exited
        because its version of polarmap differs from that of this process.
        """
        with contextlib.suppress(KeyError, subprocess.TimeoutExpired):
            exit_code = self._processes[worker_id].wait(EXIT_REPORT_SECONDS)
            raise_if_version_mismatch_exit(exit_code)
            return describe_exit(exit_code)
        return None

    def close(self) -> None:
        """Kill all workers."""
        for worker_id in list(self._processes):
            self.kill_worker(worker_id)

    def after_fork(self) -> None:
        """Forget the workers in a forked child process. They belong to the parent process."""
        for process in self._processes.values():
            _close_stdin(process)
            # Mark the worker as exited. Otherwise, `Popen` would try to wait for it, which is possible only
            # in the process that has started the worker.
            process.returncode = 0
        self._processes.clear()

    def _share_socket(self, worker_socket: socket.socket) -> tuple[Any, dict[str, Any]]:
        """Return a handle of a socket, and the `subprocess.Popen` options that pass it to a new process.

        The handle is the file descriptor of the socket. On Windows, the handle is a function instead. Given
        the pid of the new process, it returns a string from which that process can open the socket.
        """
        if hasattr(worker_socket, "share"):
            share_socket: Any = worker_socket.share
            # Start the worker in a new process group, so that Ctrl-C interrupts only this process.
            creation_flags = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)
            return lambda pid: base64.b64encode(share_socket(pid)).decode(), {"creationflags": creation_flags}
        return worker_socket.fileno(), {"pass_fds": [worker_socket.fileno()], "start_new_session": True}


def _close_stdin(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(OSError):
        if process.stdin is not None:
            process.stdin.close()
