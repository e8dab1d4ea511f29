"""The loss in its cones against a conic solver; ADMM: its products, its bounds, its callback."""

from __future__ import annotations

import numpy as np
import pytest
from conic_solver import conic_minimum
from plain_networks import PlainOperator

from polarmap.models.activation_gates import sample_gates
from polarmap.models.cones import ConeConstrainedLoss, admm
from polarmap.models.losses import GaussianFamily, ProfiledLoss
from polarmap.models.penalties import GroupLassoPenalty

STREAM = np.random.default_rng(0)
SAMPLES, GATES = 6, 3
A = STREAM.standard_normal((SAMPLES, 2))
INTERIOR = STREAM.standard_normal((2, GATES))
HEIGHTS = A @ INTERIOR
OPEN = HEIGHTS >= 0
Y, SHARES = STREAM.standard_normal((SAMPLES, 1)), np.full(SAMPLES, 1 / SAMPLES)
SIDES = np.hstack([2.0 * OPEN - 1.0] * 2)
SIGNS = np.hstack([1.0 * OPEN, -1.0 * OPEN])


def cone_loss(fit_intercept: bool) -> ConeConstrainedLoss:
    return ConeConstrainedLoss(
        ProfiledLoss(GaussianFamily(), Y, SHARES, fit_intercept), OPEN, np.abs(HEIGHTS), INTERIOR
    )


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("rho", [0.1, 10.0])
def test_the_prox_is_that_of_a_conic_solver(fit_intercept: bool, rho: float) -> None:
    B = STREAM.standard_normal((SAMPLES, 2 * GATES))
    E = cone_loss(fit_intercept).prox(B, rho)
    assert (SIDES * E >= 0).all()
    size = SAMPLES * 2 * GATES
    M = np.zeros((SAMPLES, size + 1))
    for sample in range(SAMPLES):
        M[sample, sample * 2 * GATES : (sample + 1) * 2 * GATES] = SIGNS[sample]
    M[:, -1] = fit_intercept
    P = (M.T @ M + rho * np.diag(np.append(np.ones(size), 0))) / SAMPLES
    q = -(M.T @ Y[:, 0] + rho * np.append(B.ravel(), 0)) / SAMPLES
    if not fit_intercept:
        P[-1, -1] = 1.0
    cones = [(np.diag(np.append(-SIDES.ravel(), 0))[:-1], np.zeros(size), "nonnegative")]
    best, _ = conic_minimum(P, q, cones)
    np.testing.assert_allclose(E.ravel(), best[:-1], atol=1e-5)


def test_points_are_moved_into_the_cones() -> None:
    loss, W = cone_loss(True), STREAM.standard_normal((2, 2 * GATES))
    W[:, 1] = 0
    moved, E = loss.make_feasible(W, A @ W)
    assert (SIDES * E).min() >= -1e-12
    np.testing.assert_allclose(E, A @ moved, atol=1e-12)
    assert not moved[:, 1].any()
    again, _ = loss.make_feasible(moved, np.where(SIDES * E < 0, 0, E))
    np.testing.assert_array_equal(again, moved)
    outputs = (SIGNS * E).sum(axis=1, keepdims=True)
    relu = np.maximum(A @ moved, 0) @ np.repeat([1.0, -1.0], GATES)
    np.testing.assert_allclose(outputs[:, 0], relu, atol=1e-12)
    assert loss.value(E) == pytest.approx(float(np.var(outputs - Y)) / 2)


WHITE, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((20, 3)))
WHITE *= np.sqrt(20)  # WHITE' WHITE / 20 = 1
SEEN, EQUAL = np.abs(WHITE[:, :1]) + WHITE[:, 1:2], np.full(20, 0.05)
SAMPLED = sample_gates(WHITE, EQUAL, 4, False, np.random.RandomState(0))


def solved(tol: float, max_iter: int) -> tuple:
    loss = ConeConstrainedLoss(
        ProfiledLoss(GaussianFamily(), SEEN, EQUAL, True),
        SAMPLED.patterns,
        SAMPLED.margins,
        SAMPLED.directions,
    )
    operator, told = PlainOperator(WHITE), []
    penalty, start = GroupLassoPenalty(0.05, np.ones(3), 8), np.zeros((3, 8))
    found = admm(
        operator, loss, penalty, start, tol=tol, max_iter=max_iter, callback=lambda *line: told.append(line)
    )
    return found, operator.n_products, told


def test_two_products_an_iteration_and_one_for_a_gap() -> None:
    found, products, told = solved(1e-5, 3000)
    assert found.converged and found.dual_gap <= 1e-5 * found.objective
    assert products == 2 * found.n_iter + -(-found.n_iter // 10) == 2 * len(told) + len(told) // 10
    assert told[-1] == (found.objective, found.optimality)
    assert (np.hstack([2.0 * SAMPLED.patterns - 1] * 2) * (WHITE @ found.x)).min() >= -1e-12


def test_the_gap_is_an_upper_bound_at_every_iteration() -> None:
    best, *_ = solved(1e-7, 2000)
    for max_iter in range(1, 60, 12):
        found, *_ = solved(0.0, max_iter)
        assert not found.converged and found.n_iter == max_iter
        assert -1e-7 <= found.objective - best.objective <= found.dual_gap + 1e-12
