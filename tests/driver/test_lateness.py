"""Tests of when a task is late: the rule for given run times, and the tracker of attempts that applies it."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated_jobs import late_moments

from polarmap.driver.lateness import LateTracker
from polarmap.planning import Empirical, LatenessRule, ParityRule, ShiftedExponential
from polarmap.planning.simulation.jobs import compute_lateness_thresholds

TIMES = st.lists(st.floats(0, 1e6), max_size=30)


@given(durations=TIMES, more=st.integers(1, 30), least=st.sampled_from([0.0, 0.1]))
def test_with_half_of_the_results_no_task_is_late_before_the_median(
    durations: list[float], more: int, least: float
) -> None:
    tasks = max(1, len(durations) + more)
    age = LatenessRule(tasks, min_seconds=least).late_after_seconds(sorted(durations))
    assert age >= least
    if len(durations) >= tasks / 2:
        assert sum(seconds <= age for seconds in durations) >= tasks / 2


@pytest.mark.parametrize("tasks", [24, 100, 8])
def test_the_share_of_late_tasks_for_exponential_run_times(tasks: int) -> None:
    # The share is one in twelve, but at least two tasks, whether the distribution is known or estimated.
    distribution = ShiftedExponential(1.0, 0.3)
    jobs = np.sort(distribution.sample(np.random.default_rng(0), (2000, tasks)), axis=1)
    share = max(1 / 12, 2 / tasks)
    known = LatenessRule(tasks, distribution).late_after_seconds(())
    assert (jobs > known).mean() == pytest.approx(share, rel=0.05)
    rule = LatenessRule(tasks)
    learned = np.array([rule.late_after_seconds(job[: tasks // 2].tolist()) for job in jobs])
    assert (jobs > learned[:, None]).mean() == pytest.approx(share, rel=0.3)
    np.testing.assert_allclose(learned, compute_lateness_thresholds(jobs, rule))


def test_equal_tasks_are_late_after_ten_percent_more_time() -> None:
    assert LatenessRule(24).late_after_seconds([2.0] * 12) == pytest.approx(2.2)
    assert LatenessRule(24, Empirical([2.0])).late_after_seconds(()) == pytest.approx(2.2)
    assert LatenessRule(24, min_seconds=5.0).late_after_seconds([2.0] * 12) == 5.0


def test_the_threshold_is_cautious_with_fewer_than_half_of_the_results_and_at_most_a_minute() -> None:
    rule = LatenessRule(24)
    assert rule.late_after_seconds([1.0, 2.0]) == 3 * 12 / 2 * 2.0
    assert rule.late_after_seconds([0.001]) == 0.1
    assert [rule.late_after_seconds((), late) for late in range(3)] == [60.0, 120.0, 240.0]
    assert rule.late_after_seconds((), 10**6) < inf


@pytest.mark.parametrize(
    ("durations", "began", "later", "moment"),
    [([], 0.0, [1.0], 6.0), ([1.0], 0.0, [1.0], 1.1), ([1.0, 1.0], 5.0, [0.01], 6.1), ([1.0], 0.5, [], 6.5)],
)
def test_tasks_started_later_count_until_half_of_the_first_tasks_have_returned(
    durations: list[float], began: float, later: list[float], moment: float
) -> None:
    attempts: LateTracker[str] = LateTracker(LatenessRule(4))
    attempts.on_start("that runs", began)
    for is_later, run_times in enumerate((durations, later)):
        for took in run_times:
            attempts.record_run_time(took, bool(is_later))
    assert attempts.find_next_late_time() == pytest.approx(moment)
    assert late_moments(LatenessRule(4), durations, [began], later) == [pytest.approx(moment)]


def test_parity_tasks_follow_the_same_rule() -> None:
    assert ParityRule(24).lateness_rule == LatenessRule(24)
    distribution = Empirical([1.0, 2.0])
    assert ParityRule(24, distribution).lateness_rule == LatenessRule(24, distribution)


@given(
    began=st.lists(st.floats(0, 10), min_size=1, max_size=8),
    ends=st.lists(st.tuples(st.integers(0, 7), st.floats(0, 20), st.booleans()), max_size=8),
)
def test_attempts_become_late_at_the_times_of_the_rule(
    began: list[float], ends: list[tuple[int, float, bool]]
) -> None:
    rule = LatenessRule(len(began))
    attempts: LateTracker[int] = LateTracker(rule)
    for name, when in enumerate(began):
        attempts.on_start(name, when)
    running, durations, later = dict(enumerate(began)), [], []
    for name, took, is_later in ends:
        attempts.on_end(name)
        if running.pop(name, None) is not None:
            attempts.record_run_time(took, is_later)
            (later if is_later else durations).append(took)
    moments = late_moments(rule, durations, running.values(), later)
    assert attempts.find_next_late_time() == min(moments, default=inf)
    for now in sorted(moments):
        expected = {name for name, moment in zip(running, moments) if moment <= now}
        assert attempts.find_late_attempts(now) == expected
    assert attempts.find_late_attempts(1e9) == {
        name for name, moment in zip(running, moments) if moment <= 1e9
    }


def test_a_late_attempt_stays_late_until_it_ends() -> None:
    attempts: LateTracker[str] = LateTracker(LatenessRule(3))
    for name in "abc":
        attempts.on_start(name, 0.0)
    assert attempts.find_late_attempts(60.0) == {"a"}
    attempts.record_run_time(50.0)
    assert attempts.find_late_attempts(61.0) == {"a"}
    assert attempts.find_next_late_time() == 300.0
    attempts.on_end("a")
    assert not attempts.find_late_attempts(299.0)
    attempts.on_end("b"), attempts.on_end("c")
    assert attempts.find_next_late_time() == inf


def test_an_open_ended_job_counts_finished_and_running_tasks() -> None:
    attempts: LateTracker[int] = LateTracker(LatenessRule(1, min_seconds=0.1), is_open_ended=True)
    assert attempts.find_next_late_time() == inf
    took = [1.0 + number / 100 for number in range(40)]
    for number, seconds in enumerate(took):
        attempts.on_start(number, 0.0)
        attempts.on_end(number)
        attempts.record_run_time(seconds)
    attempts.on_start(40, 100.0)
    attempts.on_start(41, 101.0)
    moments = late_moments(LatenessRule(42, min_seconds=0.1), took, [100.0, 101.0])
    assert attempts.find_next_late_time() == min(moments)
    assert attempts.find_late_attempts(moments[0]) == {40}
    assert attempts.find_late_attempts(moments[1]) == {40, 41}
