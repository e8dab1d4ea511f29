"""Plans for workers with different run times.

The oracles are all subsets of workers, exact probabilities, the decoders, and replayed maps.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import polarmap
from polarmap import coded_map
from polarmap.codes import PolarCode
from polarmap.errors import CodeError
from polarmap.planning import (
    FailureProne,
    Pareto,
    Scaled,
    ShiftedExponential,
    completion_time,
    plan,
    sequential_decoding_times,
)
from polarmap.planning.distributions import Distribution
from polarmap.planning.heterogeneous import (
    HeterogeneousWorkers,
    select_workers_for_scheme,
    simulate_heterogeneous_workers,
)
from polarmap.testing import ReplayExecutor

FAST = ShiftedExponential(1.0, 0.5)
SLOW = Scaled(FAST, 2.0)
MIXED = [FAST, SLOW, Pareto(1.0, 2.0), FailureProne(FAST, 0.1), SLOW, Pareto(1.0, 2.0), FAST]


def probability_that_enough_are_back(workers: list[Distribution], k: int, time: float) -> float:
    """Return the probability that at least k workers have returned by `time`, by a recursion over workers."""
    counts = np.array([1.0])
    for worker in workers:
        back = float(worker.cdf(time))
        counts = np.append(counts * (1 - back), 0) + np.append(0, counts * back)
    return float(counts[k:].sum())


def test_code_designed_for_slow_and_fast_workers_is_better() -> None:
    # A code and an assignment designed for these workers come closer to the 192nd arrival than any code for
    # equal workers.
    workers = [FAST, SLOW] * 128
    means = {
        scheme: completion_time(256, 192, scheme, workers).mean for scheme in ("mds", "sequential", "optimal")
    }
    same = [completion_time(256, 192, "sequential", workers, erasure=e).mean for e in (0.06, 0.12, 0.2, 0.25)]
    assert means["mds"] == pytest.approx(2.75, abs=0.01)
    assert means["sequential"] < 3.08 < 3.12 < min(same)
    assert means["mds"] < means["optimal"] < means["sequential"]


@pytest.mark.parametrize("scheme", ["uncoded", "mds", "rotation"])
def test_jobs_that_await_any_k_are_complete_when_k_are_back(scheme: str) -> None:
    k = 7 if scheme == "uncoded" else 4
    completion = completion_time(7, k, scheme, MIXED, n_trials=20_000)
    for time, share in [(completion.p50, 0.5), (completion.p95, 0.95)]:
        if np.isfinite(time):
            assert probability_that_enough_are_back(MIXED, k, time) == pytest.approx(share, abs=0.015)
    enough = probability_that_enough_are_back(MIXED, k, 1e12)
    assert completion.failure_probability == pytest.approx(1 - enough, abs=0.01)
    assert (completion.n_results_awaited, completion.n_tasks_started) == (k, 7)


@pytest.mark.parametrize("scheme", ["sequential", "optimal", "integers"])
def test_awaited_results_and_costs_are_those_of_the_decoder(scheme: str) -> None:
    workers = HeterogeneousWorkers([FAST, SLOW] * 12)
    jobs, arrivals = simulate_heterogeneous_workers(workers, 16, scheme, None, 300, seed=4)
    erasure = select_workers_for_scheme(workers, 24, 16, scheme).erasure_probabilities
    decoder = "sequential" if scheme == "sequential" else "optimal"
    code = PolarCode(24, 16, "arikan", decoder, erasure)
    times = workers.sample_run_times(np.random.default_rng(4), len(jobs.completion_times))
    for job in range(20):
        tracker = polarmap.codes.ArrivalTracker(code, modular=scheme == "integers")
        order = np.argsort(times[:, job])
        block_of = np.argsort(code.worker_indices)
        count = next(i for i, worker in enumerate(order, 1) if tracker.add(int(block_of[worker])))
        assert arrivals[job] == count
        assert jobs.completion_times[job] == times[order[count - 1], job]
        assert jobs.worker_seconds[job] == pytest.approx(
            np.minimum(times[:, job], jobs.completion_times[job]).sum()
        )


@pytest.mark.parametrize(("n", "back"), [(1, 0.5), (3, 2.0), (5, 3.0), (6, 5.5)])
def test_selected_workers_are_expected_back_first(n: int, back: float) -> None:
    workers, erasure = HeterogeneousWorkers(MIXED).select_workers(n, back)
    time = float(MIXED[workers[0]].quantile(1 - erasure[0]))
    assert [float(MIXED[worker].survival(time)) for worker in workers] == pytest.approx(erasure.tolist())
    assert n - erasure.sum() == pytest.approx(back)
    for others in itertools.combinations(MIXED, n):
        assert sum(float(other.cdf(time)) for other in others) <= back + 1e-9


def test_most_reliable_workers_are_chosen_if_too_many_fail() -> None:
    workers = [
        FailureProne(FAST, 0.5),
        FailureProne(SLOW, 0.1),
        FailureProne(FAST, 0.3),
        FailureProne(SLOW, 0.2),
    ]
    chosen, erasure = HeterogeneousWorkers(workers).select_workers(2, 1.9)
    assert chosen.tolist() == [1, 3]
    assert erasure == pytest.approx([0.1, 0.2])


@pytest.mark.parametrize("code", ["rotation", "sequential", "integers"])
def test_identical_workers_are_planned_like_one_distribution(code: str) -> None:
    by_distribution = plan(8, FAST, max_workers=14, code=code)
    by_workers = plan(8, [FAST] * 14, code=code)
    assert (by_workers.expected, by_workers.frontier, by_workers.run_times) == (
        by_distribution.expected,
        by_distribution.frontier,
        by_distribution.run_times,
    )
    assert (by_workers.worker_indices, by_workers.erasure) == (tuple(range(by_workers.n)), ())
    assert completion_time(14, 8, code, [FAST] * 14) == completion_time(14, 8, code, FAST)


def test_a_plan_uses_the_fast_workers_first() -> None:
    chosen = plan(8, [SLOW, FAST] * 8, slack=0.05)
    assert 8 < chosen.n <= 16
    assert set(range(1, 16, 2)) <= set(chosen.worker_indices)
    assert set(chosen.worker_indices[:8]) == set(range(1, 16, 2))  # the workers of the data tasks
    assert f"start {chosen.n} workers, those in plan.worker_indices, for 8 blocks" in str(chosen)
    assert chosen.uncoded == plan(8, [FAST] * 8).uncoded


@pytest.mark.parametrize("code", ["rotation", "sequential", "optimal", "integers"])
def test_planned_map_completes_at_the_predicted_time(code: str) -> None:
    # A replayed map gives each task the sampled run time of the worker that the plan assigns to it.
    workers = [SLOW, FAST] * 8
    chosen = plan(8, workers, "mean", slack=0.0, max_workers=14, code=code)
    times = HeterogeneousWorkers(workers).sample_run_times(np.random.default_rng(1), 1)[:, 0]
    seconds = times[list(chosen.worker_indices)]
    data = np.arange(80).reshape(16, 5) if code == "integers" else np.linspace(0, 1, 80).reshape(16, 5)
    result = coded_map(
        np.copy,
        data,
        schedule=chosen,
        executor=ReplayExecutor(dict(enumerate(seconds.tolist()))),
        verify=False,
    )
    np.testing.assert_allclose(result.concatenate(), data, atol=1e-12)
    if code == "rotation":
        assert result.report.seconds == pytest.approx(np.sort(seconds)[7])
    if code == "sequential":
        polar_code = PolarCode(chosen.n, 8, "arikan", "sequential", chosen.erasure)
        assert polar_code.worker_indices.tolist() == list(range(chosen.n))
        finish = float(sequential_decoding_times(polar_code, seconds[:, None])[0])
        assert result.report.seconds == pytest.approx(finish)
    assert result.report.n == chosen.n


def test_plain_maps_of_unequal_workers_are_planned() -> None:
    chosen = plan(4, [ShiftedExponential(1.0, 1e-3), ShiftedExponential(1.001, 1e-3)] * 2)
    assert (chosen.n, chosen.code, sorted(chosen.worker_indices), chosen.erasure) == (
        4,
        "uncoded",
        [0, 1, 2, 3],
        (),
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: plan(3, [FAST, 1.0, SLOW]),
            "2 of its 3 entries are Distributions",
        ),
        (
            lambda: plan(4, [FAST, SLOW]),
            "k = 4 blocks need at least 4 workers, but run_times and max_workers allow 2",
        ),
        (
            lambda: plan(2, [FAST, SLOW] * 2, schedule="auto"),
            "schedule='auto' needs one Distribution for all workers",
        ),
        (
            lambda: completion_time(4, 2, "mds", [FAST, SLOW]),
            "one distribution for each of the n = 4 workers, got 2",
        ),
        (
            lambda: completion_time(4, 4, "backup", [FAST, SLOW] * 2),
            "scheme='backup' needs one Distribution for all workers",
        ),
    ],
)
def test_unsupported_options_for_unequal_workers_are_refused(call, message: str) -> None:
    with pytest.raises(CodeError, match=message):
        call()
