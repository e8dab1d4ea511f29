"""Losses of models; the oracles are finite differences, scipy's minimizer and Fenchel's inequality."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.optimize import approx_fprime, minimize

from polarmap.convex import LogisticLoss, SquaredLoss
from polarmap.errors import ModelError
from polarmap.models.losses import (
    MAX_EXPONENT,
    BernoulliFamily,
    GaussianFamily,
    LossFamily,
    MultinomialFamily,
    PoissonFamily,
    ProfiledLoss,
    WeightedLoss,
)

STREAM = np.random.default_rng(0)
WEIGHTS = STREAM.random(12) + 0.1
WEIGHTS /= WEIGHTS.sum()
ONEHOT = np.eye(3)[np.arange(12) % 3]
FAMILIES = [
    (GaussianFamily(), STREAM.standard_normal((12, 2)) * 50),
    (BernoulliFamily(), ONEHOT[:, :1]),
    (MultinomialFamily(), ONEHOT),
    (PoissonFamily(), np.arange(12.0)[:, None]),
]
families = pytest.mark.parametrize(("family", "y"), FAMILIES, ids=lambda one: type(one).__name__)
bounded = pytest.mark.parametrize(("family", "y"), FAMILIES[:3], ids=lambda one: type(one).__name__)


@families
def test_gradient_and_hessian_are_the_derivatives(family: LossFamily, y: np.ndarray) -> None:
    loss, eta = WeightedLoss(family, y, WEIGHTS), STREAM.standard_normal(y.shape)
    step = 1e-5 * STREAM.standard_normal(y.shape)
    slope = loss.value(eta + step) - loss.value(eta - step)
    assert slope == pytest.approx(2 * float(np.sum(loss.gradient(eta) * step)), rel=1e-6)
    change = loss.gradient(eta + step) - loss.gradient(eta - step)
    np.testing.assert_allclose(change, 2 * loss.hessian_product(eta, step), rtol=1e-5, atol=1e-13)


@families
def test_the_null_predictor_fits_best(family: LossFamily, y: np.ndarray) -> None:
    loss = WeightedLoss(family, y, WEIGHTS)
    np.testing.assert_allclose(family.mean(loss.fit_null_predictor()[np.newaxis])[0], WEIGHTS @ y)
    assert loss.compute_null_curvature() > 0


@families
def test_conjugate_satisfies_fenchels_inequality(family: LossFamily, y: np.ndarray) -> None:
    loss, eta = WeightedLoss(family, y, WEIGHTS), STREAM.standard_normal(y.shape)
    u = loss.gradient(eta)
    assert loss._conjugate(u) == pytest.approx(np.sum(u * eta) - loss.value(eta), rel=1e-9, abs=1e-12)
    for factor in (0.0, 0.5, 1.0):
        other = STREAM.standard_normal(y.shape)
        bound = loss.value(other) + loss._conjugate(factor * u)
        assert factor * np.sum(u * other) <= bound + 1e-9 * abs(bound)


def test_poisson_loss_is_linear_beyond_the_maximum_exponent() -> None:
    beyond = np.array([[MAX_EXPONENT + 3.0]])
    assert PoissonFamily().value(beyond, np.zeros((1, 1))) == pytest.approx(4.0 * np.exp(MAX_EXPONENT))


@pytest.mark.parametrize("of", [slice(None), 0])
def test_public_losses_are_negative_log_likelihoods(of: Any) -> None:
    eta, y = STREAM.standard_normal((12, 3))[:, of], ONEHOT[:, of]
    errors = np.abs(eta - y).reshape(12, -1)
    assert SquaredLoss(y, WEIGHTS).value(eta) == pytest.approx(np.sum(WEIGHTS @ errors**2) / 2)
    assert SquaredLoss(y).value(eta) == pytest.approx(np.sum(errors**2) / 2)
    grown = np.exp(eta)
    shares = grown / grown.sum(axis=1, keepdims=True) if y.ndim == 2 else grown / (1 + grown)
    likelihood = np.sum(y * shares, axis=1) if y.ndim == 2 else np.where(y == 1, shares, 1 - shares)
    assert LogisticLoss(y, WEIGHTS).value(eta) == pytest.approx(-WEIGHTS @ np.log(likelihood))
    step = 1e-5 * STREAM.standard_normal(eta.shape)
    for loss in (SquaredLoss(y, WEIGHTS), LogisticLoss(y, WEIGHTS)):
        assert loss.gradient(eta).shape == loss.shape == eta.shape
        slope = loss.value(eta + step) - loss.value(eta - step)
        assert slope == pytest.approx(2 * float(np.sum(loss.gradient(eta) * step)), rel=1e-6)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("of", [slice(None), 0])
def test_conjugate_of_squares_agrees_with_scipy(of: Any, weights: Any) -> None:
    loss, u = SquaredLoss(ONEHOT[:, of], weights), STREAM.standard_normal(ONEHOT[:, of].shape)
    minimum = minimize(lambda eta: loss.value(eta.reshape(u.shape)) - u.ravel() @ eta, np.zeros(u.size))
    assert loss.conjugate(u) == pytest.approx(-minimum.fun, rel=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SquaredLoss([1.0, np.nan]), "y must be a finite array"),
        (lambda: SquaredLoss(1.0), r"y must be a finite array .* not \(\)"),
        (lambda: SquaredLoss([1.0, 2.0], [1.0]), r"weights must have shape \(2,\), one weight per sample"),
        (lambda: SquaredLoss([1.0, 2.0], [1.0, 0.0]), "Leave out samples with weight 0"),
        (lambda: LogisticLoss([-1.0, 1.0]), "y must hold only 0 and 1"),
        (lambda: LogisticLoss([[1.0, 1.0]]), "one 1 in each row"),
    ],
)
def test_invalid_losses_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        make()


@bounded
@pytest.mark.parametrize("size", [0.1, 30.0])
def test_the_intercept_of_outputs_is_the_best_one(family: Any, y: np.ndarray, size: float) -> None:
    loss, eta = ProfiledLoss(family, y, WEIGHTS, True), size * STREAM.standard_normal(y.shape)
    without = ProfiledLoss(family, y, WEIGHTS, False)
    best = minimize(lambda c: without.value(eta + c), np.zeros(y.shape[1]), tol=1e-12).fun
    assert loss.value(eta) <= best * (1 + 1e-12)
    assert loss.value(eta) == pytest.approx(best, rel=1e-8)
    np.testing.assert_allclose(loss.gradient(eta).sum(axis=0), 0, atol=1e-12 * np.abs(y).max())
    assert not without.find_optimal_intercept(eta).any() and without.value(eta) >= loss.value(eta)


@pytest.mark.parametrize(("family", "y"), FAMILIES[1:3], ids=lambda one: type(one).__name__)
def test_search_for_the_intercept_ends_at_rounding(
    family: Any, y: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nearly all samples are predicted with certainty, so that differences of losses are rounding."""
    calls, compute_mean = [], type(family).mean
    monkeypatch.setattr(type(family), "mean", lambda self, eta: (calls.append(1), compute_mean(self, eta))[1])
    stream = np.random.default_rng(0)
    for scale in (1.0, 10.0, 100.0):
        for _ in range(20):
            loss = ProfiledLoss(family, y, WEIGHTS, True)
            eta = scale * (y - 0.5 + 0.1 * stream.standard_normal(y.shape)) + 100 * stream.standard_normal()
            calls.clear()
            intercept = loss.find_optimal_intercept(eta)
            assert len(calls) <= 60
            residual = WEIGHTS @ (compute_mean(family, eta + intercept) - y)
            assert np.abs(residual).max() <= 1e-12


@bounded
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_gradient_and_conjugate_of_outputs(family: Any, y: np.ndarray, fit_intercept: bool) -> None:
    loss, eta = ProfiledLoss(family, y, WEIGHTS, fit_intercept), STREAM.standard_normal(y.shape)
    u = loss.gradient(eta)
    slope = approx_fprime(eta.ravel(), lambda flat: loss.value(flat.reshape(y.shape)), 1e-7)
    np.testing.assert_allclose(u.ravel(), slope, atol=1e-5 * np.abs(y).max())
    assert loss.conjugate(u) == pytest.approx(np.sum(u * eta) - loss.value(eta), rel=1e-9, abs=1e-12)
    for factor in (0.0, 0.5, 1.0):
        other = STREAM.standard_normal(y.shape)
        bound = loss.value(other) + loss.conjugate(factor * u)
        assert factor * np.sum(u * other) <= bound + 1e-9 * abs(bound)
