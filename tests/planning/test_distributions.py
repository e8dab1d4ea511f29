"""Run-time distributions; the oracles are scipy.stats, samples, and each other."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from polarmap.errors import CodeError
from polarmap.planning import (
    Distribution,
    Empirical,
    FailureProne,
    Mixture,
    Pareto,
    ProbabilityPair,
    Scaled,
    ShiftedExponential,
    completion_time,
    load_training_trace,
    with_cold_starts,
    with_stragglers,
)

DISTRIBUTIONS: dict[str, Distribution] = {
    "exponential": ShiftedExponential(1.0, 2.0),
    "pareto": Pareto(1.5, 2.5),
    "scaled": Scaled(Pareto(1.0, 3.0), 2.0, 0.5),
    "cold": with_cold_starts(ShiftedExponential(1.0, 0.5), 0.1, 5.0),
    "slow": with_stragglers(Pareto(1.0, 3.0), 0.02, 5.0),
    "empirical": Empirical(np.random.default_rng(3).lognormal(0, 1, 200)),
    "steps": Mixture([Empirical([1.0, 1.0, 2.0, 8.0]), ShiftedExponential(0.5, 1.0)], [0.6, 0.4]),
    "failing": FailureProne(with_cold_starts(Empirical([1.0, 2.0, 4.0]), 0.25, 3.0), 0.1),
    "trace": load_training_trace(),
}
every_distribution = pytest.mark.parametrize("distribution", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
P = np.linspace(0.001, 0.999, 401)


# --- one distribution at a time -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("distribution", "oracle"),
    [
        (ShiftedExponential(1.0, 2.0), stats.expon(1.0, 2.0)),
        (Pareto(1.5, 2.5), stats.pareto(2.5, scale=1.5)),
        (Scaled(ShiftedExponential(1.0, 2.0), 3.0, 4.0), stats.expon(7.0, 6.0)),
    ],
)
def test_closed_forms(distribution: Distribution, oracle: stats.rv_continuous) -> None:
    times = np.linspace(0, 40, 300)
    np.testing.assert_allclose(distribution.cdf(times), oracle.cdf(times), rtol=1e-12)
    np.testing.assert_allclose(distribution.survival(times), oracle.sf(times), rtol=1e-12)
    np.testing.assert_allclose(distribution.quantile(P), oracle.ppf(P), rtol=1e-12)
    assert distribution.mean() == pytest.approx(oracle.mean())


@every_distribution
def test_the_quantile_is_the_first_time_that_reaches_p(distribution: Distribution) -> None:
    ends = 1 - distribution.failure_probability
    finite = P[ends > P]
    times = distribution.quantile(finite)
    assert (distribution.cdf(times) >= finite - 1e-9).all()
    assert (distribution.cdf(times * (1 - 1e-9)) <= finite + 1e-6).all()
    assert (distribution.quantile(P[ends < P]) == np.inf).all()


def test_quantile_of_all_completed_tasks_is_infinite_for_unbounded_times() -> None:
    for failing in np.linspace(0.01, 0.3, 30).tolist():
        assert FailureProne(ShiftedExponential(1.0, 1.0), failing).quantile(1 - failing) == np.inf
        assert FailureProne(Pareto(1.0, 2.5), failing).quantile(1 - failing) == np.inf


@every_distribution
def test_cdf_and_survival_are_complements(distribution: Distribution) -> None:
    times = np.linspace(0, 30, 500)
    np.testing.assert_allclose(distribution.cdf(times) + distribution.survival(times), 1, atol=1e-12)
    assert (np.diff(distribution.cdf(times)) >= 0).all()
    assert distribution.cdf(np.inf) == pytest.approx(1 - distribution.failure_probability)


@every_distribution
def test_samples_follow_the_cdf(distribution: Distribution) -> None:
    drawn = distribution.sample(np.random.default_rng(0), (200, 500))
    assert drawn.shape == (200, 500)
    times = distribution.quantile(np.linspace(0.05, 0.85, 9))
    shares = (drawn.ravel()[:, None] <= times).mean(axis=0)
    np.testing.assert_allclose(shares, distribution.cdf(times), atol=0.007)
    assert (drawn == np.inf).mean() == pytest.approx(distribution.failure_probability, abs=0.005)


@every_distribution
def test_the_mean_is_the_integral_of_the_quantile(distribution: Distribution) -> None:
    drawn = distribution.sample(np.random.default_rng(1), 400_000)
    ended = drawn[np.isfinite(drawn)]
    error = ended.std() / np.sqrt(len(ended))
    assert distribution.conditional_mean() == pytest.approx(ended.mean(), abs=5 * error)


@every_distribution
@settings(max_examples=15)
@given(low=st.floats(0.001, 0.99), share=st.floats(0.01, 0.99))
def test_areas_are_integrals_of_the_quantile(distribution: Distribution, low: float, share: float) -> None:
    high = low + share * (0.999 - low)
    nodes = np.linspace(low, high, 20_001)
    middles = (nodes[1:] + nodes[:-1]) / 2
    quantiles = distribution.conditional_quantile(ProbabilityPair.from_survival(middles))
    expected = quantiles.mean() * (high - low)
    upper, lower = distribution.integrated_quantile(np.array([high, low]))
    assert upper - lower == pytest.approx(expected, rel=1e-3)


def test_far_tails_are_accurate() -> None:
    distribution = Mixture([ShiftedExponential(0.0, 1.0), ShiftedExponential(0.0, 2.0)], [0.5, 0.5])
    above = np.array([1e-200])
    late = distribution.conditional_quantile(ProbabilityPair.from_survival(above))
    assert distribution.conditional_cdf_and_survival(late).survival == pytest.approx(1e-200, rel=1e-9)
    early = distribution.conditional_quantile(ProbabilityPair.from_cdf(np.array([1e-30])))
    assert distribution.conditional_cdf_and_survival(early).cdf == pytest.approx(1e-30, rel=1e-9)


def test_a_mean_that_does_not_exist() -> None:
    assert Pareto(1.0, 0.9).mean() == np.inf
    assert Mixture([Pareto(1.0, 1.0), ShiftedExponential(1.0, 1.0)], [0.1, 0.9]).mean() == np.inf
    assert FailureProne(ShiftedExponential(1.0, 1.0), 0.01).mean() == np.inf


def test_astronomical_times_count_as_failures() -> None:
    assert Empirical([1.0, 2.0, 1e305, 1e306]).failure_probability == 0.5
    assert completion_time(4, 2, "rotation", [1.0, 2.0, 1e305]).mean < 2.0


def test_failures_add_up() -> None:
    distribution = Mixture(
        [FailureProne(Pareto(1.0, 2.0), 0.5), FailureProne(Pareto(1.0, 2.0), 1.0)], [0.5, 0.5]
    )
    assert FailureProne(distribution, 0.2).failure_probability == pytest.approx(0.2 + 0.8 * 0.75)
    assert distribution.quantile(0.2) == pytest.approx(stats.pareto(2.0).ppf(0.8))


# --- fits -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("censored", [False, True])
def test_fits_recover_their_parameters_also_from_censored_times(censored: bool) -> None:
    rng = np.random.default_rng(5)
    for distribution in (ShiftedExponential(2.0, 3.0), Pareto(2.0, 1.5)):
        times = distribution.sample(rng, 40_000)
        limit = distribution.quantile(0.7) if censored else np.inf
        fitted = type(distribution).fit(np.minimum(times, limit), times <= limit)
        assert vars(fitted) == pytest.approx(vars(distribution), rel=0.03)


# --- invalid arguments ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: ShiftedExponential(-1.0, 1.0), "shift must be"),
        (lambda: ShiftedExponential(1.0, 0.0), "scale must be a finite number above 0"),
        (lambda: ShiftedExponential(np.nan, 1.0), "shift must be"),
        (lambda: Pareto(1.0, np.inf), "shape must be"),
        (lambda: ShiftedExponential(1e300, 1e300), "shift must be a finite number of at least 0, at most 1e"),
        (lambda: Scaled(Pareto(1.0, 2.0), 0.0), "factor must be"),
        (lambda: FailureProne(Pareto(1.0, 2.0), 1.5), "from 0 to 1, not 1.5"),
        (lambda: FailureProne(Pareto(1.0, 2.0), np.nan), "from 0 to 1, not nan"),
        (lambda: Mixture([Pareto(1.0, 2.0)], [0.5]), "sum to 1, not to 0.5"),
        (lambda: Mixture([Pareto(1.0, 2.0)], [0.5, 0.5]), "one weight for each"),
        (
            lambda: Mixture([FailureProne(Pareto(1.0, 2.0), 1.0)], [1.0]),
            "must have a component whose tasks can complete",
        ),
        (lambda: Pareto(1.0, 2.0).quantile(2.0), "from 0 to 1"),
        (lambda: ShiftedExponential.fit([2.0, 2.0]), "all run times are equal"),
        (lambda: ShiftedExponential.fit([2.0, 1.0, np.inf]), "Leave them out"),
        (lambda: Pareto.fit([0.0, 1.0]), "must be positive to fit a Pareto distribution"),
    ],
)
def test_bad_input_is_refused_with_a_reason(build: Callable[[], object], says: str) -> None:
    with pytest.raises(CodeError, match=says):
        build()
