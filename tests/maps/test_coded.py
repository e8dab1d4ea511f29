from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
from plain import assert_same, plain_map

from polarmap import coded_map
from polarmap.codes import PolarCode
from polarmap.errors import CodeError
from polarmap.testing import Fault, FaultyExecutor, ReplayExecutor
from polarmap.types import CodedResult

DATA = np.random.default_rng(0).standard_normal((60, 4))
OPTIONS = {
    "blocks": None,
    "tasks": None,
    "code": "auto",
    "degree": 1,
    "schedule": "upfront",
    "executor": None,
    "out": None,
    "verify": "auto",
    "rtol": None,
    "timeout": None,
    "on_timeout": "raise",
    "retries": 1,
    "retry_delay": 0.0,
    "key": None,
    "progress": None,
}


def double(block: Any) -> Any:
    return 2 * block


def doubled(**options: Any) -> CodedResult:
    return coded_map(double, DATA, **{"executor": ReplayExecutor()} | options)


def test_options_are_pinned() -> None:
    parameters = list(inspect.signature(coded_map).parameters.values())
    assert [parameter.name for parameter in parameters[:2]] == ["f", "data"]
    assert {parameter.name: parameter.default for parameter in parameters[2:]} == OPTIONS
    assert all(parameter.kind is inspect.Parameter.KEYWORD_ONLY for parameter in parameters[2:])
    documented = (inspect.getdoc(coded_map) or "").splitlines()
    for parameter in parameters:
        assert any(line.startswith(f"{parameter.name} : ") for line in documented)


# --- sizes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "k", "n"),
    [
        ({}, 20, 27),
        ({"blocks": 5}, 5, 7),
        ({"blocks": 1}, 1, 2),
        ({"tasks": 32}, 20, 32),
        ({"tasks": 7}, 5, 7),
        ({"tasks": 2}, 1, 2),
        ({"tasks": 400}, 60, 400),
        ({"blocks": 12, "tasks": 13}, 12, 13),
        ({"blocks": 60, "tasks": 61}, 60, 61),
        ({"code": PolarCode(9, 5)}, 5, 9),
        ({"code": PolarCode(9, 5), "blocks": 5, "tasks": 9}, 5, 9),
        ({"code": PolarCode(9, 5, "arikan", "sequential")}, 5, 9),
    ],
)
def test_sizes_have_defaults_that_fit_each_other(options: dict[str, Any], k: int, n: int) -> None:
    result = doubled(**options)
    assert (result.report.k, result.report.n, len(result)) == (k, n, k)
    assert_same(result, plain_map(double, DATA, k))


@pytest.mark.parametrize(("length", "n"), [(1, 2), (3, 4), (4, 6), (24, 32), (30, 40)])
def test_a_sequence_gives_the_number_of_blocks_and_a_third_more_workers(length: int, n: int) -> None:
    result = coded_map(double, list(DATA[:length]), executor=ReplayExecutor())
    assert (result.report.k, result.report.n) == (length, n)


def test_a_sequence_takes_any_larger_number_of_workers() -> None:
    assert coded_map(double, list(DATA[:5]), tasks=6, executor=ReplayExecutor()).report.n == 6
    with pytest.raises(CodeError, match="tasks=5 leaves no parity for 5 blocks"):
        coded_map(double, list(DATA[:5]), tasks=5, executor=ReplayExecutor())


# --- code --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "kernel"),
    [("f8", "rotation"), ("f2", "rotation"), ("c8", "rotation"), ("i4", "arikan"), ("u1", "arikan")],
)
def test_auto_takes_the_kernel_that_is_exact_or_needs_least(dtype: str, kernel: str) -> None:
    report = coded_map(double, np.ones((6, 2), dtype), executor=ReplayExecutor()).report
    assert report.code == f"{kernel} code"


def test_auto_takes_the_exact_kernel_for_any_integer_leaf() -> None:
    blocks = [(np.ones(3), np.int16(1))] * 4
    report = coded_map(lambda pair: pair, blocks, executor=ReplayExecutor()).report
    assert report.code == "arikan code"


# --- executors ---------------------------------------------------------------------------------


def test_data_changed_in_place_between_two_maps_is_new_data() -> None:
    """Persistent workers keep blocks; on this machine they have mapped them."""
    data, x = np.random.default_rng(0).standard_normal((240, 300)), np.ones(300)
    late = {3: Fault("sleep", seconds=600), 7: Fault("sleep", seconds=600)}
    changes = [(), (120, 150), (239, 299), (slice(100, 110),), (slice(None),)]
    for place in changes:
        data[place] += 1.0
        result = coded_map(
            lambda block: block @ x, data, blocks=6, tasks=9, executor=FaultyExecutor(None, late)
        )
        np.testing.assert_allclose(result.concatenate(), data @ x, rtol=1e-9, atol=1e-9)
