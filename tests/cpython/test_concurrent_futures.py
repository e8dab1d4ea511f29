"""Run CPython's tests of executors with polarmap.Executor instead of the process pool.

The tests come from the running Python, which must be 3.13 or later. LEFT_OUT gives the reason for each
excluded test.
"""

from __future__ import annotations

import sys
from concurrent.futures import BrokenExecutor
from typing import Any

import pytest

import polarmap

if sys.version_info < (3, 13):
    pytest.skip("needs the tests of CPython 3.13 or later", allow_module_level=True)
pytest.importorskip("test.test_concurrent_futures.util", reason="this Python was installed without its tests")

from test.test_concurrent_futures import (
    test_as_completed,
    test_deadlock,
    test_process_pool,
    test_shutdown,
    test_thread_pool,
    test_wait,
)
from test.test_concurrent_futures.util import BaseTestCase, ExecutorMixin

# Scripts of CPython import polarmap.Executor by these lines.
IMPORTS = """
            from polarmap import Executor
            {name} = lambda count=None, max_workers=None: Executor(workers=count or max_workers)
"""

PROCESSES = "inspects the processes and threads of the executor"
UNPICKLED = "CPython's pool breaks, but polarmap's call raises the error of its unpickling"
LEFT_OUT = {
    "test_max_workers_negative": "the option is workers=: see tests/maps/test_executor.py",
    "test_max_workers_too_large": "Windows only",
    "test_killed_child": "CPython's pool breaks, but polarmap runs the call on another worker",
    "test_ressources_gced_in_workers": "its multiprocessing objects can be sent only to children of a pool",
    "test_saturation": PROCESSES,
    "test_traceback": "its function is a method of this class, which is sent without its source",
    "test_idle_process_reuse_one": PROCESSES,
    "test_idle_process_reuse_multiple": PROCESSES,
    "test_idle_thread_reuse": PROCESSES,
    "test_max_tasks_per_child": "polarmap.Executor has no such option",
    "test_max_tasks_per_child_defaults_to_spawn_context": "polarmap.Executor has no such option",
    "test_max_tasks_early_shutdown": "polarmap.Executor has no such option",
    "test_python_finalization_error": "counts the threads that a process pool starts",
    "test_processes_terminate": PROCESSES,
    "test_threads_terminate": PROCESSES,
    "test_shutdown_deadlock_pickle": PROCESSES,
    "test_thread_names_assigned": PROCESSES,
    "test_thread_names_default": PROCESSES,
    "test_error_at_task_unpickle": UNPICKLED,
    "test_exit_at_task_unpickle": UNPICKLED,
    "test_error_during_result_unpickle_in_result_handler": UNPICKLED,
    "test_exit_during_result_unpickle_in_result_handler": UNPICKLED,
    "test_default_workers": "polarmap chooses the number of workers from the available cores",
    "test_hang_global_shutdown_lock": "needs threads of the same process",
    "test_map_submits_without_iteration": "its calls write into a list of this process",
    "test_executor_map_current_future_cancel": "its calls write into a list of this process",
    "test_pending_calls_race": "its calls share an event of this process",
}


class ProcessPoolLikeExecutor(polarmap.Executor):
    """A polarmap.Executor with the constructor of a standard process pool."""

    def __init__(self, max_workers: int | None = None, mp_context: Any = None) -> None:
        super().__init__(workers=max_workers)


class WithWorkers(ExecutorMixin):
    executor_type = ProcessPoolLikeExecutor

    def get_context(self) -> None:
        return None


@pytest.fixture(autouse=True)
def adapt_cpython_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make lost calls raise BrokenExecutor, and scripts of CPython create a polarmap.Executor."""
    monkeypatch.setattr(test_deadlock, "BrokenProcessPool", BrokenExecutor)
    run = test_shutdown.assert_python_ok
    name = ProcessPoolLikeExecutor.__name__

    def run_adapted_script(option: str, script: str) -> Any:
        adapted_script = script.replace(
            f"            from concurrent.futures import {name}\n", IMPORTS.format(name=name)
        )
        assert adapted_script != script
        return run(option, adapted_script, PYTHONPATH=":".join(sys.path), __isolated=False)

    monkeypatch.setattr(test_shutdown, "assert_python_ok", run_adapted_script)


def make_test_class(*test_classes: type) -> type:
    """Return a test class with the inherited tests for polarmap.Executor, except for LEFT_OUT."""
    inherited = {name for test_class in test_classes for name in dir(test_class)}
    dropped = dict.fromkeys(inherited & LEFT_OUT.keys())
    return type("Tests", (WithWorkers, *test_classes, BaseTestCase), dropped)


class TestExecutor(make_test_class(test_process_pool.ProcessPoolExecutorTest)):  # type: ignore[misc]
    pass


class TestWait(make_test_class(test_wait.WaitTests)):  # type: ignore[misc]
    pass


class TestAsCompleted(make_test_class(test_as_completed.AsCompletedTests)):  # type: ignore[misc]
    pass


class TestShutdown(make_test_class(test_shutdown.ExecutorShutdownTest)):  # type: ignore[misc]
    pass


class TestDeadlock(make_test_class(test_deadlock.ExecutorDeadlockTest)):  # type: ignore[misc]
    pass


def test_all_excluded_tests_exist() -> None:
    modules = (
        test_as_completed,
        test_deadlock,
        test_process_pool,
        test_shutdown,
        test_thread_pool,
        test_wait,
    )
    classes = [value for module in modules for value in vars(module).values() if isinstance(value, type)]
    names = {name for test_class in classes for name in dir(test_class)}
    assert LEFT_OUT.keys() <= names
