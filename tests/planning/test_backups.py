"""Backups and copies: against the rules asked at small steps, and against jobs simulated one by one."""

from __future__ import annotations

import numpy as np
import pytest
from simulated_jobs import DISTRIBUTIONS

from polarmap.planning import (
    Distribution,
    Empirical,
    Failing,
    Mixture,
    Pareto,
    completion_time,
)
from polarmap.planning.backups import CUBED, HEDGED, SPARK, BackupRule, launch_times


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
        patience = max(rule.min_seconds, rule.slow * median) if ready else np.inf
        if len(first) >= rule.min_tasks and now > patience and len(done) < len(first):
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
