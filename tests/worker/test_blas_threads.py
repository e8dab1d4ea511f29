"""Tests that limits on BLAS and OpenMP threads apply during tasks and are removed afterwards."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np  # noqa: F401  # whose BLAS this is about
import pytest
import sklearn.utils._openmp_helpers  # noqa: F401  # which loads OpenMP
import threadpoolctl

from polarmap.worker.blas_threads import ThreadLimiter

PATIENCE = 50.0


def get_blas_thread_counts() -> set[int]:
    """Return the numbers of threads that threadpoolctl reports for BLAS libraries."""
    return {
        library["num_threads"] for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"
    }


@pytest.fixture
def limits() -> ThreadLimiter:
    """Return a new limiter, as an abandoned task of another test may still use that of the process."""
    return ThreadLimiter()


@pytest.fixture(autouse=True)
def three() -> Iterator[None]:
    with threadpoolctl.threadpool_limits(3):
        yield


def test_the_lowest_limit_applies_until_the_last_task_ends() -> None:
    both, one = ThreadLimiter(), ExitStack()
    with both.limit_process_threads(2):
        assert get_blas_thread_counts() == {2}
        one.enter_context(both.limit_process_threads(1))
        assert get_blas_thread_counts() == {1}
    assert get_blas_thread_counts() == {1}
    one.close()
    assert get_blas_thread_counts() == {3}


def test_openmp_limits_apply_only_to_their_thread(limits: ThreadLimiter) -> None:
    def of_openmp() -> set[int]:
        return {
            library["num_threads"]
            for library in threadpoolctl.threadpool_info()
            if library["user_api"] == "openmp"
        }

    with limits.limit_process_threads(1):
        assert of_openmp() == {3}
        with limits.limit_current_thread(1):
            assert of_openmp() == {1}
        assert of_openmp() == {3}
    assert of_openmp() == {3}


def test_limits_never_raise_a_number_and_keep_later_settings(limits: ThreadLimiter) -> None:
    with limits.limit_process_threads(5):
        assert get_blas_thread_counts() == {3}
    assert get_blas_thread_counts() == {3}
    with limits.limit_process_threads(1):
        threadpoolctl.threadpool_limits(2)
    assert get_blas_thread_counts() == {2}


SCENES = {
    "a library that a task loads": """
        with thread_limiter.limit_process_threads(1):
            import scipy.linalg
            threadpoolctl.ThreadpoolController().select(user_api="blas").limit(limits=2)
            with thread_limiter.limit_process_threads(1):
                assert now() == {1}, now()
    """,
    "a library that comes with a function": """
        class Ticket:
            block_ref, attempt = None, 0
        with thread_limiter.limit_process_threads(1):
            FutureTaskIO(b"cscipy.linalg\\nnorm\\n.", None, None).load_inputs(Ticket())
            assert now() == {1}, now()
    """,
    "a forked process, which has no tasks": """
        with thread_limiter.limit_process_threads(1):
            child = os.fork()
            if not child:
                assert now() == {3}, now()
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            assert now() == {1}, now()
        assert now() == {3}, now()
    """,
}
PROGRAM = """
import json, os, sys, threadpoolctl
from polarmap.worker.future_tasks import FutureTaskIO
from polarmap.worker.blas_threads import thread_limiter

def now():
    return {one["num_threads"] for one in threadpoolctl.threadpool_info()}

def play(scene):
    try:
        assert "scipy" not in sys.modules
        threadpoolctl.threadpool_limits(3)
        exec(scene, globals())
        os._exit(0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(1)

endings = {}
for name, scene in json.loads(sys.argv[1]).items():
    child = os.fork() or play(scene)
    endings[name] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(json.dumps(endings))
"""


@pytest.fixture(scope="module")
def exit_codes() -> dict[str, int]:
    """Return the exit code of each scene, run in a process forked from an interpreter without SciPy."""
    scenes = json.dumps({name: textwrap.dedent(scene) for name, scene in SCENES.items()})
    command = [sys.executable, "-c", PROGRAM, scenes]
    done = subprocess.run(command, check=True, timeout=PATIENCE, stdout=subprocess.PIPE)
    codes: dict[str, int] = json.loads(done.stdout)
    return codes


@pytest.mark.parametrize("scene", SCENES)
def test_limits_apply_to_libraries_that_are_loaded_during_a_task(
    scene: str, exit_codes: dict[str, int]
) -> None:
    assert exit_codes[scene] == 0


def test_tasks_on_threads_restore_the_numbers_of_threads(limits: ThreadLimiter) -> None:
    barrier = threading.Barrier(8)

    def task() -> None:
        for _ in range(50):
            with limits.limit_process_threads(1), limits.limit_current_thread(1):
                pass
        barrier.wait(PATIENCE)

    running = [threading.Thread(target=task) for _ in range(8)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(PATIENCE)
    assert get_blas_thread_counts() == {3}


def test_a_thread_can_limit_a_number_that_another_thread_has_set(limits: ThreadLimiter) -> None:
    # threadpoolctl sets OpenBLAS only from the first thread. From other threads it silently does nothing.
    threadpoolctl.threadpool_limits(3)  # This limit stays in place.

    def task() -> None:
        with limits.limit_process_threads(1):
            thread_counts.append(get_blas_thread_counts())

    thread_counts: list[set[int]] = []
    thread = threading.Thread(target=task)
    thread.start()
    thread.join(PATIENCE)
    assert (thread_counts, get_blas_thread_counts()) == ([{1}], {3})
    with threadpoolctl.threadpool_limits(2):  # Limits set on this thread still apply.
        assert get_blas_thread_counts() == {2}


def test_without_threadpoolctl_nothing_is_limited(
    limits: ThreadLimiter, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as context:
        context.setitem(sys.modules, "threadpoolctl", None)
        with limits.limit_process_threads(1), limits.limit_current_thread(1):
            assert get_blas_thread_counts() == {3}
