"""Losses against finite differences, and conjugates against the inequality that defines them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize

from polarmap.convex import LogisticLoss, SquaredLoss
from polarmap.errors import ModelError

STREAM = np.random.default_rng(0)
ETA, WEIGHTS = STREAM.standard_normal((5, 3)), STREAM.random(5) + 0.1
LABELS = np.eye(3)[[0, 1, 2, 0, 1]]
LOSSES = [
    (SquaredLoss(ETA[:, 1]), ETA[:, 0]),
    (SquaredLoss(LABELS, WEIGHTS), ETA),
    (LogisticLoss(LABELS[:, 0], WEIGHTS), ETA[:, 0]),
    (LogisticLoss(LABELS, WEIGHTS), ETA),
]


@pytest.mark.parametrize(("loss", "eta"), LOSSES)
def test_the_gradient_is_the_derivative(loss: Any, eta: np.ndarray) -> None:
    direction = np.random.default_rng(1).standard_normal(eta.shape)
    slope = (loss.value(eta + 1e-5 * direction) - loss.value(eta - 1e-5 * direction)) / 2e-5
    assert loss.gradient(eta).shape == eta.shape
    assert slope == pytest.approx(float(np.sum(loss.gradient(eta) * direction)), rel=1e-6)


@pytest.mark.parametrize(("loss", "eta"), LOSSES[:2])
def test_the_conjugate_is_the_largest_difference(loss: Any, eta: np.ndarray) -> None:
    u = np.random.default_rng(2).standard_normal(eta.shape)
    found = minimize(lambda one: loss.value(one.reshape(u.shape)) - np.sum(u.ravel() * one), np.zeros(u.size))
    assert loss.conjugate(u) == pytest.approx(-found.fun, rel=1e-6)


def test_the_binary_loss_is_minus_the_log_likelihood() -> None:
    shares = 1 / (1 + np.exp(-ETA[:, 0]))
    likelihood = np.where(LABELS[:, 0] == 1, shares, 1 - shares)
    assert LogisticLoss(LABELS[:, 0]).value(ETA[:, 0]) == pytest.approx(-np.log(likelihood).sum())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SquaredLoss([1.0, np.nan]), "y must be finite"),
        (lambda: SquaredLoss(1.0), r"not of shape \(\)"),
        (
            lambda: SquaredLoss([1.0, 2.0], [1.0]),
            r"weights must be of shape \(2,\), one a sample, not",
        ),
        (lambda: SquaredLoss([1.0, 2.0], [1.0, 0.0]), "leave out samples whose weight is 0"),
        (lambda: LogisticLoss([-1.0, 1.0]), "y must hold 0 and 1 only"),
        (lambda: LogisticLoss([[1.0, 1.0]]), "one 1 in each row"),
    ],
)
def test_losses_that_cannot_be(make: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        make()
