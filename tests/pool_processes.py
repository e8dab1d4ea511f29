"""Run maps on persistent workers, and inspect the processes and files of a driver."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import polarmap
from polarmap.executors.worker_pool import Allocation, WorkerHandle, WorkerPool
from polarmap.types import CodedResult

A = np.random.default_rng(0).standard_normal((48, 5))
X = np.arange(5.0)
PATIENCE = 90.0  # Seconds after which a test gives up; no test should take nearly as long.


def check(
    pool: Any = None, f: Any = None, data: np.ndarray = A, factor: float = 1.0, **options: Any
) -> CodedResult:
    """Check a map on this pool and return its result.

    Parameters
    ----------
    f : callable, optional
        Function of a block, which must return factor * (block @ X); default: that product.
    """
    x = X
    # The lambda is pickled by value: for a function of this file, a new worker would import the file.
    f = f or (lambda block: factor * (block @ x))
    options = {"blocks": 6, "tasks": 8, "timeout": PATIENCE, **options}
    result = polarmap.coded_map(f, data, executor=pool, **options)
    np.testing.assert_allclose(result.concatenate(), factor * (data @ X))
    return result


def workers_of(pool: Any) -> set[int]:
    """Return the processes in which the tasks of an uncoded map ran."""
    f = lambda block: float(os.getpid())  # noqa: E731
    return {int(one) for one in polarmap.hedged_map(f, [X] * 8, executor=pool, timeout=PATIENCE)}


def opened(table: WorkerPool) -> Allocation:
    """Open an allocation whose wake-up callback does nothing."""
    return table.open_allocation(lambda: None)


def taken(table: WorkerPool, lease: Allocation, task: Any = None) -> WorkerHandle:
    """Return a worker for a task of this allocation as soon as one is available."""
    deadline = time.monotonic() + PATIENCE
    while (worker := table.acquire_worker(lease, 1, lambda: [task])) is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return worker


def until(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    """Return whether the condition becomes true within the given number of seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def runs(process: int) -> bool:
    """Return whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# CPython gh-113964: no threads can be started after the main module has ended.
starts_threads_at_exit = pytest.mark.skipif(
    (3, 12) <= sys.version_info < (3, 12, 3), reason="this Python starts no threads while it exits"
)

# Workers and folders that earlier tests of this process have left.
_earlier_leftovers: set[int | Path] = set()


def python_in(folder: Path, lacks: str = "") -> Path:
    """Create a script in the folder that runs this interpreter, or one that lacks a package."""
    script = folder / "python"
    run = f'exec {sys.executable} "$@"'
    if lacks:
        run = f"echo \"ModuleNotFoundError: No module named '{lacks}'\" >&2; exit 1"
    script.write_text(f"#!/bin/sh\n{run}\n")
    script.chmod(0o755)
    return script


def leave_out_others() -> None:
    """Ignore the existing processes and folders of this process from now on."""
    polarmap.shutdown()
    _earlier_leftovers.clear()
    _earlier_leftovers.update(descendants(), folders())


def folders(process: int | None = None) -> list[Path]:
    """Return the temporary folders that a process owns (default: this process)."""
    process = process or os.getpid()
    places = {Path("/dev/shm"), Path(os.environ.get("TMPDIR", "/tmp"))}
    paths = [path for place in places for path in place.glob(f"polarmap-*_{process}_*_*")]
    return [folder for folder in paths if folder not in _earlier_leftovers]


def descendants(process: int | None = None) -> set[int]:
    """Return all direct and indirect children of a process (default: this process)."""
    process = process or os.getpid()
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(entry.parent.name)] = int(fields[1])
    processes = {process}
    while children := {child for child, parent in parents.items() if parent in processes} - processes:
        processes |= children
    return {one for one in processes - {process} if one not in _earlier_leftovers}


def code_of_child(call: Callable[[], object], locks: Sequence[Any]) -> int:
    """Return the exit code of a child that is forked while another thread holds locks and runs `call`."""
    is_locked, go = threading.Event(), threading.Event()
    with ThreadPoolExecutor(1) as pool, ExitStack() as stack:

        def hold() -> None:
            for lock in locks:
                stack.enter_context(lock)
            is_locked.set()
            go.wait(20.0)
            stack.close()

        done = pool.submit(hold)
        assert is_locked.wait(20.0)
        child = os.fork()
        if not child:
            try:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(20)
                call()
            except BaseException:
                os._exit(1)
            os._exit(0)
        go.set()
        done.result()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Driver(subprocess.Popen[str]):
    """A process that is killed when its test fails, so that the failure is not reported as a timeout."""

    def __exit__(self, kind: Any, *rest: Any) -> None:
        if kind is not None:
            self.kill()
        super().__exit__(kind, *rest)


def program(text: str, *arguments: str) -> Driver:
    """Start a separate driver that runs the text as a program, with its standard output as a pipe."""
    lines = "import os, sys, time\nimport numpy as np\nimport polarmap\n" + textwrap.dedent(text)
    return Driver([sys.executable, "-c", lines, *arguments], stdout=subprocess.PIPE, text=True)


def assert_nothing_is_left(driver: int, processes: set[int]) -> None:
    """Check that these processes and the folders of the driver disappear soon after its end."""
    assert until(lambda: not any(map(runs, processes)), 20.0)
    assert until(lambda: not folders(driver), 20.0)
