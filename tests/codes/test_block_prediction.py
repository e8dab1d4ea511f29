"""Tests of estimates of undetermined blocks: their actual errors match the predicted errors."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from benchmarks.estimates import ARRIVAL_COUNTS, RESULTS, sample_error_ratios
from polarmap.codes.block_prediction import compute_f_distribution_p90, make_missing_block_predictor
from polarmap.codes.polar import PolarCode

CODE = PolarCode(12, 8)


@pytest.mark.parametrize("seed", range(6))
def test_what_is_determined_has_no_error(seed: int) -> None:
    rng = np.random.default_rng(seed)
    arrived = np.isin(np.arange(12), rng.permutation(12)[:9])
    how = make_missing_block_predictor(CODE, arrived, 1e-16)
    data = rng.standard_normal((8, 3))
    assert not how.error_stds.any()
    np.testing.assert_allclose(
        how.weights @ CODE.encode(data)[how.arrived_indices], data[how.missing_indices], atol=1e-8
    )


@pytest.mark.parametrize("seed", range(6))
def test_actual_errors_match_the_predicted_errors(seed: int) -> None:
    rng = np.random.default_rng(seed)
    arrived = np.isin(np.arange(12), rng.permutation(12)[:6])
    how = make_missing_block_predictor(CODE, arrived, 1e-16)
    np.testing.assert_allclose(how.weights.sum(axis=1), 1)
    data = 5 + rng.standard_normal((8, 20000))
    missed = how.weights @ CODE.encode(data)[how.arrived_indices] - data[how.missing_indices]
    # The prediction treats parity as independent of the data, which is accurate to 10 %.
    np.testing.assert_allclose(np.sqrt((missed**2).mean(axis=1)), how.error_stds, rtol=0.1)


def test_scatter_is_the_standard_deviation_of_a_block() -> None:
    data = 3 + 2 * np.random.default_rng(0).standard_normal((8, 20000))
    how = make_missing_block_predictor(CODE, np.arange(12) < 6, 1e-16)
    assert how.compute_block_std(CODE.encode(data)[how.arrived_indices]) == pytest.approx(2, rel=0.02)
    predictor = make_missing_block_predictor(CODE, np.arange(12) == 0, 1e-16)
    assert (
        predictor.compute_block_std(np.full((1, 4), 3.0)) == 3.0
        and predictor.compute_block_std(np.empty((1, 0))) == 0.0
    )


@pytest.mark.parametrize("below", [2.0, 5.0, 30.0, 4000.0])
@pytest.mark.parametrize("above", [1.0, 2.5, 20.0, 4000.0])
def test_the_quantile_of_f_is_that_of_scipy(above: float, below: float) -> None:
    assert compute_f_distribution_p90(above, below) == pytest.approx(stats.f.ppf(0.9, above, below), rel=0.1)


ALIKE = list(RESULTS)[:5]  # results whose blocks have equal sizes


@pytest.mark.parametrize("count", ARRIVAL_COUNTS)
@pytest.mark.parametrize("kind", ALIKE)
def test_nine_in_ten_random_orders_are_within_the_reported_error(kind: str, count: int) -> None:
    # The tolerance is 20 %: at least 72 % of 200 random orders of the same data.
    ratios = sample_error_ratios(PolarCode(32, 24), RESULTS[kind], count, np.random.default_rng(3))
    assert len(ratios) == 200 and np.mean([ratio >= 1 for ratio in ratios]) >= 0.8 * 0.9


def test_two_results_say_nothing_of_the_error_of_all() -> None:
    how = make_missing_block_predictor(CODE, np.arange(12) < 2, 1e-16)
    assert how.estimate_error_to_std_ratio_p90(np.array([[1.0], [2.0]])) == np.inf
