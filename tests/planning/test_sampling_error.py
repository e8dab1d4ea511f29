"""Ranges of recommendations, checked with the planner's completion times and samples of known laws."""

from __future__ import annotations

import numpy as np
import pytest

from polarmap import plan
from polarmap.planning import Empirical, ShiftedExponential, completion_time, with_stragglers
from polarmap.planning.objective import Objective
from polarmap.planning.sampling_error import (
    _choose_worker_counts,
    _compute_empirical_cdf_steps,
    bootstrap_worker_count_range,
    compute_completions_by_worker_count,
)

LAW = with_stragglers(ShiftedExponential(1.0, 0.1), 0.1, 5.0)


@pytest.mark.parametrize(("k", "sizes"), [(1, [1, 2, 3]), (5, [5, 6, 9]), (24, [24, 25, 48])])
def test_completions_are_those_of_the_planner(k: int, sizes: list[int]) -> None:
    sample = Empirical(LAW.sample(np.random.default_rng(k), 15))
    times, below = _compute_empirical_cdf_steps(sample, has_tail=False)
    for n, [estimated] in zip(
        sizes, compute_completions_by_worker_count(times[None], below[None], sizes), strict=True
    ):
        exact = completion_time(n, k, "uncoded" if n == k else "rotation", sample)
        for name in ("mean", "p50", "p95", "p99", "worker_seconds", "failure_probability"):
            assert getattr(estimated, name) == pytest.approx(getattr(exact, name), rel=1e-4), (n, name)


def test_a_tail_continues_what_was_censored() -> None:
    sample = Empirical([1.0, 2.0, 4.0, 4.0], completed=[True, True, True, False])
    times, below = _compute_empirical_cdf_steps(sample, has_tail=True)
    [[estimated]] = compute_completions_by_worker_count(times[None], below[None], [1])
    assert estimated.mean == pytest.approx(sample.with_exponential_tail().mean(), rel=0.02)
    assert (estimated.failure_probability, below[-1]) == (0.0, 1.0)


def test_most_ranges_contain_the_correct_value() -> None:
    sizes, aim = range(12, 25), Objective()
    right = plan(12, LAW).n
    samples = [Empirical(LAW.sample(np.random.default_rng(seed), 19)) for seed in range(40)]
    chosen = list(_choose_worker_counts(samples, sizes, aim, has_tail=False))
    ranges = [bootstrap_worker_count_range(sample, sizes, aim, n or 12) for sample, n in zip(samples, chosen)]
    assert sum(worker_range.min_workers <= right <= worker_range.max_workers for worker_range in ranges) > 24
    assert any(worker_range.min_workers < worker_range.max_workers for worker_range in ranges)


def test_few_times_give_a_range_and_their_number() -> None:
    times = LAW.sample(np.random.default_rng(1), 19)
    chosen = plan(12, times)
    assert chosen.n_completed == 19
    assert chosen.size_range is not None
    low, high, unseen = chosen.size_range
    assert low <= chosen.n <= high
    assert unseen == pytest.approx(1 - 0.05 ** (1 / 19))
    first, *_, observed, more = (
        str(chosen).splitlines()[:-1] if chosen.n == chosen.k else str(chosen).splitlines()
    )
    assert first.startswith(f"start {low} to {high} workers for 12 blocks")
    assert observed.startswith(f"from 19 completed tasks: {low} to {high} workers (90% range of a bootstrap)")
    assert "polarmap measure" in more
    assert len(str(chosen).splitlines()) <= 10


def test_enough_times_give_a_number() -> None:
    chosen = plan(12, LAW.sample(np.random.default_rng(1), 20))
    assert (chosen.n_completed, chosen.size_range) == (20, None)
    assert str(chosen).startswith(f"start {chosen.n} workers for 12 blocks")
    assert plan(12, LAW).n_completed is None


@pytest.mark.parametrize(
    "options", [{"schedule": "auto"}, {"task_overhead": 0.001}, {"code": "optimal", "n_trials": 20}]
)
def test_every_kind_of_plan_has_a_range_around_its_recommendation(options: dict[str, object]) -> None:
    chosen = plan(6, LAW.sample(np.random.default_rng(2), 10), "cost", **options)  # type: ignore[arg-type]
    assert chosen.size_range is not None
    starts = chosen.k + chosen.n_upfront_parity if chosen.schedule == "on_demand" else chosen.n_workers
    assert chosen.size_range.min_workers <= starts <= chosen.size_range.max_workers
    assert "from 10 completed tasks" in str(chosen)
