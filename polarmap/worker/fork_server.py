"""The process that forks workers for a driver on this machine, and ends with it.

It has imported what every task needs, so that a worker is there in milliseconds; it runs no task and
has no threads. Runs as a program of its own: imports numpy at most.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
from typing import Any

from polarmap.worker.fork_server_protocol import (
    REQUEST_BYTES,
    SERVER_READY,
    ForkServerCommand,
    ForkServerRequest,
    WorkerExitEvent,
)
from polarmap.worker.persistent_worker import PersistentWorker
from polarmap.worker.polling import POLLIN, wait_until_ready
from polarmap.worker.process_state import seed_numpy
from polarmap.worker.processes import remove_stale_folders
from polarmap.worker.socket_channel import make_worker_channel

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
# Lists the children of a process that its first thread has started.
CHILDREN_FILE = "/proc/{0}/task/{0}/children"


class ForkServer:
    """Forks and kills workers as the driver asks.

    control_socket : the socket on which it asks; its end is the end of all.
    driver_folders : of the driver, removed by us: it may die before it can.
    """

    def __init__(self, control_socket: socket.socket, driver_folders: list[str]) -> None:
        self._control_socket, self._driver_folders = control_socket, driver_folders
        self._parent_folders = {os.path.dirname(folder) for folder in driver_folders}
        self._pid_by_worker_id: dict[int, int] = {}  # without workers that the driver has asked to kill
        self._signal_reader, self._signal_writer = socket.socketpair()  # a byte for each signal

    def serve(self) -> None:
        """Until the driver has closed its end, or died."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # the byte that tells of it is enough
        self._signal_writer.setblocking(False)
        signal.set_wakeup_fd(self._signal_writer.fileno(), warn_on_full_buffer=False)
        _prctl(PR_SET_CHILD_SUBREAPER, 1)  # what workers have started is our child when they have ended
        try:
            with contextlib.suppress(ConnectionError):  # it may have gone, and said before that it would
                self._control_socket.sendall(SERVER_READY)
            while self._handle_request():
                pass
        finally:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._kill_all_children()
            remove_stale_folders(self._parent_folders)
            for folder in self._driver_folders:
                shutil.rmtree(folder, ignore_errors=True)

    def _kill_all_children(self) -> None:
        """Kill workers, and then what they leave, until there is nothing, or nothing that can be killed."""
        worker_pids = set(self._pid_by_worker_id.values())
        while sum(_kill_process(pid) for pid in worker_pids | _list_child_pids()):
            worker_pids.discard(os.waitpid(-1, 0)[0])

    def _handle_request(self) -> bool:
        """Serve the next request. Return False if there will be none."""
        readable = wait_until_ready([self._control_socket, self._signal_reader], POLLIN, None)
        if self._signal_reader in readable:
            self._signal_reader.recv(4096)
            self._reap_children()
        if self._control_socket not in readable:
            return True
        try:
            data, descriptors, _, _ = socket.recv_fds(self._control_socket, REQUEST_BYTES, 1)
        except ConnectionError:
            data = b""
        if len(data) < REQUEST_BYTES:
            return False
        request = ForkServerRequest.decode(data)
        if request.command == ForkServerCommand.FORK and descriptors:
            self._fork_worker(request.worker_id, descriptors[0])
        elif request.command == ForkServerCommand.KILL:
            pid = self._pid_by_worker_id.pop(request.worker_id, None)
            if pid is not None:
                _kill_process(pid)
        return True

    def _fork_worker(self, worker_id: int, socket_fd: int) -> None:
        parent_pid = os.getpid()
        try:
            pid = os.fork()
        except OSError:  # no room for another process: the driver sees its socket closed
            os.close(socket_fd)
            return
        if not pid:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.set_wakeup_fd(-1)
            for inherited_socket in (self._control_socket, self._signal_reader, self._signal_writer):
                inherited_socket.close()
            os.setpgid(0, 0)
            _run_worker(parent_pid, socket_fd)
        with contextlib.suppress(OSError):  # it was faster, and may be gone
            os.setpgid(pid, pid)
        os.close(socket_fd)
        self._pid_by_worker_id[worker_id] = pid

    def _reap_children(self) -> None:
        """Report the workers that have ended, and kill the processes that they have left."""
        with contextlib.suppress(ChildProcessError):
            while (pid_and_status := os.waitpid(-1, os.WNOHANG))[0]:
                self._report_exit(*pid_and_status)
        for pid in _list_child_pids() - set(self._pid_by_worker_id.values()):
            _kill_process(pid)
        # a worker's own workers are killed before they can remove their folders
        remove_stale_folders(self._parent_folders)

    def _report_exit(self, pid: int, wait_status: int) -> None:
        worker_ids = [key for key, worker_pid in self._pid_by_worker_id.items() if worker_pid == pid]
        for worker_id in worker_ids:
            del self._pid_by_worker_id[worker_id]
            with contextlib.suppress(OSError):  # where its children do not become ours
                os.killpg(pid, signal.SIGKILL)
            with contextlib.suppress(OSError):  # the driver is gone, or does not read
                event = WorkerExitEvent(worker_id, wait_status)
                self._control_socket.send(event.encode(), socket.MSG_DONTWAIT)


def _kill_process(pid: int) -> bool:
    """Kill a child and its process group, where it has one; False if that is impossible."""
    is_killed = False
    for kill_function in (os.killpg, os.kill):
        with contextlib.suppress(OSError):
            kill_function(pid, signal.SIGKILL)
            is_killed = True
    return is_killed


def _list_child_pids() -> set[int]:
    """The processes whose parent is this one, where the system tells (Linux)."""
    try:
        with open(CHILDREN_FILE.format(os.getpid())) as children_file:
            return set(map(int, children_file.read().split()))
    except OSError:
        return set()


def _run_worker(parent_pid: int, socket_fd: int) -> None:
    """The life of a worker, in its own process."""
    exit_code = 1
    try:
        _die_with_parent(parent_pid)
        seed_numpy()  # else all workers draw the same numbers
        with socket.socket(fileno=socket_fd) as connection:
            PersistentWorker(make_worker_channel(connection)).serve()
        exit_code = 0
    finally:
        os._exit(exit_code)


def _die_with_parent(parent_pid: int) -> None:
    """Let the kernel end this process with its parent, and keep its orphans until then, where it can."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    _prctl(PR_SET_CHILD_SUBREAPER, 1)  # else one that is of a live worker could not be told
    if os.getppid() != parent_pid:
        os._exit(0)


def _prctl(option: int, value: int) -> None:
    """Set an attribute of this process (Linux)."""
    libc: Any = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        libc.prctl(option, value, 0, 0, 0)


def main(control_fd: int, driver_folders: list[str]) -> None:
    """Serve the driver at the other end of this socket."""
    ForkServer(socket.socket(fileno=control_fd), driver_folders).serve()
