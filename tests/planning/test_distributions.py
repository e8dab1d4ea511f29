"""Run-time distributions against scipy.stats, against sampling and against each other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from polarmap.errors import CodeError
from polarmap.planning import (
    Distribution,
    Empirical,
    Failing,
    Mixture,
    Pareto,
    Scaled,
    ShiftedExponential,
    as_runtimes,
    cold_starts,
    stragglers,
    training_trace,
)
from polarmap.report import Report, TaskReport

DISTRIBUTIONS: dict[str, Distribution] = {
    "exponential": ShiftedExponential(1.0, 2.0),
    "pareto": Pareto(1.5, 2.5),
    "scaled": Scaled(Pareto(1.0, 3.0), 2.0, 0.5),
    "cold": cold_starts(ShiftedExponential(1.0, 0.5), 0.1, 5.0),
    "slow": stragglers(Pareto(1.0, 3.0), 0.02, 5.0),
    "empirical": Empirical(np.random.default_rng(3).lognormal(0, 1, 200)),
    "steps": Mixture([Empirical([1.0, 1.0, 2.0, 8.0]), ShiftedExponential(0.5, 1.0)], [0.6, 0.4]),
    "failing": Failing(cold_starts(Empirical([1.0, 2.0, 4.0]), 0.25, 3.0), 0.1),
    "trace": training_trace(),
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
    assert distribution.mean_if_ended() == pytest.approx(ended.mean(), abs=5 * error)


@every_distribution
@settings(max_examples=15, deadline=None)
@given(low=st.floats(0.001, 0.99), share=st.floats(0.01, 0.99))
def test_areas_are_integrals_of_the_quantile(distribution: Distribution, low: float, share: float) -> None:
    high = low + share * (0.999 - low)
    nodes = np.linspace(low, high, 20_001)
    middles = (nodes[1:] + nodes[:-1]) / 2
    expected = distribution.inverse(1 - middles, middles).mean() * (high - low)
    upper, lower = distribution.area(np.array([high, low]))
    assert upper - lower == pytest.approx(expected, rel=1e-3)


def test_far_tails_keep_their_digits() -> None:
    distribution = Mixture([ShiftedExponential(0.0, 1.0), ShiftedExponential(0.0, 2.0)], [0.5, 0.5])
    above = np.array([1e-200])
    time = distribution.inverse(1 - above, above)
    assert distribution.split(time)[1] == pytest.approx(1e-200, rel=1e-9)
    small = np.array([1e-30])
    assert distribution.split(distribution.inverse(small, 1 - small))[0] == pytest.approx(1e-30, rel=1e-9)


def test_a_mean_that_does_not_exist() -> None:
    assert Pareto(1.0, 0.9).mean() == np.inf
    assert Mixture([Pareto(1.0, 1.0), ShiftedExponential(1.0, 1.0)], [0.1, 0.9]).mean() == np.inf
    assert Failing(ShiftedExponential(1.0, 1.0), 0.01).mean() == np.inf


def test_failures_add_up() -> None:
    distribution = Mixture([Failing(Pareto(1.0, 2.0), 0.5), Failing(Pareto(1.0, 2.0), 1.0)], [0.5, 0.5])
    assert Failing(distribution, 0.2).failure_probability == pytest.approx(0.2 + 0.8 * 0.75)
    assert distribution.quantile(0.2) == pytest.approx(stats.pareto(2.0).ppf(0.8))


# --- fits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("censored", [False, True])
def test_fits_recover_their_parameters_also_from_censored_times(censored: bool) -> None:
    rng = np.random.default_rng(5)
    for distribution in (ShiftedExponential(2.0, 3.0), Pareto(2.0, 1.5)):
        times = distribution.sample(rng, 40_000)
        limit = distribution.quantile(0.7) if censored else np.inf
        fitted = type(distribution).fit(np.minimum(times, limit), times <= limit)
        assert vars(fitted) == pytest.approx(vars(distribution), rel=0.03)


# --- observed run times ----------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=40))
def test_product_limit_is_scipys(observed: list[tuple[int, bool]]) -> None:
    times = np.array([time for time, _ in observed], float)
    ended = np.array([done for _, done in observed])
    if not ended.any():
        with pytest.raises(CodeError, match="none of the tasks"):
            Empirical(times, ended)
        return
    distribution = Empirical(times, ended)
    oracle = stats.ecdf(stats.CensoredData(uncensored=times[ended], right=times[~ended])).cdf
    np.testing.assert_allclose(
        distribution.cdf(np.arange(11.0)), oracle.evaluate(np.arange(11.0)), atol=1e-12
    )


def test_an_exponential_tail_continues_what_was_cut_off() -> None:
    distribution, rng = ShiftedExponential(1.0, 2.0), np.random.default_rng(8)
    times, limit = distribution.sample(rng, 20_000), float(distribution.quantile(0.75))
    seen = Empirical(np.minimum(times, limit), times <= limit)
    assert seen.failure_probability == pytest.approx(0.25, abs=0.01)
    assert seen.quantile(0.9) == np.inf
    continued = seen.with_tail()
    assert continued.mean() == pytest.approx(3.0, rel=0.02)
    np.testing.assert_allclose(
        continued.quantile([0.5, 0.9, 0.99]), distribution.quantile([0.5, 0.9, 0.99]), rtol=0.05
    )


def report(*tasks: TaskReport) -> Report:
    return Report(
        n=len(tasks), k=2, code="c", executor="e", tasks=tasks, needed=2, recovered=(), seconds=9.0,
        encode_seconds=0.0, decode_seconds=0.0, surplus_seconds=0.0, amplification=1.0, error_bound=0.0,
        residual=None, verified="no",
    )  # fmt: skip


def test_reports_censor_what_they_abandon() -> None:
    seen = report(
        TaskReport(0, "used", 1.0, 0.5, 1),
        TaskReport(1, "used", 3.0, 2.5, 1),
        TaskReport(2, "abandoned", None, None, 1),
        TaskReport(3, "failed", None, None, 2),
    )
    distribution = Empirical.from_reports(seen)
    assert distribution.values.tolist() == [1.0, 3.0]
    assert distribution.failure_probability == pytest.approx(0.5)  # of four: one failed, one not seen to end
    by_worker = Empirical.from_reports([seen, seen], clock="seconds")
    assert by_worker.values.tolist() == [0.5, 2.5]
    assert as_runtimes([seen, seen]).failure_probability == 0
    with pytest.raises(CodeError, match="clock must be"):
        Empirical.from_reports(seen, clock="wall")


def test_a_task_abandoned_early_counts_as_running_no_longer_than_it_was_seen() -> None:
    first = report(TaskReport(0, "used", 1.0, 1.0, 1), TaskReport(1, "abandoned", None, None, 1))
    second = report(TaskReport(0, "used", 1.0, 1.0, 1), TaskReport(1, "used", 2.0, 2.0, 1))
    distribution = Empirical.from_reports([first, second])  # 1, 1, 1+, 2
    np.testing.assert_allclose(distribution.cdf([1.0, 2.0]), [0.5, 1.0])


def test_columns_of_csv_files(tmp_path: Path) -> None:
    file = tmp_path / "times.csv"
    file.write_text("step,relative\n1,2.5\n2,1.5\n")
    assert Empirical.from_csv(file, "relative").mean() == 2.0
    with pytest.raises(CodeError, match="no column 'seconds' but step, relative"):
        Empirical.from_csv(file, "seconds")
    file.write_text("relative\n1.0\nslow\n")
    with pytest.raises(CodeError, match="more than numbers"):
        Empirical.from_csv(file, "relative")


def test_the_recorded_trace_is_what_its_source_says() -> None:
    distribution = training_trace()  # median 1, 95 % 2.2, 99 % 2.5
    np.testing.assert_allclose(distribution.quantile([0.5, 0.95, 0.99]), [1.0, 2.2, 2.5], atol=0.05)


# --- what is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: Empirical([]), "no run times"),
        (lambda: Empirical([1.0, -2.0]), "run time 1 is -2"),
        (lambda: Empirical([np.nan]), "run time 0 is nan"),
        (lambda: Empirical(["fast"]), "numbers of seconds"),
        (lambda: Empirical([np.inf]), "none of the tasks observed has ended"),
        (lambda: Empirical([1.0, 2.0], [True]), "1 marks of what ended for 2"),
        (lambda: ShiftedExponential(-1.0, 1.0), "shift must be"),
        (lambda: ShiftedExponential(1.0, 0.0), "scale must be a finite number above 0"),
        (lambda: ShiftedExponential(np.nan, 1.0), "shift must be"),
        (lambda: Pareto(1.0, np.inf), "shape must be"),
        (lambda: Scaled(Pareto(1.0, 2.0), 0.0), "factor must be"),
        (lambda: Failing(Pareto(1.0, 2.0), 1.5), "between 0 and 1, not at 1.5"),
        (lambda: Failing(Pareto(1.0, 2.0), np.nan), "between 0 and 1, not at nan"),
        (lambda: Mixture([Pareto(1.0, 2.0)], [0.5]), "sum to 1, not to 0.5"),
        (lambda: Mixture([Pareto(1.0, 2.0)], [0.5, 0.5]), "one weight for each"),
        (lambda: Mixture([Failing(Pareto(1.0, 2.0), 1.0)], [1.0]), "ever ends"),
        (lambda: Pareto(1.0, 2.0).quantile(2.0), "between 0 and 1"),
        (lambda: ShiftedExponential.fit([2.0, 2.0]), "all run times are the same"),
        (lambda: ShiftedExponential.fit([2.0, 1.0, np.inf]), "leave them out"),
        (lambda: Pareto.fit([0.0, 1.0]), "no run time of 0"),
        (lambda: as_runtimes(3.0), "seconds of past tasks or reports, not float"),
        (lambda: as_runtimes("fast"), "not str"),
        (lambda: as_runtimes([]), "no run times"),
    ],
)
def test_bad_input_is_refused_with_a_reason(build: Callable[[], object], says: str) -> None:
    with pytest.raises(CodeError, match=says):
        build()


def test_the_integral_of_the_survival_is_the_mean() -> None:
    distribution = cold_starts(ShiftedExponential(1.0, 0.5), 0.1, 5.0)
    expected, _ = integrate.quad(lambda t: float(distribution.survival(t)), 0, 60, points=[1, 6], limit=200)
    assert distribution.mean() == pytest.approx(expected, rel=1e-8)
