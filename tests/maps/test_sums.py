"""coded_sum: the result is the plain sum, whichever workers are missing."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polarmap import coded_sum
from polarmap.errors import CodedTimeoutError, CodeError, NotDecodableError
from polarmap.testing import Fault, FaultyExecutor, ReplayExecutor
from tests.plain import arriving


def features(part: np.ndarray) -> dict[str, Any]:
    """Return values that are not linear in the part."""
    return {"loss": float(np.sin(part).sum()), "gradient": (np.exp(-part), np.maximum(part, 0))}


def assert_sum(value: Any, parts: list[np.ndarray]) -> None:
    expected_values = [features(part) for part in parts]
    assert type(value["loss"]) is float
    assert value["loss"] == pytest.approx(sum(part["loss"] for part in expected_values), rel=1e-9, abs=1e-12)
    for place in (0, 1):
        total = sum(part["gradient"][place] for part in expected_values)
        np.testing.assert_allclose(value["gradient"][place], total, rtol=1e-9)


@pytest.mark.parametrize(("n", "tolerate"), [(6, 2), (7, 2), (5, 3), (8, 1), (4, 0), (1, 0)])
def test_any_workers_may_be_missing(n: int, tolerate: int) -> None:
    parts = list(np.random.default_rng(0).standard_normal((n, 4)))
    for lost in list(combinations(range(n), tolerate))[:12]:
        executor = arriving([i for i in range(n) if i not in lost], n)
        result = coded_sum(features, parts, tolerate=tolerate, executor=executor)
        assert_sum(result.value, parts)
        assert (result.report.n, result.report.k, result.report.recovered) == (n, n, ())
        assert result.report.needed <= n - tolerate


@given(
    n=st.integers(1, 8),
    each=st.integers(1, 3),
    tolerate=st.integers(0, 7),
    shape=st.lists(st.integers(0, 3), max_size=2),
    seed=st.integers(0, 99),
)
@settings(max_examples=40)
def test_any_shape_and_several_parts_per_worker(
    n: int, each: int, tolerate: int, shape: list[int], seed: int
) -> None:
    tolerate = min(tolerate, n - 1)
    rng = np.random.default_rng(seed)
    parts = [rng.standard_normal(shape) for _ in range(n * each)]
    order = rng.permutation(n)[: n - tolerate].tolist()
    result = coded_sum(np.cos, parts, tolerate=tolerate, tasks=n, executor=arriving(order, n))
    np.testing.assert_allclose(result.value, sum(np.cos(part) for part in parts), rtol=1e-8, atol=1e-9)
    assert np.shape(result.value) == tuple(shape)


def test_repetition_returns_long_before_all_but_s_have_arrived() -> None:
    parts = list(np.random.default_rng(0).standard_normal((12, 4)))
    result = coded_sum(features, parts, tolerate=3, executor=arriving([0, 1, 2, 5, 11, 4], 12))
    assert result.report.needed == 5
    assert_sum(result.value, parts)


def test_integers_are_exact_with_repetition_and_floats_otherwise() -> None:
    parts = [np.array([2**62 + i, i]) for i in range(6)]
    exact = coded_sum(lambda part: part * 3, parts, tolerate=1, executor=arriving([1, 2, 5], 6))
    assert exact.value.dtype == np.int64
    np.testing.assert_array_equal(exact.value, sum(part * 3 for part in parts))
    small = [np.array([i, i + 1]) for i in range(5)]
    rounded = coded_sum(lambda part: part * 3, small, tolerate=1, executor=arriving([1, 2, 4], 5))
    assert rounded.value.dtype == np.float64
    np.testing.assert_allclose(rounded.value, sum(part * 3 for part in small))


def test_parts_of_several_arrays_are_sent_to_processes() -> None:
    stream = np.random.default_rng(0)
    parts = [{"x": stream.standard_normal((5, 3)), "y": [np.arange(i), 0.5]} for i in range(4)]

    def f(part: Any) -> Any:
        return part["x"].sum(axis=0), part["y"][0].sum() + part["y"][1]

    result = coded_sum(f, parts, tolerate=1)
    np.testing.assert_allclose(result.value[0], sum(part["x"].sum(axis=0) for part in parts))
    assert result.value[1] == pytest.approx(0 + 0 + 1 + 3 + 4 * 0.5)


def test_failed_task_that_is_needed_is_retried() -> None:
    faulty = FaultyExecutor(arriving([0, 1, 2], 6), {0: Fault("raise"), 1: Fault("raise"), 2: Fault("raise")})
    with pytest.raises(CodedTimeoutError):
        coded_sum(np.cos, list(np.eye(6)), tolerate=1, executor=faulty, timeout=5)
    everybody = FaultyExecutor(ReplayExecutor(), {i: Fault("kill") for i in range(6)})
    result = coded_sum(np.cos, list(np.eye(6)), tolerate=1, executor=everybody, retries=1)
    np.testing.assert_allclose(result.value, sum(map(np.cos, np.eye(6))))


def test_inconsistent_copies_are_refused() -> None:
    faulty = FaultyExecutor(arriving([0, 1, 2, 3], 4, step=0.0), {1: Fault("garbage")})
    with pytest.raises(NotDecodableError, match="contradict each other"):
        coded_sum(np.cos, list(np.eye(4)), tolerate=1, executor=faulty)


def test_nan_is_refused_without_waiting() -> None:
    parts = list(np.eye(4))
    parts[2][0] = np.nan
    with pytest.raises(NotDecodableError, match="NaN or inf"):
        coded_sum(np.cos, parts, tolerate=1, executor=ReplayExecutor())


@pytest.mark.parametrize(
    ("parts", "options", "words"),
    [
        (np.eye(4), {"tolerate": 4}, "at most 3"),
        (np.eye(4), {"tolerate": -1}, "tolerate must be an integer >= 0, not"),
        (np.eye(4), {"tolerate": 1.5}, "must be an integer"),
        (np.eye(4), {"tasks": 5}, "cannot be cut into 5"),
        (np.zeros((0, 3)), {}, "cannot be cut"),
        (list(np.eye(4)), {"tasks": 3}, r"divisor of the number of parts \(4\), not 3"),
        (list(np.eye(4)), {"tasks": 0}, "tasks must be a positive integer"),
        ([], {}, "at least one part"),
        ("abc", {}, "an array or a sequence"),
        ({"a": 1}, {}, "an array or a sequence"),
        ([np.eye(2), [np.eye(2)]], {}, "part 1 differs"),
        ([np.eye(2), None], {}, "a part cannot be sent to workers: it holds None"),
        ([None, None], {}, "a part cannot be sent to workers: it holds None"),
        ([np.ma.masked_array([1.0], [True])], {}, "masked"),
    ],
)
def test_bad_input_is_refused(parts: Any, options: dict[str, Any], words: str) -> None:
    options = {"tolerate": 0 if len(parts) == 1 else 1} | options
    with pytest.raises(CodeError, match=words):
        coded_sum(np.cos, parts, executor=ReplayExecutor({0: math.inf}), **options)


def test_a_sum_prints_one_line() -> None:
    total = coded_sum(np.sum, [1.0, 2.0, 4.0], executor=ReplayExecutor())
    assert repr(total).startswith("<CodedSum of 3 parts: ")
    assert f"{float(total.value)}" in repr(total)
    rows = coded_sum(np.asarray, [np.ones((50, 50))] * 3, executor=ReplayExecutor())
    assert len(repr(rows).splitlines()) == 1


def test_on_result_gets_the_sum_once() -> None:
    calls: list[tuple[int, Any]] = []
    executor = ReplayExecutor({1: math.inf})
    result = coded_sum(np.cos, list(np.eye(4)), executor=executor, on_result=lambda *call: calls.append(call))
    [(index, value)] = calls
    assert index == 0 and value is result.value
