"""Tests of least squares and Gram matrices from sketches, against NumPy on all rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import polarmap
from polarmap.errors import CodedTimeoutError, CodeError
from polarmap.linalg import sketch, sketched_gram, sketched_lstsq
from polarmap.testing import Fault, FaultyExecutor, ReplayExecutor

STREAM = np.random.default_rng(0)
A = STREAM.standard_normal((600, 8))
B = A @ np.arange(8.0) + STREAM.standard_normal(600)
BEST = np.linalg.lstsq(A, B, rcond=None)[0]


@settings(max_examples=25)
@given(st.integers(1, 6), st.integers(2, 60), st.integers(1, 12), st.integers(0, 99))
def test_the_last_estimate_matches_numpy(columns: int, more: int, workers: int, seed: int) -> None:
    stream = np.random.default_rng(seed)
    rows = columns + more
    matrix, b = stream.standard_normal((rows, columns)), stream.standard_normal(rows)
    workers = min(workers, rows)
    options = {"tasks": workers, "executor": ReplayExecutor(), "seed": seed}
    *_, last = sketched_lstsq(matrix, b, **options)
    assert (last.error_p90, last.n_arrived, last.n_tasks) == (0.0, workers, workers)
    np.testing.assert_allclose(last.value, np.linalg.lstsq(matrix, b, rcond=None)[0], rtol=1e-7, atol=1e-9)
    *_, last = sketched_gram(matrix, **options)
    assert last.error_p90 == 0
    np.testing.assert_allclose(last.value, matrix.T @ matrix, rtol=1e-9, atol=1e-9)


def test_a_badly_conditioned_matrix_loses_no_more_digits_than_in_numpy() -> None:
    # Its condition number is 1e9, and that of its Gram matrix 1e18.
    vandermonde = np.vander(np.linspace(0, 1, 400), 12)
    b = np.sin(9 * np.linspace(0, 1, 400))
    *_, last = sketched_lstsq(vandermonde, b, executor=ReplayExecutor())
    best = np.linalg.lstsq(vandermonde, b, rcond=None)[0]
    np.testing.assert_allclose(last.value, best, rtol=1e-5)


def test_dependent_columns_give_the_minimum_norm_solution() -> None:
    doubled = np.column_stack([A, A[:, 0]])
    *_, last = sketched_lstsq(doubled, B, executor=ReplayExecutor())
    np.testing.assert_allclose(last.value, np.linalg.lstsq(doubled, B, rcond=None)[0], rtol=1e-8)


@pytest.mark.parametrize("dtype", ["i4", "f2", "f4", "f8"])
def test_integers_and_floats_of_any_precision(dtype: str) -> None:
    matrix = (4 * A).astype(dtype)
    *_, last = sketched_gram(matrix, executor=ReplayExecutor())
    assert last.value.dtype == (np.float32 if dtype in ("f2", "f4") else np.float64)
    exact = matrix.astype(float).T @ matrix.astype(float)
    np.testing.assert_allclose(last.value, exact, rtol=1e-4, atol=1e-2)


def test_estimates_use_more_rows_as_results_arrive() -> None:
    with ThreadPoolExecutor(1) as one_by_one:
        estimates = list(sketched_lstsq(A, B, executor=one_by_one, seed=1))
    arrived = [estimate.n_arrived for estimate in estimates]
    assert arrived == sorted(set(arrived))
    assert arrived[-1] == 24
    assert all(estimate.error_p90 > 0 for estimate in estimates[:-1])
    assert estimates[-1].error_p90 == 0


# --- the reported error -------------------------------------------------------------------------


def heavy_tails(stream: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return A, B + stream.standard_t(1.5, 600)


def one_row_is_huge(stream: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    huge = A * np.where(np.arange(600) == 5, 1000, 1)[:, None]
    return huge, huge @ np.ones(8) + stream.standard_normal(600)


def one_residual_is_huge(stream: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return A, B + 100 * (np.arange(600) == 7)


def sorted_rows(stream: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return A, B + np.linspace(0, 9, 600) * stream.standard_normal(600)


def cosines(stream: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return columns that are cosines of the transform, which need random signs to spread over the rows."""
    return np.cos(np.pi * np.outer(np.arange(600) + 0.5, np.arange(8)) / 600), stream.standard_normal(600)


DATA = [heavy_tails, one_row_is_huge, one_residual_is_huge, sorted_rows, cosines]


@pytest.mark.parametrize("make", DATA, ids=lambda make: make.__name__)
def test_nine_in_ten_estimates_are_within_the_reported_error(make: Callable[..., Any]) -> None:
    # The tolerance is 20 %: at least 72 % of 200 random mixtures, in which each order is random.
    matrix, b = make(np.random.default_rng(3))
    fitted = matrix @ np.linalg.lstsq(matrix, b, rcond=None)[0]
    exact, size, counts = matrix.T @ matrix, float(np.linalg.norm(b)), (1, 4, 23)
    within = {(kind, blocks): 0 for kind in ("solution", "Gram") for blocks in counts}
    for seed in range(200):
        mixed = sketch._mix_and_shuffle_rows(np.column_stack([matrix, b]), np.random.default_rng(seed))
        for blocks in counts:
            rows = 25 * blocks
            sketched = sketch._Sketch(np.linalg.qr(mixed[:rows], mode="r"), rows, 600, blocks, 24)
            [estimate] = sketch._estimate_solutions((sketched for _ in range(1)), size)
            error = np.linalg.norm(matrix @ estimate.value - fitted) / size
            within["solution", blocks] += error <= estimate.error_p90
            [estimate] = sketch._estimate_grams(sketched._replace(R=sketched.R[:, :-1]) for _ in range(1))
            error = np.linalg.norm(estimate.value - exact) / np.linalg.norm(exact)
            within["Gram", blocks] += error <= estimate.error_p90
    assert min(within.values()) >= 0.8 * 0.9 * 200, within


def test_the_error_for_zeros_is_zero() -> None:
    zeros = np.zeros((60, 2))
    assert all(
        estimate.error_p90 == 0 for estimate in sketched_lstsq(zeros, np.zeros(60), executor=ReplayExecutor())
    )
    assert all(estimate.error_p90 == 0 for estimate in sketched_gram(zeros, executor=ReplayExecutor()))


# --- workers that are late, die or fail ----------------------------------------------------------


def test_workers_that_die_are_restarted_and_the_last_estimate_is_exact() -> None:
    with polarmap.Pool(workers=2) as pool:
        faulty = FaultyExecutor(pool, {0: Fault("kill"), 5: Fault("raise")})
        *_, last = sketched_lstsq(A, B, tasks=6, executor=faulty)
    assert (last.n_arrived, last.error_p90) == (6, 0.0)
    np.testing.assert_allclose(last.value, BEST, rtol=1e-9)


def test_a_permanently_failing_task_raises_after_the_estimates() -> None:
    late = {task: 1.0 + task for task in range(24)}
    faulty = FaultyExecutor(ReplayExecutor(late), {20: Fault("raise", attempts=9)})
    estimates: list[polarmap.types.SketchEstimate] = []
    with pytest.raises(RuntimeError, match="injected fault\nitem 20 of 24 raised this"):
        estimates.extend(sketched_lstsq(A, B, executor=faulty))
    assert estimates[-1].n_arrived <= 23
    assert estimates[-1].error_p90 > 0


@pytest.mark.parametrize(
    "verb", [lambda **how: sketched_lstsq(A, B, **how), lambda **how: sketched_gram(A, **how)]
)
def test_if_all_tasks_fail_there_is_one_error_and_no_estimate(verb: Any) -> None:
    faulty = FaultyExecutor(ReplayExecutor(), {task: Fault("raise", attempts=9) for task in range(24)})
    with pytest.raises(RuntimeError, match="injected fault\nf fails everywhere"):
        next(verb(executor=faulty))
    with pytest.raises(CodedTimeoutError):
        next(verb(executor=ReplayExecutor(dict.fromkeys(range(24), math.inf)), timeout=3))


def test_leaving_the_loop_ends_the_map() -> None:
    with ThreadPoolExecutor(1) as one_by_one:
        estimates = sketched_gram(A, executor=one_by_one)
        assert next(estimates).n_arrived > 0
        estimates.close()
        assert list(estimates) == []


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        ((A, B[:-1]), {}, r"b has shape \(599,\), but A has 600 rows"),
        ((A, B[:, None]), {}, r"b has shape \(600, 1\)"),
        ((A.T, B[:8]), {}, "A has 8 rows and 600 columns"),
        ((A + 1j, B), {}, "A must be real"),
        ((A, B + 1j), {}, "b must be real"),
        ((np.where(A > 3, np.nan, A), B), {}, "A has NaN or inf"),
        ((A, np.where(B > 1, np.inf, B)), {}, "b has NaN or inf"),
        ((A[0], B), {}, "A must be a matrix"),
        ((A, B), {"tasks": 601}, "tasks=601 is more than the 600 rows"),
        ((A, B), {"tasks": 0}, "tasks must be"),
        ((A, B), {"seed": "x"}, "seed must be None or an integer"),
        ((A, B), {"seed": -1}, "seed must be None or an integer"),
    ],
)
def test_invalid_input_is_refused_immediately(arguments: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(CodeError, match=words):
        sketched_lstsq(*arguments, **options)
