"""Fork persistent workers for a driver on this machine, in a server process that exits with the driver.

    driver  -- FORK 7 + socket -->  fork server  -- os.fork -->  worker 7, which serves that socket
    driver  <-- exit status of 7 --  fork server  <-- SIGCHLD --  worker 7

The server has imported everything that tasks need, so that it can fork a worker within milliseconds. The
server itself runs no task and has no threads. This module runs in a separate interpreter, and imports at most
numpy.
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

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # option numbers of the system call prctl on Linux

# The file in which Linux lists the child processes that the main thread of a process has started.
CHILDREN_FILE = "/proc/{0}/task/{0}/children"


class ForkServer:
    """A server process that forks and kills workers at its driver's request.

    The driver is the process that runs the user's program.

    Parameters
    ----------
    control_socket : socket
        The connection to the driver. When it is closed, all workers are killed and the server exits.
    driver_folders : list of str
        The temporary folders of the driver. The server deletes them when it exits.
    """

    def __init__(self, control_socket: socket.socket, driver_folders: list[str]) -> None:
        self._control_socket, self._driver_folders = control_socket, driver_folders
        self._parent_folders = {os.path.dirname(folder) for folder in driver_folders}
        # The process id of each worker, by worker id. It does not include workers that the driver has killed.
        self._pid_by_worker_id: dict[int, int] = {}
        # Python writes a byte to this socket pair on each signal, so that `serve` can wait for signals.
        self._signal_reader, self._signal_writer = socket.socketpair()

    def serve(self) -> None:
        """Handle the driver's requests until it disconnects or exits, and then kill all workers."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # The handler does nothing, but without a handler, Python would not write to the wakeup descriptor. It
        # is never removed: if SIG_DFL replaced it just as a signal arrives, Python would print "Signal 17
        # ignored due to race condition" to the user's terminal.
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._signal_writer.setblocking(False)
        signal.set_wakeup_fd(self._signal_writer.fileno(), warn_on_full_buffer=False)
        # Become the parent of orphans (processes that an exited worker has started), to be able to kill them.
        _prctl(PR_SET_CHILD_SUBREAPER, 1)
        try:
            with contextlib.suppress(ConnectionError):  # The driver may have exited in the meantime.
                self._control_socket.sendall(SERVER_READY)
            while self._handle_request():
                pass
        finally:
            self._kill_all_children()
            remove_stale_folders(self._parent_folders)
            for folder in self._driver_folders:
                shutil.rmtree(folder, ignore_errors=True)

    def _kill_all_children(self) -> None:
        """Kill all workers and the processes they have started, and wait until all have exited."""
        worker_pids = set(self._pid_by_worker_id.values())
        while sum(_kill_process(pid) for pid in worker_pids | _list_child_pids()):
            worker_pids.discard(os.waitpid(-1, 0)[0])

    def _handle_request(self) -> bool:
        """Wait for a request from the driver or for a worker's exit, and handle it.

        Return False if the driver has disconnected.
        """
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
        except OSError:  # The system is out of memory or process ids. Close the socket to notify the driver.
            os.close(socket_fd)
            return
        if not pid:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.set_wakeup_fd(-1)
            for inherited_socket in (self._control_socket, self._signal_reader, self._signal_writer):
                inherited_socket.close()
            os.setpgid(0, 0)
            _run_worker(parent_pid, socket_fd)
        with contextlib.suppress(OSError):  # The worker does this, too. It may have exited already.
            os.setpgid(pid, pid)
        os.close(socket_fd)
        self._pid_by_worker_id[worker_id] = pid

    def _reap_children(self) -> None:
        """Report exited workers to the driver, and kill the processes they have left behind."""
        with contextlib.suppress(ChildProcessError):
            while (pid_and_status := os.waitpid(-1, os.WNOHANG))[0]:
                self._report_exit(*pid_and_status)
        for pid in _list_child_pids() - set(self._pid_by_worker_id.values()):
            _kill_process(pid)
        # A task may have started workers of its own, which have been killed, too. Remove their folders.
        remove_stale_folders(self._parent_folders)

    def _report_exit(self, pid: int, wait_status: int) -> None:
        worker_ids = [key for key, worker_pid in self._pid_by_worker_id.items() if worker_pid == pid]
        for worker_id in worker_ids:
            del self._pid_by_worker_id[worker_id]
            # On systems where this process cannot adopt orphans, kill the worker's process group.
            with contextlib.suppress(OSError):
                os.killpg(pid, signal.SIGKILL)
            with contextlib.suppress(OSError):  # The driver may have exited, or its socket may be full.
                event = WorkerExitEvent(worker_id, wait_status)
                self._control_socket.send(event.encode(), socket.MSG_DONTWAIT)


def _kill_process(pid: int) -> bool:
    """Kill a child process and, if it leads a process group, all processes of the group.

    Return False if there was no process to kill.
    """
    is_killed = False
    for kill_function in (os.killpg, os.kill):
        with contextlib.suppress(OSError):
            kill_function(pid, signal.SIGKILL)
            is_killed = True
    return is_killed


def _list_child_pids() -> set[int]:
    """Return the process ids of the children of this process. Return an empty set if this is not Linux."""
    try:
        with open(CHILDREN_FILE.format(os.getpid())) as children_file:
            return set(map(int, children_file.read().split()))
    except OSError:
        return set()


def _run_worker(parent_pid: int, socket_fd: int) -> None:
    """Run a worker in the forked process, and exit the process afterwards.

    Parameters
    ----------
    parent_pid : int
        The process id of the fork server.
    socket_fd : int
        The file descriptor of the socket that is connected to the driver.
    """
    exit_code = 1
    try:
        _die_with_parent(parent_pid)
        seed_numpy()  # Forked workers would otherwise all draw the same random numbers.
        with socket.socket(fileno=socket_fd) as connection:
            PersistentWorker(make_worker_channel(connection)).serve()
        exit_code = 0
    finally:
        os._exit(exit_code)


def _die_with_parent(parent_pid: int) -> None:
    """Ask Linux to kill this process as soon as its parent exits.

    Also make this process a "child subreaper": if one of its children exits, the processes which that child
    has started become children of this process.
    """
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # The fork server kills all orphans that it adopts, so a live worker must adopt its own orphans.
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    if os.getppid() != parent_pid:
        os._exit(0)


def _prctl(option: int, value: int) -> None:
    """Call `prctl` to set an attribute of this process. Do nothing if this is not Linux."""
    libc: Any = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        libc.prctl(option, value, 0, 0, 0)


def main(control_fd: int, driver_folders: list[str]) -> None:
    """Run a fork server until its driver disconnects. This is the main function of the server process.

    Parameters
    ----------
    control_fd : int
        The inherited file descriptor of the socket that is connected to the driver.
    driver_folders : list of str
        The temporary folders of the driver. They are deleted when the server exits.
    """
    ForkServer(socket.socket(fileno=control_fd), driver_folders).serve()
