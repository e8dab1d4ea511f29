"""Limit the number of threads of linear algebra libraries while tasks run.

Tasks that run at the same time compete for cores if each BLAS call starts as many threads as there are cores.
Runs on workers: imports the standard library, and threadpoolctl if it is installed.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

NO_LIMIT = sys.maxsize  # number of threads that stands for no limit
# Environment variables that libraries for linear algebra read when they are loaded.
THREAD_LIMIT_VARIABLES = (
    *("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS"),
    *("VECLIB_MAXIMUM_THREADS", "NUMEXPR_NUM_THREADS", "NUMBA_NUM_THREADS"),
)


def get_thread_limit_variables(n_threads: int) -> dict[str, str]:
    """Return environment variables that make libraries which are loaded later use `n_threads` threads."""
    return dict.fromkeys(THREAD_LIMIT_VARIABLES, str(n_threads))


class ThreadLimiter:
    """A limit on the threads of libraries in this process, for the tasks that run in it.

    If several tasks run, the lowest limit applies until the last of them ends. Then the original numbers of
    threads are restored, except in libraries that other code has set in the meantime. Without threadpoolctl,
    nothing is limited.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._n_tasks = 0  # running tasks
        self._current_limit = NO_LIMIT  # number of threads
        self._n_loaded_modules = 0  # len(sys.modules) at the latest search for libraries
        self._process_libraries: list[Any] = []  # threadpoolctl controllers of libraries with one setting
        self._per_thread_libraries: list[Any] = []  # controllers of libraries with a setting per thread
        self._original_counts: dict[str, int] = {}  # original threads of a library, by its path

    @contextlib.contextmanager
    def limit_process_threads(self, max_threads: int) -> Iterator[None]:
        """Limit libraries to `max_threads` threads within this context, whichever thread calls them."""
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
        """Apply the current limit to libraries that were loaded since, as with the function of a task."""
        with self._lock:
            if self._n_tasks:
                self._apply_limit(self._current_limit)

    @contextlib.contextmanager
    def limit_current_thread(self, max_threads: int) -> Iterator[None]:
        """Limit the libraries that have a setting per thread, for the calling thread, within this context."""
        original_counts = [(library, library.num_threads) for library in self._per_thread_libraries]
        for library, n_threads in original_counts:
            library.set_num_threads(min(max_threads, n_threads))
        try:
            yield
        finally:
            for library, n_threads in original_counts:
                library.set_num_threads(n_threads)

    def after_fork(self) -> None:
        """Restore the original numbers in a forked process, in which the tasks of its parent do not run."""
        self._lock = threading.Lock()
        self._n_tasks = 0
        self._restore_thread_counts()

    def _apply_limit(self, max_threads: int) -> None:
        """Lower the current limit to `max_threads` if it is higher, and apply it to all loaded libraries."""
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
    """Return threadpoolctl controllers of the libraries to limit; an empty list without threadpoolctl.

    A library that is built on OpenMP is left out, because OpenMP itself is among the controllers.
    """
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
    """Set the number of threads of a library, whichever thread has set it before."""
    # For OpenBLAS, threadpoolctl accepts settings from only one thread, until that thread is cleared.
    clear_controlling_thread = getattr(library, "clear_controlling_thread", lambda force: None)
    clear_controlling_thread(force=True)
    library.set_num_threads(n_threads)
    clear_controlling_thread(force=True)


thread_limiter = ThreadLimiter()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=thread_limiter.after_fork)
