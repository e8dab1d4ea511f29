"""Worker processes of this machine that are started anew: where none can be forked, or the user says so."""

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
from polarmap.executors.fork_server import (
    IMPORTS,
    TELL_SECONDS,
    how_ended,
    import_options,
    inherited_stream,
    open_standard_streams,
)
from polarmap.worker.blas_threads import get_thread_limit_variables
from polarmap.worker.processes import SHUTDOWN_SECONDS

PROGRAM = f"""
import importlib, json, sys
options = json.loads(sys.stdin.buffer.raw.readline())
{IMPORTS}
from polarmap.worker import spawned_worker
spawned_worker.main(options["connection"], options["folders"])
"""


class NewProcesses:
    """Interpreters, each of which serves one connection, and ends when this process does.

    Parameters
    ----------
    threads : for the libraries that numpy calls, in each worker.
    folders : to be removed by them when this process has died.
    modules : to be imported before a worker serves.
    """

    def __init__(self, threads: int, folders: Sequence[str], modules: Sequence[str]) -> None:
        self._environment = {**os.environ, **get_thread_limit_variables(threads)}
        self._folders, self._modules = list(folders), modules
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def is_alive(self) -> bool:
        """Whether it can start workers."""
        return True

    def start(self, number: int, connection: socket.socket) -> None:
        """Let a worker of this number serve at `connection`, which is its own from now on."""
        try:
            open_standard_streams()
            with connection:
                shared, options = self._shared(connection)
                self._processes[number] = process = subprocess.Popen(
                    [sys.executable, "-c", PROGRAM],
                    stdin=subprocess.PIPE,
                    stdout=inherited_stream(1),
                    stderr=inherited_stream(2),
                    env=self._environment,
                    **options,
                )
                told = import_options(self._modules) | {"folders": self._folders}
                told["connection"] = shared if isinstance(shared, int) else shared(process.pid)
            assert process.stdin is not None
            with contextlib.suppress(OSError):  # it has ended: its driver sees its socket closed
                process.stdin.write(json.dumps(told).encode() + b"\n")
                process.stdin.flush()
        except OSError as error:
            raise ExecutorError(f"{sys.executable} cannot be started: {error}") from error

    def kill(self, number: int) -> None:
        """End a worker, and what it has started, where that is in a group of its own."""
        process = self._processes.pop(number, None)
        if process is None:
            return
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(SHUTDOWN_SECONDS)
        _close(process)

    def ending(self, number: int) -> str | None:
        """How a worker has ended that is gone; None if that is not soon known."""
        with contextlib.suppress(KeyError, subprocess.TimeoutExpired):
            return how_ended(self._processes[number].wait(TELL_SECONDS))
        return None

    def close(self) -> None:
        """End all workers."""
        for number in list(self._processes):
            self.kill(number)

    def forget(self) -> None:
        """Let go of them, in a process that was forked of the one that started them."""
        for process in self._processes.values():
            _close(process)
            process.returncode = 0  # they are not its children
        self._processes.clear()

    def _shared(self, connection: socket.socket) -> tuple[Any, dict[str, Any]]:
        """How a process gets a socket: what it is told, once it is there, and how it is started."""
        if hasattr(connection, "share"):
            share: Any = connection.share
            group = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)  # which no Ctrl-C reaches
            return lambda process: base64.b64encode(share(process)).decode(), {"creationflags": group}
        return connection.fileno(), {"pass_fds": [connection.fileno()], "start_new_session": True}


def _close(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(OSError):
        if process.stdin is not None:
            process.stdin.close()
