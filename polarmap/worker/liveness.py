"""Processes of workers that end when nobody waits for them any more.

Runs on workers too: imports the standard library only.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable

LIVENESS_SECONDS = 0.5  # between two looks whether anybody waits
DYING_SECONDS = 5.0  # that the processes of a job whose driver died may take to be gone
REMOVING_SECONDS = 60  # until what removes the rest is given up


def exit_when(is_cancelled: Callable[[], bool]) -> None:
    """End this process as soon as this is so; looked at by a thread."""
    _watch(lambda: os._exit(0) if is_cancelled() else None)


def exit_with_driver(driver: int, remove_all: Callable[[], None]) -> None:
    """End this whole job and remove what is left when the driver, on this machine, has died.

    A live one kills its workers itself.
    """
    _watch(lambda: None if is_alive(driver) else end_job(remove_all))


def has_lost_parent(parent: int) -> bool:
    """Whether the driver of this process, first a child of `parent`, has ended: a fork server outlives it."""
    starter = multiprocessing.parent_process()
    return os.getppid() != parent or (starter is not None and not starter.is_alive())


def _watch(look: Callable[[], None]) -> None:
    """Call this again and again, on a thread that ends with the process."""

    def run() -> None:
        while True:
            time.sleep(LIVENESS_SECONDS)
            look()

    threading.Thread(target=run, daemon=True).start()


def end_job(remove_all: Callable[[], None]) -> None:
    """Kill this whole job and only then remove what is left of it, which its processes write to.

    By a child in a process group of its own, which outlives the job and does nothing else.
    """
    group = os.getpgrp()
    with warnings.catch_warnings():  # Python warns of forking beside threads: the child uses none
        warnings.simplefilter("ignore")
        child = os.fork()
    if child:
        os.waitpid(child, 0)  # killed while waiting
        os._exit(1)
    os.setpgid(0, 0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(REMOVING_SECONDS)  # a storage may never answer
    os.killpg(group, signal.SIGKILL)
    deadline = time.monotonic() + DYING_SECONDS
    while _is_there(group) and time.monotonic() < deadline:  # what nobody reaps stays there
        time.sleep(0.005)
    try:
        remove_all()
    finally:
        os._exit(0)


def is_alive(process: int) -> bool:
    """Whether a process of this machine runs; one that only waits to be reaped does not."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    try:
        with open(f"/proc/{process}/stat", "rb") as stat:
            return stat.read().rpartition(b")")[2].split()[0] != b"Z"
    except OSError:
        return True


def _is_there(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except OSError:
        return False
    return True
