"""Processes: which one has made something, whether it still runs, how those end for which nobody waits.

Runs on workers too: needs the standard library only.
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

LIVENESS_INTERVAL = 0.5  # between two looks whether anybody waits
SHUTDOWN_SECONDS = 5.0  # that processes and maps which were told to end may take to be gone


class ProcessIdentity(NamedTuple):
    """A process: its machine, its number and when it started (its number may be given out again)."""

    host: str
    pid: int
    start_time: str

    def __str__(self) -> str:
        return f"{self.host}+{self.pid}+{self.start_time}"

    @classmethod
    def current(cls) -> ProcessIdentity:
        """This process."""
        return cls(_get_machine_name(), os.getpid(), _get_start_time(os.getpid()) or "")

    @classmethod
    def parse(cls, text: str) -> ProcessIdentity:
        """The inverse of str(); what is no owner is one of nowhere."""
        host, _, rest = text.partition("+")
        pid_text, _, start_time = rest.partition("+")
        return cls(host, int(pid_text), start_time) if pid_text.isdecimal() else cls("", 0, "")

    @property
    def folder_prefix(self) -> str:
        """How the names of its folders begin: of characters that Lithops takes for those of a program."""
        return f"polarmap-{self}_".replace("+", "_")

    def is_on_this_machine(self) -> bool:
        """Whether it belongs to this machine."""
        return self.host == _get_machine_name()

    def is_dead(self) -> bool:
        """Whether it is known to have ended."""
        if not self.is_on_this_machine():
            return False
        return not is_process_alive(self.pid) or _get_start_time(self.pid) not in (None, self.start_time)


@cache
def _get_machine_name() -> str:
    """A name for where process numbers mean what they mean here: host, boot and process namespace."""
    name = socket.gethostname()
    try:
        with open("/proc/sys/kernel/random/boot_id") as boot:
            name += f"-{boot.read().strip()[:8]}-{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        pass
    return re.sub(r"[^A-Za-z0-9.-]", "-", name)


def _get_start_time(pid: int) -> str | None:
    """When a process started, in the kernel's ticks; None where that cannot be seen."""
    try:
        return read_process_status(pid)[19].decode()
    except OSError:
        return None


def read_process_status(pid: int) -> list[bytes]:
    """What the kernel tells of a process, its state first; OSError where it tells nothing (Linux does)."""
    with open(f"/proc/{pid}/stat", "rb") as stat:
        return stat.read().rpartition(b")")[2].split()


def is_process_alive(pid: int) -> bool:
    """Whether a process of this machine runs; one that only waits to be reaped does not."""
    if os.name == "nt":  # where that signal would end it; nobody tells
        return True
    try:
        os.kill(pid, 0)
        return read_process_status(pid)[0] != b"Z"
    except (ProcessLookupError, OverflowError):  # or a number that none has
        return False
    except OSError:
        return True


def remove_stale_folders(parent_folders: Iterable[str]) -> None:
    """Remove the folders there of processes of this machine that were killed before they could."""
    for parent_folder in parent_folders:
        for folder in Path(parent_folder).glob("polarmap-*_*_*_*"):
            owner = "+".join(folder.name.removeprefix("polarmap-").split("_")[:3])
            if ProcessIdentity.parse(owner).is_dead():
                shutil.rmtree(folder, ignore_errors=True)


# --- the end of processes for which nobody waits --------------------------------------------------


def exit_process_when(
    should_exit: Callable[[], bool],
    on_exit: Callable[[], object] = lambda: os._exit(0),
    update: Callable[[], object] = lambda: None,
) -> Callable[[], None]:
    """Poll a condition on a thread, and end this process, or call `on_exit`, while it holds.

    Returns a function that ends the polling. `update` is called with no arguments before each check, to bring
    what `should_exit` depends on up to date.
    """
    stop_event = threading.Event()

    def poll_condition() -> None:
        while not stop_event.wait(LIVENESS_INTERVAL):
            update()
            if should_exit():
                on_exit()

    def stop() -> None:
        stop_event.set()
        watcher_thread.join(LIVENESS_INTERVAL)  # it may wait for a storage

    watcher_thread = threading.Thread(target=poll_condition, name="polarmap-watch", daemon=True)
    watcher_thread.start()
    return stop


def has_lost_parent(parent_pid: int) -> bool:
    """Whether the driver of this process, first a child of `parent_pid`, has ended: a fork server outlives
    it.
    """
    import multiprocessing  # which takes two thousandths of a second

    parent_process = multiprocessing.parent_process()
    return os.getppid() != parent_pid or (parent_process is not None and not parent_process.is_alive())


def kill_job_and_clean_up(clean_up: Callable[[], None], timeout: float) -> None:
    """Kill this whole job, and only then remove what its processes have written."""
    # A child in a process group of its own does both. It outlives the job for `timeout` at most.
    process_group = os.getpgrp()
    with warnings.catch_warnings():  # Python warns of forking beside threads: the child uses none
        warnings.simplefilter("ignore")
        child_pid = os.fork()
    if child_pid:
        os.waitpid(child_pid, 0)  # killed while waiting
        os._exit(1)
    os.setpgid(0, 0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(int(timeout))  # a storage may never answer
    deadline = time.monotonic() + SHUTDOWN_SECONDS
    try:
        os.killpg(process_group, signal.SIGKILL)
        while time.monotonic() < deadline:  # what nobody reaps stays there
            os.killpg(process_group, 0)
            time.sleep(0.005)
    except OSError:  # all of it is gone
        pass
    try:
        clean_up()
    finally:
        os._exit(0)
