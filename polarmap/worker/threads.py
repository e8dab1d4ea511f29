"""Threads of a process: those that libraries may use, and those for calls that may never end.

Runs on workers: imports the standard library, and threadpoolctl where it is installed.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from typing import Any

NO_LIMIT = sys.maxsize
IDLE_SECONDS = 1.0  # after which a thread without a call ends
# Environment variables that libraries for linear algebra read when they are loaded.
THREAD_LIMITS = (
    *("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS"),
    *("VECLIB_MAXIMUM_THREADS", "NUMEXPR_NUM_THREADS", "NUMBA_NUM_THREADS"),
)

Call = Callable[[], None]

_idle: list[SimpleQueue[Call]] = []  # of each thread that has no call: where it waits for one


def limiting_variables(threads: int) -> dict[str, str]:
    """The environment in which libraries that are loaded later use so many threads."""
    return dict.fromkeys(THREAD_LIMITS, str(threads))


class ThreadLimits:
    """Threads that libraries may use while tasks run: the lowest limit is in force, until the last task ends.

    Tasks that run at the same time take the cores from each other where each call of BLAS starts as many
    threads as there are cores. Libraries are set to what they had before, unless somebody else has set them
    meanwhile. Without threadpoolctl nothing is limited.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tasks = 0  # that run
        self._limit = NO_LIMIT  # that is in force
        self._modules = 0  # as many were imported when libraries were looked for
        self._of_process: list[Any] = []  # threadpoolctl's controllers of libraries
        self._of_threads: list[Any] = []  # of those that each thread sets for itself
        self._before: dict[str, int] = {}  # threads that those of the process used before, by path

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
        before = [(library, library.num_threads) for library in self._of_threads]
        for library, number in before:
            library.set_num_threads(min(threads, number))
        try:
            yield
        finally:
            for library, number in before:
                library.set_num_threads(number)

    def forget_tasks(self) -> None:
        """In a process that was forked: the tasks of the other one do not run here."""
        self._lock = threading.Lock()
        self._tasks = 0
        self._restore()

    def _set(self, limit: int) -> None:
        """Let this limit be in force, unless there is a lower one, for libraries that are new, too."""
        is_new = self._modules != len(sys.modules)
        if is_new:
            libraries = loaded_libraries()
            self._of_threads = [one for one in libraries if one.user_api == "openmp"]
            self._of_process = [one for one in libraries if one.user_api != "openmp"]
            self._modules = len(sys.modules)
        if is_new or limit < self._limit:
            self._limit = min(limit, self._limit)
            for library in self._of_process:
                number = library.num_threads
                if number > self._limit:
                    self._before.setdefault(library.filepath, number)
                    _set_threads(library, self._limit)

    def _restore(self) -> None:
        limit, self._limit = self._limit, NO_LIMIT
        before, self._before = self._before, {}
        for library in self._of_process:
            number = before.get(library.filepath)
            if number is not None and library.num_threads == min(limit, number):
                _set_threads(library, number)


def loaded_libraries() -> list[Any]:
    """Those of this process that have threads for linear algebra; of what is built on OpenMP that alone."""
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return []
    found = ThreadpoolController().lib_controllers
    return [one for one in found if one.num_threads and getattr(one, "threading_layer", "") != "openmp"]


def _set_threads(library: Any, number: int) -> None:
    """Let a library use so many, whichever thread says so.

    threadpoolctl takes orders for OpenBLAS from one thread only, until that one is done or others clear it.
    """
    clear = getattr(library, "clear_controlling_thread", lambda force: None)
    clear(force=True)
    library.set_num_threads(number)
    clear(force=True)


limits = ThreadLimits()


def run_on_daemon(call: Call) -> None:
    """Let a daemon thread run a call that raises nothing: one that is idle, or a new one.

    Neither a pool nor the interpreter's exit waits for it. To start a thread costs three times as much as to
    wake one.
    """
    try:
        calls = _idle.pop()
    except IndexError:
        calls = SimpleQueue()
        threading.Thread(target=_run_calls, args=(calls,), name="polarmap-task", daemon=True).start()
    calls.put(call)


def _run_calls(calls: SimpleQueue[Call]) -> None:
    while True:
        try:
            call = calls.get(timeout=IDLE_SECONDS)
        except Empty:
            try:
                _idle.remove(calls)
            except ValueError:  # somebody has just taken it
                continue
            return
        call()
        del call  # nothing that it held is to stay
        _idle.append(calls)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=limits.forget_tasks)
    os.register_at_fork(after_in_child=_idle.clear)
