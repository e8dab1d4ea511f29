"""Vectorized simulation of backup tasks.

The oracles evaluate the rules at small time steps, or simulate each job separately.
"""

from __future__ import annotations

from math import inf

import numpy as np
import pytest

from polarmap.driver.lateness import make_backup_lateness_rule
from polarmap.planning import (
    Distribution,
    Empirical,
    FailureProne,
    LatenessRule,
    Mixture,
    Pareto,
    ShiftedExponential,
    completion_time,
    simulate_backups,
    with_stragglers,
)
from polarmap.planning.simulation.backups import (
    CUBED_RULE,
    SPARK_RULE,
    BackupRule,
    compute_backup_start_times,
)


def find_start_by_steps(first: np.ndarray, rule: BackupRule, step: float) -> float:
    """Return the time at which a rule starts backups, by evaluating its definition at small time steps."""
    for now in np.arange(0, first.max(), step):
        done = sorted(first[first <= now])
        if rule.uses_all_tasks:
            index = int(np.ceil(len(first) * rule.completed_fraction)) - 1
            ready, median = len(done) > index, done[index] if len(done) > index else None
        else:
            ready = len(done) >= max(1, int(len(first) * rule.completed_fraction))
            median = np.median(done) if ready else None
        patience = rule.slowdown * median if ready else np.inf
        if len(first) >= rule.min_tasks and now > patience and len(done) < len(first):
            return float(now)
    return np.inf


@pytest.mark.parametrize("rule", [CUBED_RULE, SPARK_RULE], ids=["cubed", "spark"])
@pytest.mark.parametrize("k", [1, 2, 9, 10, 24, 31])
def test_backups_start_when_the_rule_first_applies(rule: BackupRule, k: int) -> None:
    first = np.sort(Pareto(1.0, 1.0).sample(np.random.default_rng(k), (40, k)), axis=1)
    first = np.minimum(first, 20.0 + np.arange(k))
    start_times = compute_backup_start_times(first, rule)
    expected = [find_start_by_steps(row, rule, 0.02) for row in first]
    np.testing.assert_allclose(start_times, expected, atol=0.03)


def test_backups_help_against_stragglers_and_cost_what_they_ran() -> None:
    slow = Mixture([Empirical([1.0]), Empirical([50.0])], [0.98, 0.02])
    completion = completion_time(32, 32, "backup-cubed", slow, n_trials=4000)
    late = 1 - 0.98**32  # probability of a slow task, whose backup starts at 3 s and usually takes 1 s
    again = 32 * 0.02 * 0.02  # expected number of tasks whose backup is slow, too
    assert completion.mean == pytest.approx(1 + 3 * late + 46 * again, rel=0.05)
    assert completion.n_tasks_started == pytest.approx(32 * 1.02, rel=0.005)
    assert completion.worker_seconds == pytest.approx(
        32 * (0.98 + 0.02 * (4 + 1)) + again * (46 + 46), rel=0.02
    )
    # With fewer than ten tasks, cubed starts no backups.
    assert completion_time(9, 9, "backup-cubed", slow).n_tasks_started == 9


def test_backups_rescue_failures_but_not_all() -> None:
    distribution = FailureProne(Empirical([1.0]), 0.05)
    completion = completion_time(20, 20, "backup-cubed", distribution, n_trials=20_000)
    assert completion.failure_probability == pytest.approx(1 - (1 - 0.05**2) ** 20, abs=0.01)
    assert completion.mean == pytest.approx(1 + 3 * (1 - (0.95 / 0.9975) ** 20), rel=0.02)


# --- by the rule of hedged_map -----------------------------------------------------------------


def simulate_one_job(table: np.ndarray, rule: LatenessRule) -> tuple[float, float, int]:
    """Simulate one job by applying the rule to all attempts at every event.

    Parameters
    ----------
    table : array of shape (attempts, k)
        The run time of each attempt of each task.
    rule : LatenessRule
        The rule that starts backups.

    Returns
    -------
    tuple of (float, float, int)
        The completion time, the worker-seconds, and the number of attempts started.
    """
    most, k = table.shape
    starts: list[list[float]] = [[0.0] for _ in range(k)]
    late: set[tuple[int, int]] = set()
    now = 0.0
    while True:
        ends = [
            min(start + table[turn, i] for turn, start in enumerate(task_starts))
            for i, task_starts in enumerate(starts)
        ]
        if all(end <= now for end in ends):
            break
        first, later = [], []
        for i, task_starts in enumerate(starts):
            if ends[i] <= now:
                winner = next(
                    turn for turn, start in enumerate(task_starts) if start + table[turn, i] == ends[i]
                )
                (later if winner else first).append(float(table[winner, i]))
        running = [(i, turn) for i in range(k) if ends[i] > now for turn in range(len(starts[i]))]
        late &= set(running)
        known = sorted(first + later) if len(first) < -(-k // 2) else sorted(first)
        moments = [inf]
        for key in sorted(set(running) - late, key=lambda key: (starts[key[0]][key[1]], key)):
            moment = starts[key[0]][key[1]] + rule.late_after_seconds(known, len(late))
            if moment > now:
                moments.append(moment)
                break
            late.add(key)
        due = [i for i, turn in late if turn == len(starts[i]) - 1 and len(starts[i]) < most]
        for i in due:
            starts[i].append(now)
        if not due:
            now = min([*moments, *(end for end in ends if end > now)])
            if now == inf:
                return inf, inf, sum(map(len, starts))
    paid = sum(end - start for end, task_starts in zip(ends, starts) for start in task_starts)
    return max(ends), paid, sum(map(len, starts))


class RunTimeTable:
    """Returns the run times of further attempts from a table of shape (attempts, trials, k)."""

    def __init__(self, table: np.ndarray) -> None:
        self._further = iter(table[1:])

    def __call__(self, late: np.ndarray) -> np.ndarray:
        return next(self._further)[late]


@pytest.mark.parametrize("most", [0, 1, 3])
@pytest.mark.parametrize(
    "distribution",
    [
        with_stragglers(ShiftedExponential(1.0, 0.1), 0.1, 5.0),
        FailureProne(Pareto(1.0, 1.0), 0.2),
        FailureProne(Pareto(0.02, 0.7), 0.1),
        FailureProne(ShiftedExponential(40.0, 30.0), 0.3),
        FailureProne(Empirical([1.0]), 0.9),
    ],
    ids=["stragglers", "heavy", "short", "long", "lost"],
)
def test_vectorized_simulation_agrees_with_separate_jobs(distribution: Distribution, most: int) -> None:
    rng = np.random.default_rng(0)
    for k in (1, 2, 3, 8, 24):
        rule = make_backup_lateness_rule(k)
        table = distribution.sample(rng, (most + 1, 20, k))
        jobs = simulate_backups(table[0], RunTimeTable(table), rule, most)
        for job in range(20):
            time, paid, started = simulate_one_job(table[:, job], rule)
            assert jobs.completion_times[job] == pytest.approx(time)
            assert jobs.worker_seconds[job] == pytest.approx(paid)
            if np.isfinite(time):
                assert jobs.n_tasks_started[job] == started


def test_learned_rule_is_better_than_that_of_cubed() -> None:
    # The job has 24 tasks, and 2 % of tasks take five times as long.
    slow = with_stragglers(ShiftedExponential(1.0, 0.1), 0.02, 5.0)
    plain, cubed, learned = (
        completion_time(24, 24, scheme, slow, n_trials=20_000)
        for scheme in ("uncoded", "backup-cubed", "backup")
    )
    assert learned.p99 <= 0.65 * cubed.p99
    assert learned.worker_seconds <= 1.05 * plain.worker_seconds
