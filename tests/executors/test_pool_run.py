"""The run of a map on workers that stay: what it decides; what it does is tested with the pool."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from polarmap.executors.base import Failure
from polarmap.executors.pool_run import first_slots, is_waiting, surroundings, with_cause
from polarmap.worker.messages import Error


def test_a_failure_has_an_exception_of_its_type_where_python_has_it() -> None:
    failure = Failure("raised", "KeyError", "'a'")
    cause = with_cause(failure, Error("KeyError", "'a'", "trace", None)).cause
    assert isinstance(cause, KeyError)
    for name in ("Exit", "UnicodeDecodeError", "SystemExit", "print", "__import__"):
        cause = with_cause(failure, Error(name, "text", "the trace", None)).cause
        assert isinstance(cause, RuntimeError)
        assert "the trace" in str(cause)
    damaged = Failure("damaged", "DamagedError", "gone")
    assert with_cause(damaged, Error("DamagedError", "gone", "", None)) is damaged


def test_a_process_that_sleeps_is_told_from_one_that_computes() -> None:
    for program, waits in {"import time; time.sleep(600)": True, "while True: pass": False}.items():
        with subprocess.Popen([sys.executable, "-c", program]) as process:
            try:
                deadline = time.monotonic() + 30.0
                while is_waiting(process.pid) != waits:
                    assert time.monotonic() < deadline
            finally:
                process.kill()
    assert not is_waiting(process.pid)  # nobody knows


def test_all_tasks_start_at_once_where_nobody_sees_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (first_slots(2, None), first_slots(2, 3)) == (3, 3)
    monkeypatch.setattr(os.path, "exists", lambda path: False)
    assert first_slots(2, None) > 10**6
    assert first_slots(2, 3) == 3


def test_workers_get_the_surroundings_of_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "9")
    monkeypatch.setenv("POLARMAP_TEST", "yes")
    found = surroundings(2)
    assert found.folder == str(tmp_path)
    assert found.environment["OMP_NUM_THREADS"] == "2"
    assert found.environment["POLARMAP_TEST"] == "yes"
    assert all(map(os.path.isabs, found.module_path))
