"""Processes of workers that end when nobody waits for them any more.

Runs on workers too: needs the standard library only.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable

from polarmap.worker.retry import AWAY_SECONDS

LIVENESS_SECONDS = 0.5  # between two looks whether anybody waits
END_SECONDS = 5.0  # that processes and maps which were told to end may take to be gone


def exit_when(
    is_cancelled: Callable[[], bool], end: Callable[[], object] = lambda: os._exit(0)
) -> Callable[[], None]:
    """End this process as soon as this is so, looked at by a thread until what is returned is called.

    end : what is done instead, as long as it is so.
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
    starter = multiprocessing.parent_process()
    return os.getppid() != parent or (starter is not None and not starter.is_alive())


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
    signal.alarm(int(AWAY_SECONDS))  # a storage may never answer
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
