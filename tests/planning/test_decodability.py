"""The number of arrivals that a code needs; the oracles are the decoders, given the same orders."""

from __future__ import annotations

import numpy as np
import pytest
from simulated_jobs import DISTRIBUTIONS, brute_force

from polarmap.codes.arrival_tracker import ArrivalTracker
from polarmap.codes.polar import PolarCode
from polarmap.planning import (
    Distribution,
    arrivals_needed,
    completion_cdf,
    completion_time,
    lower_bound,
    sequential_decoding_times,
)
from polarmap.planning.decodability import compute_decoding_times, get_decoder_name


@pytest.mark.parametrize(
    "distribution", [DISTRIBUTIONS["exponential"], DISTRIBUTIONS["failing"]], ids=["exponential", "failing"]
)
def test_simulation_by_rank_agrees_with_simulation_by_time(distribution: Distribution) -> None:
    # The package simulates ranks without run times. The oracle simulates run times and decoding together.
    n, k = 48, 30
    code = PolarCode(n, k, "arikan", "sequential")
    arrivals = distribution.sample(np.random.default_rng(3), (n, 20_000))
    finish = sequential_decoding_times(code, arrivals)
    mean, paid, never = brute_force(finish, arrivals)
    completion = completion_time(n, k, "sequential", distribution, n_trials=5000)
    assert completion.mean == pytest.approx(mean, abs=5 * completion.std_error + 0.01 * mean)
    assert completion.worker_seconds == pytest.approx(paid, rel=0.02)
    assert completion.failure_probability == pytest.approx(never, abs=0.01)
    times = np.quantile(finish, [0.2, 0.5, 0.9])
    found_cdf = completion_cdf(n, k, "sequential", distribution, times, n_trials=5000)
    np.testing.assert_allclose(found_cdf, [0.2, 0.5, 0.9], atol=0.03)
    assert 0 < completion.std_error < 0.05 * completion.mean


@pytest.mark.parametrize("scheme", ["sequential", "optimal", "integers"])
@pytest.mark.parametrize(
    ("n", "k", "levels"),
    [(5, 3, None), (16, 12, None), (30, 17, None), (64, 48, None), (24, 16, 3), (50, 30, 4)],
)
def test_arrivals_needed_are_those_of_the_decoder(n: int, k: int, levels: int | None, scheme: str) -> None:
    # The package computes the counts in one pass of maxima and minima, or by elimination. The oracle is a
    # decoder that receives the results one by one.
    orders, exact = 40, scheme == "integers"
    code = PolarCode(n, k, "arikan", get_decoder_name(scheme), levels=levels)
    ranks = np.random.default_rng(9).permuted(
        np.tile(np.arange(1, n + 1, dtype=np.int32), (orders, 1)), axis=1
    )
    counts = [
        count_needed_arrivals(ArrivalTracker(code, modular=exact), order)
        for order in np.argsort(ranks, axis=1)
    ]
    assert compute_decoding_times(code, np.ascontiguousarray(ranks.T), scheme).tolist() == counts
    if levels is None:
        ranks_found, weights = np.unique(counts, return_counts=True)
        needed = arrivals_needed(n, k, scheme, n_trials=orders, seed=9)
        assert needed.counts.tolist() == ranks_found.tolist()
        assert (needed.probabilities * orders).round().tolist() == weights.tolist()


def count_needed_arrivals(decoder: ArrivalTracker, order: np.ndarray) -> int:
    return next(count for count, index in enumerate(order.tolist(), 1) if decoder.add(index))


def test_better_decoders_need_no_more_arrivals() -> None:
    schemes = ["mds", "optimal", "integers", "sequential"]
    means = [
        float(needed.counts @ needed.probabilities)
        for needed in (arrivals_needed(96, 64, scheme, n_trials=300) for scheme in schemes)
    ]
    assert means == sorted(means)
    distribution = DISTRIBUTIONS["cold"]
    times = [completion_time(96, 64, scheme, distribution, n_trials=300).mean for scheme in schemes]
    assert times == sorted(times)
    assert times[0] == lower_bound(96, 64, distribution)


def test_float32_and_tiles_do_not_change_results() -> None:
    code = PolarCode(300, 200, "arikan", "sequential")
    arrivals = np.random.default_rng(0).random((300, 2000)).astype(np.float32)
    whole = sequential_decoding_times(code, arrivals)
    assert whole.dtype == np.float32
    assert (whole == [sequential_decoding_times(code, arrivals[:, i : i + 1])[0] for i in range(2000)]).all()


@pytest.mark.parametrize(("levels", "beyond"), [(10, 78), (8, 118), (5, 182)])
def test_fewer_levels_need_more_results(levels: int, beyond: float) -> None:
    # Compare arXiv 1901.06811 for 1,024 results in random order: a code with half of the additions needs more
    # than twice as many results beyond k.
    code = PolarCode(1024, 768, "arikan", "sequential", levels=levels)
    orders = np.random.default_rng(0).permuted(np.tile(np.arange(1, 1025, dtype=np.int32), (400, 1)), axis=1)
    assert sequential_decoding_times(code, orders.T).mean() - 768 == pytest.approx(beyond, abs=4)
    # The number of additions of a transform per block is levels / 2.
    assert code.mother_code_length * code.levels / 2 / 1024 == levels / 2
