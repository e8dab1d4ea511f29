"""Check the types of a user's program: `make lint` has mypy and pyright read it, and the suite runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, assert_type

import numpy as np
import numpy.typing as npt

import polarmap
from polarmap import CodedOperator, coded_map, coded_sum, hedged_map, submit
from polarmap.arrays import Stored
from polarmap.codes import PolarCode
from polarmap.planning import ShiftedExponential
from polarmap.testing import Fault, FaultyExecutor, ReplayExecutor
from polarmap.types import CodedFuture, CodedResult, CodedSum, Report, StoredResult

A = np.arange(24.0).reshape(8, 3)
HERE = ReplayExecutor()


def rows(block: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return block @ np.ones(3)


def count(word: str) -> int:
    return len(word)


def test_types_of_map_results(tmp_path: Path) -> None:
    y = coded_map(rows, A, blocks=4, tasks=6, code=PolarCode(6, 4), executor=HERE)
    assert_type(y, CodedResult[npt.NDArray[np.float64]])
    assert_type(y.report, Report)
    np.testing.assert_allclose(np.concatenate(y), A.sum(axis=1))
    stored = coded_map(rows, A, out=Stored("y", str(tmp_path)), executor=HERE)
    assert_type(stored, StoredResult[npt.NDArray[np.float64]])
    counts = hedged_map(count, ["a", "bc"], executor=HERE)
    assert_type(counts, CodedResult[int])
    assert sum(counts) == 3
    assert_type(coded_sum(rows, A, tasks=4, executor=HERE), CodedSum)


def test_types_of_futures() -> None:
    future = submit(coded_map, rows, A, blocks=4, executor=HERE)
    assert_type(future, CodedFuture[CodedResult[npt.NDArray[np.float64]]])
    hedged = submit(hedged_map, count, ["a", "bc"], executor=HERE)
    assert_type(hedged, CodedFuture[CodedResult[int]])
    assert len(future.result(50)) == 4
    assert list(hedged.result(50)) == [1, 2]


def test_types_of_operators_plans_and_faults() -> None:
    unlucky: Any = FaultyExecutor(HERE, {1: Fault("kill", attempts=9)})
    with CodedOperator(A, blocks=4, tasks=6, executor=unlucky) as operator:
        np.testing.assert_allclose(operator @ np.ones(3), A.sum(axis=1))
    recommended = polarmap.plan(24, ShiftedExponential(1.0, 1.0))
    assert_type(recommended, polarmap.planning.Plan)
    assert recommended.n >= 24
