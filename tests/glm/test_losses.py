"""Losses against finite differences: mean is the gradient, curvature the Hessian."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import logsumexp

from polarmap.glm.losses import LARGEST_EXPONENT, Bernoulli, Loss, Multinomial, Poisson, null_curvature

STREAM = np.random.default_rng(0)
ETA = STREAM.standard_normal((5, 3))
LOSSES = [
    (Bernoulli(), ETA[:, :1], (ETA[:, :1] > 0).astype(float)),
    (Multinomial(), ETA, np.eye(3)[[0, 1, 2, 0, 1]]),
    (Poisson(), ETA[:, :1], np.array([[0.0], [1.0], [2.0], [5.0], [0.0]])),
]
STEP = 1e-5


@pytest.mark.parametrize(("loss", "eta", "y"), LOSSES, ids=lambda one: type(one).__name__)
def test_mean_and_curvature_are_the_derivatives(loss: Loss, eta: np.ndarray, y: np.ndarray) -> None:
    direction = np.random.default_rng(1).standard_normal(eta.shape)
    slope = (loss.value(eta + STEP * direction, y) - loss.value(eta - STEP * direction, y)) / (2 * STEP)
    assert slope == pytest.approx(float(np.sum((loss.mean(eta) - y) * direction)), rel=1e-6)
    change = (loss.mean(eta + STEP * direction) - loss.mean(eta - STEP * direction)) / (2 * STEP)
    np.testing.assert_allclose(change, loss.curvature(loss.mean(eta), direction), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(("loss", "eta", "y"), LOSSES, ids=lambda one: type(one).__name__)
def test_the_null_predictor_fits_best(loss: Loss, eta: np.ndarray, y: np.ndarray) -> None:
    best = loss.null_predictor(y)
    np.testing.assert_allclose(loss.mean(best[np.newaxis])[0], y.mean(axis=0))
    assert null_curvature(loss, y) > 0


def test_the_multinomial_loss_is_minus_the_log_likelihood() -> None:
    loss, eta, y = LOSSES[1]
    assert loss.value(eta, y) == pytest.approx(-np.sum(y * (eta - logsumexp(eta, axis=1, keepdims=True))))


def test_poisson_goes_on_as_its_tangent() -> None:
    beyond = np.array([[LARGEST_EXPONENT + 3.0]])
    assert Poisson().value(beyond, np.zeros((1, 1))) == pytest.approx(4.0 * np.exp(LARGEST_EXPONENT))
