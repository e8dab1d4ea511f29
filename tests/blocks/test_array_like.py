"""Tests of paths as data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from polarmap import CodedOperator, coded_map
from polarmap.blocks.array_like import load_array_like
from polarmap.errors import CodeError
from polarmap.testing import Fault, FaultyExecutor, ReplayExecutor

LOST = FaultyExecutor(ReplayExecutor(), {1: Fault("raise", attempts=9)})
MATRIX = np.arange(36.0).reshape(12, 3)


def test_maps_accept_all_paths_that_encode_accepts(tmp_path: Path) -> None:
    np.save(tmp_path / "A.npy", MATRIX)
    for path in (tmp_path / "A.npy", str(tmp_path / "A.npy")):
        assert isinstance(load_array_like(path), np.memmap)
        np.testing.assert_allclose(coded_map(np.negative, path, executor=LOST).concatenate(), -MATRIX)
    with CodedOperator(path, blocks=3, executor=LOST) as operator:
        np.testing.assert_allclose(operator.T @ np.ones(12), MATRIX.sum(axis=0))
    with pytest.raises(CodeError, match=r"A is the path 'nothing\.npy', but this file does not exist"):
        CodedOperator("nothing.npy")
