"""Identify processes, check whether they are alive, and end those that no driver waits for.

The names of temporary folders contain the identity of their owner, so that any process of the machine can
remove the folders of one that was killed. Runs on workers too: imports the standard library only.
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
SHUTDOWN_SECONDS = 5.0  # seconds in which processes and jobs have to end once they are cancelled


class ProcessIdentity(NamedTuple):
    """The identity of a process: its machine, process id and start time, as process ids are reused."""

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
        """Return the identity that `str` has written, or one with an empty host for any other text."""
        host, _, rest = text.partition("+")
        pid_text, _, start_time = rest.partition("+")
        return cls(host, int(pid_text), start_time) if pid_text.isdecimal() else cls("", 0, "")

    @property
    def folder_prefix(self) -> str:
        """The prefix of the names of its folders, in characters that Lithops accepts in names."""
        return f"polarmap-{self}_".replace("+", "_")

    def is_on_this_machine(self) -> bool:
        """Return whether the process runs, or ran, on this machine since its last boot."""
        return self.host == _get_machine_name()

    def is_dead(self) -> bool:
        """Return whether the process is known to have exited. Always False for another machine."""
        if not self.is_on_this_machine():
            return False
        return not is_process_alive(self.pid) or _get_start_time(self.pid) not in (None, self.start_time)


@cache
def _get_machine_name() -> str:
    """Return a name for this host, boot and process namespace, within which process ids are unique."""
    name = socket.gethostname()
    try:
        with open("/proc/sys/kernel/random/boot_id") as boot:
            name += f"-{boot.read().strip()[:8]}-{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        pass
    return re.sub(r"[^A-Za-z0-9.-]", "-", name)


def _get_start_time(pid: int) -> str | None:
    """Return the start time of a process in kernel ticks, or None if the system does not report it."""
    try:
        return read_process_status(pid)[19].decode()
    except OSError:
        return None


def read_process_status(pid: int) -> list[bytes]:
    """Return the fields of /proc/<pid>/stat from the process state on; raise OSError if it does not exist."""
    with open(f"/proc/{pid}/stat", "rb") as stat:
        return stat.read().rpartition(b")")[2].split()


def is_process_alive(pid: int) -> bool:
    """Return whether a process of this machine runs. A zombie does not. Always True on Windows."""
    if os.name == "nt":  # On Windows, signal 0 would end the process.
        return True
    try:
        os.kill(pid, 0)
        return read_process_status(pid)[0] != b"Z"
    except (ProcessLookupError, OverflowError):  # OverflowError: not a valid process id.
        return False
    except OSError:
        return True


def remove_stale_folders(parent_folders: Iterable[str]) -> None:
    """Remove folders below `parent_folders` whose owner, a process of this machine, has exited."""
    for parent_folder in parent_folders:
        for folder in Path(parent_folder).glob("polarmap-*_*_*_*"):
            owner = "+".join(folder.name.removeprefix("polarmap-").split("_")[:3])
            if ProcessIdentity.parse(owner).is_dead():
                shutil.rmtree(folder, ignore_errors=True)


# --- ending processes that no driver waits for ----------------------------------------------------


def exit_process_when(
    should_exit: Callable[[], bool],
    on_exit: Callable[[], object] = lambda: os._exit(0),
    update: Callable[[], object] = lambda: None,
) -> Callable[[], None]:
    """Check a condition every LIVENESS_INTERVAL seconds on a daemon thread, and exit once it holds.

    Parameters
    ----------
    should_exit : callable
        Called with no arguments; returns whether to exit.
    on_exit : callable
        Called with no arguments after each check that returned true. By default, it ends this process.
    update : callable
        Called with no arguments before each check, to refresh the state that `should_exit` uses.

    Returns
    -------
    callable
        Ends the checks when it is called, with no arguments.
    """
    stop_event = threading.Event()

    def poll_condition() -> None:
        while not stop_event.wait(LIVENESS_INTERVAL):
            update()
            if should_exit():
                on_exit()

    def stop() -> None:
        stop_event.set()
        watcher_thread.join(LIVENESS_INTERVAL)  # Bounded, as a check may be waiting for a storage.

    watcher_thread = threading.Thread(target=poll_condition, name="polarmap-watch", daemon=True)
    watcher_thread.start()
    return stop


def has_lost_parent(parent_pid: int) -> bool:
    """Return whether the driver of this process has exited.

    Either the parent is no longer `parent_pid`; or, if the parent is a fork server, which outlives the
    driver, `multiprocessing` reports that the driver has exited.
    """
    import multiprocessing  # imported here because it takes 2 ms

    parent_process = multiprocessing.parent_process()
    return os.getppid() != parent_pid or (parent_process is not None and not parent_process.is_alive())


def kill_job_and_clean_up(clean_up: Callable[[], None], timeout: float) -> None:
    """Kill the process group of this process, and then call `clean_up` within `timeout` seconds.

    A child process in a new process group does both, so that it survives the signal.
    """
    process_group = os.getpgrp()
    with warnings.catch_warnings():  # Python warns about forking a process with threads.
        warnings.simplefilter("ignore")
        child_pid = os.fork()
    if child_pid:
        os.waitpid(child_pid, 0)  # The child kills this process while it waits.
        os._exit(1)
    os.setpgid(0, 0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(int(timeout))  # A storage may never respond.
    deadline = time.monotonic() + SHUTDOWN_SECONDS
    try:
        os.killpg(process_group, signal.SIGKILL)
        while time.monotonic() < deadline:  # Unreaped zombies may remain until the deadline.
            os.killpg(process_group, 0)
            time.sleep(0.005)
    except OSError:  # The process group no longer exists.
        pass
    try:
        clean_up()
    finally:
        os._exit(0)
