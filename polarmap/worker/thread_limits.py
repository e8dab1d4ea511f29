"""Threads that libraries for linear algebra may use while tasks run in a process that is not ours.

Tasks that run at the same time take the cores from each other where each call of BLAS starts as many threads
as there are cores. Runs on workers of pools, which have what polarmap requires.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

import threadpoolctl

NO_LIMIT = sys.maxsize


class ThreadLimits:
    """The limits of all tasks that run in a process now: the lowest is in force, until the last ends.

    Libraries are set to what they had before, unless somebody else has set them meanwhile.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tasks = 0  # that run
        self._limit = NO_LIMIT  # that is in force
        self._modules = 0  # as many were imported when libraries were looked for
        self._of_process: dict[str, Any] = {}  # libraries by path
        self._of_threads: dict[str, Any] = {}  # those that each thread sets for itself
        self._before: dict[str, int] = {}  # what those of the process had before

    @contextlib.contextmanager
    def of_process(self, threads: int) -> Iterator[None]:
        """Let libraries use so many threads at most, within, whichever thread calls them."""
        with self._lock:
            self._tasks += 1
            is_lower, is_new = threads < self._limit, self._modules != len(sys.modules)
            if is_new:
                self._look()
            if is_lower or is_new:
                self._set(min(threads, self._limit))
        try:
            yield
        finally:
            with self._lock:
                self._tasks -= 1
                if not self._tasks:
                    self._restore()

    @contextlib.contextmanager
    def of_this_thread(self, threads: int) -> Iterator[None]:
        """The same for libraries that ask the thread which calls them."""
        before = {path: library.num_threads for path, library in list(self._of_threads.items())}
        for path, number in before.items():
            self._of_threads[path].set_num_threads(min(threads, number))
        try:
            yield
        finally:
            for path, number in before.items():
                self._of_threads[path].set_num_threads(number)

    def forget_tasks(self) -> None:
        """In a process that was forked: the tasks of the other one do not run here."""
        self._lock = threading.Lock()
        self._tasks = 0
        self._restore()

    def _look(self) -> None:
        """Find the libraries that have been loaded since the last time."""
        for library in threadpoolctl.ThreadpoolController().lib_controllers:
            if library.num_threads is not None:
                kind = self._of_process if _is_of_process(library) else self._of_threads
                kind[library.filepath] = library
        self._modules = len(sys.modules)

    def _set(self, limit: int) -> None:
        self._limit = limit
        for path, library in self._of_process.items():
            library.set_num_threads(min(limit, self._before.setdefault(path, library.num_threads)))

    def _restore(self) -> None:
        limit, self._limit = self._limit, NO_LIMIT
        before, self._before = self._before, {}
        for path, threads in before.items():
            library = self._of_process[path]
            if library.num_threads == min(limit, threads):
                library.set_num_threads(threads)


def _is_of_process(library: Any) -> bool:
    """Whether a number that one thread sets holds for all: not where OpenMP, or BLIS, keeps one for each."""
    if library.internal_api == "openblas":
        return bool(library.threading_layer != "openmp")
    return library.internal_api in ("mkl", "flexiblas")


limits = ThreadLimits()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=limits.forget_tasks)
