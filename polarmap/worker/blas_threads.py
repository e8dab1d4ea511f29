"""Limit the number of threads of linear algebra libraries while tasks run.

Tasks that run at the same time compete for cores if each BLAS call starts as many threads as there are cores.
This module runs on workers, so it imports only the standard library, and threadpoolctl if it is installed.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

NO_LIMIT = sys.maxsize  # the maximum number of threads if there is no limit

# Environment variables that linear algebra libraries read at load time to decide how many threads to use.
THREAD_LIMIT_VARIABLES = (
    *("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS"),
    *("VECLIB_MAXIMUM_THREADS", "NUMEXPR_NUM_THREADS", "NUMBA_NUM_THREADS"),
)


def get_thread_limit_variables(n_threads: int) -> dict[str, str]:
    """Return environment variables that limit linear algebra libraries to `n_threads` threads.

    The variables affect only libraries that are loaded after they are set.
    """
    return dict.fromkeys(THREAD_LIMIT_VARIABLES, str(n_threads))


class ThreadLimiter:
    """Limits how many threads linear algebra libraries use while tasks run in this process.

    If several tasks run at the same time, the lowest of their limits applies until the last one ends. Then
    each library gets back its original number of threads, unless other code has changed that number in the
    meantime. If threadpoolctl is not installed, the limiter does nothing.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._n_tasks = 0  # the number of running tasks
        self._current_limit = NO_LIMIT
        # The value of len(sys.modules) at the last search for loaded libraries. If it has changed, new
        # libraries may have been loaded, and the search is repeated.
        self._n_loaded_modules = 0

        # The controllers by which threadpoolctl sets the number of threads of each loaded library. Some
        # libraries have one number for the whole process, others a separate number for each calling thread.
        self._process_libraries: list[Any] = []
        self._per_thread_libraries: list[Any] = []
        self._original_counts: dict[str, int] = {}  # library path -> original number of threads

    @contextlib.contextmanager
    def limit_process_threads(self, max_threads: int) -> Iterator[None]:
        """Limit linear algebra libraries in this process to `max_threads` threads within a `with` block."""
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
        """Apply the current limit to libraries that have been loaded since the task began.

        Unpickling a task's function may import such a library.
        """
        with self._lock:
            if self._n_tasks:
                self._apply_limit(self._current_limit)

    @contextlib.contextmanager
    def limit_current_thread(self, max_threads: int) -> Iterator[None]:
        """Limit OpenMP to `max_threads` threads for calls from the current thread, within a `with` block.

        Libraries that do not use OpenMP are not affected, because their limit is for the whole process.
        """
        original_counts = [(library, library.num_threads) for library in self._per_thread_libraries]
        for library, n_threads in original_counts:
            library.set_num_threads(min(max_threads, n_threads))
        try:
            yield
        finally:
            for library, n_threads in original_counts:
                library.set_num_threads(n_threads)

    def after_fork(self) -> None:
        """Remove the limit in a child process after a fork, because the parent's tasks do not run there."""
        self._lock = threading.Lock()
        self._n_tasks = 0
        self._restore_thread_counts()

    def _apply_limit(self, max_threads: int) -> None:
        """Lower the current limit to `max_threads` unless it is lower already, and apply it to all libraries.

        Libraries that have been loaded since the last call are included. The caller must hold the lock.
        """
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
    """Return the threadpoolctl controllers of all linear algebra libraries that are loaded.

    Libraries built on OpenMP are left out, because limiting OpenMP already limits them. Return an empty list
    if the package threadpoolctl is not installed.
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
    """Set the number of threads of a library, given its threadpoolctl controller.

    This also works if the number was last set from another thread, which threadpoolctl normally prevents.
    """
    # For OpenBLAS, threadpoolctl remembers which thread changed the number and ignores changes by other
    # threads. Make it forget that thread, both before and after the change.
    clear_controlling_thread = getattr(library, "clear_controlling_thread", lambda force: None)
    clear_controlling_thread(force=True)
    library.set_num_threads(n_threads)
    clear_controlling_thread(force=True)


thread_limiter = ThreadLimiter()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=thread_limiter.after_fork)
