"""Threads that libraries for linear algebra may use while tasks run in a process that is not ours.

Tasks that run at the same time take the cores from each other where each call of BLAS starts as many threads
as there are cores. Libraries are asked by their C interface, where the system tells which are loaded (Linux).
(threadpoolctl lets only one thread of a process set OpenBLAS.)

Runs on workers: imports the standard library only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

NO_LIMIT = sys.maxsize
# Environment variables that libraries read when they are loaded.
THREAD_LIMITS = (
    *("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS"),
    *("VECLIB_MAXIMUM_THREADS", "NUMEXPR_NUM_THREADS", "NUMBA_NUM_THREADS"),
)
LOADED = "/proc/self/maps"
NAMED_LIKE = re.compile("openblas|lib(gomp|iomp5|omp|mkl_rt)[^a-z]")
PTHREADS = 1  # what OpenBLAS calls its own threads


def limiting_variables(threads: int) -> dict[str, str]:
    """The environment in which libraries that are loaded later use so many threads."""
    return dict.fromkeys(THREAD_LIMITS, str(threads))


class Library(NamedTuple):
    """A loaded library: how many threads it uses, and what sets that."""

    threads: Callable[[], int]
    set_threads: Callable[[int], object]


class ThreadLimits:
    """The limits of all tasks that run in a process now: the lowest is in force, until the last ends.

    Libraries are set to what they had before, unless somebody else has set them meanwhile.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tasks = 0  # that run
        self._limit = NO_LIMIT  # that is in force
        self._modules = 0  # as many were imported when libraries were looked for
        self._of_process: dict[str, Library] = {}  # by path
        self._of_threads: dict[str, Library] = {}  # those that each thread sets for itself
        self._before: dict[str, int] = {}  # threads that those of the process used before

    @contextlib.contextmanager
    def of_process(self, threads: int) -> Iterator[None]:
        """Let libraries use so many threads at most, within, whichever thread calls them."""
        with self._lock:
            self._tasks += 1
            self._set(threads)
        try:
            yield
        finally:
            with self._lock:
                self._tasks -= 1
                if not self._tasks:
                    self._restore()

    def include_loaded(self) -> None:
        """Limit libraries, too, that were loaded with a task's function or block."""
        with self._lock:
            if self._tasks:
                self._set(self._limit)

    @contextlib.contextmanager
    def of_this_thread(self, threads: int) -> Iterator[None]:
        """The same for libraries that ask the thread which calls them."""
        before = [(library, library.threads()) for library in list(self._of_threads.values())]
        for library, number in before:
            library.set_threads(min(threads, number))
        try:
            yield
        finally:
            for library, number in before:
                library.set_threads(number)

    def forget_tasks(self) -> None:
        """In a process that was forked: the tasks of the other one do not run here."""
        self._lock = threading.Lock()
        self._tasks = 0
        self._restore()

    def _look(self) -> None:
        """Find the libraries that have been loaded since the last time."""
        self._modules = len(sys.modules)
        for path in loaded_libraries() - self._of_process.keys() - self._of_threads.keys():
            with contextlib.suppress(OSError):
                library = ctypes.CDLL(path)
                if found := _openblas(library):
                    self._of_process[path] = found
                if found := _of_threads(library):
                    self._of_threads[path] = found

    def _set(self, limit: int) -> None:
        """Let this limit be in force, unless there is a lower one, for libraries that are new, too."""
        is_new = self._modules != len(sys.modules)
        if is_new:
            self._look()
        if is_new or limit < self._limit:
            self._limit = min(limit, self._limit)
            for path, library in self._of_process.items():
                library.set_threads(min(self._limit, self._before.setdefault(path, library.threads())))

    def _restore(self) -> None:
        limit, self._limit = self._limit, NO_LIMIT
        before, self._before = self._before, {}
        for path, number in before.items():
            library = self._of_process[path]
            if library.threads() == min(limit, number):
                library.set_threads(number)


def loaded_libraries() -> set[str]:
    """The paths of the libraries of this process that may have threads for linear algebra."""
    try:
        with open(LOADED, errors="surrogateescape") as maps:
            paths = {line[line.find("/") :].rstrip("\n") for line in maps if "/" in line}
    except OSError:
        return set()
    return {path for path in paths if NAMED_LIKE.search(os.path.basename(path))}


def _openblas(library: ctypes.CDLL) -> Library | None:
    """OpenBLAS, whose functions are called otherwise in numpy's and scipy's own copies.

    Built for OpenMP it asks that, which each thread sets for itself.
    """
    for prefix in ("", "scipy_"):
        for suffix in ("", "64_", "_64", "_64_"):
            name = f"{prefix}openblas_{{}}{suffix}"
            if hasattr(library, name.format("set_num_threads")):
                asks_itself = getattr(library, name.format("get_parallel"))() == PTHREADS
                get, set_ = (getattr(library, name.format(f"{do}_num_threads")) for do in ("get", "set"))
                return Library(get, set_) if asks_itself else None
    return None


def _of_threads(library: ctypes.CDLL) -> Library | None:
    """OpenMP and MKL."""
    for get, set_ in {
        "omp_get_max_threads": "omp_set_num_threads",
        "MKL_Get_Max_Threads": "MKL_Set_Num_Threads_Local",
    }.items():
        if hasattr(library, get) and hasattr(library, set_):
            return Library(getattr(library, get), getattr(library, set_))
    return None


limits = ThreadLimits()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=limits.forget_tasks)
