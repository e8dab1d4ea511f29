"""Rows that come from padding are cut off, whatever stands in the data, and no others are."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from coded_maps import losing

from polarmap import coded_map
from polarmap.testing import ReplayExecutor

ROWS = 59  # do not divide into 15 blocks
STREAM = np.random.default_rng(0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.filterwarnings("ignore:.*NaN or inf")
def test_padding_is_cut_off_where_the_data_is_not_finite(bad: float) -> None:
    data = np.random.default_rng(0).standard_normal((ROWS, 2))
    data[:4] = bad  # in the rows that f is tried on
    result = coded_map(lambda block: 5 - 2 * block, data, blocks=15, tasks=20, executor=ReplayExecutor())
    np.testing.assert_array_equal(result.concatenate(), 5 - 2 * data)
    assert [len(one) for one in result] == [4] * 14 + [3]


def test_results_with_as_many_rows_as_a_block_by_chance_are_whole() -> None:
    data = np.arange(33.0).reshape(11, 3)
    with pytest.warns(RuntimeWarning, match=r"divide into 4 blocks: f saw 1 rows of zeros .* blocks=11"):
        result = coded_map(lambda block: block.sum(axis=0), data, blocks=4, executor=losing())
    assert result.concatenate().sum() == data.sum()


@pytest.mark.parametrize("lost", [(), (0,), (83,)])
def test_rows_of_filler_are_cut_off_everywhere(lost: tuple[int, ...]) -> None:
    data = STREAM.standard_normal((2003, 3))
    f = lambda block: (block @ np.ones(3), {"twice": 2 * block})  # noqa: E731
    result = coded_map(f, data, blocks=24, executor=losing(*lost))
    assert sum(len(one) for one, _ in result) == sum(len(other["twice"]) for _, other in result) == 2003
    np.testing.assert_allclose(np.concatenate([other["twice"] for _, other in result]), 2 * data, atol=1e-12)


def test_of_a_function_whose_rows_see_each_other_filler_is_said() -> None:
    data = STREAM.standard_normal((11, 3))
    with pytest.warns(RuntimeWarning, match="f saw 1 rows of zeros"):
        result = coded_map(lambda block: block - block.mean(axis=0), data, blocks=4, executor=losing())
    assert [len(one) for one in result] == [3, 3, 3, 3]
    with pytest.warns(RuntimeWarning, match="f saw 1 rows of zeros"):  # and not only the first time
        coded_map(lambda block: block - block.mean(axis=0), data, blocks=4, executor=losing())


def test_f_is_evaluated_here_once_for_padding(capsys: pytest.CaptureFixture[str]) -> None:
    def f(block: np.ndarray) -> np.ndarray:
        if threading.current_thread() is not threading.main_thread():
            print(len(block))
        return block

    for _ in range(3):
        coded_map(f, STREAM.standard_normal((11, 3)), blocks=4, executor=losing(), verify=False)
    assert capsys.readouterr().out.split() == ["2", "3"]
