from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np
import pytest
from plain import assert_same, plain_map

from polarmap import coded_map, coded_sum, hedged_map, submit
from polarmap.arrays import Stored
from polarmap.codes import PolarCode
from polarmap.errors import CodedTimeoutError, CodeError
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
    "on_result": None,
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
def test_default_sizes_fit_each_other(options: dict[str, Any], k: int, n: int) -> None:
    result = doubled(**options)
    assert (result.report.k, result.report.n, len(result)) == (k, n, k)
    assert_same(result, plain_map(double, DATA, k))


@pytest.mark.parametrize(("length", "n"), [(1, 2), (3, 4), (4, 6), (24, 32), (30, 40)])
def test_sequence_sets_the_number_of_blocks_and_a_third_more_tasks(length: int, n: int) -> None:
    result = coded_map(double, list(DATA[:length]), executor=ReplayExecutor())
    assert (result.report.k, result.report.n) == (length, n)


def test_sequence_allows_any_larger_number_of_tasks() -> None:
    assert coded_map(double, list(DATA[:5]), tasks=6, executor=ReplayExecutor()).report.n == 6
    with pytest.raises(CodeError, match="tasks=5 leaves no parity for 5 blocks"):
        coded_map(double, list(DATA[:5]), tasks=5, executor=ReplayExecutor())


# --- code --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "kernel"),
    [("f8", "rotation"), ("f2", "rotation"), ("c8", "rotation"), ("i4", "arikan"), ("u1", "arikan")],
)
def test_auto_chooses_the_kernel_that_is_exact_or_needs_fewest_results(dtype: str, kernel: str) -> None:
    report = coded_map(double, np.ones((6, 2), dtype), executor=ReplayExecutor()).report
    assert report.code == f"{kernel} code"


def test_auto_chooses_the_exact_kernel_for_any_integer_leaf() -> None:
    blocks = [(np.ones(3), np.int16(1))] * 4
    report = coded_map(lambda pair: pair, blocks, executor=ReplayExecutor()).report
    assert report.code == "arikan code"


# --- executors ---------------------------------------------------------------------------------


def test_data_changed_in_place_between_two_maps_is_new_data() -> None:
    # Persistent workers on this machine cache the blocks of earlier maps as memory-mapped files.
    data, x = np.random.default_rng(0).standard_normal((240, 300)), np.ones(300)
    late = {3: Fault("sleep", seconds=600), 7: Fault("sleep", seconds=600)}
    changes = [(), (120, 150), (239, 299), (slice(100, 110),), (slice(None),)]
    for place in changes:
        data[place] += 1.0
        result = coded_map(
            lambda block: block @ x, data, blocks=6, tasks=9, executor=FaultyExecutor(None, late)
        )
        np.testing.assert_allclose(result.concatenate(), data @ x, rtol=1e-9, atol=1e-9)


# --- on_result= --------------------------------------------------------------------------------


def test_on_result_receives_arrived_blocks_and_then_decoded_blocks() -> None:
    calls: list[tuple[int, Any]] = []
    executor = ReplayExecutor({0: 3.0, 1: 2.0, 2: math.inf, 3: 1.0, 4: 4.0, 5: 4.0})
    result = doubled(
        blocks=4, tasks=6, executor=executor, on_result=lambda index, block: calls.append((index, block))
    )
    assert [index for index, _ in calls] == [3, 1, 0, 2]
    assert all(block is result[index] for index, block in calls)
    assert result.report.recovered == (2,)


def test_on_result_receives_no_rejected_result() -> None:
    calls: dict[int, Any] = {}
    executor = FaultyExecutor(ReplayExecutor(), {1: Fault("garbage", attempts=9)})
    result = doubled(blocks=6, tasks=12, executor=executor, verify=True, on_result=calls.__setitem__)
    assert result.report.tasks[1].state == "failed"
    assert list(calls) == [0, 2, 3, 4, 5, 1]
    np.testing.assert_allclose(np.concatenate([calls[index] for index in range(6)]), 2 * DATA)


def test_on_result_is_not_called_by_a_map_that_raises() -> None:
    calls: dict[int, Any] = {}
    never = ReplayExecutor(dict.fromkeys(range(1, 4), math.inf))
    with pytest.raises(CodedTimeoutError):
        doubled(blocks=3, tasks=4, executor=never, timeout=2.0, on_result=calls.__setitem__)
    assert calls == {}


def test_on_result_receives_estimates_if_the_map_returns_them() -> None:
    calls: dict[int, Any] = {}
    late = ReplayExecutor({0: math.inf, 1: math.inf, 4: math.inf})
    options: dict[str, Any] = {"blocks": 4, "tasks": 5, "timeout": 2.0, "on_timeout": "estimate"}
    result = doubled(executor=late, on_result=calls.__setitem__, **options)
    assert result.report.estimated_blocks == (0, 1)
    assert list(calls) == [2, 3, 0, 1]
    assert all(calls[index] is block for index, block in enumerate(result))


@pytest.mark.parametrize("map_function", [coded_map, hedged_map, coded_sum])
def test_exception_of_on_result_ends_the_map_and_is_raised_unchanged(map_function: Any) -> None:
    def refuse(index: int, result: Any) -> None:
        raise error

    error = LookupError("no")
    with pytest.raises(LookupError) as raised:
        map_function(double, [np.ones(2), np.ones(2)], executor=ReplayExecutor(), on_result=refuse)
    assert raised.value is error and not hasattr(error, "__notes__")
    future = submit(
        map_function, double, [np.ones(2), np.ones(2)], executor=ReplayExecutor(), on_result=refuse
    )
    assert future.exception(60) is error


@pytest.mark.parametrize("map_function", [coded_map, hedged_map, coded_sum])
def test_on_result_must_be_callable(map_function: Any) -> None:
    with pytest.raises(CodeError, match=r"on_result must be a function of \(index, result\) or None, got 3"):
        map_function(double, [np.ones(2), np.ones(2)], executor=ReplayExecutor(), on_result=3)


def test_on_result_cannot_be_combined_with_stored_results(tmp_path: Any) -> None:
    out = Stored("doubled", storage=tmp_path)
    with pytest.raises(CodeError, match="leave one out"):
        doubled(blocks=3, out=out, on_result=print)
