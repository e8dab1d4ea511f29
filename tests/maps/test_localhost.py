"""Coded maps on Lithops' localhost backend, with real processes that sleep or are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from pool_processes import python_in, until

import polarmap
from polarmap.errors import ExecutorError
from polarmap.executors.lithops_internals import get_interpreter_for_lithops
from polarmap.testing import Fault, FaultyExecutor

A = np.random.default_rng(0).standard_normal((480, 16))
x = np.linspace(-1, 1, 16)
YAML = Path(__file__).parents[2] / "config" / "localhost.yaml"
NEVER = 600.0  # seconds, longer than the timeout of any test


def times(vector):
    """Return a function that is pickled by value, so that workers need not import this module and pytest."""
    return lambda block: block @ vector


times_x = times(x)


def leftovers() -> set[str]:
    """Return the files below the temporary folder that a finished map should have removed.

    Files that stay until the interpreter exits are left out, as is the folder that all Lithops jobs share.
    """
    root = Path(tempfile.gettempdir())
    permanent_names = {"owner", "python", "paths", "localhost-runner.log"}
    paths = [Path(folder, name) for folder, _, names in os.walk(root) for name in names]
    return {
        str(path)
        for path in paths  # other processes may remove paths during the loop, so check that each one exists
        if path.is_file()
        and path.name not in permanent_names
        and not path.name.startswith("runner-")
        and not path.is_relative_to(SHARED)
        and "pytest-of" not in str(path)
    }


SHARED = Path(tempfile.gettempdir()) / f"lithops-{os.environ.get('USER', 'root')}"


def children() -> list[str]:
    """Return the command lines of all runner and worker processes that have not exited yet."""
    lines = []
    for child in psutil.Process().children(recursive=True):
        try:
            lines.append(" ".join(child.cmdline()))
        except psutil.Error:  # the process is a zombie or has exited
            continue
    return [line for line in lines if "runner" in line]


@pytest.fixture(autouse=True)
def _nothing_is_left():
    before = leftovers()
    yield
    assert leftovers() - before == set()
    assert until(lambda: children() == [], 5.0)


def test_more_sleepers_than_slots_do_not_starve_the_queue():
    sleepers = {index: Fault("sleep", NEVER) for index in range(8)}
    y = polarmap.coded_map(
        times_x, A, blocks=4, tasks=12, executor=FaultyExecutor("localhost", sleepers), timeout=60
    )
    np.testing.assert_allclose(y.concatenate(), A @ x, atol=1e-10)
    assert y.report.recovered == tuple(range(4))


def test_killed_job_is_restarted(tmp_path):
    flag = tmp_path / "killed"

    def f(block):
        try:
            flag.touch(exist_ok=False)
        except FileExistsError:
            return block @ x
        os.killpg(os.getpgrp(), signal.SIGKILL)

    y = polarmap.coded_map(f, A, blocks=6, tasks=8, executor="localhost", timeout=60)
    np.testing.assert_allclose(y.concatenate(), A @ x, atol=1e-11)


def test_unpicklable_function_is_refused():
    lock = threading.Lock()
    with pytest.raises(polarmap.errors.CodeError, match="f cannot be pickled for localhost"):
        polarmap.coded_map(lambda block: (lock, block)[1], A, executor="localhost")


def test_function_executor_of_the_caller_stays_usable():
    import lithops

    with lithops.FunctionExecutor(
        config_file=str(YAML), runtime=get_interpreter_for_lithops(), log_level=None
    ) as fx:
        # Killed drivers of other tests leave objects behind.
        before = set(fx.storage.list_keys(fx.storage.bucket))
        for _ in range(2):
            y = polarmap.coded_map(times_x, A, blocks=6, tasks=8, executor=fx, timeout=60)
            np.testing.assert_allclose(y.concatenate(), A @ x, atol=1e-11)
        assert fx.get_result(fx.map(lambda n: n + 1, [1, 2], timeout=30)) == [2, 3]
        leftover_keys = set(fx.storage.list_keys(fx.storage.bucket)) - before
        assert not [key for key in leftover_keys if key.startswith("polarmap")]


def test_repeated_maps_leave_no_threads_and_descriptors():
    def round_() -> tuple[int, int]:
        faults = {0: Fault("sleep", NEVER), 1: Fault("sleep", NEVER)}
        polarmap.coded_map(
            times_x, A, blocks=2, tasks=4, executor=FaultyExecutor("localhost", faults), timeout=60
        )
        return threading.active_count(), psutil.Process().num_fds()

    round_()
    threads, descriptors = round_()
    round_()
    # Threads may need a moment to exit after their work is done.
    assert until(lambda: threading.active_count() <= threads)
    assert until(lambda: psutil.Process().num_fds() <= descriptors)


SCRIPT = """
import numpy as np, polarmap, sys
from polarmap.testing import Fault, FaultyExecutor
faults = {{i: Fault("sleep", 600) for i in range({sleepers})}}
y = polarmap.coded_map(lambda b: b.sum(1), np.ones((96, 4)), blocks=6, tasks=10,
                       executor=FaultyExecutor({executor!r}, faults))
print("done", round(y.concatenate().sum()), flush=True)
"""


def run_script(
    tmp_path: Path, sleepers: int, executor: str = "localhost"
) -> tuple[subprocess.Popen[str], Path]:
    """Start a driver in a new process with its own temporary folder. Return the process and the folder."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT).format(sleepers=sleepers, executor=executor))
    process = subprocess.Popen(
        [sys.executable, str(script)],
        env={**os.environ, "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    return process, temporary


def workers_are_gone(folder: Path) -> bool:
    """Return whether no process with this temporary folder is left, after waiting up to 60 s for its exit.

    Listing all processes is slow, so the function waits for the known workers first. It lists them twice
    because a worker may fork a process that cleans up while the first list is made.
    """
    psutil.wait_procs(workers_of(folder), timeout=60.0)
    return not workers_of(folder) and not workers_of(folder)


def workers_of(folder: Path) -> list[psutil.Process]:
    processes = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("TMPDIR", "").startswith(str(folder)):
                processes.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            pass
    return processes


def assert_nothing_runs_or_lies_in(folder: Path) -> None:
    assert until(lambda: workers_are_gone(folder))
    assert [path for path in folder.rglob("*") if path.is_file()] == []


def test_interpreter_exit_does_not_wait_for_stragglers(tmp_path):
    process, temporary = run_script(tmp_path, sleepers=2)
    out, err = process.communicate(timeout=60)
    assert out.startswith("done 384")
    assert err == ""
    assert_nothing_runs_or_lies_in(temporary)


def sleepers_run(temporary: Path) -> bool:
    """Return whether at least four tasks have started, which is the number of slots in the configuration."""
    return len(list(temporary.glob("*/*/lithops.jobs/*/*/*.init"))) >= 4


@pytest.mark.parametrize(
    ("number", "executor"),
    [(signal.SIGINT, "localhost"), (signal.SIGKILL, "localhost"), (signal.SIGKILL, str(YAML))],
)
def test_driver_that_ends_stops_its_workers(tmp_path, number, executor):
    process, temporary = run_script(tmp_path, sleepers=6, executor=executor)
    assert until(lambda: sleepers_run(temporary))
    began = time.monotonic()
    process.send_signal(number)
    _, err = process.communicate(timeout=100)
    if number == signal.SIGINT:
        assert time.monotonic() - began < 60  # the workers sleep for 600 s
        assert process.returncode in (-signal.SIGINT, 1)  # Python exits in one of two ways on Ctrl-C
    assert "Exception ignored" not in err
    assert until(lambda: workers_are_gone(temporary))
    files = [path for path in temporary.rglob("*") if path.is_file()]
    if executor != "localhost":  # Lithops keeps its own files below its folder
        files = [path for path in files if {"polarmap", "lithops.jobs"} & set(path.parts)]
    assert files == []


@pytest.mark.parametrize("version", [1, 2])
def test_interpreter_without_packages_is_named_in_the_error(tmp_path, version):
    # Lithops has cached that the interpreter works, so every process it starts exits with code 1.
    import lithops

    script = python_in(tmp_path)
    config = {
        "lithops": {"backend": "localhost", "storage": "localhost", "monitoring_interval": 0.02},
        "localhost": {"version": version, "runtime": str(script), "worker_processes": 4},
    }
    with lithops.FunctionExecutor(config=config, log_level=None) as fx:
        assert fx.get_result(fx.map(lambda n: n + 1, [1], timeout=60)) == [2]
        python_in(tmp_path, lacks="numpy")
        with pytest.raises(ExecutorError, match=rf"{script} .*No module named 'numpy'.*{sys.executable}"):
            polarmap.coded_map(times_x, A, blocks=4, tasks=6, executor=fx, timeout=100)
