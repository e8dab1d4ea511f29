"""Vectorized simulation of small blocks on persistent workers.

The oracles are a simulation of each job event by event, and the order statistic for one task per worker.
"""

from __future__ import annotations

import heapq
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polarmap.errors import CodeError
from polarmap.planning import (
    FailureProne,
    ShiftedExponential,
    completion_time,
    simulate_overdecomposition,
    with_stragglers,
)

K, N = 24, 32
DISTRIBUTION = with_stragglers(ShiftedExponential(1.0, 0.1), 0.02, 5.0)


def simulate_one_job(whole: list[float], k: int, pieces: int, price: float) -> tuple[float, float]:
    """Simulate one job whose workers take tasks from one queue, and return its time and worker-seconds."""
    each = [seconds / pieces + price for seconds in whole]
    running = [(seconds, 0.0, worker) for worker, seconds in enumerate(each)]
    heapq.heapify(running)
    left, missing, paid = len(whole) * (pieces - 1), k * pieces, 0.0
    while True:
        now, _, worker = heapq.heappop(running)
        paid, missing = paid + each[worker], missing - 1
        if missing == 0 or now == math.inf:
            return now, paid + sum(now - begin for _, begin, _ in running)
        if left:
            heapq.heappush(running, (now + each[worker], now, worker))
            left -= 1


@settings(derandomize=True, max_examples=200, deadline=None)
@given(
    k=st.integers(1, 9),
    spare=st.integers(0, 4),
    pieces=st.integers(1, 9),
    price=st.sampled_from([0.0, 0.1]),
    least=st.sampled_from([0.0, 1.0]),
    dead=st.integers(0, 2),
    seed=st.integers(0, 10_000),
)
def test_vectorized_simulation_agrees_with_event_simulation(
    k: int, spare: int, pieces: int, price: float, least: float, dead: int, seed: int
) -> None:
    times = ShiftedExponential(least, 1.0).sample(np.random.default_rng(seed), (5, k + spare))
    times[0, :dead] = math.inf
    jobs = simulate_overdecomposition(times, k, pieces, price)
    for row, time, paid in zip(times, jobs.completion_times, jobs.worker_seconds):
        expected = simulate_one_job(row.tolist(), k, pieces, price)
        assert time == pytest.approx(expected[0])
        if math.isfinite(time):
            assert paid == pytest.approx(expected[1])


def test_identical_workers_finish_at_the_same_times() -> None:
    # All ends coincide: each of 6 workers finishes a task of 1 s at every full second.
    jobs = simulate_overdecomposition(np.full((1, 6), 8.0), 4, 8)
    assert jobs.completion_times == pytest.approx(6.0) and jobs.worker_seconds == pytest.approx(36.0)
    assert simulate_overdecomposition(np.full((1, 4), 8.0), 4, 8, 0.5).completion_times == pytest.approx(12.0)


def test_small_blocks_beat_one_block_per_worker() -> None:
    # With 512 tasks per worker, the overhead per task outweighs the gain.
    one_task, eight_tasks, many_tasks = (
        completion_time(
            N, K, "small_blocks", DISTRIBUTION, tasks_per_worker=pieces, task_overhead=0.001, n_trials=4000
        )
        for pieces in (1, 8, 512)
    )
    assert one_task.mean == pytest.approx(completion_time(N, K, "mds", DISTRIBUTION).mean + 0.001, rel=0.01)
    assert eight_tasks.mean == pytest.approx(0.90, abs=0.02) and eight_tasks.p99 == pytest.approx(
        0.97, abs=0.02
    )
    assert eight_tasks.worker_seconds < one_task.worker_seconds and many_tasks.mean > eight_tasks.mean + 0.3
    assert (eight_tasks.tasks_per_worker, eight_tasks.n_results_awaited, eight_tasks.n_tasks_started) == (
        8,
        192,
        223,
    )


def test_jobs_fail_if_living_workers_have_too_few_tasks() -> None:
    # With 12 parity blocks, a single worker can do the tasks of all workers. Without parity, every worker
    # must finish its first task.
    dying = FailureProne(DISTRIBUTION, 0.9)
    some, plain = (
        completion_time(24, k, "small_blocks", dying, tasks_per_worker=2, n_trials=4000) for k in (12, 24)
    )
    assert some.failure_probability == pytest.approx(0.9**24, abs=0.02)
    assert plain.failure_probability == 1


@pytest.mark.parametrize(
    "call",
    [
        lambda: simulate_overdecomposition(np.ones((2, 3)), 4, 1),
        lambda: simulate_overdecomposition(np.ones((2, 3)), 2, 0),
        lambda: simulate_overdecomposition(np.ones((2, 3)), 2, 1, math.nan),
        lambda: completion_time(3, 2, "small_blocks", DISTRIBUTION, tasks_per_worker=0),
        lambda: completion_time(3, 2, "small_blocks", DISTRIBUTION, task_overhead=math.nan),
    ],
)
def test_sizes_that_do_not_fit_are_refused(call) -> None:
    with pytest.raises(CodeError):
        call()
