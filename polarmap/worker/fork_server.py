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
import struct
import sys
from typing import Any

from polarmap.worker.channels import SocketChannel
from polarmap.worker.io_channel import ChannelIO, serve_tasks

REQUEST = struct.Struct(">cQ")  # what to do, and with which worker
ENDED = struct.Struct(">Qi")  # a worker that ended by itself, and how, as the kernel tells it
FORK, KILL, END, READY = b"f", b"k", b"e", b"r"
PR_SET_PDEATHSIG = 1


class ForkServer:
    """Forks and kills workers as the driver asks.

    control : the socket on which it asks; its end is the end of all.
    folders : of the driver, removed by us: it may die before it can.
    """

    def __init__(self, control: socket.socket, folders: list[str]) -> None:
        self._control, self._folders = control, folders
        self._workers: dict[int, int] = {}  # number -> process
        self._dismissed: set[int] = set()  # those of them that the driver wants killed

    def run(self) -> None:
        """Until the driver has closed its end, or died."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, lambda *_: self._reap())
        try:
            with contextlib.suppress(ConnectionError):  # it may have gone, and said before that it would
                self._control.sendall(READY)
            while self._serve():
                pass
        finally:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for process in self._workers.values():
                _kill(process)
            for process in self._workers.values():
                os.waitpid(process, 0)
            for folder in self._folders:
                shutil.rmtree(folder, ignore_errors=True)

    def _serve(self) -> bool:
        """Do what is asked next; False when nothing will be."""
        try:
            request, descriptors, _, _ = socket.recv_fds(self._control, REQUEST.size, 1)
        except ConnectionError:
            request = b""
        if len(request) < REQUEST.size:
            return False
        what, number = REQUEST.unpack(request)
        if what == FORK and descriptors:
            self._fork(number, descriptors[0])
        elif what == END:
            return False
        elif what == KILL and (process := self._workers.get(number)) is not None:
            self._dismissed.add(number)
            _kill(process)
        return True

    def _fork(self, number: int, descriptor: int) -> None:
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
        parent = os.getpid()
        try:
            process = os.fork()
        except OSError:  # no room for another process: the driver sees its socket closed
            os.close(descriptor)
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            return
        if not process:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            self._control.close()
            os.setpgid(0, 0)
            _be_a_worker(parent, descriptor)
        with contextlib.suppress(OSError):  # it was faster, and may be gone
            os.setpgid(process, process)
        os.close(descriptor)
        self._workers[number] = process
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def _reap(self) -> None:
        """Tell of the workers that have ended; called again while it is at it, when more do."""
        for number, process in list(self._workers.items()):
            try:
                ended, status = os.waitpid(process, os.WNOHANG)
            except ChildProcessError:
                continue
            if ended and self._workers.pop(number, None) is not None:
                _kill(process)  # what it has started
                self._tell(number, status)

    def _tell(self, number: int, status: int) -> None:
        """The driver, if it did not want this end."""
        if number in self._dismissed:
            self._dismissed.remove(number)
            return
        with contextlib.suppress(OSError):  # it is gone, or does not read
            self._control.send(ENDED.pack(number, status), socket.MSG_DONTWAIT)


def _kill(process: int) -> None:
    """A worker and what it has started, which is in its process group."""
    with contextlib.suppress(OSError):
        os.killpg(process, signal.SIGKILL)


def _be_a_worker(parent: int, descriptor: int) -> None:
    """The life of a worker, in its own process."""
    code = 1
    try:
        _end_with(parent)
        if "numpy.random" in sys.modules:
            sys.modules["numpy.random"].seed()  # else all workers draw the same numbers
        with socket.socket(fileno=descriptor) as connection:
            serve_tasks(ChannelIO(SocketChannel(connection)))
        code = 0
    except ConnectionError:
        code = 0  # the driver is gone
    finally:
        os._exit(code)


def _end_with(parent: int) -> None:
    """Let the kernel end this process with its parent, where it can (Linux)."""
    library: Any = ctypes.CDLL(None)
    if hasattr(library, "prctl"):
        library.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)


def main(descriptor: int, folders: list[str]) -> None:
    """Serve the driver at the other end of this socket."""
    ForkServer(socket.socket(fileno=descriptor), folders).run()
