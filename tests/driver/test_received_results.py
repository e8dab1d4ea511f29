"""Tests of arriving results: the most common structure and shape is correct, any other is a failure."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from coded_maps import (
    DATA,
    FLOATS,
    WHOLE,
    K,
    N,
    assert_right,
    coded,
    losing,
    product,
)
from plain import AlteringReplay, arrivals, arriving, assert_same, plain_map, states

from polarmap import CodedOperator, coded_map, coded_matmul
from polarmap.codes import PolarCode
from polarmap.errors import CodedTimeoutError, NotDecodableError
from polarmap.executors.interface import Outcome
from polarmap.testing import ReplayExecutor


def alter_results_at(indices: Sequence[int], how: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return `product`, except that workers apply `how` instead to the blocks of DATA at `indices`."""
    corners, workers = DATA[3 * np.array(indices), 0], threading.current_thread()

    def f(block: np.ndarray) -> Any:
        is_odd = block[0, 0] in corners and threading.current_thread() is workers
        return how(block) if is_odd else product(block)

    return f


@pytest.mark.parametrize(
    "how",
    [np.sum, np.ravel, lambda block: (product(block),), lambda block: product(block) + 0j],
    ids=["scalar", "longer", "tuple", "complex"],
)
@pytest.mark.parametrize("arrival", [0.5, 1.0, 1.1])
def test_a_result_of_a_different_shape_is_a_failure_in_any_order(
    how: Callable[[Any], Any], arrival: float
) -> None:
    result = coded(
        alter_results_at([2], how), executor=ReplayExecutor({2: arrival} | dict.fromkeys(range(7, N), 1.2))
    )
    assert_right(result)
    report = result.report
    assert report.recovered == (2,)
    assert report.tasks[2].state == "failed"
    assert "returned" in report.tasks[2].failures[0]


def test_a_result_that_seemed_different_is_not_awaited_again() -> None:
    # Task 1 differs from task 0 and is retried, before task 2 shows that task 1 was correct.
    seconds = {0: 0.5, 1: 1.0, 2: 2.9} | dict.fromkeys(range(3, N), math.inf)
    with pytest.raises(
        CodedTimeoutError, match=r"2 of 8 .* within 3\.1 s, 9 tasks still run; failed 1 task: W"
    ):
        coded(alter_results_at([0], np.sum), executor=ReplayExecutor(seconds), timeout=3.1, retries=1)


def test_too_many_different_results_raise_an_error_with_shape_and_dtype() -> None:
    corners = DATA[3 * np.arange(5), 0]

    def f(block: np.ndarray) -> np.ndarray:
        return block[:, :2] if block[0, 0] in corners else product(block)

    with pytest.raises(
        NotDecodableError,
        match=r"7 of 8.*5 tasks: WrongShape: f returned blocks of different shapes .float64\[3, 2\] here",
    ):
        coded(f, executor=ReplayExecutor())


def test_the_shape_of_most_results_wins_however_late() -> None:
    # Three results of another shape come first. The correct results soon outnumber them.
    result = coded(alter_results_at(range(3), lambda block: block[:, :2]), executor=arriving(range(N), N))
    assert_right(result)
    assert states(result.report)["failed"] == [0, 1, 2]
    assert [task.failures for task in result.report.tasks[3:]] == [()] * (N - 3)


def test_dtypes_may_differ_in_width() -> None:
    # Parity blocks have a wider dtype than data blocks, so f of them may be wider, too.
    data = WHOLE.astype("i2")
    order = arrivals(PolarCode(N, K, "arikan"), N - 2, np.random.default_rng(0), exact=True)
    result = coded(lambda block: np.float32(2) * block, data, executor=arriving(order, N))
    assert_same(result, plain_map(lambda block: np.float32(2) * block, data, K), 1e-4)


def test_parity_results_of_another_dtype_kind_do_not_overrule_data_results() -> None:
    # In NumPy, int64 parity of uint32 data times uint64 is float64.
    data, x = np.arange(18, dtype="u4").reshape(6, 3), np.array([1, 2, 3], "u8")
    options = {"blocks": 3, "tasks": 7, "verify": False}
    result = coded_map(lambda block: block @ x, data, executor=losing(), **options)
    assert_same(result, plain_map(lambda block: block @ x, data, 3))
    with pytest.raises(
        NotDecodableError,
        match=r"different dtypes .float64.2. here, uint64.2. in other tasks.: .*convert the data",
    ):
        coded_map(lambda block: block @ x, data, executor=losing(0), **options)


class LongerResults(AlteringReplay):
    """A replay executor in which some workers return results of the same different shape."""

    def altered(self, outcome: Outcome) -> Outcome:
        if outcome.task > 1 or outcome.failure is not None:
            return outcome
        return outcome._replace(leaves=[np.zeros(99, outcome.leaves[0].dtype)])


def test_a_result_without_the_shape_of_a_product_is_a_failure() -> None:
    A, B = FLOATS[:8], np.random.default_rng(1).standard_normal((3, 5))
    product = coded_matmul(A, B, method="rows", blocks=2, tasks=5, executor=LongerResults({4: 9.0}))
    np.testing.assert_allclose(product.array, A @ B, atol=1e-10)
    assert product.report.tasks_in_state("failed") == [0, 1]
    with CodedOperator(A, blocks=2, tasks=5, executor=LongerResults()) as operator:
        np.testing.assert_allclose(operator @ B[:, 0], A @ B[:, 0], atol=1e-10)
