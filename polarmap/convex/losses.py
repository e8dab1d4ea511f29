"""Smooth losses of a product eta = A x: value, gradient and, where it is known, convex conjugate."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from polarmap.errors import ModelError
from polarmap.glm.losses import Bernoulli, Loss, Multinomial

Floats = npt.NDArray[np.float64]


class SquaredLoss:
    """sum_i weights_i |eta_i - y_i|^2 / 2.

    Parameters
    ----------
    y : (samples,) or (samples, outputs)
    weights : (samples,), optional
        Positive; 1 by default.

    Raises
    ------
    ModelError
        A y that is not finite; weights that are not positive, or not one a sample.

    Examples
    --------
    >>> loss = SquaredLoss([1.0, 2.0])
    >>> loss.value(np.zeros(2)), loss.gradient(np.zeros(2)).tolist()
    (2.5, [-1.0, -2.0])
    """

    def __init__(self, y: Any, weights: Any = None) -> None:
        self._y = _checked_targets(y)
        self.shape = self._y.shape
        self._weights = _checked_weights(weights, self._y)

    def value(self, eta: Floats) -> float:
        """At the product eta, of the shape of y."""
        return 0.5 * float(np.sum(self._weights * (eta - self._y) ** 2))

    def gradient(self, eta: Floats) -> Floats:
        """With respect to eta, of its shape."""
        return np.asarray(self._weights * (eta - self._y))

    def conjugate(self, u: Floats) -> float:
        """max over eta of <u, eta> - value(eta)."""
        return float(np.sum(u**2 / (2 * self._weights) + u * self._y))


class LogisticLoss:
    """sum_i weights_i log(1 + exp(eta_i)) - y_i eta_i, or its multinomial generalization.

    Parameters
    ----------
    y : (samples,) or (samples, classes)
        0 and 1; for more than two classes, one 1 in each row.
    weights : (samples,), optional
        Positive; 1 by default.

    Raises
    ------
    ModelError
        A y of other numbers; weights that are not positive, or not one a sample.

    Examples
    --------
    >>> loss = LogisticLoss([0.0, 1.0])
    >>> round(loss.value(np.zeros(2)), 6), loss.gradient(np.zeros(2)).tolist()
    (1.386294, [0.5, -0.5])
    """

    def __init__(self, y: Any, weights: Any = None) -> None:
        self._y = _checked_targets(y)
        self.shape = self._y.shape
        if not np.isin(self._y, (0.0, 1.0)).all() or (self._y.ndim == 2 and (self._y.sum(axis=1) != 1).any()):
            raise ModelError("y must hold 0 and 1 only, with one 1 in each row if it has several columns")
        self._loss: Loss = Bernoulli() if self._y.ndim == 1 else Multinomial()
        self._weights = _checked_weights(weights, self._y)

    def value(self, eta: Floats) -> float:
        """At the product eta, of the shape of y."""
        columns = (len(self._y), -1)
        weights = self._weights.reshape(-1, 1)
        return self._loss.value(eta.reshape(columns), self._y.reshape(columns), weights)

    def gradient(self, eta: Floats) -> Floats:
        """With respect to eta, of its shape."""
        return np.asarray(self._weights * (self._loss.mean(eta) - self._y))


def _checked_targets(y: Any) -> Floats:
    """y as floats of one dimension or two."""
    found = np.asarray(y, dtype=np.float64)
    if found.ndim not in (1, 2) or not np.isfinite(found).all():
        raise ModelError(f"y must be finite, (samples,) or (samples, outputs), not of shape {found.shape}")
    return found


def _checked_weights(weights: Any, y: Floats) -> Floats:
    """A weight for each sample, in a shape that multiplies y."""
    found = np.ones(len(y)) if weights is None else np.asarray(weights, dtype=np.float64)
    if found.shape != (len(y),):
        raise ModelError(f"weights must be of shape {(len(y),)}, one a sample, not {found.shape}")
    if not (found > 0).all() or not np.isfinite(found).all():
        raise ModelError("weights must be finite and positive: leave out samples whose weight is 0")
    return found if y.ndim == 1 else found[:, np.newaxis]
