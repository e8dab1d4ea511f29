"""Order statistics of n run times; the oracles are closed forms and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from polarmap.planning import (
    Empirical,
    Pareto,
    ShiftedExponential,
    completion_cdf,
    completion_time,
)

EXPONENTIAL = ShiftedExponential(0.0, 1.0)


@settings(max_examples=40)
@given(st.integers(1, 3000), st.floats(0, 1))
@example(10_000, 1.0)  # the largest of all
def test_order_statistics_of_exponentials(n: int, share: float) -> None:
    k = max(1, round(share * n))
    completion = completion_time(n, k, "mds", EXPONENTIAL)
    gaps = 1 / np.arange(n, n - k, -1)  # expected times between consecutive arrivals
    assert completion.mean == pytest.approx(gaps.sum(), rel=1e-6)
    # n - i workers are paid during gap i, so each gap costs one worker-second on average.
    assert completion.worker_seconds == pytest.approx(k, rel=1e-6)
    times = stats.expon.ppf(stats.beta(k, n - k + 1).ppf([0.5, 0.99]))
    assert (completion.p50, completion.p99) == pytest.approx(tuple(times), rel=1e-6)
    assert completion.std_error == 0


@pytest.mark.parametrize(("n", "k"), [(5, 3), (64, 48), (1000, 999)])
def test_order_statistics_of_pareto(n: int, k: int) -> None:
    shape = 2.5
    oracle = stats.beta(k, n - k + 1)
    expected = oracle.expect(lambda u: (1 - u) ** (-1 / shape))
    if k == n - 1:  # use the closed form, because scipy's quadrature fails here
        expected = np.exp(
            np.sum(np.log(np.arange(n - k + 1, n + 1)) - np.log(np.arange(n - k + 1, n + 1) - 1 / shape))
        )
    assert completion_time(n, k, "mds", Pareto(1.0, shape)).mean == pytest.approx(expected, rel=1e-5)


@settings(max_examples=25)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=8), st.integers(1, 40), st.floats(0, 1))
@example([1, 4, 4, 5, 4, 4], 15, 0.0)  # the step is between nodes that are far apart
def test_order_statistics_of_steps(times: list[int], n: int, share: float) -> None:
    k = max(1, round(share * n))
    distribution = Empirical(np.array(times, float))
    masses = stats.beta.cdf(np.append(0, np.cumsum(distribution.probabilities)), k, n - k + 1)
    expected = np.diff(masses) @ distribution.values
    assert completion_time(n, k, "mds", distribution).mean == pytest.approx(expected, rel=1e-5)


def test_cdf_is_the_incomplete_beta_function() -> None:
    distribution, times = ShiftedExponential(1.0, 1.0), np.linspace(0.5, 4, 50)
    for n, k in [(10, 7), (512, 256), (6, 6)]:
        cdf = completion_cdf(n, k, "mds", distribution, times)
        np.testing.assert_allclose(cdf, stats.beta.cdf(distribution.cdf(times), k, n - k + 1), atol=1e-10)


def test_order_statistic_may_have_a_mean_if_run_times_have_none() -> None:
    distribution = Pareto(1.0, 0.8)  # the k-th of n times has a mean if shape * (n - k + 1) > 1
    assert completion_time(8, 8, "uncoded", distribution).mean == np.inf
    expected = stats.beta(7, 2).expect(lambda u: (1 - u) ** (-1 / 0.8))
    assert completion_time(8, 7, "mds", distribution).mean == pytest.approx(expected, rel=1e-3)
    # The first of four has the shape 4 x 0.3. Its mean exists, although areas under the tail overflow.
    assert completion_time(4, 1, "mds", Pareto(1.0, 0.3)).mean == pytest.approx(1.2 / 0.2, rel=1e-4)
    for infinite in (
        completion_time(4, 3, "mds", Pareto(1.0, 0.5)),
        completion_time(4, 2, "mds", Pareto(1.0, 0.3)),
    ):
        assert (infinite.mean, infinite.worker_seconds) == (np.inf, np.inf)


@pytest.mark.parametrize(("shape", "mean"), [(0.02, np.inf), (0.3, np.inf), (0.5, np.inf), (0.6, 6.0)])
def test_replication_has_a_mean_if_the_minimum_has_one(shape: float, mean: float) -> None:
    # The minimum of two Pareto times has twice the shape.
    completion = completion_time(2, 1, "replication", Pareto(1.0, shape))
    assert (completion.mean, completion.worker_seconds) == pytest.approx((mean, 2 * mean), rel=1e-6)
