"""Limits of the number of threads that libraries for linear algebra use.

Runs on workers: imports the standard library, and threadpoolctl where it is installed.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

NO_LIMIT = sys.maxsize
# Environment variables that libraries for linear algebra read when they are loaded.
THREAD_LIMIT_VARIABLES = (
    *("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS"),
    *("VECLIB_MAXIMUM_THREADS", "NUMEXPR_NUM_THREADS", "NUMBA_NUM_THREADS"),
)


def get_thread_limit_variables(n_threads: int) -> dict[str, str]:
    """The environment in which libraries that are loaded later use so many threads."""
    return dict.fromkeys(THREAD_LIMIT_VARIABLES, str(n_threads))


class ThreadLimiter:
    """Threads that libraries may use while tasks run: the lowest limit is in force, until the last task ends.

    Tasks that run at the same time take the cores from each other where each call of BLAS starts as many
    threads as there are cores. Libraries are set to what they had before, unless somebody else has set them
    meanwhile. Without threadpoolctl nothing is limited.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._n_tasks = 0  # that run
        self._current_limit = NO_LIMIT  # that is in force
        self._n_loaded_modules = 0  # as many were imported when libraries were looked for
        self._process_libraries: list[Any] = []  # threadpoolctl's controllers of libraries
        self._per_thread_libraries: list[Any] = []  # of those that each thread sets for itself
        self._original_counts: dict[str, int] = {}  # threads that those of the process used before, by path

    @contextlib.contextmanager
    def limit_process_threads(self, max_threads: int) -> Iterator[None]:
        """Let libraries use so many threads at most, within, whichever thread calls them."""
        with self._lock:
            self._n_tasks += 1
            self._apply_limit(max_threads)
        try:
            yield
        finally:
            with self._lock:
                self._n_tasks -= 1
                if not self._n_tasks:
                    self._restore_thread_counts()

    def limit_newly_loaded_libraries(self) -> None:
        """Limit libraries, too, that were loaded with a task's function or block."""
        with self._lock:
            if self._n_tasks:
                self._apply_limit(self._current_limit)

    @contextlib.contextmanager
    def limit_current_thread(self, max_threads: int) -> Iterator[None]:
        """The same for libraries that ask the thread which calls them."""
        original_counts = [(library, library.num_threads) for library in self._per_thread_libraries]
        for library, n_threads in original_counts:
            library.set_num_threads(min(max_threads, n_threads))
        try:
            yield
        finally:
            for library, n_threads in original_counts:
                library.set_num_threads(n_threads)

    def after_fork(self) -> None:
        """In a process that was forked: the tasks of the other one do not run here."""
        self._lock = threading.Lock()
        self._n_tasks = 0
        self._restore_thread_counts()

    def _apply_limit(self, max_threads: int) -> None:
        """Let this limit be in force, unless there is a lower one, for libraries that are new, too."""
        is_new = self._n_loaded_modules != len(sys.modules)
        if is_new:
            libraries = find_threaded_libraries()
            self._per_thread_libraries = [item for item in libraries if item.user_api == "openmp"]
            self._process_libraries = [item for item in libraries if item.user_api != "openmp"]
            self._n_loaded_modules = len(sys.modules)
        if is_new or max_threads < self._current_limit:
            self._current_limit = min(max_threads, self._current_limit)
            for library in self._process_libraries:
                n_threads = library.num_threads
                if n_threads > self._current_limit:
                    self._original_counts.setdefault(library.filepath, n_threads)
                    _set_library_threads(library, self._current_limit)

    def _restore_thread_counts(self) -> None:
        limit, self._current_limit = self._current_limit, NO_LIMIT
        original_counts, self._original_counts = self._original_counts, {}
        for library in self._process_libraries:
            n_threads = original_counts.get(library.filepath)
            if n_threads is not None and library.num_threads == min(limit, n_threads):
                _set_library_threads(library, n_threads)


def find_threaded_libraries() -> list[Any]:
    """Those of this process that have threads for linear algebra; of what is built on OpenMP that alone."""
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return []
    controllers = ThreadpoolController().lib_controllers
    return [
        controller
        for controller in controllers
        if controller.num_threads and getattr(controller, "threading_layer", "") != "openmp"
    ]


def _set_library_threads(library: Any, n_threads: int) -> None:
    """Let a library use so many, whichever thread says so.

    threadpoolctl takes orders for OpenBLAS from one thread only, until that one is done or others clear it.
    """
    clear_controlling_thread = getattr(library, "clear_controlling_thread", lambda force: None)
    clear_controlling_thread(force=True)
    library.set_num_threads(n_threads)
    clear_controlling_thread(force=True)


thread_limiter = ThreadLimiter()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=thread_limiter.after_fork)
