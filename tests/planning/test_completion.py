"""Completion times of coded jobs; the oracles are published numbers and a simulation of every job."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import integrate
from simulated_jobs import DISTRIBUTIONS, brute_force

from polarmap.codes.polar import PolarCode
from polarmap.errors import CodeError
from polarmap.planning import (
    SCHEMES,
    Distribution,
    FailureProne,
    ShiftedExponential,
    arrivals_needed,
    completion_cdf,
    completion_time,
    sequential_decoding_times,
)

EXPONENTIAL = ShiftedExponential(0.0, 1.0)


def test_published_completion_times() -> None:
    # The code has rate 1/2, and the 512 workers have run times 1 + Exp(1).
    distribution = ShiftedExponential(1.0, 1.0)
    gaps = 1 / np.arange(512, 256, -1)
    assert completion_time(512, 256, "rotation", distribution).mean == pytest.approx(1 + gaps.sum(), rel=1e-8)
    assert completion_time(256, 256, "uncoded", distribution).mean == pytest.approx(7.1244, abs=1e-3)
    sequential = completion_time(512, 256, "sequential", distribution)
    assert sequential.mean == pytest.approx(1.94, abs=0.01)
    limit = 1 + np.log(2)
    assert abs(completion_time(10_000, 5000, "mds", distribution).mean - limit) < 1e-3


@pytest.mark.parametrize("distribution", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
@pytest.mark.parametrize(("n", "k"), [(12, 9), (12, 12)])
def test_kth_arrivals_of_simulated_jobs(distribution: Distribution, n: int, k: int) -> None:
    arrivals = distribution.sample(np.random.default_rng(7), (n, 20_000))
    mean, paid, never = brute_force(np.sort(arrivals, axis=0)[k - 1], arrivals)
    completion = completion_time(n, k, "mds", distribution)
    assert completion.mean == pytest.approx(mean, rel=0.015)
    assert completion.worker_seconds == pytest.approx(paid, rel=0.015)
    assert completion.failure_probability == pytest.approx(never, abs=0.01)


@pytest.mark.parametrize(
    ("n", "k", "scheme", "says"),
    [
        (4, 5, "mds", "n must be at least k, and k at least 1"),
        (4, 0, "mds", "n must be at least k, and k at least 1"),
        (5, 4, "uncoded", "n must equal k = 4"),
        (5, 4, "backup-cubed", "n must equal k = 4"),
        (10, 4, "replication", "a multiple of k = 4"),
        (10, 4, "fountain", "scheme must be one of uncoded, mds"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(n: int, k: int, scheme: str, says: str) -> None:
    with pytest.raises(CodeError, match=says):
        completion_time(n, k, scheme, EXPONENTIAL)


def test_bad_input_is_refused() -> None:
    with pytest.raises(CodeError, match="n_trials must be"):
        completion_time(8, 4, "sequential", EXPONENTIAL, n_trials=0)
    with pytest.raises(CodeError, match="scheme must be a code, one of"):
        arrivals_needed(8, 8, "backup-cubed")
    with pytest.raises(CodeError, match="an arikan code with decoder='sequential'"):
        sequential_decoding_times(PolarCode(8, 4), np.ones((8, 3)))


@pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES if scheme != "small_blocks"])
def test_jobs_that_never_complete_have_infinite_times(scheme: str) -> None:
    n = 12 if scheme in ("uncoded", "backup", "backup-cubed", "backup-spark") else 24
    never = completion_time(n, 12, scheme, FailureProne(EXPONENTIAL, 0.97), n_trials=50)
    assert never.failure_probability == pytest.approx(1, abs=1e-3)
    assert never.p50 == np.inf
    assert "fails with probability" in str(never)


def test_the_integral_of_the_survival_is_the_mean() -> None:
    distribution = DISTRIBUTIONS["cold"]

    def late(time: float) -> float:
        return 1 - float(completion_cdf(16, 12, "mds", distribution, time))

    expected, _ = integrate.quad(late, 0, 30, points=[1, 2, 5], limit=200)
    assert completion_time(16, 12, "mds", distribution).mean == pytest.approx(expected, rel=1e-6)
