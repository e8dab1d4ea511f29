"""The run of a map on workers that stay: what it decides; what it does is tested with the pool."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from polarmap.executors.base import Failure
from polarmap.executors.pool_run import surroundings, with_cause
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


def test_workers_get_the_surroundings_of_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "9")
    monkeypatch.setenv("POLARMAP_TEST", "yes")
    found = surroundings(2)
    assert found.folder == str(tmp_path)
    assert found.environment["OMP_NUM_THREADS"] == "2"
    assert found.environment["POLARMAP_TEST"] == "yes"
    assert all(map(os.path.isabs, found.module_path))
