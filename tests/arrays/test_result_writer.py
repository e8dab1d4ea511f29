"""A map whose results stay in storage leaves a whole array there, or nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from plain import arriving

import polarmap
from polarmap import Fault, FaultyExecutor, ReplayExecutor, Stored
from polarmap.errors import NotLinearError


def files(folder) -> set[str]:
    return {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}


@pytest.fixture
def A():
    return np.random.default_rng(0).standard_normal((59, 7))


def test_a_function_that_is_not_linear_leaves_nothing(A, tmp_path):
    with pytest.raises(NotLinearError):
        polarmap.coded_map(
            np.sin, A, blocks=6, workers=8, out=Stored("y", tmp_path), executor=arriving(range(1, 8), 8)
        )
    assert files(tmp_path) == set()
    assert polarmap.list_coded(tmp_path) == []


def test_a_map_that_fails_leaves_nothing(A, tmp_path):
    faulty = FaultyExecutor(ReplayExecutor(), {index: Fault("raise", attempts=9) for index in range(4)})
    with pytest.raises(RuntimeError, match="injected fault"):
        polarmap.coded_map(np.sum, A, blocks=6, workers=8, out=Stored("y", tmp_path), executor=faulty)
    assert files(tmp_path) == set()


def test_what_never_came_is_missing_until_it_is_repaired(tmp_path):
    A = np.random.default_rng(0).standard_normal((60, 7))
    late = ReplayExecutor({1: 9.0, 4: 9.0})
    y = polarmap.coded_map(np.negative, A, blocks=6, workers=9, out=Stored("y", tmp_path), executor=late)
    assert {damage.block for damage in y.array.check().damaged} >= {1, 4}
    np.testing.assert_allclose(y.array[:], -A, rtol=1e-12)
    y.array.repair()
    assert not y.array.check().damaged
