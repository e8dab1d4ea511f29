"""The penalized loss of a model as scipy minimizes it: value, gradient, products with the Hessian."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from polarmap.glm.losses import Loss

Floats = npt.NDArray[np.float64]


class Objective:
    """loss(A V + unit b) + sum(penalty * V^2) / 2, whose products with A are coded maps.

    Parameters
    ----------
    operator : LinearOperator (samples, features)
    y : (samples, outputs)
    weights : (samples,)
        By which the losses of the samples are added up; their sum is 1.
    penalty : (features,)
        Of each row of V.
    unit : float
        Of b, which is not penalized; 0 if there is none. The argument is V (features, outputs) row by
        row, then b.
    """

    def __init__(
        self, operator: Any, y: Floats, weights: Floats, loss: Loss, penalty: Floats, unit: float
    ) -> None:
        self._operator, self._y, self._loss = operator, y, loss
        self._weights = weights[:, np.newaxis]
        self._penalty, self._unit = penalty[:, np.newaxis], unit
        self._shape = (operator.shape[1], y.shape[1])
        self._predictors: dict[bytes, Floats] = {}  # predictors of the last points: a Hessian reuses them

    def value_and_gradient(self, theta: Floats) -> tuple[float, Floats]:
        """Of the objective at theta; inf where a solver asks for NaN, which trust regions reject."""
        if not np.isfinite(theta).all():
            return np.inf, np.zeros_like(theta)
        V, _ = self.split(theta)
        eta = self._predictor(theta)
        value = self._loss.value(eta, self._y, self._weights) + 0.5 * float(np.sum(self._penalty * V**2))
        return value, self._gradient(self._loss.mean(eta) - self._y, V)

    def hessian_product(self, theta: Floats, direction: Floats) -> Floats:
        """The Hessian at theta times a direction; NaN for NaN."""
        if not (np.isfinite(theta).all() and np.isfinite(direction).all()):
            return np.full_like(direction, np.nan)
        mean = self._loss.mean(self._predictor(theta))
        curved = self._loss.curvature(mean, self._linear_predictor(direction))
        return self._gradient(curved, self.split(direction)[0])

    def split(self, theta: Floats) -> tuple[Floats, Floats]:
        """theta as V and unit b."""
        features, outputs = self._shape
        size = features * outputs
        b = self._unit * theta[size:] if self._unit else np.zeros(outputs)
        return theta[:size].reshape(self._shape), b

    def initial_value(self) -> float:
        """Of the objective at `initial_point`, without a product."""
        b = self._loss.null_predictor(self._y, self._weights) if self._unit else np.zeros(self._shape[1])
        return self._loss.value(np.broadcast_to(b, self._y.shape), self._y, self._weights)

    def initial_point(self) -> Floats:
        """Where a solver starts: V = 0 and the best b."""
        b = self._loss.null_predictor(self._y, self._weights) / self._unit if self._unit else np.zeros(0)
        return np.concatenate([np.zeros(self._shape[0] * self._shape[1]), b])

    def _predictor(self, theta: Floats) -> Floats:
        key = theta.tobytes()
        if key not in self._predictors:
            if len(self._predictors) > 2:
                del self._predictors[next(iter(self._predictors))]
            self._predictors[key] = self._linear_predictor(theta)
        return self._predictors[key]

    def _linear_predictor(self, theta: Floats) -> Floats:
        """A V + unit b."""
        V, b = self.split(theta)
        if V.shape[1] == 1:
            return np.asarray(self._operator.matvec(V[:, 0])).reshape(-1, 1) + b
        return np.asarray(self._operator.matmat(V)) + b

    def _gradient(self, residual: Floats, V: Floats) -> Floats:
        """A' (weights * residual) + penalty * V, and the sum of residuals for b."""
        residual = self._weights * residual
        if residual.shape[1] == 1:
            product = np.asarray(self._operator.rmatvec(residual[:, 0])).reshape(-1, 1)
        else:
            product = np.asarray(self._operator.rmatmat(residual))
        gradient = product + self._penalty * V
        b = self._unit * residual.sum(axis=0) if self._unit else np.zeros(0)
        return np.concatenate([gradient.reshape(-1), b])
