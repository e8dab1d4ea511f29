"""The loss in its cones against a conic solver, and points that are moved into them."""

from __future__ import annotations

import numpy as np
import pytest
from conic_solver import conic_minimum

from polarmap.convexnn.cones import ConeLoss
from polarmap.convexnn.output_loss import Gaussian, OutputLoss

STREAM = np.random.default_rng(0)
SAMPLES, GATES = 6, 3
A = STREAM.standard_normal((SAMPLES, 2))
INTERIOR = STREAM.standard_normal((2, GATES))
HEIGHTS = A @ INTERIOR
OPEN = HEIGHTS >= 0
Y, SHARES = STREAM.standard_normal((SAMPLES, 1)), np.full(SAMPLES, 1 / SAMPLES)
SIDES = np.hstack([2.0 * OPEN - 1.0] * 2)
SIGNS = np.hstack([1.0 * OPEN, -1.0 * OPEN])


def cone_loss(fit_intercept: bool) -> ConeLoss:
    return ConeLoss(OutputLoss(Gaussian(), Y, SHARES, fit_intercept), OPEN, np.abs(HEIGHTS), INTERIOR)


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
    moved, E = loss.feasible(W, A @ W)
    assert (SIDES * E).min() >= -1e-12
    np.testing.assert_allclose(E, A @ moved, atol=1e-12)
    assert not moved[:, 1].any()
    again, _ = loss.feasible(moved, np.where(SIDES * E < 0, 0, E))
    np.testing.assert_array_equal(again, moved)
    outputs = (SIGNS * E).sum(axis=1, keepdims=True)
    relu = np.maximum(A @ moved, 0) @ np.repeat([1.0, -1.0], GATES)
    np.testing.assert_allclose(outputs[:, 0], relu, atol=1e-12)
    assert loss.value(E) == pytest.approx(float(np.var(outputs - Y)) / 2)
