"""Recommendations and errors of the planner; the oracle is an exhaustive search."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polarmap.clouds.limits import WorkerSpec
from polarmap.errors import CodeError
from polarmap.planning import (
    Completion,
    Distribution,
    FailureProne,
    Pareto,
    ShiftedExponential,
    completion_time,
    frontier,
    load_training_trace,
    plan,
    planner,
    with_stragglers,
)

DISTRIBUTION = with_stragglers(ShiftedExponential(1.0, 0.2), 0.02, 5.0)


@pytest.fixture(scope="module", autouse=True)
def each_option_is_computed_once() -> Iterator[None]:
    """Cache completion times across all tests of this module, because they are deterministic."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planner, "completion_time", functools.cache(completion_time))
        yield


@functools.cache
def simulated(k: int) -> list[Completion]:
    """Return the completion times with k workers and with up to twelve more."""
    return [completion_time(n, k, "rotation" if n > k else "uncoded", DISTRIBUTION) for n in range(k, k + 13)]


@pytest.mark.parametrize("objective", ["mean", "p50", "p95", "p99"])
@pytest.mark.parametrize("k", [1, 6, 24])
def test_the_cheapest_of_the_nearly_fastest(objective: str, k: int) -> None:
    chosen = plan(k, DISTRIBUTION, objective, max_workers=k + 12, slack=0.05)
    every = simulated(k)
    best = min(getattr(candidate, objective) for candidate in every)
    near = [candidate for candidate in every if getattr(candidate, objective) <= 1.05 * best]
    assert chosen.expected == min(near, key=lambda candidate: candidate.worker_seconds)
    assert (chosen.n, chosen.k) == (chosen.expected.n, k)
    assert chosen.uncoded == every[0]


def test_the_knee_rather_than_the_last_percent() -> None:
    distribution = with_stragglers(ShiftedExponential(1.0, 0.1), 0.02, 5.0)
    knee = plan(24, distribution)
    tail = plan(24, distribution, slack=0.05)
    assert (knee.n, tail.n) == (29, 38)
    assert knee.expected.worker_seconds / knee.uncoded.worker_seconds == pytest.approx(1.11, abs=0.01)
    assert tail.expected.worker_seconds / tail.uncoded.worker_seconds == pytest.approx(1.42, abs=0.01)
    assert knee.expected.p99 - tail.expected.p99 == pytest.approx(0.15, abs=0.01)
    best = min(candidate.p99 * candidate.worker_seconds for candidate in knee.frontier)
    assert knee.expected.p99 * knee.expected.worker_seconds == best


def test_plan_says_when_a_plain_map_is_enough() -> None:
    chosen = plan(10, ShiftedExponential(1.0, 0.01))
    assert (chosen.n, chosen.code) == (10, "uncoded")
    assert "start 10 workers for 10 blocks (no code)" in str(chosen)
    last_line = str(chosen).splitlines()[-1]
    coded = completion_time(11, 10, "rotation", ShiftedExponential(1.0, 0.01))
    time, paid = coded.p99 / chosen.uncoded.p99 - 1, coded.worker_seconds / chosen.uncoded.worker_seconds - 1
    comparison = f"11 workers would change p99 by {time:+.1%}, and the worker-seconds by {paid:+.1%}"
    assert last_line == f"a plain map without a code is enough: {comparison}"
    assert (
        str(plan(4, [1.0, 1.0])).splitlines()[-1]
        == "a plain map without a code is enough: more workers would not save time"
    )
    assert "a plain map without a code is enough" not in str(plan(24, DISTRIBUTION))
    failing = plan(8, FailureProne(DISTRIBUTION, 0.2), "cost", max_failure_probability=1.0)
    assert re.search(r"would change p99 from inf to \d\S* s, and the worker-seconds by", str(failing))
    heavy = str(plan(1, Pareto(1.0, 0.3))).splitlines()[-1]  # this distribution has no mean
    assert re.search(r"2 workers would change p99 by -\d\S*%, and the worker-seconds from inf to inf", heavy)


@pytest.mark.parametrize("run_times", [DISTRIBUTION, ShiftedExponential(1.0, 1e-3)])
def test_plan_prints_at_most_ten_lines(run_times: Distribution) -> None:
    chosen = plan(
        24, run_times, max_workers=36, worker_spec=WorkerSpec("aws_lambda", "aws_s3", memory_mb=1769)
    )
    assert len(str(chosen).splitlines()) <= 10
    assert repr(chosen) == str(chosen)
    assert "mean cost: $" in str(chosen)


def test_cost_objective_finds_the_minimum_and_may_use_a_code() -> None:
    chosen = plan(24, DISTRIBUTION, "cost", slack=0.0)
    assert chosen.expected.worker_seconds == min(candidate.worker_seconds for candidate in chosen.frontier)
    assert chosen.n > 24  # a parity task saves more worker-seconds of waiting than it costs
    assert chosen.expected.worker_seconds < chosen.uncoded.worker_seconds


def test_limits_are_respected() -> None:
    free = plan(24, DISTRIBUTION, "p99", slack=0.0, max_workers=36)
    bound = plan(24, DISTRIBUTION, "p99", budget=32.0, slack=0.0, max_workers=36)
    assert bound.expected.worker_seconds <= 32.0 < free.expected.worker_seconds
    cheap = plan(24, DISTRIBUTION, "cost", deadline=1.5, max_workers=36)
    assert cheap.expected.p99 <= 1.5
    assert cheap.expected.worker_seconds < free.expected.worker_seconds


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=12))
def test_frontier_contains_undominated_candidates_from_cheap_to_fast(points: list[tuple[int, int]]) -> None:
    blank = completion_time(2, 1, "mds", ShiftedExponential(1.0, 1.0))
    options = [blank._replace(p99=float(time), worker_seconds=float(cost)) for time, cost in points]
    points_of_frontier = [(candidate.worker_seconds, candidate.p99) for candidate in frontier(options)]
    best = {
        (candidate.worker_seconds, candidate.p99)
        for candidate in options
        if not any(beats(other, candidate) for other in options)
    }
    assert points_of_frontier == sorted(best)


def beats(candidate: Completion, other: Completion) -> bool:
    return (
        candidate != other and candidate.p99 <= other.p99 and candidate.worker_seconds <= other.worker_seconds
    )


def test_large_jobs_are_planned_from_few_sizes() -> None:
    chosen = plan(3000, load_training_trace(), "mean")
    assert 3000 < chosen.n <= 6000
    assert chosen.expected.mean < chosen.uncoded.mean


def test_a_simulated_code_needs_more_workers() -> None:
    limit = 1.6
    few, more = (
        plan(24, DISTRIBUTION, "cost", code=code, deadline=limit).n for code in ("rotation", "sequential")
    )
    assert few < more


def test_failing_tasks_require_parity() -> None:
    chosen = plan(24, FailureProne(DISTRIBUTION, 0.05), "cost", max_failure_probability=1e-4)
    assert chosen.expected.failure_probability <= 1e-4
    assert chosen.n >= 30


@pytest.mark.parametrize("objective", ["mean", "p99", "cost"])
def test_number_of_small_blocks_depends_on_the_overhead(objective: str) -> None:
    # The oracle tries the same numbers of small blocks on the workers of a plan without overhead.
    distribution = ShiftedExponential(1.0, 1.0)
    without_overhead = plan(24, distribution, objective)
    quantity = "worker_seconds" if objective == "cost" else objective
    for price in (0.001, 0.02, 10.0):
        chosen = plan(24, distribution, objective, task_overhead=price)
        tried = [
            completion_time(
                without_overhead.n,
                24,
                "small_blocks",
                distribution,
                tasks_per_worker=many,
                task_overhead=price,
                n_trials=2500,
            )
            for many in (2, 4, 8, 16, 32)
        ]
        best = min([without_overhead.expected, *tried], key=lambda option: getattr(option, quantity))
        assert getattr(chosen.expected, quantity) == pytest.approx(getattr(best, quantity), rel=0.02)
        pieces = chosen.expected.tasks_per_worker
        assert (chosen.n, chosen.k, chosen.n_workers) == (
            without_overhead.n * pieces,
            24 * pieces,
            without_overhead.n,
        )
        assert chosen.run_times is not None
        one_task = 1.5 / pieces + (price if pieces > 1 else 0.0)
        assert chosen.run_times.cdf(one_task) == pytest.approx(distribution.cdf(1.5))
        assert chosen.n_upfront_parity == chosen.n - chosen.k and chosen.code == "rotation"
        assert (pieces == 1) == (price == 10.0)


def test_number_of_small_blocks_is_limited_by_the_largest_code() -> None:
    chosen = plan(3000, ShiftedExponential(1.0, 1.0), task_overhead=0.0, max_workers=6000)
    assert chosen.expected.tasks_per_worker == 8 and chosen.n <= 1 << 16


def test_plan_for_persistent_workers_mentions_them() -> None:
    lambdas = WorkerSpec("aws_lambda", "aws_s3", memory_mb=1769)
    chosen = plan(24, DISTRIBUTION, task_overhead=0.01, max_workers=32, worker_spec=lambdas)
    first, *_ = lines = str(chosen).splitlines()
    n, pieces = chosen.n_workers, chosen.expected.tasks_per_worker
    assert first.startswith(
        f"keep {n} workers, and give them {chosen.n} tasks one by one, for {chosen.k} blocks"
    )
    assert any(line.split()[:4] == ["plan", str(n), "x", str(pieces)] for line in lines)
    assert chosen.cost is not None and chosen.cost.calls == pytest.approx(n * 2e-7)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"task_overhead": -1.0}, "task_overhead must be a finite number of seconds of at least 0, not -1.0"),
        (
            {"task_overhead": "1 ms"},
            "task_overhead must be a finite number of seconds of at least 0, not '1 ms'",
        ),
        ({"task_overhead": 0.1, "schedule": "on_demand"}, "task_overhead needs schedule='upfront'"),
        (
            {"task_overhead": 0.1, "code": "optimal"},
            "task_overhead needs schedule='upfront', code='rotation'",
        ),
        ({"max_workers": 20}, "k = 24 blocks need at least 24 workers, but max_workers allows 20"),
        ({"code": "mds"}, "code must be one of rotation"),
        (
            {"deadline": 0.5},
            r"at most 48 workers: p99 is at least 1\.\d+ s, later than the deadline of 0\.5 s",
        ),
        (
            {"run_times": FailureProne(DISTRIBUTION, 0.6)},
            "too many tasks never complete, so the job fails with a probability of at least 0.897",
        ),
        ({"run_times": [1.0, -1.0]}, "run time 1 is -1"),
        ({"k": 0}, "k must be a positive integer, not 0"),
        ({"k": 2.5}, "k must be a positive integer, not 2.5"),
    ],
)
def test_invalid_arguments_raise_a_reason(arguments: dict[str, object], says: str) -> None:
    given_ = {"k": 24, "run_times": DISTRIBUTION, "objective": "p99", **arguments}
    with pytest.raises(CodeError, match=says):
        plan(**given_)
