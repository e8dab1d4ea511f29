"""Losses of generalized linear models: value, mean and curvature at a linear predictor."""

from __future__ import annotations

from typing import Any, Protocol

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

    def value(self, eta: Floats, y: Floats) -> float: ...

    def mean(self, eta: Floats) -> Floats: ...

    def curvature(self, mean: Floats, direction: Floats) -> Floats: ...

    def start(self, y: Floats) -> Floats:
        """The eta (outputs,) that fits best without any feature."""
        ...


class Bernoulli:
    """y in {0, 1}, logit link.

    >>> round(Bernoulli().value(np.zeros((2, 1)), np.ones((2, 1))), 6)
    1.386294
    """

    def value(self, eta: Floats, y: Floats) -> float:
        return float(np.sum(np.logaddexp(0.0, eta) - y * eta))

    def mean(self, eta: Floats) -> Floats:
        return np.asarray(expit(eta))

    def curvature(self, mean: Floats, direction: Floats) -> Floats:
        return mean * (1.0 - mean) * direction

    def start(self, y: Floats) -> Floats:
        share = y.mean(axis=0)
        return np.asarray(np.log(share) - np.log1p(-share))


class Multinomial:
    """One column per class, y one of them; softmax of all columns.

    >>> Multinomial().mean(np.zeros((1, 4))).tolist()
    [[0.25, 0.25, 0.25, 0.25]]
    """

    def value(self, eta: Floats, y: Floats) -> float:
        return float(np.sum(logsumexp(eta, axis=1)) - np.sum(y * eta))

    def mean(self, eta: Floats) -> Floats:
        return np.asarray(softmax(eta, axis=1))

    def curvature(self, mean: Floats, direction: Floats) -> Floats:
        return np.asarray(mean * (direction - np.sum(mean * direction, axis=1, keepdims=True)))

    def start(self, y: Floats) -> Floats:
        logs = np.log(y.mean(axis=0))
        return np.asarray(logs - logs.mean())


class Poisson:
    """Counts y >= 0, log link.

    >>> Poisson().mean(np.array([[0.0]])).tolist()
    [[1.0]]
    """

    def value(self, eta: Floats, y: Floats) -> float:
        over = np.maximum(eta - LARGEST_EXPONENT, 0.0)
        return float(np.sum(self.mean(eta) * (1.0 + over) - y * eta))

    def mean(self, eta: Floats) -> Floats:
        return np.asarray(np.exp(np.minimum(eta, LARGEST_EXPONENT)))

    def curvature(self, mean: Floats, direction: Floats) -> Floats:
        return mean * direction

    def start(self, y: Floats) -> Floats:
        return np.asarray(np.log(y.mean(axis=0)))


def typical_curvature(loss: Loss, y: Floats) -> float:
    """Of the loss of a sample, where no feature matters: by it coefficients are scaled."""
    mean = loss.mean(loss.start(y)[np.newaxis])
    outputs = y.shape[1]
    return float(np.mean([loss.curvature(mean, np.eye(outputs)[[j]])[0, j] for j in range(outputs)]))


class Objective:
    """loss(A V + unit b) / samples + sum(penalty * V^2) / 2, whose products with A are coded maps.

    Parameters
    ----------
    operator : LinearOperator (samples, features)
    y : (samples, outputs)
    penalty : (features,)
        Of each row of V.
    unit : float
        Of b, which is not penalized; 0 if there is none. The argument is V (features, outputs) row by
        row, then b.
    """

    def __init__(self, operator: Any, y: Floats, loss: Loss, penalty: Floats, unit: float) -> None:
        self._operator, self._y, self._loss = operator, y, loss
        self._penalty, self._unit = penalty[:, np.newaxis], unit
        self._shape = (operator.shape[1], y.shape[1])
        self._seen: dict[bytes, Floats] = {}  # predictors of the last points: a Hessian reuses them

    def value_and_gradient(self, theta: Floats) -> tuple[float, Floats]:
        """At theta; inf where a solver asks for NaN, which trust regions reject."""
        if not np.isfinite(theta).all():
            return np.inf, np.zeros_like(theta)
        V, _ = self.split(theta)
        eta = self._predictor(theta)
        value = self._loss.value(eta, self._y) / len(self._y) + 0.5 * float(np.sum(self._penalty * V**2))
        return value, self._pulled_back(self._loss.mean(eta) - self._y, V)

    def hessian_product(self, theta: Floats, direction: Floats) -> Floats:
        """The Hessian at theta times a direction; NaN for NaN."""
        if not (np.isfinite(theta).all() and np.isfinite(direction).all()):
            return np.full_like(direction, np.nan)
        mean = self._loss.mean(self._predictor(theta))
        turned = self._loss.curvature(mean, self._forward(direction))
        return self._pulled_back(turned, self.split(direction)[0])

    def split(self, theta: Floats) -> tuple[Floats, Floats]:
        """V and unit b."""
        features, outputs = self._shape
        size = features * outputs
        b = self._unit * theta[size:] if self._unit else np.zeros(outputs)
        return theta[:size].reshape(self._shape), b

    def start_value(self) -> float:
        """At `start`, without a product."""
        b = self._loss.start(self._y) if self._unit else np.zeros(self._shape[1])
        return self._loss.value(np.broadcast_to(b, self._y.shape), self._y) / len(self._y)

    def start(self) -> Floats:
        """V = 0 and the best b."""
        b = self._loss.start(self._y) / self._unit if self._unit else np.zeros(0)
        return np.concatenate([np.zeros(self._shape[0] * self._shape[1]), b])

    def _predictor(self, theta: Floats) -> Floats:
        key = theta.tobytes()
        if key not in self._seen:
            if len(self._seen) > 2:
                del self._seen[next(iter(self._seen))]
            self._seen[key] = self._forward(theta)
        return self._seen[key]

    def _forward(self, theta: Floats) -> Floats:
        """A V + unit b."""
        V, b = self.split(theta)
        if V.shape[1] == 1:
            return np.asarray(self._operator.matvec(V[:, 0])).reshape(-1, 1) + b
        return np.asarray(self._operator.matmat(V)) + b

    def _pulled_back(self, residual: Floats, V: Floats) -> Floats:
        """A' residual / samples + penalty * V, and the sum of residuals for b."""
        if residual.shape[1] == 1:
            product = np.asarray(self._operator.rmatvec(residual[:, 0])).reshape(-1, 1)
        else:
            product = np.asarray(self._operator.rmatmat(residual))
        gradient = product / len(self._y) + self._penalty * V
        b = self._unit * residual.mean(axis=0) if self._unit else np.zeros(0)
        return np.concatenate([gradient.reshape(-1), b])
