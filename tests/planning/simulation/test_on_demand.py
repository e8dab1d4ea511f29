"""Vectorized simulation of parity on demand.

The oracle simulates each job event by event. Other tests check the goals for cost and tail latency.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_jobs import late_moments

from polarmap.errors import CodeError
from polarmap.planning import (
    FailureProne,
    ParityRule,
    ShiftedExponential,
    completion_time,
    simulate_on_demand,
    with_stragglers,
)

K, N = 24, 32
DISTRIBUTION = with_stragglers(ShiftedExponential(1.0, 0.1), 0.02, 5.0)


def simulate_one_job(data, parity, upfront, run_times):
    """Simulate one job by applying the policy at every event and whenever a task becomes late.

    A late task stays late. Return the completion time and the start times of the parity tasks on demand.
    """
    k, now, rule, late = len(data), 0.0, ParityRule(len(data), run_times), set()
    tasks = [(0.0, seconds) for seconds in [*data, *parity[:upfront]]]  # (start time, run time) of each task
    later, launched = list(parity[upfront:]), []
    while True:
        back = {task for task, (began, seconds) in enumerate(tasks) if began + seconds <= now}
        if len(back) >= k:
            return now, launched
        first = [tasks[task][1] for task in back if task < k + upfront]
        then = [tasks[task][1] for task in back if task >= k + upfront]
        running = [task for task in range(len(tasks)) if task not in back]
        moments = late_moments(rule.lateness_rule, first, [tasks[task][0] for task in running], then)
        late |= {task for task, moment in zip(running, moments) if moment <= now}
        on_time = len(set(running) - late)
        count = rule.count_parity_to_start(len(back), on_time, len(later))
        tasks += [(now, later.pop(0)) for _ in range(count)]
        launched += [now] * count
        if count:
            continue
        coming = [began + seconds for began, seconds in tasks] + moments
        coming = [moment for moment in coming if math.isfinite(moment) and moment > now]
        if not coming:
            return math.inf, launched
        now = min(coming)


@settings(derandomize=True, max_examples=200)
@given(
    k=st.integers(1, 12),
    spare=st.integers(0, 6),
    upfront=st.integers(0, 3),
    seed=st.integers(0, 10_000),
    knows_distribution=st.booleans(),
    never=st.sampled_from([0.0, 0.1, 0.6]),
    least=st.sampled_from([1.0, 0.0]),
)
def test_vectorized_policy_agrees_with_event_simulation(
    k: int, spare: int, upfront: int, seed: int, knows_distribution: bool, never: float, least: float
) -> None:
    distribution = with_stragglers(ShiftedExponential(least, 0.3), 0.1, 4.0)
    distribution = FailureProne(distribution, never) if never else distribution
    upfront = min(upfront, spare)
    rng = np.random.default_rng(seed)
    data, parity = distribution.sample(rng, (1, k)), distribution.sample(rng, (1, spare))
    jobs = simulate_on_demand(data, parity, upfront, distribution if knows_distribution else None)
    time, launched = simulate_one_job(
        data[0].tolist(), parity[0].tolist(), upfront, distribution if knows_distribution else None
    )
    assert jobs.completion_times[0] == pytest.approx(time)
    if math.isfinite(time):
        assert jobs.n_tasks_started[0] == k + upfront + len(launched)


def test_late_parity_task_is_replaced() -> None:
    data, parity = np.array([[1.0] * 23 + [50.0]]), np.array([[50.0, 1.0]])
    jobs = simulate_on_demand(data, parity)
    # The data task is late at 1.1 s, and its parity task is late at 2.2 s.
    assert jobs.completion_times.tolist() == pytest.approx([3.2])
    assert jobs.n_tasks_started.tolist() == [26]
    assert jobs.worker_seconds.tolist() == pytest.approx([23 + 3.2 + 2.1 + 1])


def test_job_without_enough_results_never_completes() -> None:
    jobs = simulate_on_demand(np.array([[1.0, math.inf]]), np.array([[math.inf]]))
    assert jobs.completion_times.tolist() == [math.inf]
    assert simulate_on_demand(np.full((1, 4), math.inf), np.ones((1, 2))).completion_times.tolist() == [
        math.inf
    ]


def test_lateness_is_cautious_with_fewer_than_half_of_the_results() -> None:
    # With one of three results after 1 s, the remaining tasks are late after 6 s.
    data, parity = np.array([[1.0, math.inf, math.inf]] * 2), np.array([[1.0, 1.0], [math.inf] * 2])
    jobs = simulate_on_demand(data, parity)
    assert jobs.completion_times.tolist() == [7.0, math.inf]
    assert jobs.n_tasks_started.tolist() == [5, 5]


def test_returning_parity_task_makes_all_silent_tasks_late() -> None:
    # The first parity task starts after a minute. When it returns, all tasks are late, so the second starts.
    never = np.full((1, 2), math.inf)
    assert simulate_on_demand(never, np.ones((1, 2))).completion_times.tolist() == [62.0]
    jobs = simulate_on_demand(never, np.array([[math.inf, 1.0, 1.0]]))
    assert jobs.completion_times.tolist() == [122.0]  # the first one hangs, so another starts after 120 s


def test_a_long_silence_costs_few_parity_tasks() -> None:
    # Each task takes ten minutes. Without any result, the rule cannot tell whether tasks are late.
    jobs = simulate_on_demand(np.full((1, K), 600.0), np.full((1, N - K), 600.0))
    assert jobs.completion_times.tolist() == [600.0]
    assert jobs.n_tasks_started.tolist() == [K + 4]  # parity tasks start after 1, 2, 4 and 8 minutes


def test_run_times_without_a_minimum_rarely_start_parity_early() -> None:
    # The smallest of 24 exponential times is close to 0, so a multiple of it must not count as late.
    rng = np.random.default_rng(0)
    distribution = ShiftedExponential(0.0, 10.0)
    jobs = simulate_on_demand(distribution.sample(rng, (2000, K)), distribution.sample(rng, (2000, N - K)))
    half = simulate_on_demand(
        distribution.sample(rng, (2000, K)), distribution.sample(rng, (2000, N - K)), run_times=distribution
    )
    assert jobs.worker_seconds.mean() <= 1.02 * half.worker_seconds.mean()


@pytest.mark.parametrize("knows_distribution", [True, False])
@pytest.mark.parametrize(("upfront", "cost", "tail"), [(0, 1.05, 0.6), (5, 1.15, 0.35)])
def test_goals_for_two_stragglers_in_a_hundred(
    knows_distribution: bool, upfront: int, cost: float, tail: float
) -> None:
    # The goals are relative to the worker-seconds of a plain map and to the p99 of backup tasks.
    plain = completion_time(K, K, "uncoded", DISTRIBUTION)
    backup = completion_time(K, K, "backup-cubed", DISTRIBUTION, n_trials=20_000)
    rng = np.random.default_rng(1)
    data, parity = DISTRIBUTION.sample(rng, (20_000, K)), DISTRIBUTION.sample(rng, (20_000, N - K))
    jobs = simulate_on_demand(data, parity, upfront, DISTRIBUTION if knows_distribution else None)
    assert jobs.worker_seconds.mean() <= cost * plain.worker_seconds
    assert np.quantile(jobs.completion_times, 0.99) <= tail * backup.p99


@pytest.mark.parametrize(
    "call",
    [
        lambda: simulate_on_demand(np.ones((2, 3)), np.ones((3, 3))),
        lambda: simulate_on_demand(np.ones(3), np.ones(3)),
        lambda: simulate_on_demand(np.ones((2, 3)), np.ones((2, 1)), n_upfront_parity=2),
    ],
)
def test_sizes_that_do_not_fit_are_refused(call) -> None:
    with pytest.raises(CodeError):
        call()
