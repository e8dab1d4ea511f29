"""FISTA on coded operators whose workers die; the oracles are Clarabel, scipy and optimality conditions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyproximal
import pytest
from conic_solver import conic_minimum
from hypothesis import given, settings
from l1_problems import L1Problem, l1_problems
from scipy.optimize import lsq_linear, nnls
from scipy.sparse.linalg import aslinearoperator
from straggling_models import options

from polarmap import CodedOperator
from polarmap.convex import (
    AffineSet,
    ElasticNetPenalty,
    LinearBoxPenalty,
    LogisticLoss,
    SquaredLoss,
    fista,
    l1_ball,
    simplex,
)
from polarmap.errors import ModelError
from polarmap.testing import ReplayExecutor

STREAM = np.random.default_rng(0)
A = STREAM.standard_normal((30, 12)) * np.linspace(0.5, 2, 12)
B = STREAM.standard_normal(30) + A @ np.linspace(-1, 1, 12)
HERE = aslinearoperator(A)
EYE, ONES, ZEROS = np.eye(12), np.ones(12), np.zeros(12)
EQUATIONS = STREAM.standard_normal((3, 12))


def quadratic(extra: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return P and q of |A x - b|^2 / 2 - |b|^2 / 2, with `extra` further variables that have no effect."""
    P = np.pad(A.T @ A, (0, extra))
    return P, np.pad(-A.T @ B, (0, extra))


def in_l1_ball() -> float:
    rows = np.block([[EYE, -EYE], [-EYE, -EYE], [np.zeros((1, 12)), np.ones((1, 12))]])
    right = np.concatenate([np.zeros(24), [1.5]])
    return conic_minimum(*quadratic(12), [(rows, right, "nonnegative")])[1]


def with_groups() -> float:
    """Return the minimum with 0.8 times the norms of 3 groups, which are interleaved as in L21."""
    P, q = quadratic(3)
    q[12:] = 8.0
    cones = []
    for group in range(3):
        G = np.zeros((5, 15))
        G[0, 12 + group] = -1
        G[range(1, 5), range(group, 12, 3)] = -1
        cones.append((G, np.zeros(5), "second order"))
    return conic_minimum(P, q, cones)[1]


SUM = (ONES[np.newaxis], [1.0], "zero")
POSITIVE = (-EYE, ZEROS, "nonnegative")
PROBLEMS: dict[str, tuple[Any, Any]] = {
    "nonnegative": (pyproximal.Box(lower=0.0), lambda: nnls(A, B)[1] ** 2 / 2 - B @ B / 2),
    "box": (pyproximal.Box(-0.3, 0.4), lambda: lsq_linear(A, B, (-0.3, 0.4), tol=1e-14).cost - B @ B / 2),
    "simplex": (simplex(12), lambda: conic_minimum(*quadratic(), [SUM, POSITIVE])[1]),
    "l1 ball": (l1_ball(12, 1.5), in_l1_ball),
    "l2 ball": (
        pyproximal.EuclideanBall(0.0, 1.2),
        lambda: conic_minimum(
            *quadratic(), [(np.vstack([ZEROS, -EYE]), np.append(1.2, ZEROS), "second order")]
        )[1],
    ),
    "groups": (pyproximal.L21(4, 8.0), with_groups),
    "equations": (
        AffineSet(EQUATIONS, ONES[:3]),
        lambda: conic_minimum(*quadratic(), [(EQUATIONS, ONES[:3], "zero")])[1],
    ),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_penalties_and_constraints_reach_the_minimum_of_a_conic_solver(name: str) -> None:
    penalty, oracle = PROBLEMS[name]
    solution = fista(HERE, SquaredLoss(B), penalty, tol=1e-8)
    expected = oracle() + B @ B / 2
    assert solution.converged and solution.dual_gap is None
    assert solution.objective == pytest.approx(expected, rel=1e-9)
    assert solution.optimality < 1e-6 * np.linalg.norm(A.T @ B)


@pytest.mark.parametrize("name", ["nonnegative", "simplex", "groups"])
def test_dead_and_late_workers_change_nothing(name: str) -> None:
    penalty, _ = PROBLEMS[name]
    expected = fista(HERE, SquaredLoss(B), penalty)
    with CodedOperator(A, **options()) as operator:
        solution = fista(operator, SquaredLoss(B), penalty)
        assert 0 in operator.report.recovered and 1 in operator.report.recovered
        # Nine further products are for the start, the end, and steps that were too long.
        assert operator.n_products <= 2 * solution.n_iter + 9
    assert solution.n_iter == expected.n_iter
    np.testing.assert_allclose(solution.x, expected.x, atol=1e-10)


@pytest.mark.parametrize(
    "penalty",
    [
        ElasticNetPenalty(2.0),
        ElasticNetPenalty(2.0, 1.0),
        LinearBoxPenalty(-ONES, ONES, np.linspace(-1, 1, 12)),
    ],
    ids=["l1", "elastic net", "box"],
)
def test_the_gap_is_an_upper_bound_at_every_iteration(penalty: Any) -> None:
    best = fista(HERE, SquaredLoss(B), penalty, tol=1e-14, max_iter=20_000)
    assert best.converged
    gaps = []
    for steps in range(1, 40, 4):
        solution = fista(HERE, SquaredLoss(B), penalty, tol=0.0, max_iter=steps)
        assert not solution.converged and solution.n_iter == steps
        assert -1e-12 <= solution.objective - best.objective <= solution.dual_gap + 1e-12
        gaps.append(solution.dual_gap)
    assert gaps[-1] < 0.02 * gaps[0]
    enough = fista(HERE, SquaredLoss(B), penalty, tol=1e-4)
    assert enough.dual_gap <= 1e-4 * abs(enough.objective) and enough.n_iter < best.n_iter


@settings(max_examples=30)
@given(l1_problems)
def test_l1_penalties_of_any_shape_and_unit(problem: L1Problem) -> None:
    penalty = ElasticNetPenalty(problem.strength)
    solution = fista(aslinearoperator(problem.A), SquaredLoss(problem.b), penalty, tol=1e-9)
    assert solution.converged
    problem.check(solution.x, 1e-4)


@pytest.mark.parametrize("unit", [1e-4, 1.0, 1e4])
def test_steps_adapt_to_varying_curvature(unit: float) -> None:
    y = (B > 0).astype(float)
    loss, penalty = LogisticLoss(y), ElasticNetPenalty(0.5 * unit)
    solution = fista(aslinearoperator(A * unit), loss, penalty, tol=1e-8)
    assert solution.converged
    slope = unit * A.T @ loss.gradient(unit * A @ solution.x)
    active = solution.x != 0
    np.testing.assert_allclose(slope[active], -0.5 * unit * np.sign(solution.x[active]), rtol=1e-5)
    assert np.abs(slope).max() <= 0.5 * unit * (1 + 1e-5)


def test_several_outputs_need_one_product() -> None:
    targets = np.column_stack([B, -B, B**2])
    with CodedOperator(A, blocks=3, executor=ReplayExecutor()) as operator:
        solution = fista(operator, SquaredLoss(targets), ElasticNetPenalty(3.0), np.zeros((12, 3)), tol=1e-10)
        assert operator.n_products < 3 * solution.n_iter
    for column, target in enumerate(targets.T):
        alone = fista(HERE, SquaredLoss(target), ElasticNetPenalty(3.0), tol=1e-10)
        np.testing.assert_allclose(solution.x[:, column], alone.x, atol=1e-4)


def test_a_start_at_the_minimum_ends_there() -> None:
    best = fista(HERE, SquaredLoss(B), ElasticNetPenalty(2.0), tol=1e-12)
    again = fista(HERE, SquaredLoss(B), ElasticNetPenalty(2.0), best.x)
    assert again.n_iter <= 10
    np.testing.assert_allclose(again.x, best.x, atol=1e-6)


def test_callback_is_called_in_each_iteration() -> None:
    calls: list[tuple[float, float]] = []
    solution = fista(HERE, SquaredLoss(B), simplex(12), callback=lambda *line: calls.append(line))
    assert len(calls) == solution.n_iter
    assert calls[-1][0] == pytest.approx(solution.objective)
    assert calls[-1][1] < 1e-5 * calls[0][1]


LOSS = SquaredLoss(B)


@pytest.mark.parametrize(
    ("arguments", "more", "message"),
    [
        ((LOSS, 0.1), {}, r"penalty must be a proximal operator, such as pyproximal.L1\(0.1\), not float"),
        ((B, simplex(12)), {}, "loss must have the methods value and gradient, .* not ndarray"),
        ((LOSS, simplex(12), np.zeros(11)), {}, r"start must have shape \(12,\) or \(12, outputs\)"),
        (
            (SquaredLoss(B[:1]), simplex(12)),
            {},
            r"y of the loss must have the shape of A x, \(30,\), not \(1,\)",
        ),
        (
            (SquaredLoss(B[:, None]), simplex(12)),
            {},
            r"y of the loss must have the shape of A x, \(30,\), not \(30, 1\)",
        ),
        ((LOSS, simplex(12)), {"tol": -1.0}, "tol must be a number, 0 or more, not -1.0"),
        ((LOSS, simplex(12)), {"max_iter": 0}, "max_iter must be 1 or more, not 0"),
    ],
)
def test_invalid_problems_are_refused(arguments: Any, more: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        fista(HERE, *arguments, **more)
