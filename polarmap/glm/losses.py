"""Losses of generalized linear models: value, mean and curvature at a linear predictor."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logsumexp, softmax

Floats = npt.NDArray[np.float64]

# Beyond, exp is continued by its tangent: a line search that overshoots must not meet inf.
LARGEST_EXPONENT = 300.0


class Loss(Protocol):
    """Minus the log likelihood of canonical link, summed over samples, up to a constant.

    eta is the linear predictor (samples, outputs); y has its shape. The gradient with respect to eta
    is mean(eta) - y, and the Hessian applied to a direction is curvature(mean, direction).
    """

    def value(self, eta: Floats, y: Floats, weights: Floats | float = 1.0) -> float:
        """Summed with `weights` (samples, 1)."""
        ...

    def mean(self, eta: Floats) -> Floats: ...

    def curvature(self, mean: Floats, direction: Floats) -> Floats: ...

    def null_predictor(self, y: Floats, weights: Floats | None = None) -> Floats:
        """The eta (outputs,) that fits best without any feature."""
        ...


class Bernoulli:
    """y in {0, 1}, logit link.

    >>> round(Bernoulli().value(np.zeros((2, 1)), np.ones((2, 1))), 6)
    1.386294
    """

    def value(self, eta: Floats, y: Floats, weights: Floats | float = 1.0) -> float:
        return float(np.sum(weights * (np.logaddexp(0.0, eta) - y * eta)))

    def mean(self, eta: Floats) -> Floats:
        return np.asarray(expit(eta))

    def curvature(self, mean: Floats, direction: Floats) -> Floats:
        return mean * (1.0 - mean) * direction

    def null_predictor(self, y: Floats, weights: Floats | None = None) -> Floats:
        share = _mean(y, weights)
        return np.asarray(np.log(share) - np.log1p(-share))


class Multinomial:
    """One column per class, y one of them; softmax of all columns.

    >>> Multinomial().mean(np.zeros((1, 4))).tolist()
    [[0.25, 0.25, 0.25, 0.25]]
    """

    def value(self, eta: Floats, y: Floats, weights: Floats | float = 1.0) -> float:
        return float(
            np.sum(weights * (logsumexp(eta, axis=1, keepdims=True) - np.sum(y * eta, axis=1, keepdims=True)))
        )

    def mean(self, eta: Floats) -> Floats:
        return np.asarray(softmax(eta, axis=1))

    def curvature(self, mean: Floats, direction: Floats) -> Floats:
        return np.asarray(mean * (direction - np.sum(mean * direction, axis=1, keepdims=True)))

    def null_predictor(self, y: Floats, weights: Floats | None = None) -> Floats:
        logs = np.log(_mean(y, weights))
        return np.asarray(logs - logs.mean())


class Poisson:
    """Counts y >= 0, log link.

    >>> Poisson().mean(np.array([[0.0]])).tolist()
    [[1.0]]
    """

    def value(self, eta: Floats, y: Floats, weights: Floats | float = 1.0) -> float:
        over = np.maximum(eta - LARGEST_EXPONENT, 0.0)
        return float(np.sum(weights * (self.mean(eta) * (1.0 + over) - y * eta)))

    def mean(self, eta: Floats) -> Floats:
        return np.asarray(np.exp(np.minimum(eta, LARGEST_EXPONENT)))

    def curvature(self, mean: Floats, direction: Floats) -> Floats:
        return mean * direction

    def null_predictor(self, y: Floats, weights: Floats | None = None) -> Floats:
        return np.asarray(np.log(_mean(y, weights)))


def _mean(y: Floats, weights: Floats | None) -> Floats:
    """Of each column, with weights (samples, 1)."""
    return np.average(y, axis=0, weights=None if weights is None else weights[:, 0])


def null_curvature(loss: Loss, y: Floats, weights: Floats | None = None) -> float:
    """Mean curvature of the loss of a sample in the model without features: by it coefficients are scaled."""
    mean = loss.mean(loss.null_predictor(y, weights)[np.newaxis])
    outputs = y.shape[1]
    return float(np.mean([loss.curvature(mean, np.eye(outputs)[[j]])[0, j] for j in range(outputs)]))
