"""The interior-point method for boxes, on data of all scales; the oracle is Clarabel."""

from __future__ import annotations

import numpy as np
import pytest
from conic_solver import conic_minimum
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_networks import PlainOperator

from polarmap.convex import LinearBoxPenalty
from polarmap.models.solvers.box_interior_point import box_interior_point

STREAM = np.random.default_rng(0)


def problem(rows: int, columns: int, stream: np.random.Generator) -> tuple[np.ndarray, LinearBoxPenalty]:
    """Return a random matrix with rows of norm 1 and a box whose intervals have 0 as one end."""
    A = stream.standard_normal((rows, columns)) * 10.0 ** stream.integers(-3, 4, columns)
    A /= np.linalg.norm(A, axis=1)[:, None]
    ends = stream.choice([-1, 1], rows) * 10.0 ** stream.uniform(-3, 3, rows)
    return A, LinearBoxPenalty(np.minimum(ends, 0), np.maximum(ends, 0), -np.sign(ends) * stream.random(rows))


def conic_objective(A: np.ndarray, box: LinearBoxPenalty) -> float:
    eye = np.eye(len(A))
    sides = [(eye, box.upper, "nonnegative"), (-eye, -box.lower, "nonnegative")]
    return conic_minimum(A @ A.T, box.slope, sides)[1]


@settings(max_examples=25)
@given(rows=st.integers(1, 30), columns=st.integers(1, 8), seed=st.integers(0, 99))
def test_the_minimum_is_that_of_a_conic_solver(rows: int, columns: int, seed: int) -> None:
    A, box = problem(rows, columns, np.random.default_rng(seed))
    solution = box_interior_point(PlainOperator(A), box, np.ones(rows), tol=1e-9, max_iter=100)
    x = solution.x[:, 0]
    assert solution.converged and solution.dual_gap is not None
    assert (x >= box.lower).all() and (x <= box.upper).all()
    objective = float(np.sum((A.T @ x) ** 2)) / 2 + box(x)
    assert solution.objective == pytest.approx(objective, rel=1e-9, abs=1e-12)
    best = conic_objective(A, box)
    assert -1e-7 * abs(best) <= objective - best <= solution.dual_gap + 1e-7 * abs(best)


def test_the_gap_is_an_upper_bound_at_every_iteration_and_falls() -> None:
    A, box = problem(60, 5, STREAM)
    best, gaps = conic_objective(A, box), []
    for steps in range(1, 12):
        solution = box_interior_point(PlainOperator(A), box, np.ones(60), tol=1e-12, max_iter=steps)
        assert solution.n_iter <= steps and solution.objective - best <= solution.dual_gap + 1e-8 * abs(best)
        gaps.append(solution.dual_gap)
    assert gaps[-1] < 1e-4 * gaps[0]


def test_columns_are_independent_problems() -> None:
    A, first = problem(40, 4, STREAM)
    both = [np.stack([part, -part[::-1]], axis=1) for part in (first.lower, first.upper, first.slope)]
    lower, upper = np.minimum(both[0], both[1]), np.maximum(both[0], both[1])
    box = LinearBoxPenalty(lower.reshape(-1), upper.reshape(-1), both[2].reshape(-1))
    solution = box_interior_point(PlainOperator(A), box, np.ones(40), tol=1e-12, max_iter=100)
    for column in range(2):
        alone = LinearBoxPenalty(lower[:, column], upper[:, column], both[2][:, column])
        x = box_interior_point(PlainOperator(A), alone, np.ones(40), tol=1e-12, max_iter=100).x
        np.testing.assert_allclose(A.T @ solution.x[:, column], A.T @ x[:, 0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", [1, 4, 100])
def test_row_with_a_weight_equals_copies_of_the_row(steps: int) -> None:
    stream = np.random.default_rng(1)
    A, box = problem(25, 4, stream)
    weights = stream.integers(1, 6, 25)
    scale = np.sqrt(weights)
    copied_box = LinearBoxPenalty(*(part.repeat(weights) for part in (box.lower, box.upper, box.slope)))
    weighted_box = LinearBoxPenalty(scale * box.lower, scale * box.upper, scale * box.slope)
    copied, weighted = (
        box_interior_point(PlainOperator(matrix), penalty, row_weight, tol=1e-9, max_iter=steps)
        for matrix, penalty, row_weight in (
            (A.repeat(weights, axis=0), copied_box, np.ones(weights.sum())),
            (scale[:, np.newaxis] * A, weighted_box, weights),
        )
    )
    assert weighted.n_iter == copied.n_iter
    np.testing.assert_allclose(
        (weighted.x / scale[:, np.newaxis]).repeat(weights, axis=0), copied.x, rtol=1e-6
    )


def test_most_variables_are_at_their_bounds() -> None:
    A, box = problem(20, 3, STREAM)
    box.lower[:5] = box.upper[:5] = 0.0
    solution = box_interior_point(PlainOperator(A), box, np.ones(20), tol=1e-8, max_iter=100)
    assert solution.converged and not solution.x[:5].any()
    on_bounds = (solution.x[:, 0] == box.lower) | (solution.x[:, 0] == box.upper)
    assert 20 - on_bounds.sum() <= 3  # at most one variable per feature is strictly between its bounds


@settings(max_examples=25)
@given(rows=st.integers(5, 40), columns=st.integers(1, 8), seed=st.integers(0, 99))
def test_gap_is_computed_from_x(rows: int, columns: int, seed: int) -> None:
    A, box = problem(rows, columns, np.random.default_rng(seed))
    solution = box_interior_point(PlainOperator(A), box, np.ones(rows), tol=0.0, max_iter=10_000)
    more, x = A.astype(np.longdouble), solution.x[:, 0].astype(np.longdouble)
    slope = more @ (more.T @ x) + box.slope
    gap = float(np.sum(slope * np.where(slope > 0, x - box.lower, x - box.upper)))
    assert gap == pytest.approx(solution.dual_gap, rel=0.1, abs=1e-12 * abs(solution.objective))
    assert gap < 1e-9 * abs(solution.objective)


def test_solver_stops_without_progress() -> None:
    A, box = problem(20, 3, STREAM)
    solution = box_interior_point(PlainOperator(A), box, np.ones(20), tol=0.0, max_iter=10_000)
    assert solution.n_iter < 100 and solution.dual_gap < 1e-12 * abs(solution.objective)
