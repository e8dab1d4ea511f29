"""Check the familiar iterations against the points they converge to, by tasks and by operators."""

from __future__ import annotations

from collections.abc import Callable
from operator import matmul

import numpy as np
import pytest

from benchmarks import iterations, step_rivals
from benchmarks.familiar_iterations import (
    Iteration,
    make_linear_regression,
    make_logistic_regression,
    make_page_rank,
    sigmoid,
)
from benchmarks.iterations import Size, SleepSampler

MAKERS = [
    lambda: make_linear_regression(64, 5, 4),
    lambda: make_logistic_regression(64, 5, 4),
    lambda: make_page_rank(64, 3, 4),
]


def iterate(iteration: Iteration, steps: int) -> np.ndarray:
    x = iteration.start
    for _ in range(steps):
        x = iteration.update(x, [iteration.task(block, x) for block in iteration.blocks])
    return x


@pytest.mark.parametrize("make", MAKERS, ids=["least squares", "logistic", "PageRank"])
def test_tasks_and_products_take_the_same_step(make: Callable[[], Iteration]) -> None:
    iteration = make()
    assert len(iteration.blocks) == 4
    x = iterate(iteration, 3)
    assert not np.allclose(x, iteration.start)
    following = iteration.update(x, [iteration.task(block, x) for block in iteration.blocks])
    assert np.allclose(following, iteration.step_with_operator(iteration.matrix, x))


def test_least_squares_converge_to_the_solution() -> None:
    iteration = make_linear_regression(64, 5, 4)
    table = np.concatenate(iteration.blocks)
    assert np.allclose(iterate(iteration, 200), np.linalg.lstsq(table[:, :-1], table[:, -1])[0])


def test_logistic_regression_converges_to_a_zero_gradient() -> None:
    iteration = make_logistic_regression(256, 5, 4)
    table = np.concatenate(iteration.blocks)
    A, y = table[:, :-1], table[:, -1]
    assert set(y) == {0.0, 1.0}
    x = iterate(iteration, 1000)
    assert np.allclose(A.T @ (1 / (1 + np.exp(-A @ x)) - y), 0, atol=1e-6)


def test_page_rank_is_the_stationary_distribution() -> None:
    iteration = make_page_rank(64, 3, 4)
    P = iteration.matrix.toarray()
    assert np.allclose(P.sum(axis=0), 0.85)
    assert np.allclose(iterate(iteration, 200), np.linalg.solve(np.eye(64) - P, np.full(64, 0.15 / 64)))


def test_sigmoid_of_large_numbers() -> None:
    assert sigmoid(np.array([-1000.0, 0.0, 1000.0])).tolist() == [0.0, 0.5, 1.0]


def test_every_library_gets_the_same_slow_workers() -> None:
    first, second = SleepSampler(0.5), SleepSampler(0.5)
    assert first() == second() == [0.0] * iterations.WORKERS
    first.n_slow = second.n_slow = 2
    drawn = [first() for _ in range(20)]
    assert drawn == [second() for _ in range(20)]
    assert all(sorted(one)[-3:] == [0.0, 0.5, 0.5] for one in drawn)
    assert len({tuple(one) for one in drawn}) > 10


def test_a_step_of_cubed_is_a_task_for_each_block() -> None:
    A, x = np.random.default_rng(0).standard_normal((12, 4)), np.arange(4.0)
    with step_rivals.cubed_step(matmul, np.split(A, 3), lambda: [0.0, 0.01, 0.0]) as step:
        assert np.allclose(np.concatenate(step(x)), A @ x)


def test_all_rows_are_measured_and_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iterations, "WORKERS", 4)
    monkeypatch.setattr(iterations, "BLOCKS", 3)
    rows = {name: iterations.ROWS[name] for name in ("numpy, no workers", "**polarmap**")}
    monkeypatch.setattr(iterations, "ROWS", rows | {"Ray": ("no_such_library", iterations.numpy_step)})
    size = Size(0.01, 2, 1, {})
    medians = {"a model": iterations.measure_steps(make_linear_regression(48, 4, 4), size)}
    assert [list(one) for one in medians["a model"]] == [list(rows)] * 2
    text = iterations.format_tables(medians)
    assert "Ray was not installed, so it is missing from the tables." in text
    assert "## a model" in text and "| **polarmap** | " in text


def test_cubed_is_left_out_for_sparse_matrices() -> None:
    assert "cubed" not in iterations.available_rows(make_page_rank(64, 3, 4))
