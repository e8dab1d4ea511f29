"""Results as one array: joined along any axis, without the rows of padding."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain import assert_same, cut, plain_map, without_padding

from polarmap import CodedResult, ReplayExecutor, coded_map
from polarmap.errors import CodeError

STREAM = np.random.default_rng(0)


MATRIX = STREAM.standard_normal((26, 5))


def same(block: Any) -> Any:
    return block


def halved(data: Any, k: int | None = None, lost: int = 1, **options: Any) -> CodedResult:
    """0.5 * block for all blocks, the first of which never arrive."""
    never = ReplayExecutor(dict.fromkeys(range(lost), math.inf))
    return coded_map(lambda block: block * 0.5, data, blocks=k, executor=never, timeout=100, **options)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    rows=st.integers(1, 40),
    k=st.integers(1, 12),
    tail=st.sampled_from([(), (1,), (3,), (2, 3), (0,)]),
    dtype=st.sampled_from(["f8", "f4", "c16", "i4", "u1"]),
)
def test_any_number_of_rows_concatenates_to_f_of_the_whole(
    rows: int, k: int, tail: tuple[int, ...], dtype: str
) -> None:
    k = min(k, rows)
    data = np.random.default_rng(rows).integers(0, 99, (rows, *tail)).astype(dtype)
    result = halved(data, k, workers=2 * k + 1)
    assert len(result) == k
    assert result.report.padding == -(-rows // k) * k - rows
    np.testing.assert_allclose(result.concatenate(), data * 0.5, rtol=1e-3, atol=1e-3)
    expected = plain_map(lambda block: block * 0.5, data, k)
    assert_same(result, without_padding(expected, data, k), 1e-3)


def test_results_of_filler_rows_are_cut_off_only_from_row_by_row_functions() -> None:
    data = MATRIX[:10]
    by_row = coded_map(lambda block: block @ np.ones(5) + 1, data, blocks=4, executor=ReplayExecutor())
    np.testing.assert_allclose(by_row.concatenate(), data @ np.ones(5) + 1)
    assert [len(block) for block in by_row] == [3, 3, 3, 1]
    with pytest.warns(RuntimeWarning, match="10 rows do not divide into 4 blocks: f saw 2 rows of zeros"):
        sums = coded_map(lambda block: block.sum(axis=0), data, blocks=4, executor=ReplayExecutor())
    assert sums.report.padding == 2
    assert sums.concatenate().shape == (4 * 5,)
    np.testing.assert_allclose(np.sum(list(sums), axis=0), data.sum(axis=0))


def test_whole_blocks_of_filler_are_cut_off_too() -> None:
    result = halved(MATRIX[:25], 24)
    assert result.report.padding == 23
    np.testing.assert_allclose(result.concatenate(), MATRIX[:25] * 0.5)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_concatenate_joins_along_any_axis(axis: int) -> None:
    expected = np.concatenate([block * 0.5 for block in cut(MATRIX, 13)], axis=axis)
    np.testing.assert_allclose(halved(MATRIX, 13).concatenate(axis), expected)


def test_concatenate_refuses_shapes_that_do_not_fit() -> None:
    with pytest.raises(CodeError, match=r"shapes \(7, 5\) and \(5, 5\) cannot be joined along axis 1"):
        halved(MATRIX, 4).concatenate(1)
    with pytest.raises(CodeError, match="cannot be joined along axis 9"):
        halved(MATRIX, 4).concatenate(9)


@pytest.mark.parametrize("scalar", [np.float64, float, np.asarray])
def test_concatenate_stacks_scalars(scalar: Any) -> None:
    result = coded_map(lambda block: scalar(block.sum()), MATRIX, blocks=13, executor=ReplayExecutor())
    assert result.concatenate().shape == (13,)
    np.testing.assert_allclose(result.concatenate(), MATRIX.reshape(13, -1).sum(axis=1))


@pytest.mark.parametrize("f", [lambda block: (block, block), lambda block: {"a": block}])
def test_concatenate_refuses_containers(f: Any) -> None:
    result = coded_map(f, MATRIX, blocks=2, executor=ReplayExecutor())
    with pytest.raises(CodeError, match=r"joins results that are arrays.*use list\(result\)"):
        result.concatenate()


def test_a_sequence_without_filler_is_never_cut() -> None:
    data = [np.ones((3, 2))] * 4
    assert coded_map(same, data, executor=ReplayExecutor()).concatenate().shape == (12, 2)
