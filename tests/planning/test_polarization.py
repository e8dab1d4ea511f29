"""Polarization of run times, numerically: recursion, martingale, rate, steps and frozen sets."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polarmap.codes.polar import PolarCode
from polarmap.codes.polar_construction import choose_frozen_set
from polarmap.errors import CodeError
from polarmap.planning import (
    Empirical,
    FailureProne,
    Pareto,
    ShiftedExponential,
    completion_time,
    frozen_set_at_time,
    load_training_trace,
    polarization_gap,
    polarize,
    sequential_completion_bound,
    sequential_decoding_times,
    sequential_failure_bound,
    virtual_cdf,
    virtual_mean,
    virtual_medians,
    virtual_quantile,
)

DISTRIBUTION = ShiftedExponential(1.0, 1.0)


def recursion(times: np.ndarray) -> np.ndarray:
    """Return the virtual run times of real ones by the definition: the slow half, then the fast half."""
    if len(times) == 1:
        return times
    first, second = times[: len(times) // 2], times[len(times) // 2 :]
    return np.concatenate([recursion(np.maximum(first, second)), recursion(np.minimum(first, second))])


def test_virtual_workers_are_the_maxima_and_minima_of_real_ones() -> None:
    drawn = DISTRIBUTION.sample(np.random.default_rng(0), (16, 20_000))
    virtual = recursion(drawn)
    times = DISTRIBUTION.quantile(np.array([0.2, 0.5, 0.8]))
    for index in range(16):
        cdf = (virtual[index][:, None] <= times).mean(axis=0)
        np.testing.assert_allclose(virtual_cdf(DISTRIBUTION, 4, index, times), cdf, atol=0.015)


@pytest.mark.parametrize(
    "distribution", [DISTRIBUTION, Pareto(1.0, 1.5), load_training_trace()], ids=["exp", "pareto", "trace"]
)
def test_means_are_a_martingale(distribution: ShiftedExponential) -> None:
    survival = distribution.survival(distribution.quantile(np.linspace(0.01, 0.99, 50)))
    np.testing.assert_allclose(polarize(survival, 10).mean(axis=0), survival, rtol=1e-12)
    means = [virtual_mean(distribution, 5, index) for index in range(32)]
    assert np.mean(means) == pytest.approx(distribution.mean(), rel=1e-5)


@settings(max_examples=40)
@given(st.integers(0, 20), st.integers(0, 2**20 - 1), st.floats(1e-9, 1 - 1e-9))
def test_quantile_inverts_cdf_at_any_depth(depth: int, index: int, p: float) -> None:
    index %= 1 << depth
    distribution = ShiftedExponential(0.0, 1.0)  # times close to a shift would lose digits
    time = virtual_quantile(distribution, depth, index, p)
    assert virtual_cdf(distribution, depth, index, time) == pytest.approx(p, rel=1e-6)
    may_fail = FailureProne(distribution, 0.25)
    time = virtual_quantile(may_fail, depth, index, p)
    if np.isfinite(time):
        assert virtual_cdf(may_fail, depth, index, time) == pytest.approx(p, rel=1e-6)
    else:
        assert p >= virtual_cdf(may_fail, depth, index, np.inf) * (1 - 1e-6)


def test_the_slowest_and_the_fastest_are_the_extremes() -> None:
    distribution = ShiftedExponential(0.0, 1.0)
    harmonic = (1 / np.arange(1, 257)).sum()
    assert virtual_mean(distribution, 8, 0) == pytest.approx(harmonic, rel=1e-6)
    assert virtual_mean(distribution, 8, 255) == pytest.approx(1 / 256, rel=1e-6)
    assert virtual_mean(FailureProne(distribution, 0.1), 3, 2) == np.inf
    assert virtual_mean(Pareto(1.0, 0.9), 1, 0) == np.inf  # the fast virtual worker has the shape 1.8
    assert virtual_mean(Pareto(1.0, 0.9), 1, 1) == pytest.approx(1.8 / 0.8, rel=1e-6)


def virtual_shares(share: Fraction, depth: int) -> list[Fraction]:
    """Return 1 - F of all 2^depth virtual workers at one time by the definition, in exact arithmetic."""
    if depth == 0:
        return [share]
    late_both, late_either = share * share, 1 - (1 - share) ** 2
    return virtual_shares(late_either, depth - 1) + virtual_shares(late_both, depth - 1)


@pytest.mark.parametrize("share", [Fraction(1, 2), Fraction(1, 10), Fraction(4, 5)])
def test_increments_are_orthogonal_and_fall_as_the_theorem_says_exactly(share: Fraction) -> None:
    whole, way = share * (1 - share), Fraction(0)
    for depth in range(8):
        shares = virtual_shares(share, depth)
        np.testing.assert_allclose(
            polarize([float(share)], depth).ravel(), [float(share_late) for share_late in shares]
        )
        variances = [share_late * (1 - share_late) for share_late in shares]
        remaining, increment = (
            Fraction(sum(some), 2**depth) for some in (variances, (share_late**2 for share_late in variances))
        )
        assert sum(shares) == share * 2**depth
        # `remaining` is E (limit - F)^2, and `way` is the sum of the squared increments so far.
        assert remaining == whole - way
        fall = Fraction(3, 4) ** depth  # the squared bounds, because sqrt(3) / 2 is irrational
        assert (8 * increment) ** 2 <= fall * whole
        assert (2 * remaining) ** 2 <= fall * whole
        way += increment


def test_the_mean_square_of_increments_falls_by_0_826_a_level() -> None:
    shares = np.linspace(0.1, 0.9, 9)
    squares = [((rows * (1 - rows)) ** 2).mean(axis=0) for rows in (polarize(shares, d) for d in (8, 16))]
    np.testing.assert_allclose((squares[1] / squares[0]) ** (1 / 8), 2 ** (-1 / 3.627), rtol=0.004)
    grid = np.linspace(0.001, 0.999, 999)
    far = np.stack([polarization_gap(grid, depth) for depth in range(13)])
    bounds = (far[1:] / far[:-1]).max(axis=1)  # each bound also holds for all later levels
    assert bounds[0] == pytest.approx(np.sqrt(3) / 2)
    assert (np.diff(bounds) < 0).all()
    assert bounds[-1] == pytest.approx(2 ** (-1 / 3.627), rel=0.003)


def test_virtual_workers_tend_to_steps_at_the_quantiles_of_the_real_ones() -> None:
    shares = np.array([0.1, 0.25, 0.5, 0.75, 0.9])
    errors = []
    for depth in (6, 16):
        steps = np.sort(virtual_medians(DISTRIBUTION, depth))
        errors.append(np.abs(np.quantile(steps, shares) - DISTRIBUTION.quantile(shares)).max())
    assert errors[1] < 0.01 < errors[0]
    # Therefore the share of virtual workers that are done by time t tends to F(t).
    rows = polarize(DISTRIBUTION.survival([1.5, 2.0]), 16)
    np.testing.assert_allclose((rows < 0.5).mean(axis=0), DISTRIBUTION.cdf([1.5, 2.0]), atol=0.01)


def test_step_times_are_medians_by_index() -> None:
    medians = [float(virtual_quantile(DISTRIBUTION, 4, index, 0.5)) for index in range(16)]
    np.testing.assert_allclose(virtual_medians(DISTRIBUTION, 4), medians, rtol=1e-12)


# --- frozen sets ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "k"), [(8, 4), (30, 17), (64, 48), (100, 50), (200, 100)])
def test_frozen_inputs_are_the_least_likely_at_the_target_time(n: int, k: int) -> None:
    time = 1.7
    erasure = float(DISTRIBUTION.survival(time))
    frozen = frozen_set_at_time(n, k, DISTRIBUTION, time)
    assert frozen.tolist() == choose_frozen_set(n, k, erasure).tolist()
    assert frozen.tolist() == PolarCode(n, k, "arikan", erasure=erasure).frozen_set.tolist()
    if n == 64:  # no positions are punctured, so the frozen set has the n - k largest values, up to ties
        late = polarize([erasure], 6).ravel()
        assert late[frozen].min() >= np.delete(late, frozen).max() - 1e-12


def test_union_bound_holds_and_is_tight() -> None:
    n, k, time = 64, 32, 2.4
    bound = sequential_failure_bound(n, k, DISTRIBUTION, time)
    code = PolarCode(n, k, "arikan", "sequential", erasure=float(DISTRIBUTION.survival(time)))
    arrivals = DISTRIBUTION.sample(np.random.default_rng(2), (n, 40_000))
    late = (sequential_decoding_times(code, arrivals) > time).mean()
    assert late - 0.003 <= bound <= 2 * late + 0.003


def test_target_time_is_met_with_the_requested_probability() -> None:
    for probability in (0.5, 0.99):
        time = sequential_completion_bound(128, 64, DISTRIBUTION, probability)
        erasure = float(DISTRIBUTION.survival(time))
        done = completion_time(128, 64, "sequential", DISTRIBUTION, erasure=erasure, n_trials=2000)
        assert (done.p50 if probability == 0.5 else done.p99) <= time * 1.01
    assert sequential_completion_bound(8, 7, FailureProne(DISTRIBUTION, 0.5), 0.99) == np.inf


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: polarize([1.2], 2), "from 0 to 1"),
        (lambda: polarize([0.5], -1), "depth must be from 0 to 24"),
        (lambda: virtual_cdf(DISTRIBUTION, 3, 8, 1.0), "worker_index must be from 0 to 7 at depth 3, not 8"),
        (lambda: frozen_set_at_time(8, 4, DISTRIBUTION, 0.5), "no task has completed"),
        (lambda: frozen_set_at_time(8, 4, Empirical([1.0]), 2.0), "all tasks have completed"),
        (lambda: frozen_set_at_time(4, 4, DISTRIBUTION, 2.0), "k must be at least 1 and less than n"),
    ],
)
def test_bad_input_is_refused_with_a_reason(call, says: str) -> None:
    with pytest.raises(CodeError, match=says):
        call()
