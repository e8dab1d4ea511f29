"""Completion times against closed forms, scipy and brute-force simulation of every job."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from polarmap.code.polar import PolarCode
from polarmap.code.recovery import Decoder
from polarmap.errors import CodeError
from polarmap.planning import (
    SCHEMES,
    Distribution,
    Empirical,
    Failing,
    Mixture,
    Pareto,
    ShiftedExponential,
    arrivals_needed,
    cold_starts,
    completion_cdf,
    completion_time,
    lower_bound,
    sequential_finish,
    training_trace,
)
from polarmap.planning.backups import CUBED, HEDGED, SPARK, BackupRule, launch_times
from polarmap.planning.decodability import integer_needed, optimal_needed, sequential_needed

EXPONENTIAL = ShiftedExponential(0.0, 1.0)
DISTRIBUTIONS: dict[str, Distribution] = {
    "exponential": ShiftedExponential(1.0, 1.0),
    "pareto": Pareto(1.0, 2.5),
    "trace": training_trace(),
    "cold": cold_starts(ShiftedExponential(1.0, 0.2), 0.05, 4.0),
    "failing": Failing(cold_starts(training_trace(), 0.05, 3.0), 0.02),
}


# --- exact --------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 10, 1000, 10_000])
def test_the_maximum_of_exponentials_is_a_harmonic_number(n: int) -> None:
    found = completion_time(n, n, "uncoded", EXPONENTIAL)
    assert found.mean == pytest.approx((1 / np.arange(1, n + 1)).sum(), rel=1e-7)
    assert found.p99 == pytest.approx(stats.expon.ppf(0.99 ** (1 / n)), rel=1e-9)
    assert found.paid == pytest.approx(n, rel=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3000), st.floats(0, 1))
def test_order_statistics_of_exponentials(n: int, share: float) -> None:
    k = max(1, round(share * n))
    found = completion_time(n, k, "mds", EXPONENTIAL)
    gaps = 1 / np.arange(n, n - k, -1)  # from one arrival to the next
    assert found.mean == pytest.approx(gaps.sum(), rel=1e-6)
    # n - i workers are paid during gap i: each gap costs one worker-second on average
    assert found.paid == pytest.approx(k, rel=1e-6)
    assert found.p50 == pytest.approx(stats.expon.ppf(stats.beta(k, n - k + 1).median()), rel=1e-6)
    assert found.error == 0


@pytest.mark.parametrize(("n", "k"), [(5, 3), (64, 48), (1000, 999)])
def test_order_statistics_of_pareto(n: int, k: int) -> None:
    shape = 2.5
    oracle = stats.beta(k, n - k + 1)
    expected = oracle.expect(lambda u: (1 - u) ** (-1 / shape))
    if k == n - 1:  # closed form, where the quadrature of scipy gives up
        expected = np.exp(
            np.sum(np.log(np.arange(n - k + 1, n + 1)) - np.log(np.arange(n - k + 1, n + 1) - 1 / shape))
        )
    assert completion_time(n, k, "mds", Pareto(1.0, shape)).mean == pytest.approx(expected, rel=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=8), st.integers(1, 40), st.floats(0, 1))
def test_order_statistics_of_steps(times: list[int], n: int, share: float) -> None:
    k = max(1, round(share * n))
    distribution = Empirical(np.array(times, float))
    masses = stats.beta.cdf(np.append(0, np.cumsum(distribution.masses)), k, n - k + 1)
    expected = np.diff(masses) @ distribution.values
    assert completion_time(n, k, "mds", distribution).mean == pytest.approx(expected, rel=1e-5)


def test_cdf_is_the_incomplete_beta_function() -> None:
    distribution, times = ShiftedExponential(1.0, 1.0), np.linspace(0.5, 4, 50)
    for n, k in [(10, 7), (512, 256), (6, 6)]:
        found = completion_cdf(n, k, "mds", distribution, times)
        np.testing.assert_allclose(found, stats.beta.cdf(distribution.cdf(times), k, n - k + 1), atol=1e-10)


def test_a_mean_may_exist_though_no_worker_has_one() -> None:
    distribution = Pareto(1.0, 0.8)  # the k-th of n has a mean if shape (n - k + 1) > 1
    assert completion_time(8, 8, "uncoded", distribution).mean == np.inf
    expected = stats.beta(7, 2).expect(lambda u: (1 - u) ** (-1 / 0.8))
    assert completion_time(8, 7, "mds", distribution).mean == pytest.approx(expected, rel=1e-3)


def test_the_numbers_of_the_literature() -> None:
    """Rate 1/2, run times 1 + Exp(1), 512 workers."""
    distribution = ShiftedExponential(1.0, 1.0)
    gaps = 1 / np.arange(512, 256, -1)
    assert completion_time(512, 256, "rotation", distribution).mean == pytest.approx(1 + gaps.sum(), rel=1e-8)
    assert completion_time(256, 256, "uncoded", distribution).mean == pytest.approx(7.1244, abs=1e-3)
    sequential = completion_time(512, 256, "sequential", distribution)
    assert sequential.mean == pytest.approx(1.94, abs=0.01)
    limit = 1 + np.log(2)
    assert abs(completion_time(10_000, 5000, "mds", distribution).mean - limit) < 1e-3


# --- against simulated jobs -------------------------------------------------------------------------


def brute_force(finish: np.ndarray, arrivals: np.ndarray) -> tuple[float, float, float]:
    """Mean time, mean cost and share of failures of jobs, straight from their run times."""
    ended = np.isfinite(finish)
    paid = np.minimum(arrivals, finish).sum(axis=0)
    return finish[ended].mean(), paid[ended].mean(), 1 - ended.mean()


@pytest.mark.parametrize("distribution", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
@pytest.mark.parametrize(("n", "k"), [(12, 9), (12, 12), (100, 90)])
def test_kth_arrivals_of_simulated_jobs(distribution: Distribution, n: int, k: int) -> None:
    arrivals = distribution.sample(np.random.default_rng(7), (n, 20_000))
    mean, paid, never = brute_force(np.sort(arrivals, axis=0)[k - 1], arrivals)
    found = completion_time(n, k, "mds", distribution)
    assert found.mean == pytest.approx(mean, rel=0.015)
    assert found.paid == pytest.approx(paid, rel=0.015)
    assert found.failure_probability == pytest.approx(never, abs=0.01)


@pytest.mark.parametrize(
    "distribution", [DISTRIBUTIONS["exponential"], DISTRIBUTIONS["failing"]], ids=["exponential", "failing"]
)
def test_sequential_jobs_by_rank_are_those_by_time(distribution: Distribution) -> None:
    """Decodability is simulated without run times; simulating both together agrees."""
    n, k = 48, 30
    code = PolarCode(n, k, "arikan", "sequential")
    arrivals = distribution.sample(np.random.default_rng(3), (n, 20_000))
    finish = sequential_finish(code, arrivals)
    mean, paid, never = brute_force(finish, arrivals)
    found = completion_time(n, k, "sequential", distribution, trials=5000)
    assert found.mean == pytest.approx(mean, abs=5 * found.error + 0.01 * mean)
    assert found.paid == pytest.approx(paid, rel=0.02)
    assert found.failure_probability == pytest.approx(never, abs=0.01)
    times = np.quantile(finish, [0.2, 0.5, 0.9])
    found_cdf = completion_cdf(n, k, "sequential", distribution, times, trials=5000)
    np.testing.assert_allclose(found_cdf, [0.2, 0.5, 0.9], atol=0.03)
    assert 0 < found.error < 0.05 * found.mean


@pytest.mark.parametrize("distribution", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
def test_replicas_of_simulated_jobs(distribution: Distribution) -> None:
    copies = distribution.sample(np.random.default_rng(5), (3, 10, 40_000))
    tasks = copies.min(axis=0)
    finish = tasks.max(axis=0)
    ended = np.isfinite(finish)
    found = completion_time(30, 10, "replication", distribution)
    assert found.mean == pytest.approx(finish[ended].mean(), rel=0.01)
    assert found.paid == pytest.approx(3 * tasks.sum(axis=0)[ended].mean(), rel=0.01)
    assert found.p99 == pytest.approx(np.quantile(finish, 0.99, method="higher"), rel=0.05)
    assert found.failure_probability == pytest.approx(1 - ended.mean(), abs=1e-3)


# --- how many arrivals --------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "k"), [(5, 3), (16, 12), (30, 17), (64, 48)])
def test_arrivals_needed_are_those_of_the_decoder(n: int, k: int) -> None:
    """The max/min pass and the eliminations, against a Decoder fed the same orders."""
    orders = 40
    ranks = (
        np.random.default_rng(9).permuted(np.tile(np.arange(1, n + 1, dtype=np.int32), (orders, 1)), axis=1).T
    )
    simulated = [
        (sequential_needed, "sequential", False),
        (optimal_needed, "optimal", False),
        (integer_needed, "optimal", True),
    ]
    for needed, decoder, exact in simulated:
        code = PolarCode(n, k, "arikan", decoder)
        counts = [fed(Decoder(code, exact=exact), order) for order in np.argsort(ranks, axis=0).T]
        ranks_found, weights = np.unique(counts, return_counts=True)
        found = needed(n, k, None, orders, 9)
        assert found.ranks.tolist() == ranks_found.tolist()
        assert (found.weights * orders).round().tolist() == weights.tolist()


def fed(decoder: Decoder, order: np.ndarray) -> int:
    return next(count for count, index in enumerate(order.tolist(), 1) if decoder.add(index))


def test_no_decoder_beats_a_better_one() -> None:
    schemes = ["mds", "optimal", "integers", "sequential"]
    means = [
        float(needed.ranks @ needed.weights)
        for needed in (arrivals_needed(96, 64, scheme, trials=300) for scheme in schemes)
    ]
    assert means == sorted(means)
    distribution = DISTRIBUTIONS["cold"]
    times = [completion_time(96, 64, scheme, distribution, trials=300).mean for scheme in schemes]
    assert times == sorted(times)
    assert times[0] == lower_bound(96, 64, distribution)


def test_float32_and_tiles_do_not_matter() -> None:
    code = PolarCode(300, 200, "arikan", "sequential")
    arrivals = np.random.default_rng(0).random((300, 2000)).astype(np.float32)
    whole = sequential_finish(code, arrivals)
    assert whole.dtype == np.float32
    assert (whole == [sequential_finish(code, arrivals[:, i : i + 1])[0] for i in range(2000)]).all()


# --- backups ------------------------------------------------------------------------------------------


def stepped(first: np.ndarray, rule: BackupRule, step: float) -> float:
    """When the rule starts backups, found by asking it at small steps, as its authors wrote it."""
    for now in np.arange(0, first.max(), step):
        done = sorted(first[first <= now])
        if rule.of_all:
            index = int(np.ceil(len(first) * rule.done)) - 1
            ready, median = len(done) > index, done[index] if len(done) > index else None
        else:
            ready = len(done) >= max(1, int(len(first) * rule.done))
            median = np.median(done) if ready else None
        patience = max(rule.least, rule.slow * median) if ready else np.inf
        if len(first) >= rule.tasks and now > patience and len(done) < len(first):
            return float(now)
    return np.inf


@pytest.mark.parametrize("rule", [HEDGED, CUBED, SPARK], ids=["hedged", "cubed", "spark"])
@pytest.mark.parametrize("k", [1, 2, 9, 10, 24, 31])
def test_backups_start_when_the_rule_first_says_so(rule: BackupRule, k: int) -> None:
    first = np.sort(Pareto(1.0, 1.0).sample(np.random.default_rng(k), (40, k)), axis=1)
    first = np.minimum(first, 20.0 + np.arange(k))
    found = launch_times(first, rule)
    expected = [stepped(row, rule, 0.02) for row in first]
    np.testing.assert_allclose(found, expected, atol=0.03)


def test_backups_help_against_stragglers_and_cost_what_they_ran() -> None:
    slow = Mixture([Empirical([1.0]), Empirical([50.0])], [0.98, 0.02])
    found = completion_time(32, 32, "backup-cubed", slow, trials=4000)
    late = 1 - 0.98**32  # some task is slow; its backup, started at 3, nearly always takes 1
    again = 32 * 0.02 * 0.02  # but a task may be slow twice
    assert found.mean == pytest.approx(1 + 3 * late + 46 * again, rel=0.05)
    assert found.started == pytest.approx(32 * 1.02, rel=0.005)
    assert found.paid == pytest.approx(32 * (0.98 + 0.02 * (4 + 1)) + again * (46 + 46), rel=0.02)
    assert completion_time(9, 9, "backup-cubed", slow).started == 9  # below ten tasks cubed does nothing


def test_backups_rescue_failures_but_not_all() -> None:
    distribution = Failing(Empirical([1.0]), 0.05)
    found = completion_time(20, 20, "backup-cubed", distribution, trials=20_000)
    assert found.failure_probability == pytest.approx(1 - (1 - 0.05**2) ** 20, abs=0.01)
    assert found.mean == pytest.approx(1 + 3 * (1 - (0.95 / 0.9975) ** 20), rel=0.02)


# --- what is refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "k", "scheme", "says"),
    [
        (4, 5, "mds", "at least k workers"),
        (4, 0, "mds", "at least k workers"),
        (5, 4, "uncoded", "as many workers"),
        (5, 4, "backup-cubed", "as many workers"),
        (10, 4, "replication", "a multiple of k = 4"),
        (10, 4, "fountain", "scheme must be one of uncoded, mds"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(n: int, k: int, scheme: str, says: str) -> None:
    with pytest.raises(CodeError, match=says):
        completion_time(n, k, scheme, EXPONENTIAL)


def test_other_bad_input() -> None:
    with pytest.raises(CodeError, match="trials must be"):
        completion_time(8, 4, "sequential", EXPONENTIAL, trials=0)
    with pytest.raises(CodeError, match="no code"):
        arrivals_needed(8, 8, "backup-cubed")
    with pytest.raises(CodeError, match="sequential decoder"):
        sequential_finish(PolarCode(8, 4), np.ones((8, 3)))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_jobs_that_never_complete_say_so(scheme: str) -> None:
    n = 12 if scheme in ("uncoded", "backup", "backup-cubed", "backup-spark") else 24
    never = completion_time(n, 12, scheme, Failing(EXPONENTIAL, 0.97), trials=50)
    assert never.failure_probability == pytest.approx(1, abs=1e-3)
    assert never.p50 == np.inf
    assert "fails with probability" in str(never)


def test_the_integral_of_the_survival_is_the_mean() -> None:
    distribution = DISTRIBUTIONS["cold"]

    def late(time: float) -> float:
        return 1 - float(completion_cdf(16, 12, "mds", distribution, time))

    expected, _ = integrate.quad(late, 0, 30, points=[1, 2, 5], limit=200)
    assert completion_time(16, 12, "mds", distribution).mean == pytest.approx(expected, rel=1e-6)
