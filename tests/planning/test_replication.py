"""Completion times of replicated tasks; the oracle is a simulation of every job."""

from __future__ import annotations

import numpy as np
import pytest
from simulated_jobs import DISTRIBUTIONS

from polarmap.planning import Distribution, completion_time


@pytest.mark.parametrize("distribution", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
def test_replicas_of_simulated_jobs(distribution: Distribution) -> None:
    copies = distribution.sample(np.random.default_rng(5), (3, 10, 40_000))
    tasks = copies.min(axis=0)
    finish = tasks.max(axis=0)
    ended = np.isfinite(finish)
    completion = completion_time(30, 10, "replication", distribution)
    assert completion.mean == pytest.approx(finish[ended].mean(), rel=0.01)
    assert completion.worker_seconds == pytest.approx(3 * tasks.sum(axis=0)[ended].mean(), rel=0.01)
    assert completion.p99 == pytest.approx(np.quantile(finish, 0.99, method="higher"), rel=0.05)
    assert completion.failure_probability == pytest.approx(1 - ended.mean(), abs=1e-3)
