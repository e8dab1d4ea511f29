"""Rows that come from padding are cut off, whatever stands in the data."""

from __future__ import annotations

import numpy as np
import pytest

from polarmap import ReplayExecutor, coded_map

ROWS = 59  # do not divide into 15 blocks


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.filterwarnings("ignore:.*NaN or inf")
def test_padding_is_cut_off_where_the_data_is_not_finite(bad: float) -> None:
    data = np.random.default_rng(0).standard_normal((ROWS, 2))
    data[:4] = bad  # in the rows that f is tried on
    result = coded_map(lambda block: 5 - 2 * block, data, blocks=15, workers=20, executor=ReplayExecutor())
    np.testing.assert_array_equal(result.concatenate(), 5 - 2 * data)
    assert [len(one) for one in result] == [4] * 14 + [3]
