"""CPython's own tests of executors, with ours in the place of its process pool.

They run where the running Python has them (3.13 and later as they are used here). What is left out
stands in a table with its reason.
"""

from __future__ import annotations

import sys
from concurrent.futures import BrokenExecutor
from typing import Any

import pytest

import polarmap

if sys.version_info < (3, 13):
    pytest.skip("the tests of this Python are others", allow_module_level=True)
pytest.importorskip("test.test_concurrent_futures.util", reason="this Python comes without its tests")

from test.test_concurrent_futures import (
    test_as_completed,
    test_deadlock,
    test_process_pool,
    test_shutdown,
    test_thread_pool,
    test_wait,
)
from test.test_concurrent_futures.util import BaseTestCase, ExecutorMixin

# Of a script of theirs, to be ours.
IMPORTS = """
            from polarmap import Executor
            {name} = lambda count=None, max_workers=None: Executor(workers=count or max_workers)
"""

PROCESSES = "looks at the processes and threads of the executor itself"
UNPICKLED = "its pool breaks; here the call raises what its unpickling raised"
LEFT_OUT = {
    "test_max_workers_negative": "the option is workers=: see tests/maps/test_executor.py",
    "test_max_workers_too_large": "of Windows",
    "test_killed_child": "its pool breaks; here another worker does the call",
    "test_ressources_gced_in_workers": "its objects are of multiprocessing, for children of a pool only",
    "test_saturation": PROCESSES,
    "test_traceback": "its function is one of this class, which travels without its source",
    "test_idle_process_reuse_one": PROCESSES,
    "test_idle_process_reuse_multiple": PROCESSES,
    "test_idle_thread_reuse": PROCESSES,
    "test_max_tasks_per_child": "of an option that is not there",
    "test_max_tasks_per_child_defaults_to_spawn_context": "of an option that is not there",
    "test_max_tasks_early_shutdown": "of an option that is not there",
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
    "test_default_workers": "as many as keep the cores busy",
    "test_hang_global_shutdown_lock": "of threads of the same process",
    "test_map_submits_without_iteration": "calls write into a list of this process",
    "test_executor_map_current_future_cancel": "calls write into a list of this process",
    "test_pending_calls_race": "calls share an event of this process",
}


class OfCPython(polarmap.Executor):
    """Its workers are counted as in the standard library."""

    def __init__(self, max_workers: int | None = None, mp_context: Any = None) -> None:
        super().__init__(workers=max_workers)


class WithWorkers(ExecutorMixin):
    executor_type = OfCPython

    def get_context(self) -> None:
        return None


@pytest.fixture(autouse=True)
def with_our_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that is lost raises BrokenExecutor; scripts make executors of ours."""
    monkeypatch.setattr(test_deadlock, "BrokenProcessPool", BrokenExecutor)
    run = test_shutdown.assert_python_ok
    name = OfCPython.__name__

    def run_ours(option: str, script: str) -> Any:
        ours = script.replace(
            f"            from concurrent.futures import {name}\n", IMPORTS.format(name=name)
        )
        assert ours != script
        return run(option, ours, PYTHONPATH=":".join(sys.path), __isolated=False)

    monkeypatch.setattr(test_shutdown, "assert_python_ok", run_ours)


def with_ours(*theirs: type) -> type:
    """CPython's tests with our executor, except for the excluded tests."""
    inherited = {name for one in theirs for name in dir(one)}
    dropped = dict.fromkeys(inherited & LEFT_OUT.keys())
    return type("Tests", (WithWorkers, *theirs, BaseTestCase), dropped)


class TestExecutor(with_ours(test_process_pool.ProcessPoolExecutorTest)):  # type: ignore[misc]
    pass


class TestWait(with_ours(test_wait.WaitTests)):  # type: ignore[misc]
    pass


class TestAsCompleted(with_ours(test_as_completed.AsCompletedTests)):  # type: ignore[misc]
    pass


class TestShutdown(with_ours(test_shutdown.ExecutorShutdownTest)):  # type: ignore[misc]
    pass


class TestDeadlock(with_ours(test_deadlock.ExecutorDeadlockTest)):  # type: ignore[misc]
    pass


def test_all_that_is_left_out_is_there() -> None:
    modules = (
        test_as_completed,
        test_deadlock,
        test_process_pool,
        test_shutdown,
        test_thread_pool,
        test_wait,
    )
    classes = [one for module in modules for one in vars(module).values() if isinstance(one, type)]
    names = {name for one in classes for name in dir(one)}
    assert LEFT_OUT.keys() <= names
