"""Empirical run-time distributions from reports and files; the oracle is scipy's product-limit estimate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import polarmap
from polarmap.errors import CodeError
from polarmap.executors.interface import AttemptStarted, Event, JobSpec, Outcome
from polarmap.executors.replay import ReplaySession
from polarmap.planning import (
    Empirical,
    ShiftedExponential,
    as_distribution,
)
from polarmap.planning.empirical import SharedCores
from polarmap.report import Report, TaskReport
from polarmap.testing import ReplayExecutor
from polarmap.worker.environment import count_available_cores


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=40))
def test_product_limit_is_scipys(observed: list[tuple[int, bool]]) -> None:
    times = np.array([time for time, _ in observed], float)
    ended = np.array([done for _, done in observed])
    if not ended.any():
        with pytest.raises(CodeError, match="at least one observed task must have completed"):
            Empirical(times, ended)
        return
    distribution = Empirical(times, ended)
    oracle = stats.ecdf(stats.CensoredData(uncensored=times[ended], right=times[~ended])).cdf
    np.testing.assert_allclose(
        distribution.cdf(np.arange(11.0)), oracle.evaluate(np.arange(11.0)), atol=1e-12
    )


def test_exponential_tail_continues_censored_times() -> None:
    distribution, rng = ShiftedExponential(1.0, 2.0), np.random.default_rng(8)
    times, limit = distribution.sample(rng, 20_000), float(distribution.quantile(0.75))
    censored = Empirical(np.minimum(times, limit), times <= limit)
    assert censored.failure_probability == pytest.approx(0.25, abs=0.01)
    assert censored.quantile(0.9) == np.inf
    continued = censored.with_exponential_tail()
    assert continued.mean() == pytest.approx(3.0, rel=0.02)
    np.testing.assert_allclose(
        continued.quantile([0.5, 0.9, 0.99]), distribution.quantile([0.5, 0.9, 0.99]), rtol=0.05
    )


def report(*tasks: TaskReport) -> Report:
    return Report(len(tasks), 2, "c", "e", tasks, 2, seconds=9.0)


def test_abandoned_tasks_are_censored() -> None:
    censored = report(
        TaskReport(0, "arrived", 1.0, 0.5, 1),
        TaskReport(1, "arrived", 3.0, 2.5, 1),
        TaskReport(2, "abandoned", None, None, 1),
        TaskReport(3, "failed", None, None, 2),
    )
    distribution = Empirical.from_reports(censored)
    assert distribution.values.tolist() == [1.0, 3.0]
    # Four tasks were started: one failed, and one was abandoned before it ended.
    assert distribution.failure_probability == pytest.approx(0.5)
    by_worker = Empirical.from_reports([censored, censored], clock="seconds")
    assert by_worker.values.tolist() == [0.5, 2.5]
    assert as_distribution([censored, censored]).failure_probability == 0
    with pytest.raises(CodeError, match="clock must be"):
        Empirical.from_reports(censored, clock="wall")


def test_task_abandoned_early_is_censored_at_its_last_observation() -> None:
    first = report(TaskReport(0, "arrived", 1.0, 1.0, 1), TaskReport(1, "abandoned", None, None, 1))
    second = report(TaskReport(0, "arrived", 1.0, 1.0, 1), TaskReport(1, "arrived", 2.0, 2.0, 1))
    distribution = Empirical.from_reports([first, second])  # times 1, 1, 2, and one censored at 1
    np.testing.assert_allclose(distribution.cdf([1.0, 2.0]), [0.5, 1.0])


def test_columns_of_csv_files(tmp_path: Path) -> None:
    file = tmp_path / "times.csv"
    file.write_text("step,relative\n1,2.5\n2,1.5\n")
    assert Empirical.from_csv(file, "relative").mean() == 2.0
    with pytest.raises(CodeError, match="column must be one of step, relative, not 'seconds'"):
        Empirical.from_csv(file, "seconds")
    file.write_text("relative\n1.0\nslow\n")
    with pytest.raises(CodeError, match=r"numbers of seconds: .* 'slow'"):
        Empirical.from_csv(file, "relative")


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: Empirical([]), "run times must not be empty"),
        (lambda: Empirical([1.0, -2.0]), "run time 1 is -2"),
        (lambda: Empirical([np.nan]), "run time 0 is nan"),
        (lambda: Empirical(["fast"]), "numbers of seconds"),
        (lambda: Empirical([np.inf]), "at least one observed task must have completed"),
        (lambda: Empirical([1.0, 2.0], [True]), "one entry for each of the 2 run times, got 1"),
        (lambda: as_distribution(3.0), "run times in seconds, reports or a path, not float"),
        (lambda: as_distribution("fast"), "'fast' is not a file of `polarmap measure` with 'warm' times"),
        (lambda: as_distribution([]), "run times must not be empty"),
    ],
)
def test_bad_input_is_refused_with_a_reason(build: Callable[[], object], says: str) -> None:
    with pytest.raises(CodeError, match=says):
        build()


# --- tasks that wait for a core ---------------------------------------------------------------------


class TwoSlots(ReplayExecutor):
    """An executor that runs two tasks of one second at a time, like a laptop with two cores."""

    is_local = True

    def open(self, job_spec: JobSpec) -> ReplaySession:
        return RunInSlots({}, job_spec)


class RunInSlots(ReplaySession):
    def submit(self, attempts: Sequence[tuple[int, int]]) -> None:
        for turn, (task, attempt) in enumerate(attempts):
            began = float(turn // 2)
            self._arrival_seconds = {task: 1.0 + began}
            super().submit([(task, attempt)])
            self._start_events[-1] = AttemptStarted(task, attempt, began)

    def wait(self, timeout: float) -> list[Event]:
        events = super().wait(timeout)
        self._start_events = [
            event for event in events if isinstance(event, AttemptStarted) and event.started_at > self.now()
        ]
        return [event for event in events if event not in self._start_events]

    def cancel_queued(self) -> list[AttemptStarted]:
        return [event for event in super().cancel_queued() if event.started_at <= self.now()]

    def _compute_outcome(self, request: Any, seconds: float) -> Outcome:
        return super()._compute_outcome(request, seconds)._replace(seconds=1.0)


def test_tasks_waiting_for_a_core_are_no_stragglers() -> None:
    options: dict[str, Any] = {"blocks": 24, "tasks": 32, "verify": False, "executor": TwoSlots()}
    y = polarmap.coded_map(np.negative, np.ones((24, 2)), **options)
    assert len(y.report.tasks_in_state("cancelled")) == 6
    assert [task.started for task in y.report.tasks[:5]] == [0.0, 0.0, 1.0, 1.0, 2.0]
    assert Empirical.from_reports(y.report).quantile(1.0) == 1.0
    chosen = polarmap.plan(24, [y.report])
    assert (chosen.n, chosen.code) == (24, "uncoded")
    assert "a plain map without a code is enough" in str(chosen)
    measured = polarmap.planning.measure(TwoSlots(), tasks=6, task_seconds=0.001)
    assert measured.warm == [1.0] * 6


def test_a_plan_and_a_measurement_say_that_tasks_shared_the_cores_of_this_machine(tmp_path: Path) -> None:
    cores = count_available_cores()
    measured = polarmap.planning.measure(TwoSlots(), tasks=6, task_seconds=0.001)
    assert measured.shared_cores == (cores, 2)
    assert (
        str(measured)
        .splitlines()[-1]
        .startswith(f"up to 2 tasks at a time shared the {cores} cores of this machine: ")
    )
    measured.save(tmp_path / "times.json")
    chosen = polarmap.plan(2, tmp_path / "times.json")
    assert chosen.shared_cores == (cores, 2)
    assert str(measured.shared_cores) in str(chosen).splitlines()
    crowded, roomy = str(SharedCores(2, 3)), str(SharedCores(4, 3))
    assert "include waiting" in crowded
    assert "include waiting" not in roomy
    elsewhere = polarmap.planning.measure(ReplayExecutor(), tasks=6, task_seconds=0.001)
    assert elsewhere.shared_cores is None


def test_tasks_not_started_are_ignored() -> None:
    begun = TaskReport(0, "arrived", 3.0, 1.0, 1, started=2.0)
    late = TaskReport(1, "abandoned", None, None, 1, started=1.0)
    never = TaskReport(2, "cancelled", None, None, 1)
    distribution = Empirical.from_reports(report(begun, late, never))
    assert (distribution.times.tolist(), distribution.completed_mask.tolist()) == ([1.0, 2.0], [True, False])
    assert Empirical.from_reports(report(begun, late, never), "seconds").times.tolist() == [1.0, 2.0]
