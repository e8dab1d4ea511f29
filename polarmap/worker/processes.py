"""Identify processes, check whether they are alive, and end processes that no driver needs any more.

The name of a temporary folder contains the identity of the process that owns it. If that process is killed,
any other process on the machine can therefore remove the folder. This module also runs on workers, so it
imports only the standard library.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

LIVENESS_INTERVAL = 0.5  # seconds between checks whether a process should exit
SHUTDOWN_SECONDS = 5.0  # maximum seconds to wait for cancelled processes and jobs to end


class ProcessIdentity(NamedTuple):
    """An identifier of a process that is unique across machines and reboots.

    The identifier consists of the machine, the process id and the start time. The start time is needed
    because process ids are reused.
    """

    host: str
    pid: int
    start_time: str

    def __str__(self) -> str:
        return f"{self.host}+{self.pid}+{self.start_time}"

    @classmethod
    def current(cls) -> ProcessIdentity:
        """Return the identity of this process."""
        return cls(_get_machine_name(), os.getpid(), _get_start_time(os.getpid()) or "")

    @classmethod
    def parse(cls, text: str) -> ProcessIdentity:
        """Parse the string form of an identity. For any other text, the result has an empty host."""
        host, _, rest = text.partition("+")
        pid_text, _, start_time = rest.partition("+")
        return cls(host, int(pid_text), start_time) if pid_text.isdecimal() else cls("", 0, "")

    @property
    def folder_prefix(self) -> str:
        """The prefix of the names of this process's temporary folders.

        It contains only characters that Lithops accepts in names.
        """
        return f"polarmap-{self}_".replace("+", "_")

    def is_on_this_machine(self) -> bool:
        """Return whether the process runs on this machine, or has run here since the last boot."""
        return self.host == _get_machine_name()

    def is_dead(self) -> bool:
        """Return whether the process is known to have exited; always False for other machines."""
        if not self.is_on_this_machine():
            return False
        return not is_process_alive(self.pid) or _get_start_time(self.pid) not in (None, self.start_time)


@cache
def _get_machine_name() -> str:
    """Return a name of this machine. Process ids are unique among processes with the same name.

    The name changes when the machine is rebooted, and it is different in each container.
    """
    name = socket.gethostname()
    try:
        with open("/proc/sys/kernel/random/boot_id") as boot:
            name += f"-{boot.read().strip()[:8]}-{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        pass
    return re.sub(r"[^A-Za-z0-9.-]", "-", name)


def _get_start_time(pid: int) -> str | None:
    """Return the start time of a process in clock ticks since boot, or None if it cannot be read."""
    try:
        return read_process_status(pid)[19].decode()
    except OSError:
        return None


def read_process_status(pid: int) -> list[bytes]:
    """Return the fields of /proc/<pid>/stat, starting with the process state.

    Raises OSError if the process does not exist, or if this is not Linux.
    """
    with open(f"/proc/{pid}/stat", "rb") as stat:
        return stat.read().rpartition(b")")[2].split()


def is_process_alive(pid: int) -> bool:
    """Return whether a process on this machine is alive, and not a zombie. Always True on Windows."""
    if os.name == "nt":  # The check below could end the process, as signal 0 is CTRL_C_EVENT on Windows.
        return True
    try:
        os.kill(pid, 0)
        return read_process_status(pid)[0] != b"Z"
    except (ProcessLookupError, OverflowError):  # OverflowError means an invalid process id.
        return False
    except OSError:
        return True


def remove_stale_folders(parent_folders: Iterable[str]) -> None:
    """Remove the temporary folders of processes on this machine that have exited.

    Parameters
    ----------
    parent_folders : iterable of str
        The folders that contain temporary folders.
    """
    for parent_folder in parent_folders:
        for folder in Path(parent_folder).glob("polarmap-*_*_*_*"):
            owner = "+".join(folder.name.removeprefix("polarmap-").split("_")[:3])
            if ProcessIdentity.parse(owner).is_dead():
                shutil.rmtree(folder, ignore_errors=True)


# --- ending processes that no driver needs any more ----------------------------------------------------


def exit_process_when(
    should_exit: Callable[[], bool],
    on_exit: Callable[[], object] = lambda: os._exit(0),
    update: Callable[[], object] = lambda: None,
) -> Callable[[], None]:
    """Start a daemon thread that exits the process once a condition is true.

    The condition is checked every LIVENESS_INTERVAL seconds.

    Parameters
    ----------
    should_exit : callable
        Called without arguments; returns whether to exit.
    on_exit : callable
        Called without arguments after each check that returns true. By default, it exits this process.
    update : callable
        Called without arguments before each check, to refresh the state that `should_exit` uses.

    Returns
    -------
    callable
        A function without arguments that stops the thread.
    """
    stop_event = threading.Event()

    def poll_condition() -> None:
        while not stop_event.wait(LIVENESS_INTERVAL):
            update()
            if should_exit():
                on_exit()

    def stop() -> None:
        stop_event.set()
        # Wait for a limited time, because the thread may hang in a storage request.
        watcher_thread.join(LIVENESS_INTERVAL)

    watcher_thread = threading.Thread(target=poll_condition, name="polarmap-watch", daemon=True)
    watcher_thread.start()
    return stop


def has_lost_parent(parent_pid: int) -> bool:
    """Return whether this worker's parent process has exited.

    A worker that was started by the fork server of `multiprocessing` is a child process of that server, which
    may outlive the user's program. For such a worker, return True also if the user's program has exited.

    Parameters
    ----------
    parent_pid : int
        The result of `os.getppid()` when this process started.
    """
    import multiprocessing  # The import takes 2 ms, and few processes need it.

    parent_process = multiprocessing.parent_process()
    return os.getppid() != parent_pid or (parent_process is not None and not parent_process.is_alive())


def kill_job_and_clean_up(clean_up: Callable[[], None], timeout: float) -> None:
    """Kill all processes of this process group, including this one, and then call `clean_up`.

    A forked child process does both. It first leaves the process group, so that it is not killed itself.

    Parameters
    ----------
    clean_up : callable
        Called without arguments in the child process.
    timeout : float
        The time limit of the child process, in seconds.
    """
    process_group = os.getpgrp()
    with warnings.catch_warnings():  # Python warns about forking a multi-threaded process.
        warnings.simplefilter("ignore")
        child_pid = os.fork()
    if child_pid:
        os.waitpid(child_pid, 0)  # The child kills this process while it waits.
        os._exit(1)
    os.setpgid(0, 0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(int(timeout))  # Exit even if `clean_up` hangs, for example in a storage request.
    deadline = time.monotonic() + SHUTDOWN_SECONDS
    try:
        os.killpg(process_group, signal.SIGKILL)
        # Wait until all processes of the group are gone, up to a time limit, because zombies may remain.
        while time.monotonic() < deadline:
            os.killpg(process_group, 0)
            time.sleep(0.005)
    except OSError:  # All processes of the group have exited.
        pass
    try:
        clean_up()
    finally:
        os._exit(0)
