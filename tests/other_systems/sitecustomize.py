"""Remove the functions and files that only Linux or POSIX has, from each interpreter that imports this.

The remaining interface is that of Windows, except for paths and for functions that end processes.
"""

from __future__ import annotations

import builtins
import io
import mmap
import os
import select
import signal
import socket
import sys
from typing import Any

LACKS = {
    os: [
        *("fork", "forkpty", "register_at_fork", "killpg", "getuid", "geteuid", "getgid", "getegid"),
        *("getpgrp", "setpgid", "getpriority", "sched_getaffinity", "statvfs"),
    ],
    select: ["poll", "epoll", *(name for name in dir(select) if name.startswith(("POLL", "EPOLL")))],
    signal: ["pthread_sigmask", "SIG_BLOCK", "SIG_UNBLOCK", "SIGALRM", "alarm", "setitimer", "getitimer"],
    socket: ["send_fds", "recv_fds", "MSG_DONTWAIT", "MSG_NOSIGNAL"],
    mmap: ["MAP_SHARED", "MAP_POPULATE", "PROT_READ", "PROT_WRITE", "MADV_DONTNEED"],
}
for module, names in LACKS.items():
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
for name in [name for name in dir(signal) if name.startswith("ITIMER_")]:
    delattr(signal, name)
sys.modules["resource"] = sys.modules["fcntl"] = None  # type: ignore[assignment]
_open, _mkdir = io.open, os.mkdir


def _is_of_linux(path: Any) -> bool:
    return isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(("/proc/", "/dev/shm"))


def _open_elsewhere(path: Any, *arguments: Any, **options: Any) -> Any:
    if _is_of_linux(path):
        raise FileNotFoundError(path)
    return _open(path, *arguments, **options)


def _mkdir_elsewhere(path: Any, *arguments: Any, **options: Any) -> None:
    if _is_of_linux(path):
        raise FileNotFoundError(path)
    _mkdir(path, *arguments, **options)


def _socketpair(*arguments: Any) -> tuple[socket.socket, socket.socket]:
    """Return a pair of sockets that are connected over loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
    return client, accepted


builtins.open = io.open = _open_elsewhere  # type: ignore[assignment]
os.mkdir = _mkdir_elsewhere
socket.socketpair = _socketpair  # type: ignore[assignment]
