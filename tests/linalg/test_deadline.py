"""Tests of the deadline of a series of products: its errors, and that nothing runs after it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from polarmap import CodedOperator
from polarmap.driver.options import MapOptions
from polarmap.errors import CodedTimeoutError, CodeError, DeadlineExceededError
from polarmap.linalg.deadline import Deadline
from polarmap.testing import ReplayExecutor

A = np.random.default_rng(0).standard_normal((12, 6))
NEVER = ReplayExecutor(dict.fromkeys(range(9), math.inf))


def test_the_shorter_of_deadline_and_timeout_counts() -> None:
    deadline, options = Deadline(), MapOptions(timeout=30.0)
    assert deadline.limit_timeout(options) is options
    deadline.set(60.0)
    assert deadline.limit_timeout(options) is options
    deadline.set(20.0)
    assert 0 < deadline.limit_timeout(options).timeout <= 20.0
    deadline.set(None)
    assert deadline.limit_timeout(options) is options


def test_products_after_the_deadline_raise_without_a_map() -> None:
    with CodedOperator(A, blocks=3, executor=ReplayExecutor()) as operator:
        operator.set_deadline(600.0)
        np.testing.assert_allclose(operator @ np.ones(6), A @ np.ones(6))
        operator.set_deadline(0)
        for multiply in (lambda: operator @ np.ones(6), lambda: operator.gram(np.ones(12))):
            with pytest.raises(DeadlineExceededError, match="deadline of 0 s for all products has passed"):
                multiply()
        assert operator.n_products == 1
        operator.set_deadline(None)
        np.testing.assert_allclose(operator.T @ np.ones(12), A.T @ np.ones(12))


def test_a_product_that_hangs_is_ended_by_the_deadline_or_its_own_timeout() -> None:
    with CodedOperator(A, blocks=3, executor=NEVER, timeout=5.0) as operator:
        operator.set_deadline(2.0)
        with pytest.raises(DeadlineExceededError, match="2 s") as caught:
            operator @ np.ones(6)
        assert type(caught.value.__cause__) is CodedTimeoutError
        operator.set_deadline(600.0)
        with pytest.raises(CodedTimeoutError, match="within 5 s") as caught:
            operator @ np.ones(6)
        assert type(caught.value) is CodedTimeoutError


@pytest.mark.parametrize("seconds", [-1.0, np.nan, "soon"])
def test_invalid_deadlines_are_refused(seconds: object) -> None:
    with pytest.raises(CodeError, match="seconds must be a number, 0 or more, or None, got"):
        Deadline().set(seconds)
