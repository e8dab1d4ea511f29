"""Tests of the options of maps: clear errors, and the same spelling in all functions that take them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from math import inf
from typing import Any

import numpy as np
import pytest

import polarmap
from polarmap import coded_map, convex, glm
from polarmap.arrays import Stored
from polarmap.blocks.code_choice import CodeOptions
from polarmap.codes import PolarCode, SecretSharing
from polarmap.driver.options import apply_plan, check_options
from polarmap.errors import CodeError
from polarmap.planning import ShiftedExponential
from polarmap.testing import ReplayExecutor

VERBS: list[Callable[..., Any]] = [
    *[polarmap.coded_map, polarmap.coded_sum, polarmap.coded_gradient, polarmap.hedged_map],
    *[polarmap.coded_matmul, polarmap.coded_gram, polarmap.CodedOperator, polarmap.encode],
    *[glm.LeastSquares, glm.Ridge, glm.LogisticRegression, glm.PoissonRegression],
    *[convex.Lasso, convex.ElasticNet, convex.NonNegativeLeastSquares],
    *[convex.SparseLogisticRegression, convex.LinearSVC],
]
GONE = ["parity", "subtasks", "plan", "private", "noise", "deadline", "store", "storage"]


def keywords(verb: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(verb).parameters.values()
    return {item.name: item.default for item in parameters if item.kind is item.KEYWORD_ONLY}


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.__name__)
def test_maps_spell_their_options_alike(verb: Callable[..., Any]) -> None:
    """Options shared with coded_map have the same name, order and default."""
    coded_map_keywords, shared = keywords(coded_map), keywords(verb)
    order = [name for name in shared if name in coded_map_keywords]
    assert order == [name for name in coded_map_keywords if name in shared]
    assert {name: shared[name] for name in order} == {name: coded_map_keywords[name] for name in order}


@pytest.mark.parametrize("name", GONE)
def test_a_removed_option_raises_type_error_of_python(name: str) -> None:
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
        coded_map(np.copy, np.ones((8, 2)), executor=ReplayExecutor(), **{name: None})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"schedule": "never"}, "schedule must be 'upfront', 'on_demand' or a Plan"),
        ({"schedule": 8}, "not 8: for tasks of less work, use blocks=8 * ... and tasks=8 * ..."),
        ({"schedule": None}, "schedule must be"),
        ({"schedule": polarmap.planning.Plan}, "schedule must be"),
        ({"out": "name"}, "out must be None or Stored(name, storage), not 'name': use Stored('name')"),
        ({"out": Stored}, "out must be None or Stored(name, storage)"),
        ({"code": SecretSharing}, "SecretSharing() or a code such as PolarCode(n, k)"),
        ({"on_timeout": "give up"}, "on_timeout must be 'raise' or 'estimate', not 'give up'"),
        ({"on_timeout": "estimate"}, "on_timeout='estimate' needs timeout="),
    ],
)
def test_an_invalid_value_is_reported_with_the_valid_values(options: dict[str, Any], words: str) -> None:
    with pytest.raises(CodeError) as caught:
        coded_map(np.copy, np.ones((8, 2)), **{"executor": ReplayExecutor()} | options)
    assert words in str(caught.value)


def test_a_timeout_is_where_a_map_fails_or_estimates() -> None:
    fails = check_options("auto", None, 30.0, 1)
    estimates = check_options("auto", None, 30.0, 1, "estimate")
    assert (fails.timeout, fails.estimate_on_timeout) == (30.0, False)
    assert (estimates.timeout, estimates.estimate_on_timeout) == (30.0, True)
    assert check_options("auto", None, None, 1).timeout == inf


def test_a_plan_says_when_tasks_start_and_which() -> None:
    plan = polarmap.plan(8, ShiftedExponential(1.0, 0.1), max_workers=12, code="sequential", n_trials=20)
    settings = check_options("auto", None, None, 1, schedule=plan)
    assert (settings.schedule, settings.parity_required_by) == (plan.schedule, "the plan")
    assert (settings.n_upfront_parity, settings.run_times) == (plan.n_upfront_parity, plan.run_times)
    options = apply_plan(CodeOptions(degree=1), plan)
    assert (options.blocks, options.tasks) == (8, plan.n)
    assert isinstance(options.code, PolarCode)
    assert options.code.kernel == "arikan"
    assert repr(apply_plan(CodeOptions(8, plan.n, "arikan"), plan)) == repr(options)
    words = r"code must be that of the plan, 'sequential', not 'rotation'\. Leave code out"
    with pytest.raises(CodeError, match=words):
        apply_plan(CodeOptions(code="rotation"), plan)
