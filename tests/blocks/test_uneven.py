"""Tests of the parts of data in maps without a code: nearly equal sizes, without padding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polarmap.blocks.equal import DEFAULT_N_BLOCKS
from polarmap.blocks.uneven import GradientCodedBlocks, UncodedBlocks, cut_data_into_parts
from polarmap.errors import CodeError


@given(rows=st.integers(1, 60), data=st.data())
def test_an_array_is_cut_into_nearly_equal_parts(rows: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, rows))
    A = np.arange(rows * 2).reshape(rows, 2)
    parts, structure = cut_data_into_parts(A, count)
    sizes = [len(part) for [part] in parts]
    assert structure == ("array",)
    assert len(sizes) == count
    assert max(sizes) - min(sizes) <= 1
    np.testing.assert_array_equal(np.concatenate([part for [part] in parts]), A)


def test_by_default_an_array_is_cut_into_a_few_parts() -> None:
    assert len(cut_data_into_parts(np.zeros(100), None)[0]) == DEFAULT_N_BLOCKS
    assert len(cut_data_into_parts(np.zeros(5), None)[0]) == 5


def test_parts_of_a_sequence_are_unchanged() -> None:
    data = [{"a": np.arange(3), "b": 1.0}, {"a": np.arange(5.0), "b": 2.0}]
    parts, structure = cut_data_into_parts(data, None)
    blocks = UncodedBlocks(parts, structure)
    assert blocks.n == 2
    assert [leaf.shape for leaf in blocks.block_leaves(1)] == [(5,), ()]
    assert blocks.block_layout(1) == (("<f8", (5,)), ("<f8", ()))


@pytest.mark.parametrize(
    ("data", "count", "message"),
    [
        (np.zeros(3), 4, r"of shape \(3,\) cannot be cut into 4 parts"),
        (np.zeros((0, 2)), None, "cannot be cut into 1 parts"),
        ([], None, "at least one part"),
        ("text", None, "at least one part"),
        ([np.zeros(2), (np.zeros(2),)], None, "the same structure, but part 1 differs from part 0"),
        ([np.array([None])], None, "Python objects"),
    ],
)
def test_data_that_cannot_be_partitioned_is_refused(data: Any, count: int | None, message: str) -> None:
    with pytest.raises(CodeError, match=message):
        cut_data_into_parts(data, count)


@pytest.mark.parametrize(
    ("parts", "workers", "tolerate"), [(6, None, 1), (6, None, 2), (12, 6, 3), (5, 5, 0)]
)
def test_any_sufficient_set_of_workers_has_every_part(parts: int, workers: int | None, tolerate: int) -> None:
    shares = GradientCodedBlocks(
        *cut_data_into_parts(list(np.arange(float(parts))[:, None]), None), workers, tolerate
    )
    parts_by_worker = [
        {number for number in shares.block_components(index) if number < parts} for index in range(shares.n)
    ]
    assert {len(worker_parts) for worker_parts in parts_by_worker} == {(tolerate + 1) * parts // shares.n}
    assert all(
        sum(number in worker_parts for worker_parts in parts_by_worker) == tolerate + 1
        for number in range(parts)
    )


def test_a_block_contains_its_parts_and_coefficients() -> None:
    shares = GradientCodedBlocks(*cut_data_into_parts(list(np.arange(6.0)[:, None]), None), None, 1)
    coefficients, *parts = shares.block_leaves(2)
    assert coefficients.tolist() == [1, 1]
    assert coefficients.dtype == np.int64
    assert len(parts) == 2


def test_workers_that_do_not_divide_the_parts_are_refused() -> None:
    with pytest.raises(CodeError, match=r"divisor of the number of parts \(6\), not 4"):
        GradientCodedBlocks(*cut_data_into_parts(list(np.ones((6, 1))), None), 4, 1)
