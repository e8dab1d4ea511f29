"""Smooth convex losses of generalized linear models.

A family (`GaussianFamily`, `BernoulliFamily`, ...) defines the loss of one sample. `WeightedLoss` is the
weighted sum over all samples. `ProfiledLoss` also minimizes this sum over the intercept. Solvers call the
methods `value`, `gradient` and `hessian_product` of a loss. Their argument is the linear predictor eta = X w.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.special import expit, xlogy

from polarmap.dtypes import FLOAT64_EPS, Floats
from polarmap.errors import ModelError

# Above this exponent, the Poisson loss replaces exp by its tangent. Otherwise, exp would overflow when a line
# search tries a step that is too long, and the search would fail with an infinite loss.
MAX_EXPONENT = 300.0
# Newton's method for the optimal intercept takes at most MAX_NEWTON_STEPS steps, and halves each of them at
# most MAX_BACKTRACKS times. It stops when the gradient, divided by the largest linear predictor |eta| plus 1,
# is at most GRADIENT_TOL.
MAX_NEWTON_STEPS, MAX_BACKTRACKS = 100, 40
GRADIENT_TOL = 8 * FLOAT64_EPS
N_CACHED_INTERCEPTS = 2


# The value of a family is minus the log likelihood of its distribution with the canonical link, up to a
# constant. eta is the linear predictor, of shape (samples, outputs) or (samples,), and y has the same shape.
#   value(eta, y): the loss of each entry, or of each sample for the multinomial family
#   mean(eta): the mean of y at eta; the gradient of the loss is mean - y
#   link(mean): the inverse of `mean`
#   hessian_product(mean, direction): the Hessian at the eta that has this mean, times a direction
#   conjugate(dual, y): max over eta of <dual, eta> - value(eta, y), for a `dual` between 0 and a gradient


class GaussianFamily:
    """The squared loss (eta - y)^2 / 2.

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
    """The logistic loss log(1 + exp(eta)) - y eta for y in {0, 1}.

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
    """The multinomial logistic loss log(sum(exp(eta))) - <y, eta>.

    eta and y have one column per class, and each row of y has a single 1. The mean is the softmax of eta.

    >>> MultinomialFamily().mean(np.zeros((1, 4))).tolist()
    [[0.25, 0.25, 0.25, 0.25]]
    """

    def value(self, eta: Floats, y: Floats) -> Floats:
        rows, max_columns = np.arange(len(eta)), eta.argmax(axis=1)
        shifted = eta - eta[rows, max_columns, np.newaxis]
        # The largest exponential in each row is 1. It is left out here and added by log1p below, which is
        # more accurate if the other exponentials are tiny.
        exponentials = np.exp(shifted)
        exponentials[rows, max_columns] = 0.0
        log_sums = np.log1p(exponentials.sum(axis=1, keepdims=True))
        return np.asarray(log_sums - np.sum(y * shifted, axis=1, keepdims=True))

    def mean(self, eta: Floats) -> Floats:
        exponentials = np.exp(eta - eta.max(axis=1, keepdims=True))
        return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))

    def link(self, mean: Floats) -> Floats:
        logs = np.log(mean)
        return np.asarray(logs - logs.mean())

    def hessian_product(self, mean: Floats, direction: Floats) -> Floats:
        return np.asarray(mean * (direction - np.sum(mean * direction, axis=1, keepdims=True)))

    def conjugate(self, dual: Floats, y: Floats) -> Floats:
        mean = np.maximum(y + dual, 0.0)
        return np.asarray(xlogy(mean, mean))


class PoissonFamily:
    """The Poisson loss exp(eta) - y eta for counts y >= 0.

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
    """The weighted sum of the losses of all samples: sum_i weights_i loss(eta_i, y_i).

    Parameters
    ----------
    family : LossFamily
        Loss of one sample.
    y : array (samples,) or (samples, outputs)
        Targets. The linear predictor eta has the same shape.
    weights : array (samples,)
        Positive weight of each sample.
    """

    def __init__(self, family: LossFamily, y: Floats, weights: Floats) -> None:
        self.family, self.y, self.shape = family, y, y.shape
        self.weights = weights if y.ndim == 1 else weights[:, np.newaxis]

    def value(self, eta: Floats) -> float:
        """Return the loss at the linear predictor `eta`, which has the shape of y."""
        return float(np.sum(self.weights * self.family.value(eta, self.y)))

    def gradient(self, eta: Floats) -> Floats:
        """Return the gradient of the loss with respect to `eta`, in the shape of `eta`."""
        return np.asarray(self.weights * (self.family.mean(eta) - self.y))

    def hessian_product(self, eta: Floats, direction: Floats) -> Floats:
        """Return the Hessian at `eta` times `direction`. All arrays have the shape of y."""
        return np.asarray(self.weights * self.family.hessian_product(self.family.mean(eta), direction))

    def _conjugate(self, dual: Floats) -> float:
        """Return the convex conjugate: the maximum over eta of <dual, eta> - value(eta).

        `dual` must be a gradient of the loss times a factor between 0 and 1. The maximum is then finite.
        """
        return float(np.sum(self.weights * self.family.conjugate(dual / self.weights, self.y)))

    def fit_null_predictor(self) -> Floats:
        """Return the constant linear predictor (outputs,) with the smallest loss.

        It is the optimal intercept of a model without features.
        """
        return self.family.link(np.average(self.y, axis=0, weights=self.weights.reshape(-1)))

    def compute_null_curvature(self) -> float:
        """Return the mean second derivative of a sample's loss at the best constant linear predictor.

        It determines how features are scaled before a fit: the diagonal of the Hessian becomes close to 1.
        """
        mean = self.family.mean(self.fit_null_predictor()[np.newaxis])
        unit_vectors = np.eye(mean.shape[1])
        curvatures = [self.family.hessian_product(mean, unit[np.newaxis])[0] @ unit for unit in unit_vectors]
        return float(np.mean(curvatures))


class SquaredLoss(WeightedLoss):
    """The squared loss sum_i weights_i |eta_i - y_i|^2 / 2.

    Parameters
    ----------
    y : array (samples,) or (samples, outputs)
        Targets.
    weights : array (samples,), optional
        Positive weight of each sample; 1 by default.

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
    """The logistic loss sum_i weights_i (log(1 + exp(eta_i)) - y_i eta_i), or its multinomial generalization.

    Parameters
    ----------
    y : array (samples,) or (samples, classes)
        For two classes, 0 or 1 for each sample. For more classes, one row per sample with a 1 in the column
        of its class and 0 elsewhere.
    weights : array (samples,), optional
        Positive weight of each sample; 1 by default.

    Examples
    --------
    >>> loss = LogisticLoss([0.0, 1.0])
    >>> round(loss.value(np.zeros(2)), 6), loss.gradient(np.zeros(2)).tolist()
    (1.386294, [0.5, -0.5])
    """

    def __init__(self, y: Any, weights: Any = None) -> None:
        y = _check_targets(y)
        if not np.isin(y, (0.0, 1.0)).all() or (y.ndim == 2 and (y.sum(axis=1) != 1).any()):
            raise ModelError(
                "y must hold only 0 and 1, and exactly one 1 in each row if it has several columns"
            )
        family: LossFamily = BernoulliFamily() if y.ndim == 1 else MultinomialFamily()
        super().__init__(family, y, _check_weights(weights, len(y)))


def _check_targets(y: Any) -> Floats:
    """Convert y to a finite one- or two-dimensional float array. Raise ModelError if that is impossible."""
    targets = np.asarray(y, dtype=np.float64)
    if targets.ndim not in (1, 2) or not np.isfinite(targets).all():
        raise ModelError(f"y must be a finite array (samples,) or (samples, outputs), not {targets.shape}")
    return targets


def _check_weights(weights: Any, n_samples: int) -> Floats:
    """Return one positive weight per sample. Raise ModelError if the weights are invalid."""
    checked = np.ones(n_samples) if weights is None else np.asarray(weights, dtype=np.float64)
    if checked.shape != (n_samples,):
        raise ModelError(
            f"weights must have shape {(n_samples,)}, one weight per sample, not {checked.shape}"
        )
    if not (checked > 0).all() or not np.isfinite(checked).all():
        raise ModelError("weights must be finite and positive. Leave out samples with weight 0")
    return checked


class ProfiledLoss(WeightedLoss):
    """A weighted loss that is minimized over the intercept c (profiled) at every point.

    It is the function L(eta) = min over c of sum_i weights_i loss(eta_i + c, y_i), which is smooth and
    convex. Its gradient is that of the loss at the optimal c, so with an intercept, each column of the
    gradient sums to 0.

    Parameters
    ----------
    family : LossFamily
        Loss of one sample. Its second derivative must be bounded, which excludes Poisson.
    y : array (samples, outputs)
        Targets.
    weights : array (samples,)
        Positive weight of each sample. The weights must sum to 1.
    fit_intercept : bool
        If False, c is 0.

    Examples
    --------
    >>> loss = ProfiledLoss(GaussianFamily(), np.array([[1.0], [3.0]]), np.full(2, 0.5), True)
    >>> loss.value(np.zeros((2, 1))), loss.find_optimal_intercept(np.zeros((2, 1))).tolist()
    (0.5, [2.0])
    """

    def __init__(self, family: LossFamily, y: Floats, weights: Floats, fit_intercept: bool) -> None:
        super().__init__(family, y, weights)
        self.fit_intercept = fit_intercept
        self._null_intercept: Floats = self.fit_null_predictor() if fit_intercept else np.zeros(y.shape[1])
        # Cache the optimal intercepts of the latest linear predictors eta, because solvers alternate between
        # evaluations of the loss at two points.
        self._cached_intercepts: list[tuple[Floats | None, Floats]] = [(None, self._null_intercept)]

    def value(self, eta: Floats) -> float:
        """Return the loss at the linear predictor `eta` (samples, outputs), minimized over the intercept."""
        return super().value(eta + self.find_optimal_intercept(eta))

    def gradient(self, eta: Floats) -> Floats:
        """Return the gradient with respect to `eta`. With an intercept, each of its columns sums to 0."""
        return super().gradient(eta + self.find_optimal_intercept(eta))

    conjugate = WeightedLoss._conjugate

    @property
    def is_separable_by_output(self) -> bool:
        """True if the loss is a sum of one loss per output. The multinomial loss is not."""
        return self.shape[1] == 1 or not isinstance(self.family, MultinomialFamily)

    def make_hessian_product(self, eta: Floats) -> Callable[[Floats], Floats]:
        """Return a function that multiplies the Hessian at `eta` by a direction (samples, outputs).

        The Hessian accounts for the dependence of the optimal intercept on eta.
        """
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
        """Return the diagonal (samples, outputs) of the Hessian at `eta`, with the intercept held fixed."""
        return np.asarray(np.diagonal(self.compute_output_hessians(eta), axis1=1, axis2=2))

    def compute_output_hessians(self, eta: Floats) -> Floats:
        """Return the Hessian of each sample's weighted loss with respect to its linear predictor.

        The intercept is held fixed. The array has shape (samples, outputs, outputs).
        """
        mean = self.family.mean(eta + self.find_optimal_intercept(eta))
        columns = [
            self.weights * self.family.hessian_product(mean, np.broadcast_to(unit_vector, mean.shape))
            for unit_vector in np.eye(mean.shape[1])
        ]
        return np.stack(columns, axis=2)

    def _compute_intercept_hessian(self, mean: Floats) -> Floats:
        """Return the Hessian of the loss with respect to the intercept, shape (outputs, outputs).

        `mean` contains the predicted means (samples, outputs), on which the Hessian depends.
        """
        unit_vectors = [np.broadcast_to(unit_vector, mean.shape) for unit_vector in np.eye(mean.shape[1])]
        return np.stack(
            [
                np.sum(self.weights * self.family.hessian_product(mean, unit_vector), axis=0)
                for unit_vector in unit_vectors
            ]
        )

    def find_optimal_intercept(self, eta: Floats) -> Floats:
        """Return the optimal intercept (outputs,) at `eta`.

        Except for the squared loss, it is computed by Newton's method, starting from the previous optimum.
        """
        if not self.fit_intercept:
            return self._null_intercept
        if isinstance(self.family, GaussianFamily):
            return np.asarray(np.sum(self.weights * (self.y - eta), axis=0))
        for cached_eta, cached_intercept in self._cached_intercepts:
            if eta is cached_eta:
                return cached_intercept
        intercept = self._solve_intercept_by_newton(eta, self._cached_intercepts[-1][1])
        self._cached_intercepts = [*self._cached_intercepts, (eta, intercept)][-N_CACHED_INTERCEPTS:]
        return intercept

    def _solve_intercept_by_newton(self, eta: Floats, intercept: Floats) -> Floats:
        """Return the optimal intercept for `eta`, found by Newton's method.

        `intercept` is the starting point. The result is exact up to rounding errors.
        """
        max_norm = 1.0 + float(np.abs(eta + intercept).max()) + float(np.ptp(eta))
        # The gradient is a difference of predicted means and targets, which are at most 1. Since the means
        # are computed from exp(eta), their rounding errors grow with |eta|. The tolerance grows as well.
        tol = GRADIENT_TOL * (1.0 + float(np.abs(eta).max()))
        mean, gradient = self._compute_intercept_gradient(eta + intercept)
        for _ in range(MAX_NEWTON_STEPS):
            if np.abs(gradient).max() <= tol:
                break
            step = self._compute_intercept_newton_step(mean, gradient, max_norm)
            intercept, mean, gradient = self._backtrack_intercept_step(eta, intercept, step, gradient)
            # A softmax does not change if a constant is added to all outputs, so the optimal intercept is not
            # unique. Choose the one with mean 0.
            if len(intercept) > 1:
                intercept = intercept - intercept.mean()
        return intercept

    def _compute_intercept_gradient(self, eta: Floats) -> tuple[Floats, Floats]:
        """Return the predicted means at `eta`, and the gradient of the loss with respect to an intercept.

        `eta` includes the current intercept.
        """
        mean = self.family.mean(eta)
        return mean, np.asarray(self.weights[:, 0] @ (mean - self.y))

    def _compute_intercept_newton_step(self, mean: Floats, gradient: Floats, max_norm: float) -> Floats:
        """Return a Newton step for the intercept with a 2-norm of at most `max_norm`.

        Since the Hessian of a softmax is singular, a multiple of the identity is added. It is proportional to
        the norm of the gradient and limits the step.
        """
        ridge = float(np.linalg.norm(gradient)) / max_norm
        hessian = self._compute_intercept_hessian(mean) + ridge * np.eye(len(gradient))
        return np.asarray(-np.linalg.solve(hessian, gradient))

    def _backtrack_intercept_step(
        self, eta: Floats, intercept: Floats, step: Floats, gradient: Floats
    ) -> tuple[Floats, Floats, Floats]:
        """Shorten a Newton step until it improves the intercept (backtracking line search).

        A step is short enough if the loss, which is convex, still decreases at its end, or if it halves the
        gradient. Values of the loss are not compared, because near the minimum, their differences are mere
        rounding errors. Returns the new intercept, and the predicted means and the gradient at it.
        """
        max_gradient_norm = float(np.linalg.norm(gradient)) / 2
        for n_halvings in range(MAX_BACKTRACKS):
            shortened = intercept + 0.5**n_halvings * step
            mean, new_gradient = self._compute_intercept_gradient(eta + shortened)
            if new_gradient @ step <= 0 or np.linalg.norm(new_gradient) <= max_gradient_norm:
                break
        return shortened, mean, new_gradient
