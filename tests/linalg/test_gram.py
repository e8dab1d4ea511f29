"""Tests of coded_gram against NumPy: plain and weighted, for all dtypes, with lost results."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from linalg.test_products import DEAD, assert_close, matrix

from polarmap import coded_gram
from polarmap.errors import CodeError
from polarmap.testing import Fault, FaultyExecutor, ReplayExecutor

TALL = matrix((40, 17), "float64")
WEIGHTS = np.random.default_rng(3).standard_normal(40)
LOST = dict.fromkeys([0, 2, 5, 17], DEAD)


def gram(A: Any, weights: Any = None, faults: Any = LOST, seconds: Any = None, **options: Any) -> Any:
    executor = FaultyExecutor(ReplayExecutor(seconds), faults)
    defaults = {"blocks": 5, "tasks": 7, "timeout": 1000.0}
    return coded_gram(A, weights, executor=executor, **defaults | options)


@pytest.mark.parametrize("dtype", ["float64", "float32", "complex128", "complex64"])
def test_gram_matches_numpy(dtype: str) -> None:
    A = matrix((40, 17), dtype)
    for weights in (None, WEIGHTS, WEIGHTS.astype("float32"), np.arange(40)):
        expected = A.conj().T @ (A if weights is None else weights[:, None] * A)
        array, report = gram(A, weights)
        assert_close(array, expected, 1e-9 if expected.dtype in ("float64", "complex128") else 1e-3)
        np.testing.assert_array_equal(array[:4, 4:], array[4:, :4].conj().T)
        assert (report.n, report.k) == (28, 15) and report.recovered == (0, 2, 5)
        assert report.code == "rotation triangle of 7 x 7"


@pytest.mark.parametrize("dtype", ["int8", "int64", "uint64"])
def test_integers_are_exact_and_wrap_as_in_numpy(dtype: str) -> None:
    A = matrix((20, 9), dtype)
    w = matrix((20,), dtype, 2)
    with np.errstate(over="ignore"):
        assert_close(gram(A, blocks=3, tasks=5).array, A.T @ A, 0)
        assert_close(gram(A, w, blocks=3, tasks=5).array, A.T @ (w[:, None] * A), 0)
    assert_close(gram(A, WEIGHTS[:20]).array, A.T @ (WEIGHTS[:20, None] * A), 1e-9)


@settings(max_examples=40)
@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 14),
    blocks=st.integers(1, 5),
    extra=st.integers(1, 2),
    lost=st.integers(0, 100),
)
def test_any_shape(rows: int, columns: int, blocks: int, extra: int, lost: int) -> None:
    A, blocks = matrix((rows, columns), "float64"), min(blocks, columns)
    faults = {lost % (blocks * (blocks + 1) // 2): DEAD}
    actual = gram(A, WEIGHTS[:rows], faults, blocks=blocks, tasks=blocks + extra, rtol=1e-7)
    assert_close(actual.array, A.T @ (WEIGHTS[:rows, None] * A), 1e-7)


def test_sizes_left_open() -> None:
    assert gram(TALL, None, {}, blocks=None, tasks=None).report.n == 36
    assert gram(TALL[:, :3], None, {}, blocks=None, tasks=None).report.n == 10


def test_garbage_is_detected_and_excluded() -> None:
    faults = {1: DEAD, 2: Fault("garbage", attempts=9)}
    array, report = gram(TALL, WEIGHTS, faults, {0: 2.0}, verify=True)
    assert_close(array, TALL.T @ (WEIGHTS[:, None] * TALL), 1e-9)
    assert report.tasks_in_state("failed") == [1, 2] and "contradicts" in report.tasks[2].failures[0]


def test_stragglers_and_dead_processes() -> None:
    executor = FaultyExecutor(None, {0: Fault("sleep", 60), 4: Fault("kill")})
    array, report = coded_gram(TALL, WEIGHTS, blocks=4, tasks=6, executor=executor, timeout=60)
    assert_close(array, TALL.T @ (WEIGHTS[:, None] * TALL), 1e-9)
    assert 0 in report.recovered


@pytest.mark.parametrize(
    ("A", "weights", "options", "message"),
    [
        (TALL[0], None, {}, r"A must be a matrix with rows and columns, not of shape \(17,\)"),
        (TALL, WEIGHTS[:9], {}, r"weights has shape \(9,\), but A has 40 rows"),
        (TALL, [[1.0, 2.0], [3.0]], {}, "weights is not an array: .* inhomogeneous"),
        (TALL, WEIGHTS * 1j, {}, "weights must be real"),
        (TALL, WEIGHTS + math.nan, {}, "weights has NaN or inf"),
        (TALL + math.inf, None, {}, "A has NaN or inf"),
        (TALL, None, {"blocks": 18}, "blocks=18 is more than the 17 columns"),
        (TALL, None, {"blocks": 5, "tasks": 5}, "tasks=5 leaves no parity blocks for 5 blocks of columns"),
        (TALL, None, {"blocks": 0}, "blocks must be a positive integer, not 0"),
    ],
)
def test_invalid_arguments_are_refused(A: Any, weights: Any, options: Any, message: str) -> None:
    with pytest.raises(CodeError, match=message):
        gram(A, weights, **options)
