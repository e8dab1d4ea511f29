"""coded_map(schedule=Plan): blocks, tasks, code and parity follow a plan for a distribution of run times."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from plain import assert_same, cut, states

import polarmap
from polarmap import coded_map, plan
from polarmap.errors import CodeError
from polarmap.planning import ShiftedExponential, with_stragglers
from polarmap.testing import ReplayExecutor

DATA = np.random.default_rng(0).standard_normal((24, 5))
DISTRIBUTION = with_stragglers(ShiftedExponential(1.0, 0.1), 0.02, 5.0)


@pytest.mark.parametrize("code", ["rotation", "sequential", "optimal"])
def test_a_plan_sets_blocks_workers_and_code(code: str) -> None:
    chosen = plan(8, DISTRIBUTION, "p99", max_workers=12, code=code)
    report = coded_map(
        np.copy, DATA, schedule=chosen, executor=ReplayExecutor({0: math.inf}), timeout=99
    ).report
    assert (report.n, report.k, report.schedule) == (chosen.n, 8, "upfront")
    assert code in report.code or code == "optimal"


def test_plan_on_demand_starts_upfront_parity_and_sets_when_tasks_are_late() -> None:
    chosen = plan(8, DISTRIBUTION, "cost", max_workers=12, schedule="on_demand")
    assert (chosen.schedule, chosen.n) == ("on_demand", 12)
    seconds = dict.fromkeys(range(3), math.inf)
    result = coded_map(
        np.copy, DATA, schedule=chosen, executor=ReplayExecutor(seconds), timeout=99, verify=False
    )
    assert_same(result, cut(DATA, 8), 1e-11)
    launched = [task.launched for task in result.report.tasks[8:]]
    assert launched[: chosen.n_upfront_parity] == [0.0] * chosen.n_upfront_parity
    late = float(DISTRIBUTION.quantile(0.75))  # two of 8 tasks may be slower by chance
    assert launched[chosen.n_upfront_parity : 3] == pytest.approx(
        [max(late, 1.1 * DISTRIBUTION.quantile(0.5))] * (3 - chosen.n_upfront_parity)
    )
    assert result.report.tasks_in_state("held back") == [11]


def test_plan_of_small_blocks_runs_on_persistent_workers() -> None:
    chosen = plan(8, DISTRIBUTION, max_workers=12, task_overhead=0.02)
    assert chosen.expected.tasks_per_worker > 1
    data = np.random.default_rng(0).standard_normal((3 * chosen.k, 5))
    with ThreadPoolExecutor(chosen.n_workers) as pool:
        result = coded_map(np.copy, data, schedule=chosen, executor=pool)
    assert (result.report.n, result.report.k) == (chosen.n, chosen.k)
    assert_same(result, cut(data, chosen.k), 1e-11)


def test_a_plan_without_a_code_is_a_plain_map() -> None:
    chosen = plan(8, ShiftedExponential(1.0, 1e-3), "cost", slack=0.0)
    assert chosen.code == "uncoded"
    result = coded_map(np.sin, DATA, schedule=chosen, executor=ReplayExecutor())
    assert_same(result, [np.sin(block) for block in cut(DATA, 8)])
    assert states(result.report) == {"arrived": list(range(8))}


def test_sizes_of_a_plan_can_be_used_with_another_schedule() -> None:
    chosen = plan(8, DISTRIBUTION, "p99", max_workers=12)
    sizes = {"blocks": chosen.k, "tasks": chosen.n}
    report = coded_map(np.copy, DATA, **sizes, schedule="on_demand", executor=ReplayExecutor()).report
    assert len(report.tasks_in_state("held back")) == chosen.n - 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": 6}, "blocks must be 8, as in the plan, not 6"),
        ({"tasks": 9}, "tasks must be 1[0-9]*, as in the plan, not 9"),
    ],
)
def test_contradictions_are_refused(options: dict, message: str) -> None:
    chosen = plan(8, DISTRIBUTION, "p99", max_workers=12)
    with pytest.raises(CodeError, match=message):
        coded_map(np.copy, DATA, **{"schedule": chosen} | options, executor=ReplayExecutor())


@pytest.mark.parametrize("objective", ["cost", "p99"])
def test_the_planned_mix_is_cheap_and_has_a_short_tail(objective: str) -> None:
    # The plan starts a few parity tasks upfront and the rest on demand, at no more than 115 % of the cost
    # of a plain map.
    chosen = plan(24, DISTRIBUTION, objective, max_workers=32, schedule="auto", budget=1.15 * 28.51)
    backup = polarmap.planning.completion_time(24, 24, "backup-cubed", DISTRIBUTION, n_trials=20_000)
    assert chosen.schedule == "on_demand"
    assert chosen.expected.worker_seconds <= 1.15 * chosen.uncoded.worker_seconds
    assert chosen.expected.p99 <= (0.35 if objective == "p99" else 0.6) * backup.p99
    assert "on demand" in str(chosen)


def test_parity_on_demand_is_planned_for_the_rotation_code() -> None:
    with pytest.raises(CodeError, match="code must be 'rotation' with schedule='auto'"):
        plan(8, DISTRIBUTION, code="sequential", schedule="auto")
    with pytest.raises(CodeError, match="'upfront', 'on_demand' or 'auto', not 'never'"):
        plan(8, DISTRIBUTION, schedule="never")
