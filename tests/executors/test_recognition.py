"""Recognition of every supported kind of executor, by its name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from foreign_executors import OwnExecutor, Pool

import polarmap
from polarmap.executors import resolve_executor
from polarmap.executors.interface import MapExecutor
from polarmap.executors.resolved import ResolvedExecutor


@pytest.mark.parametrize(
    ("choice", "name"),
    [
        (None, "processes here"),
        ("localhost", "localhost"),
        (Pool(), "Pool"),
        (OwnExecutor(), "own"),
        ("ray://head:10001", "Ray"),
    ],
)
def test_executor_is_recognized_by_name(choice: Any, name: str) -> None:
    executor = resolve_executor(choice)
    assert isinstance(executor, ResolvedExecutor) and isinstance(executor, MapExecutor)
    assert executor.name == name
    assert executor.workers_by_host == {}


def test_user_defined_executor_runs_maps() -> None:
    y = polarmap.coded_map(np.negative, np.eye(4), blocks=4, tasks=6, executor=OwnExecutor())
    np.testing.assert_allclose(y.concatenate(), -np.eye(4))
    assert y.report.executor == "own"
    busy = OwnExecutor()
    busy.is_local, busy.workers_by_host = True, {"a": 2}  # type: ignore[attr-defined]
    executor = resolve_executor(busy)
    assert (executor.is_local, executor.workers_by_host) == (True, {"a": 2})
