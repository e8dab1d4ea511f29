"""Smooth convex losses: by family, of weighted samples, and with the intercept that fits best."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.special import expit, logsumexp, softmax, xlogy

from polarmap.dtypes import FLOAT64_EPS, Floats
from polarmap.errors import ModelError

# Beyond, exp is continued by its tangent: a line search that overshoots must not meet inf.
LARGEST_EXPONENT = 300.0
NEWTON_STEPS, HALVINGS = 100, 40  # of the best intercept
ROUNDED = 8 * FLOAT64_EPS


# A family is minus the log likelihood of its distribution with canonical link, up to a constant. eta is the
# linear predictor, (samples, outputs), or (samples,) of a single output; y has its shape. value: of each
# number or sample. mean: of y at eta; the gradient is mean - y. link: its inverse. curvature: the Hessian at
# the eta of a mean, applied to a direction; largest_curvature bounds it. conjugate: max over eta of
# <u, eta> - value(eta), of each number or sample, for a u between 0 and a gradient.


class Gaussian:
    """|eta - y|^2 / 2.

    >>> Gaussian().value(np.zeros((1, 2)), np.array([[1.0, 2.0]])).tolist()
    [[0.5, 2.0]]
    """

    largest_curvature = 1.0

    def value(self, eta: Floats, y: Floats) -> Floats:
        return np.asarray((eta - y) ** 2 / 2)

    def mean(self, eta: Floats) -> Floats:
        return eta

    def link(self, mean: Floats) -> Floats:
        return mean

    def curvature(self, mean: Floats, direction: Floats) -> Floats:
        return direction

    def conjugate(self, u: Floats, y: Floats) -> Floats:
        return u**2 / 2 + u * y


class Bernoulli:
    """log(1 + exp(eta)) - y eta, with y 0 or 1.

    >>> Bernoulli().value(np.zeros((1, 2)), np.ones((1, 2))).round(6).tolist()
    [[0.693147, 0.693147]]
    """

    largest_curvature = 0.25

    def value(self, eta: Floats, y: Floats) -> Floats:
        return np.asarray(np.logaddexp(0.0, eta) - y * eta)

    def mean(self, eta: Floats) -> Floats:
        return np.asarray(expit(eta))

    def link(self, mean: Floats) -> Floats:
        return np.asarray(np.log(mean) - np.log1p(-mean))

    def curvature(self, mean: Floats, direction: Floats) -> Floats:
        return mean * (1.0 - mean) * direction

    def conjugate(self, u: Floats, y: Floats) -> Floats:
        mean = np.clip(y + u, 0.0, 1.0)
        return np.asarray(xlogy(mean, mean) + xlogy(1 - mean, 1 - mean))


class Multinomial:
    """log(sum(exp(eta))) - y eta: a column for each class, y one of them; softmax of all columns.

    >>> Multinomial().mean(np.zeros((1, 4))).tolist()
    [[0.25, 0.25, 0.25, 0.25]]
    """

    largest_curvature = 0.5

    def value(self, eta: Floats, y: Floats) -> Floats:
        return np.asarray(logsumexp(eta, axis=1, keepdims=True) - np.sum(y * eta, axis=1, keepdims=True))

    def mean(self, eta: Floats) -> Floats:
        return np.asarray(softmax(eta, axis=1))

    def link(self, mean: Floats) -> Floats:
        logs = np.log(mean)
        return np.asarray(logs - logs.mean())

    def curvature(self, mean: Floats, direction: Floats) -> Floats:
        return np.asarray(mean * (direction - np.sum(mean * direction, axis=1, keepdims=True)))

    def conjugate(self, u: Floats, y: Floats) -> Floats:
        mean = np.maximum(y + u, 0.0)
        return np.asarray(xlogy(mean, mean))


class Poisson:
    """exp(eta) - y eta, with counts y >= 0.

    >>> Poisson().mean(np.array([[0.0]])).tolist()
    [[1.0]]
    """

    largest_curvature = math.inf

    def value(self, eta: Floats, y: Floats) -> Floats:
        over = np.maximum(eta - LARGEST_EXPONENT, 0.0)
        return self.mean(eta) * (1.0 + over) - y * eta

    def mean(self, eta: Floats) -> Floats:
        return np.asarray(np.exp(np.minimum(eta, LARGEST_EXPONENT)))

    def link(self, mean: Floats) -> Floats:
        return np.asarray(np.log(mean))

    def curvature(self, mean: Floats, direction: Floats) -> Floats:
        return mean * direction

    def conjugate(self, u: Floats, y: Floats) -> Floats:
        mean = np.maximum(y + u, 0.0)
        return np.asarray(xlogy(mean, mean) - mean)


Family = Gaussian | Bernoulli | Multinomial | Poisson


class WeightedLoss:
    """sum_i weights_i loss(eta_i, y_i), for y and eta (samples,) or (samples, outputs), weights positive."""

    def __init__(self, family: Family, y: Floats, weights: Floats) -> None:
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
        return np.asarray(self.weights * self.family.curvature(self.family.mean(eta), direction))

    def _conjugate(self, u: Floats) -> float:
        """max over eta of <u, eta> - value(eta), for a u between 0 and a gradient."""
        return float(np.sum(self.weights * self.family.conjugate(u / self.weights, self.y)))

    def null_predictor(self) -> Floats:
        """The eta (outputs,) that fits best without any feature."""
        return self.family.link(np.average(self.y, axis=0, weights=self.weights.reshape(-1)))

    def null_curvature(self) -> float:
        """Mean curvature of a sample's loss in the model without features: by it coefficients are scaled."""
        mean = self.family.mean(self.null_predictor()[np.newaxis])
        units = np.eye(mean.shape[1])
        return float(np.mean([self.family.curvature(mean, unit[np.newaxis])[0] @ unit for unit in units]))


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
        y = _checked_targets(y)
        super().__init__(Gaussian(), y, _checked_weights(weights, len(y)))

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
        y = _checked_targets(y)
        if not np.isin(y, (0.0, 1.0)).all() or (y.ndim == 2 and (y.sum(axis=1) != 1).any()):
            raise ModelError("y must hold 0 and 1 only, with one 1 in each row if it has several columns")
        family: Family = Bernoulli() if y.ndim == 1 else Multinomial()
        super().__init__(family, y, _checked_weights(weights, len(y)))


def _checked_targets(y: Any) -> Floats:
    """y as floats of one dimension or two."""
    found = np.asarray(y, dtype=np.float64)
    if found.ndim not in (1, 2) or not np.isfinite(found).all():
        raise ModelError(f"y must be finite, (samples,) or (samples, outputs), not of shape {found.shape}")
    return found


def _checked_weights(weights: Any, samples: int) -> Floats:
    """A weight for each sample."""
    found = np.ones(samples) if weights is None else np.asarray(weights, dtype=np.float64)
    if found.shape != (samples,):
        raise ModelError(f"weights must be of shape {(samples,)}, one a sample, not {found.shape}")
    if not (found > 0).all() or not np.isfinite(found).all():
        raise ModelError("weights must be finite and positive: leave out samples whose weight is 0")
    return found


class OutputLoss(WeightedLoss):
    """min over c of sum_i weights_i loss(eta_i + c, y_i): smooth and convex in eta, as the loss is.

    Of bounded curvature; weights of sum 1; without `fit_intercept` c is 0.

    >>> loss = OutputLoss(Gaussian(), np.array([[1.0], [3.0]]), np.full(2, 0.5), True)
    >>> loss.value(np.zeros((2, 1))), loss.intercept(np.zeros((2, 1))).tolist()
    (0.5, [2.0])
    """

    def __init__(self, family: Family, y: Floats, weights: Floats, fit_intercept: bool) -> None:
        super().__init__(family, y, weights)
        self.fit_intercept = fit_intercept
        self.null: Floats = self.null_predictor() if fit_intercept else np.zeros(y.shape[1])
        self._last: tuple[Floats | None, Floats] = None, self.null

    def value(self, eta: Floats) -> float:
        """At the outputs eta, before the intercept."""
        return super().value(eta + self.intercept(eta))

    def gradient(self, eta: Floats) -> Floats:
        """With respect to eta; each column adds up to 0 with an intercept."""
        return super().gradient(eta + self.intercept(eta))

    conjugate = WeightedLoss._conjugate

    @property
    def has_separate_outputs(self) -> bool:
        """Whether the loss is a sum over outputs: a softmax of several is not."""
        return self.shape[1] == 1 or not isinstance(self.family, Multinomial)

    def hessian(self, eta: Floats) -> Callable[[Floats], Floats]:
        """Its product with a direction, which the intercept follows."""
        mean = self.family.mean(eta + self.intercept(eta))
        moved = np.linalg.pinv(self._intercept_hessian(mean)) if self.fit_intercept else None

        def product(direction: Floats) -> Floats:
            if moved is not None:
                change = np.sum(self.weights * self.family.curvature(mean, direction), axis=0)
                direction = direction - moved @ change
            return np.asarray(self.weights * self.family.curvature(mean, direction))

        return product

    def curvatures(self, eta: Floats) -> Floats:
        """Of each sample and output alone, where the intercept stays: the diagonal of the Hessian."""
        mean = self.family.mean(eta + self.intercept(eta))
        units = np.eye(mean.shape[1])
        along = [self.family.curvature(mean, np.broadcast_to(unit, mean.shape)) @ unit for unit in units]
        return np.asarray(self.weights * np.stack(along, axis=1))

    def _intercept_hessian(self, mean: Floats) -> Floats:
        """Second derivatives by the intercept: (outputs, outputs)."""
        units = [np.broadcast_to(unit, mean.shape) for unit in np.eye(mean.shape[1])]
        return np.stack([np.sum(self.weights * self.family.curvature(mean, unit), axis=0) for unit in units])

    def intercept(self, eta: Floats) -> Floats:
        """The c (outputs,) that fits best, by Newton's method from the last one."""
        if not self.fit_intercept:
            return self.null
        if isinstance(self.family, Gaussian):
            return np.asarray(np.sum(self.weights * (self.y - eta), axis=0))
        known, c = self._last
        if eta is known:
            return c
        reach = 1.0 + float(np.ptp(eta))
        for _ in range(NEWTON_STEPS):
            mean = self.family.mean(eta + c)
            slope = np.sum(self.weights * (mean - self.y), axis=0)
            if np.abs(slope).max() <= ROUNDED:  # means are 1 at most
                break
            step = self._newton_step(mean, slope, reach)
            taken = self._shortened(eta, c, step, float(slope @ step))
            if taken is None:
                break
            c = taken - taken.mean() if len(taken) > 1 else taken  # a softmax is the same for all shifts
        self._last = eta, c
        return c

    def _newton_step(self, mean: Floats, slope: Floats, reach: float) -> Floats:
        """No longer than `reach`, by a ridge that vanishes with the slope: a softmax has a flat direction."""
        ridge = float(np.linalg.norm(slope)) / reach
        return np.asarray(-np.linalg.solve(self._intercept_hessian(mean) + ridge * np.eye(len(slope)), slope))

    def _shortened(self, eta: Floats, c: Floats, step: Floats, slope: float) -> Floats | None:
        """c after as much of a step as lessens the loss; None where no digit of it can be lessened."""
        before = super().value(eta + c)
        for halving in range(HALVINGS):
            length = 0.5**halving
            after = super().value(eta + c + length * step)
            if after <= before + 1e-4 * length * slope + 4 * FLOAT64_EPS * abs(before):
                return np.asarray(c + length * step)
        return None
