"""Measured run times of tasks: on a virtual clock, on real threads, and with lost tasks."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from math import inf
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import polarmap
from polarmap.errors import CodeError
from polarmap.planning import (
    Empirical,
    Measurement,
    Pareto,
    ShiftedExponential,
    as_distribution,
    measure,
)
from polarmap.planning.measurement import fit_closest_family
from polarmap.testing import Fault, FaultyExecutor, ReplayExecutor


def test_measurement_has_the_time_of_each_task() -> None:
    script = {0: 2.5, 2: 0.5}
    measured = measure(ReplayExecutor(script), tasks=5, task_seconds=0.001)
    assert measured.cold == measured.warm == [2.5, 1.0, 0.5, 1.0, 1.0]
    assert str(measured).splitlines()[0] == (
        "5 tasks of 0.001 s on replay, in a first map (cold) and in a second map (warm); times in seconds"
    )


def test_lost_tasks_are_counted_and_not_retried() -> None:
    faulty = FaultyExecutor(ReplayExecutor(), {1: Fault("kill"), 3: Fault("raise")})
    measured = measure(faulty, tasks=4, task_seconds=0.001)
    assert measured.warm == [1.0, inf, 1.0, inf]
    assert str(measured).splitlines()[2].split() == ["cold", "2", "1", "1", "1", "1"]


def test_tasks_compute_for_the_given_time() -> None:
    with ThreadPoolExecutor(1) as threads:
        measured = measure(threads, tasks=2, task_seconds=0.2)
    # The machine may have become ten times as fast since the calibration.
    assert all(time > 0.02 for time in measured.cold + measured.warm)


@pytest.mark.parametrize("law", [ShiftedExponential(1.0, 0.5), Pareto(1.0, 2.5)])
def test_the_nearest_law_is_that_of_the_sample(law: ShiftedExponential | Pareto) -> None:
    times = law.sample(np.random.default_rng(1), 2000)
    fit = fit_closest_family([*times.tolist(), inf])
    assert type(fit) is type(law)
    assert stats.kstest(times, fit.cdf).statistic < 0.03


def test_identical_times_fit_no_law() -> None:
    assert fit_closest_family([1.0, 1.0]) is None
    assert fit_closest_family([inf]) is None


def test_saved_measurement_can_be_loaded_and_planned(tmp_path: Path) -> None:
    measured = Measurement("somewhere", 2.0, [3.0, 4.0, inf], [2.0, 2.5, 9.0])
    measured.save(tmp_path / "times.json")
    assert json.loads((tmp_path / "times.json").read_text())["cold"] == [3.0, 4.0, None]
    warm, cold = (
        as_distribution(tmp_path / "times.json"),
        Empirical.from_json(tmp_path / "times.json", "cold"),
    )
    assert warm.quantile(1.0) == 9.0
    assert cold.failure_probability == pytest.approx(1 / 3)
    plan = polarmap.plan(6, tmp_path / "times.json")
    blocks = list(np.eye(6))
    total = polarmap.coded_map(np.sum, blocks, schedule=plan, executor=ReplayExecutor())
    assert np.allclose(list(total), 1)


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"warm": 3}', '{"warm": ["x"]}'])
def test_invalid_file_is_refused_with_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(
        CodeError,
        match=r"other\.json' is not a file of `polarmap measure` with 'warm' times|run times must be numbers",
    ):
        as_distribution(tmp_path / "other.json")


@pytest.mark.parametrize(
    ("options", "said"),
    [({"tasks": 0}, "tasks must be"), ({"task_seconds": -1}, "task_seconds must be a positive number")],
)
def test_invalid_numbers_are_refused(options: dict[str, float], said: str) -> None:
    with pytest.raises(CodeError, match=said):
        measure(ReplayExecutor(), **options)  # type: ignore[arg-type]
