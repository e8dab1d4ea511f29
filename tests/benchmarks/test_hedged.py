"""The jobs of the benchmark of backup tasks: what they sleep, and what they are said to cost."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from benchmarks import hedged
from benchmarks.hedged import SCHEMES, TASKS, Job


def test_worker_seconds_count_until_a_task_has_returned() -> None:
    job = Job(np.zeros((1, 2)))
    job.began = [(0, 1.0), (1, 1.0), (1, 3.0), (0, 9.0)]
    job.returned = {0: 2.0, 1: 4.0}
    assert job.worker_seconds == 1.0 + 3.0 + 1.0


def test_a_further_attempt_takes_its_own_time() -> None:
    job = Job(np.array([[0.0, 0.0], [0.001, 0.0]]))
    assert [job.f(0), job.f(0), job.f(1)] == [0, 0, 1]
    assert [task for task, _ in job.began] == [0, 0, 1]
    assert job.returned.keys() == {0, 1}


@pytest.mark.parametrize("name", ["cubed's rule", "hedged_map"])
def test_a_straggler_gets_a_backup(name: str) -> None:
    seconds = np.full((2, TASKS), 0.01)
    seconds[0, 5] = 1.5
    job = Job(seconds)
    with ThreadPoolExecutor(2 * TASKS) as pool:
        assert SCHEMES[name][0](pool, job) == list(range(TASKS))
        assert [task for task, _ in job.began].count(5) == 2


def test_every_scheme_runs_every_job() -> None:
    found = hedged.measured(seed=0, jobs=1, unit=0.01)
    assert found.keys() == SCHEMES.keys()
    assert all(one.shape == (1, 2) and (one > 0).all() for one in found.values())
    [_, cubed, ours] = hedged.rows(found)
    assert (cubed[0], ours[0]) == ("cubed's rule", "hedged_map")
    assert ours[3] < cubed[3]  # as simulated
