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

LIVENESS_SECONDS = 0.5  # between two looks whether anybody waits
END_SECONDS = 5.0  # that processes and maps which were told to end may take to be gone


class ProcessIdentity(NamedTuple):
    """A process: its machine, its number and when it started (its number may be given out again)."""

    host: str
    process: int
    started: str

    def __str__(self) -> str:
        return f"{self.host}+{self.process}+{self.started}"

    @classmethod
    def current(cls) -> ProcessIdentity:
        """This process."""
        return cls(_machine(), os.getpid(), _started(os.getpid()) or "")

    @classmethod
    def parse(cls, text: str) -> ProcessIdentity:
        """The inverse of str(); what is no owner is one of nowhere."""
        host, _, rest = text.partition("+")
        process, _, started = rest.partition("+")
        return cls(host, int(process), started) if process.isdecimal() else cls("", 0, "")

    @property
    def folder_prefix(self) -> str:
        """How the names of its folders begin: of characters that Lithops takes for those of a program."""
        return f"polarmap-{self}_".replace("+", "_")

    def is_on_this_machine(self) -> bool:
        """Whether it belongs to this machine."""
        return self.host == _machine()

    def is_dead(self) -> bool:
        """Whether it is known to have ended."""
        if not self.is_on_this_machine():
            return False
        return not is_alive(self.process) or _started(self.process) not in (None, self.started)


@cache
def _machine() -> str:
    """A name for where process numbers mean what they mean here: host, boot and process namespace."""
    name = socket.gethostname()
    try:
        with open("/proc/sys/kernel/random/boot_id") as boot:
            name += f"-{boot.read().strip()[:8]}-{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        pass
    return re.sub(r"[^A-Za-z0-9.-]", "-", name)


def _started(process: int) -> str | None:
    """When a process started, in the kernel's ticks; None where that cannot be seen."""
    try:
        return process_status(process)[19].decode()
    except OSError:
        return None


def process_status(process: int) -> list[bytes]:
    """What the kernel tells of a process, its state first; OSError where it tells nothing (Linux does)."""
    with open(f"/proc/{process}/stat", "rb") as stat:
        return stat.read().rpartition(b")")[2].split()


def is_alive(process: int) -> bool:
    """Whether a process of this machine runs; one that only waits to be reaped does not."""
    if os.name == "nt":  # where that signal would end it; nobody tells
        return True
    try:
        os.kill(process, 0)
        return process_status(process)[0] != b"Z"
    except (ProcessLookupError, OverflowError):  # or a number that none has
        return False
    except OSError:
        return True


def sweep(places: Iterable[str]) -> None:
    """Remove the folders there of processes of this machine that were killed before they could."""
    for place in places:
        for folder in Path(place).glob("polarmap-*_*_*_*"):
            owner = "+".join(folder.name.removeprefix("polarmap-").split("_")[:3])
            if ProcessIdentity.parse(owner).is_dead():
                shutil.rmtree(folder, ignore_errors=True)


# --- the end of processes for which nobody waits --------------------------------------------------


def exit_when(
    is_cancelled: Callable[[], bool], end: Callable[[], object] = lambda: os._exit(0)
) -> Callable[[], None]:
    """Poll a condition on a thread, and end this process, or call `end`, while it holds.

    Returns a function that ends the polling.
    """
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(LIVENESS_SECONDS):
            if is_cancelled():
                end()

    def stop() -> None:
        is_over.set()
        watcher.join(LIVENESS_SECONDS)  # it may wait for a storage

    watcher = threading.Thread(target=watch, name="polarmap-watch", daemon=True)
    watcher.start()
    return stop


def has_lost_parent(parent: int) -> bool:
    """Whether the driver of this process, first a child of `parent`, has ended: a fork server outlives it."""
    import multiprocessing  # which takes two thousandths of a second

    starter = multiprocessing.parent_process()
    return os.getppid() != parent or (starter is not None and not starter.is_alive())


def end_job(remove_all: Callable[[], None], seconds: float) -> None:
    """Kill this whole job, and only then remove what its processes have written."""
    # A child in a process group of its own does both. It outlives the job for `seconds` at most.
    group = os.getpgrp()
    with warnings.catch_warnings():  # Python warns of forking beside threads: the child uses none
        warnings.simplefilter("ignore")
        child = os.fork()
    if child:
        os.waitpid(child, 0)  # killed while waiting
        os._exit(1)
    os.setpgid(0, 0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(int(seconds))  # a storage may never answer
    deadline = time.monotonic() + END_SECONDS
    try:
        os.killpg(group, signal.SIGKILL)
        while time.monotonic() < deadline:  # what nobody reaps stays there
            os.killpg(group, 0)
            time.sleep(0.005)
    except OSError:  # all of it is gone
        pass
    try:
        remove_all()
    finally:
        os._exit(0)
