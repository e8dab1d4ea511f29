"""Estimates of blocks that too few results determine; their errors are those to expect."""

from __future__ import annotations

import numpy as np
import pytest

from polarmap.code.estimation import estimator
from polarmap.code.polar import PolarCode

CODE = PolarCode(12, 8)


@pytest.mark.parametrize("seed", range(6))
def test_what_is_determined_has_no_error(seed: int) -> None:
    rng = np.random.default_rng(seed)
    arrived = np.isin(np.arange(12), rng.permutation(12)[:9])
    how = estimator(CODE, arrived, 1e-16)
    data = rng.standard_normal((8, 3))
    assert not how.errors.any()
    np.testing.assert_allclose(how.weights @ CODE.encode(data)[how.arrived], data[how.missing], atol=1e-8)


@pytest.mark.parametrize("seed", range(6))
def test_the_error_to_expect_is_the_one_that_comes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    arrived = np.isin(np.arange(12), rng.permutation(12)[:6])
    how = estimator(CODE, arrived, 1e-16)
    np.testing.assert_allclose(how.weights.sum(axis=1), 1)
    data = 5 + rng.standard_normal((8, 20000))
    missed = how.weights @ CODE.encode(data)[how.arrived] - data[how.missing]
    # parity counts for the mean as if it were independent of the data: right to a tenth
    np.testing.assert_allclose(np.sqrt((missed**2).mean(axis=1)), how.errors, rtol=0.1)


def test_scatter_is_the_standard_deviation_of_a_block() -> None:
    data = 3 + 2 * np.random.default_rng(0).standard_normal((8, 20000))
    how = estimator(CODE, np.arange(12) < 6, 1e-16)
    assert how.scatter(CODE.encode(data)[how.arrived]) == pytest.approx(2, rel=0.02)
    one = estimator(CODE, np.arange(12) == 0, 1e-16)
    assert one.scatter(np.full((1, 4), 3.0)) == 3.0 and one.scatter(np.empty((1, 0))) == 0.0
