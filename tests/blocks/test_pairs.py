"""Tests of pairs of blocks, in which each block is stored once for all its pairs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import polarmap
from polarmap.blocks.code_choice import encode_for_reuse
from polarmap.blocks.coded import CodedBlocks
from polarmap.blocks.pairs import CodedPairs


def factor(columns: int, seed: int) -> CodedBlocks:
    return encode_for_reuse(np.random.default_rng(seed).standard_normal((6, columns)), 3, 4, "rotation")


def test_a_pair_consists_of_a_block_of_each_factor() -> None:
    left, right = factor(5, 0), factor(7, 1)
    pairs = CodedPairs(left, right)
    assert (pairs.n, pairs.code.k) == (16, 9)
    for index, (row, column) in enumerate(pairs.code.grid_coordinates.tolist()):
        first, second = pairs.block_leaves(index)
        np.testing.assert_array_equal(first, left.block_leaves(row)[0])
        np.testing.assert_array_equal(second, right.block_leaves(column)[0])
        assert pairs.block_layout(index) == (("<f8", (2, 5)), ("<f8", (2, 7)))
    assert {piece for index in range(16) for piece in pairs.block_components(index)} == set(range(8))
    assert pairs.encode_seconds == left.encode_seconds + right.encode_seconds


@pytest.mark.parametrize("triangle", [False, True])
def test_a_factor_paired_with_itself_is_stored_once(triangle: bool) -> None:
    single_factor = factor(5, 0)
    pairs = CodedPairs(single_factor, single_factor, triangle)
    assert pairs.n == (10 if triangle else 16)
    assert {piece for index in range(pairs.n) for piece in pairs.block_components(index)} == set(range(4))
    assert pairs.data_blocks.dtypes == [np.dtype(float)] * 2 and pairs.data_blocks.k == (6 if triangle else 9)
    assert pairs.encode_seconds == single_factor.encode_seconds


def test_release_memory_drops_parity_that_can_be_recomputed() -> None:
    pairs = CodedPairs(CodedBlocks(factor(5, 0).data_blocks, factor(5, 0).code), factor(7, 1))
    before = pairs.block_leaves(15)
    pairs.release_memory()
    # The parity of the right factor must be kept.
    assert pairs.left._parity is None and pairs.right._parity is not None
    np.testing.assert_array_equal(pairs.block_leaves(15)[0], before[0])


def test_a_product_of_an_array_that_was_repaired_after_opening(tmp_path: Path) -> None:
    # The repair turns the results into a Zarr array, which moves all parts.
    A, late = np.random.default_rng(0).standard_normal((24, 8)), polarmap.testing.ReplayExecutor({1: 5.0})
    options: dict[str, Any] = {"blocks": 4, "tasks": 6, "executor": late}
    results = polarmap.coded_map(
        np.negative, -A.T, out=polarmap.arrays.Stored("y", tmp_path), **options
    ).array
    columns = polarmap.open_coded("y", tmp_path)
    results.repair()
    with ThreadPoolExecutor(2) as pool, polarmap.CodedOperator(A, transpose=columns, executor=pool) as B:
        np.testing.assert_allclose(B.gram(np.ones(24)), A.T @ A, rtol=1e-9, atol=1e-9)
