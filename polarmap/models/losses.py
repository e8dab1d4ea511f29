"""Smooth convex losses: by family, of weighted samples, and with the intercept that fits best."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.special import expit, logsumexp, softmax, xlogy

from polarmap.dtypes import FLOAT64_EPS, Floats
from polarmap.errors import ModelError

# Beyond, exp is continued by its tangent: a line search that overshoots must not meet inf.
MAX_EXPONENT = 300.0
MAX_NEWTON_STEPS, MAX_BACKTRACKS = 100, 40  # of the best intercept
GRADIENT_TOL = 8 * FLOAT64_EPS


# A family is minus the log likelihood of its distribution with canonical link, up to a constant. eta is the
# linear predictor, (samples, outputs), or (samples,) of a single output; y has its shape. value: of each
# number or sample. mean: of y at eta; the gradient is mean - y. link: its inverse. curvature: the Hessian at
# the eta of a mean, applied to a direction. conjugate: max over eta of
# <u, eta> - value(eta), of each number or sample, for a u between 0 and a gradient.


class GaussianFamily:
    """|eta - y|^2 / 2.

    >>> GaussianFamily().value(np.zeros((1, 2)), np.array([[1.0, 2.0]])).tolist()
    [[0.5, 2.0]]
    """

    def value(self, eta: Floats, y: Floats) -> Floats:
        return np.asarray((eta - y) ** 2 / 2)

    def mean(self, eta: Floats) -> Floats:
        return eta

    def link(self, mean: Floats) -> Floats:
        return mean

    def hessian_product(self, mean: Floats, direction: Floats) -> Floats:
        return direction

    def conjugate(self, dual: Floats, y: Floats) -> Floats:
        return dual**2 / 2 + dual * y


class BernoulliFamily:
    """log(1 + exp(eta)) - y eta, with y 0 or 1.

    >>> BernoulliFamily().value(np.zeros((1, 2)), np.ones((1, 2))).round(6).tolist()
    [[0.693147, 0.693147]]
    """

    def value(self, eta: Floats, y: Floats) -> Floats:
        return np.asarray(np.logaddexp(0.0, eta) - y * eta)

    def mean(self, eta: Floats) -> Floats:
        return np.asarray(expit(eta))

    def link(self, mean: Floats) -> Floats:
        return np.asarray(np.log(mean) - np.log1p(-mean))

    def hessian_product(self, mean: Floats, direction: Floats) -> Floats:
        return mean * (1.0 - mean) * direction

    def conjugate(self, dual: Floats, y: Floats) -> Floats:
        mean = np.clip(y + dual, 0.0, 1.0)
        return np.asarray(xlogy(mean, mean) + xlogy(1 - mean, 1 - mean))


class MultinomialFamily:
    """log(sum(exp(eta))) - y eta: a column for each class, y one of them; softmax of all columns.

    >>> MultinomialFamily().mean(np.zeros((1, 4))).tolist()
    [[0.25, 0.25, 0.25, 0.25]]
    """

    def value(self, eta: Floats, y: Floats) -> Floats:
        return np.asarray(logsumexp(eta, axis=1, keepdims=True) - np.sum(y * eta, axis=1, keepdims=True))

    def mean(self, eta: Floats) -> Floats:
        return np.asarray(softmax(eta, axis=1))

    def link(self, mean: Floats) -> Floats:
        logs = np.log(mean)
        return np.asarray(logs - logs.mean())

    def hessian_product(self, mean: Floats, direction: Floats) -> Floats:
        return np.asarray(mean * (direction - np.sum(mean * direction, axis=1, keepdims=True)))

    def conjugate(self, dual: Floats, y: Floats) -> Floats:
        mean = np.maximum(y + dual, 0.0)
        return np.asarray(xlogy(mean, mean))


class PoissonFamily:
    """exp(eta) - y eta, with counts y >= 0.

    >>> PoissonFamily().mean(np.array([[0.0]])).tolist()
    [[1.0]]
    """

    def value(self, eta: Floats, y: Floats) -> Floats:
        excess = np.maximum(eta - MAX_EXPONENT, 0.0)
        return self.mean(eta) * (1.0 + excess) - y * eta

    def mean(self, eta: Floats) -> Floats:
        return np.asarray(np.exp(np.minimum(eta, MAX_EXPONENT)))

    def link(self, mean: Floats) -> Floats:
        return np.asarray(np.log(mean))

    def hessian_product(self, mean: Floats, direction: Floats) -> Floats:
        return mean * direction

    def conjugate(self, dual: Floats, y: Floats) -> Floats:
        mean = np.maximum(y + dual, 0.0)
        return np.asarray(xlogy(mean, mean) - mean)


LossFamily = GaussianFamily | BernoulliFamily | MultinomialFamily | PoissonFamily


class WeightedLoss:
    """sum_i weights_i loss(eta_i, y_i), for y and eta (samples,) or (samples, outputs), weights positive."""

    def __init__(self, family: LossFamily, y: Floats, weights: Floats) -> None:
        self.family, self.y, self.shape = family, y, y.shape
        self.weights = weights if y.ndim == 1 else weights[:, np.newaxis]

    def value(self, eta: Floats) -> float:
        """At the product eta, of the shape of y."""
        return float(np.sum(self.weights * self.family.value(eta, self.y)))

    def gradient(self, eta: Floats) -> Floats:
        """With respect to eta, of its shape."""
        return np.asarray(self.weights * (self.family.mean(eta) - self.y))

    def hessian_product(self, eta: Floats, direction: Floats) -> Floats:
        """The product of the Hessian at eta and a direction of its shape."""
        return np.asarray(self.weights * self.family.hessian_product(self.family.mean(eta), direction))

    def _conjugate(self, dual: Floats) -> float:
        """max over eta of <u, eta> - value(eta), for a u between 0 and a gradient."""
        return float(np.sum(self.weights * self.family.conjugate(dual / self.weights, self.y)))

    def fit_null_predictor(self) -> Floats:
        """The eta (outputs,) that fits best without any feature."""
        return self.family.link(np.average(self.y, axis=0, weights=self.weights.reshape(-1)))

    def compute_null_curvature(self) -> float:
        """Mean curvature of a sample's loss in the model without features: by it coefficients are scaled."""
        mean = self.family.mean(self.fit_null_predictor()[np.newaxis])
        unit_vectors = np.eye(mean.shape[1])
        curvatures = [self.family.hessian_product(mean, unit[np.newaxis])[0] @ unit for unit in unit_vectors]
        return float(np.mean(curvatures))


class SquaredLoss(WeightedLoss):
    """sum_i weights_i |eta_i - y_i|^2 / 2.

    Parameters
    ----------
    y : (samples,) or (samples, outputs)
    weights : (samples,), optional
        Positive; 1 by default.

    Examples
    --------
    >>> loss = SquaredLoss([1.0, 2.0])
    >>> loss.value(np.zeros(2)), loss.gradient(np.zeros(2)).tolist()
    (2.5, [-1.0, -2.0])
    """

    def __init__(self, y: Any, weights: Any = None) -> None:
        y = _check_targets(y)
        super().__init__(GaussianFamily(), y, _check_weights(weights, len(y)))

    conjugate = WeightedLoss._conjugate


class LogisticLoss(WeightedLoss):
    """sum_i weights_i log(1 + exp(eta_i)) - y_i eta_i, or its multinomial generalization.

    Parameters
    ----------
    y : (samples,) or (samples, classes)
        0 and 1; for more than two classes, one 1 in each row.
    weights : (samples,), optional
        Positive; 1 by default.

    Examples
    --------
    >>> loss = LogisticLoss([0.0, 1.0])
    >>> round(loss.value(np.zeros(2)), 6), loss.gradient(np.zeros(2)).tolist()
    (1.386294, [0.5, -0.5])
    """

    def __init__(self, y: Any, weights: Any = None) -> None:
        y = _check_targets(y)
        if not np.isin(y, (0.0, 1.0)).all() or (y.ndim == 2 and (y.sum(axis=1) != 1).any()):
            raise ModelError("y must hold 0 and 1 only, with one 1 in each row if it has several columns")
        family: LossFamily = BernoulliFamily() if y.ndim == 1 else MultinomialFamily()
        super().__init__(family, y, _check_weights(weights, len(y)))


def _check_targets(y: Any) -> Floats:
    """y as floats of one dimension or two."""
    targets = np.asarray(y, dtype=np.float64)
    if targets.ndim not in (1, 2) or not np.isfinite(targets).all():
        raise ModelError(f"y must be finite, (samples,) or (samples, outputs), not of shape {targets.shape}")
    return targets


def _check_weights(weights: Any, n_samples: int) -> Floats:
    """A weight for each sample."""
    checked = np.ones(n_samples) if weights is None else np.asarray(weights, dtype=np.float64)
    if checked.shape != (n_samples,):
        raise ModelError(f"weights must be of shape {(n_samples,)}, one a sample, not {checked.shape}")
    if not (checked > 0).all() or not np.isfinite(checked).all():
        raise ModelError("weights must be finite and positive: leave out samples whose weight is 0")
    return checked


class ProfiledLoss(WeightedLoss):
    """min over c of sum_i weights_i loss(eta_i + c, y_i): smooth and convex in eta, as the loss is.

    Of bounded curvature; weights of sum 1; without `fit_intercept` c is 0.

    >>> loss = ProfiledLoss(GaussianFamily(), np.array([[1.0], [3.0]]), np.full(2, 0.5), True)
    >>> loss.value(np.zeros((2, 1))), loss.find_optimal_intercept(np.zeros((2, 1))).tolist()
    (0.5, [2.0])
    """

    def __init__(self, family: LossFamily, y: Floats, weights: Floats, fit_intercept: bool) -> None:
        super().__init__(family, y, weights)
        self.fit_intercept = fit_intercept
        self._null_intercept: Floats = self.fit_null_predictor() if fit_intercept else np.zeros(y.shape[1])
        self._cached_intercept: tuple[Floats | None, Floats] = None, self._null_intercept

    def value(self, eta: Floats) -> float:
        """At the outputs eta, before the intercept."""
        return super().value(eta + self.find_optimal_intercept(eta))

    def gradient(self, eta: Floats) -> Floats:
        """With respect to eta; each column adds up to 0 with an intercept."""
        return super().gradient(eta + self.find_optimal_intercept(eta))

    conjugate = WeightedLoss._conjugate

    @property
    def has_separate_outputs(self) -> bool:
        """Whether the loss is a sum over outputs: a softmax of several is not."""
        return self.shape[1] == 1 or not isinstance(self.family, MultinomialFamily)

    def make_hessian_product(self, eta: Floats) -> Callable[[Floats], Floats]:
        """Its product with a direction, which the intercept follows."""
        mean = self.family.mean(eta + self.find_optimal_intercept(eta))
        inverse_intercept_hessian = (
            np.linalg.pinv(self._compute_intercept_hessian(mean)) if self.fit_intercept else None
        )

        def multiply(direction: Floats) -> Floats:
            if inverse_intercept_hessian is not None:
                products = self.weights * self.family.hessian_product(mean, direction)
                intercept_gradient = np.sum(products, axis=0)
                direction = direction - inverse_intercept_hessian @ intercept_gradient
            return np.asarray(self.weights * self.family.hessian_product(mean, direction))

        return multiply

    def compute_hessian_diagonal(self, eta: Floats) -> Floats:
        """Of each sample and output alone, where the intercept stays: the diagonal of the Hessian."""
        mean = self.family.mean(eta + self.find_optimal_intercept(eta))
        unit_vectors = np.eye(mean.shape[1])
        diagonal = [
            self.family.hessian_product(mean, np.broadcast_to(unit_vector, mean.shape)) @ unit_vector
            for unit_vector in unit_vectors
        ]
        return np.asarray(self.weights * np.stack(diagonal, axis=1))

    def _compute_intercept_hessian(self, mean: Floats) -> Floats:
        """Second derivatives by the intercept: (outputs, outputs)."""
        unit_vectors = [np.broadcast_to(unit_vector, mean.shape) for unit_vector in np.eye(mean.shape[1])]
        return np.stack(
            [
                np.sum(self.weights * self.family.hessian_product(mean, unit_vector), axis=0)
                for unit_vector in unit_vectors
            ]
        )

    def find_optimal_intercept(self, eta: Floats) -> Floats:
        """The c (outputs,) that fits best, by Newton's method from the last one."""
        if not self.fit_intercept:
            return self._null_intercept
        if isinstance(self.family, GaussianFamily):
            return np.asarray(np.sum(self.weights * (self.y - eta), axis=0))
        cached_eta, intercept = self._cached_intercept
        if eta is cached_eta:
            return intercept
        max_norm = 1.0 + float(np.ptp(eta))
        for _ in range(MAX_NEWTON_STEPS):
            mean = self.family.mean(eta + intercept)
            gradient = np.sum(self.weights * (mean - self.y), axis=0)
            if np.abs(gradient).max() <= GRADIENT_TOL:  # means are 1 at most
                break
            step = self._compute_intercept_newton_step(mean, gradient, max_norm)
            shortened = self._backtrack_intercept_step(eta, intercept, step, float(gradient @ step))
            if shortened is None:
                break
            # a softmax is the same for all shifts
            intercept = shortened - shortened.mean() if len(shortened) > 1 else shortened
        self._cached_intercept = eta, intercept
        return intercept

    def _compute_intercept_newton_step(self, mean: Floats, gradient: Floats, max_norm: float) -> Floats:
        """No longer than `max_norm`, by a ridge that vanishes with the slope: a softmax has a flat
        direction.
        """
        ridge = float(np.linalg.norm(gradient)) / max_norm
        hessian = self._compute_intercept_hessian(mean) + ridge * np.eye(len(gradient))
        return np.asarray(-np.linalg.solve(hessian, gradient))

    def _backtrack_intercept_step(
        self, eta: Floats, intercept: Floats, step: Floats, slope: float
    ) -> Floats | None:
        """c after as much of a step as lessens the loss; None where no digit of it can be lessened."""
        loss_before = super().value(eta + intercept)
        for n_halvings in range(MAX_BACKTRACKS):
            step_length = 0.5**n_halvings
            loss_after = super().value(eta + intercept + step_length * step)
            if loss_after <= loss_before + 1e-4 * step_length * slope + 4 * FLOAT64_EPS * abs(loss_before):
                return np.asarray(intercept + step_length * step)
        return None
