"""Losses with the best intercept against scipy's minimizer, differences and Fenchel's inequality."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.optimize import approx_fprime, minimize

from polarmap.convexnn.output_loss import Binary, Gaussian, OutputLoss, Softmax

STREAM = np.random.default_rng(0)
SHARES = STREAM.random(12)
SHARES /= SHARES.sum()
CASES = [
    (Gaussian(), STREAM.standard_normal((12, 2)) * 50),
    (Binary(), (np.arange(12) % 3 == 0)[:, None] * 1.0),
    (Softmax(), np.eye(3)[np.arange(12) % 3]),
]
cases = pytest.mark.parametrize(("family", "y"), CASES, ids=["Gaussian", "Binary", "Softmax"])


@cases
@pytest.mark.parametrize("size", [0.1, 30.0])
def test_the_intercept_is_the_best_one(family: Any, y: np.ndarray, size: float) -> None:
    loss, eta = OutputLoss(family, y, SHARES, True), size * STREAM.standard_normal(y.shape)
    best = minimize(lambda c: family.value(eta + c, y, SHARES[:, None]), np.zeros(y.shape[1]), tol=1e-12).fun
    assert loss.value(eta) <= best * (1 + 1e-12)
    assert loss.value(eta) == pytest.approx(best, rel=1e-8)
    np.testing.assert_allclose(loss.gradient(eta).sum(axis=0), 0, atol=1e-12 * np.abs(y).max())
    without = OutputLoss(family, y, SHARES, False)
    assert not without.intercept(eta).any() and without.value(eta) >= loss.value(eta)


@cases
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_gradient_and_conjugate(family: Any, y: np.ndarray, fit_intercept: bool) -> None:
    loss, eta = OutputLoss(family, y, SHARES, fit_intercept), STREAM.standard_normal(y.shape)
    u = loss.gradient(eta)
    slope = approx_fprime(eta.ravel(), lambda flat: loss.value(flat.reshape(y.shape)), 1e-7)
    np.testing.assert_allclose(u.ravel(), slope, atol=1e-5 * np.abs(y).max())
    assert loss.conjugate(u) == pytest.approx(np.sum(u * eta) - loss.value(eta), rel=1e-9, abs=1e-12)
    for factor in (0.0, 0.5, 1.0):
        other = STREAM.standard_normal(y.shape)
        bound = loss.value(other) + loss.conjugate(factor * u)
        assert factor * np.sum(u * other) <= bound + 1e-9 * abs(bound)


@cases
def test_the_curvature_is_bounded(family: Any, y: np.ndarray) -> None:
    mean = family.mean(3 * STREAM.standard_normal(y.shape))
    for direction in STREAM.standard_normal((50, y.shape[1])):
        curved = family.curvature(mean, np.broadcast_to(direction, y.shape)) @ direction
        assert curved.max() <= family.largest_curvature * direction @ direction * (1 + 1e-12)
