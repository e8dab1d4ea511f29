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

from polarmap.worker.kept_worker import ChannelIO
from polarmap.worker.polling import POLLIN, ready
from polarmap.worker.process_state import seed_numpy
from polarmap.worker.processes import sweep
from polarmap.worker.stream import ENDED, FORK, KILL, READY, REQUEST, worker_stream

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
CHILDREN = "/proc/{0}/task/{0}/children"  # of a process whose only thread, or first one, has started them


class ForkServer:
    """Forks and kills workers as the driver asks.

    control : the socket on which it asks; its end is the end of all.
    folders : of the driver, removed by us: it may die before it can.
    """

    def __init__(self, control: socket.socket, folders: list[str]) -> None:
        self._control, self._folders = control, folders
        self._places = {os.path.dirname(folder) for folder in folders}
        self._workers: dict[int, int] = {}  # number -> process, but for those that the driver wants killed
        self._signals, self._signalled = socket.socketpair()  # a byte for each signal

    def run(self) -> None:
        """Until the driver has closed its end, or died."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # the byte that tells of it is enough
        self._signalled.setblocking(False)
        signal.set_wakeup_fd(self._signalled.fileno(), warn_on_full_buffer=False)
        _prctl(PR_SET_CHILD_SUBREAPER, 1)  # what workers have started is our child when they have ended
        try:
            with contextlib.suppress(ConnectionError):  # it may have gone, and said before that it would
                self._control.sendall(READY)
            while self._serve():
                pass
        finally:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._end_all()
            sweep(self._places)
            for folder in self._folders:
                shutil.rmtree(folder, ignore_errors=True)

    def _end_all(self) -> None:
        """Kill workers, and then what they leave, until there is nothing, or nothing that can be killed."""
        workers = set(self._workers.values())
        while sum(_kill(process) for process in workers | _children()):
            workers.discard(os.waitpid(-1, 0)[0])

    def _serve(self) -> bool:
        """Do what is asked next; False when nothing will be."""
        found = ready([self._control, self._signals], POLLIN, None)
        if self._signals in found:
            self._signals.recv(4096)
            self._reap()
        if self._control not in found:
            return True
        try:
            request, descriptors, _, _ = socket.recv_fds(self._control, REQUEST.size, 1)
        except ConnectionError:
            request = b""
        if len(request) < REQUEST.size:
            return False
        what, number = REQUEST.unpack(request)
        if what == FORK and descriptors:
            self._fork(number, descriptors[0])
        elif what == KILL and (process := self._workers.pop(number, None)) is not None:
            _kill(process)
        return True

    def _fork(self, number: int, descriptor: int) -> None:
        parent = os.getpid()
        try:
            process = os.fork()
        except OSError:  # no room for another process: the driver sees its socket closed
            os.close(descriptor)
            return
        if not process:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.set_wakeup_fd(-1)
            for one in (self._control, self._signals, self._signalled):
                one.close()
            os.setpgid(0, 0)
            _be_a_worker(parent, descriptor)
        with contextlib.suppress(OSError):  # it was faster, and may be gone
            os.setpgid(process, process)
        os.close(descriptor)
        self._workers[number] = process

    def _reap(self) -> None:
        """Tell of the workers that have ended, and kill what they have left: what else is our child."""
        with contextlib.suppress(ChildProcessError):
            while (one := os.waitpid(-1, os.WNOHANG))[0]:
                self._note_end(*one)
        for process in _children() - set(self._workers.values()):
            _kill(process)
        sweep(self._places)  # a worker's own workers are killed before they can remove their folders

    def _note_end(self, process: int, status: int) -> None:
        for number in [number for number, one in self._workers.items() if one == process]:
            del self._workers[number]
            with contextlib.suppress(OSError):  # where its children do not become ours
                os.killpg(process, signal.SIGKILL)
            with contextlib.suppress(OSError):  # the driver is gone, or does not read
                self._control.send(ENDED.pack(number, status), socket.MSG_DONTWAIT)


def _kill(process: int) -> bool:
    """Kill a child and its process group, where it has one; False if that is impossible."""
    is_killed = False
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(OSError):
            kill(process, signal.SIGKILL)
            is_killed = True
    return is_killed


def _children() -> set[int]:
    """The processes whose parent is this one, where the system tells (Linux)."""
    try:
        with open(CHILDREN.format(os.getpid())) as children:
            return set(map(int, children.read().split()))
    except OSError:
        return set()


def _be_a_worker(parent: int, descriptor: int) -> None:
    """The life of a worker, in its own process."""
    code = 1
    try:
        _end_with(parent)
        seed_numpy()  # else all workers draw the same numbers
        with socket.socket(fileno=descriptor) as connection:
            ChannelIO(worker_stream(connection)).serve()
        code = 0
    finally:
        os._exit(code)


def _end_with(parent: int) -> None:
    """Let the kernel end this process with its parent, and keep its orphans until then, where it can."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    _prctl(PR_SET_CHILD_SUBREAPER, 1)  # else one that is of a live worker could not be told
    if os.getppid() != parent:
        os._exit(0)


def _prctl(option: int, value: int) -> None:
    """Set an attribute of this process (Linux)."""
    library: Any = ctypes.CDLL(None)
    if hasattr(library, "prctl"):
        library.prctl(option, value, 0, 0, 0)


def main(descriptor: int, folders: list[str]) -> None:
    """Serve the driver at the other end of this socket."""
    ForkServer(socket.socket(fileno=descriptor), folders).run()
