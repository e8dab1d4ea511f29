"""Tests that only the first map of a function waits until f is verified, as long as f does not change."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from polarmap import coded_map
from polarmap.driver.function_properties import LINEAR_OR_AFFINE, VERIFIED_PROPERTIES, FunctionProperty
from polarmap.errors import NotLinearError
from polarmap.testing import ReplayExecutor

DATA = np.random.default_rng(0).standard_normal((12, 5))


def times(x: Any) -> Callable[[Any], Any]:
    return lambda block: block @ x


def power(exponent: Any) -> Callable[[Any], Any]:
    return lambda block: block**exponent


def test_verified_properties_are_remembered_until_the_cache_is_cleared() -> None:
    f = times(np.ones(3))
    floats, integers = (("<f8", (2, 3)),), (("<i8", (2, 3)),)
    assert FunctionProperty(f, LINEAR_OR_AFFINE, floats).value is None
    FunctionProperty(f, LINEAR_OR_AFFINE, floats).remember_value()
    assert FunctionProperty(times(np.ones(3)), LINEAR_OR_AFFINE, floats).value is True
    assert FunctionProperty(times(np.zeros(3)), LINEAR_OR_AFFINE, floats).value is None
    assert FunctionProperty(f, LINEAR_OR_AFFINE, integers).value is None
    assert FunctionProperty(f, "another thing", floats).value is None
    VERIFIED_PROPERTIES.clear()
    assert FunctionProperty(f, LINEAR_OR_AFFINE, floats).value is None


def test_the_oldest_verified_properties_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polarmap.driver.function_properties.MAX_VERIFIED_PROPERTIES", 3)
    properties = [FunctionProperty(abs, LINEAR_OR_AFFINE, (("<f8", (n_rows,)),)) for n_rows in range(5)]
    for one in properties:
        one.remember_value()
    layouts = [(("<f8", (n_rows,)),) for n_rows in range(5)]
    values = [FunctionProperty(abs, LINEAR_OR_AFFINE, layout).value for layout in layouts]
    assert values == [None, None, True, True, True]


@pytest.mark.parametrize("f", [lambda block: block.max(axis=0), lambda block: np.sort(block, axis=0)])
def test_a_function_that_is_linear_on_one_row_is_verified_again_on_more_rows(
    f: Callable[[Any], Any],
) -> None:
    one_row_each = coded_map(f, DATA, blocks=12, tasks=16, executor=ReplayExecutor())
    np.testing.assert_array_equal(np.reshape(one_row_each, DATA.shape), DATA)
    assert len(VERIFIED_PROPERTIES) == 1
    with pytest.raises(NotLinearError):
        coded_map(f, DATA, blocks=4, tasks=8, executor=ReplayExecutor({1: math.inf}))


def get_verification(f: Callable[[Any], Any], surplus: bool) -> str:
    """Return report.verified of a map that loses two data tasks and, without `surplus`, one parity task."""
    seconds = dict.fromkeys([0, 1] if surplus else [0, 1, 6], math.inf)
    options = {"blocks": 4, "tasks": 7, "timeout": 100}
    return coded_map(f, DATA, executor=ReplayExecutor(seconds), **options).report.verified


@pytest.mark.parametrize(("surplus", "how"), [(True, "parity"), (False, "local")])
def test_the_next_map_trusts_a_verified_function(surplus: bool, how: str) -> None:
    assert get_verification(times(np.ones(5)), surplus) == how
    assert get_verification(times(np.ones(5)), surplus=False) == "earlier"
    assert get_verification(times(np.zeros(5)), surplus=False) == "local"


@pytest.mark.parametrize("seconds", [{}, dict.fromkeys([4, 5, 6], math.inf)], ids=["parity", "here"])
def test_a_function_is_verified_although_nothing_is_decoded(seconds: dict[int, float]) -> None:
    f = times(np.ones(5))
    options = {"blocks": 4, "tasks": 7, "timeout": 100, "executor": ReplayExecutor(seconds)}
    report = coded_map(f, DATA, **options).report
    assert (report.verified, report.residual is not None) == ("not needed", True)
    assert get_verification(f, surplus=False) == "earlier"


def test_a_function_that_failed_is_not_verified() -> None:
    for _ in range(2):
        with pytest.raises(NotLinearError):
            get_verification(power(2), surplus=False)


def test_a_function_that_changes_during_a_map_is_not_trusted() -> None:
    # When the map starts, f is a square. Its tasks compute and verify the identity.
    inside = [2]

    def f(block: Any) -> Any:
        inside[0] = 1
        return block ** inside[0]

    assert get_verification(f, surplus=False) == "local"
    inside[0] = 2
    assert get_verification(f, surplus=False) == "local"
