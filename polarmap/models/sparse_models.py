"""Regressions with an L1 penalty, with L1 and L2, or with coefficients that are not negative."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from polarmap.clouds.extras import needed_by
from polarmap.dtypes import Floats
from polarmap.errors import ModelError
from polarmap.models.coded_model import CodedModel, CodedRegressor
from polarmap.models.linear_predictor import LinearPredictorModel
from polarmap.models.logistic import LogisticModel
from polarmap.models.losses import SquaredLoss, WeightedLoss
from polarmap.models.penalties import ElasticNetPenalty
from polarmap.models.proximal_gradient import Solution
from polarmap.models.proximal_newton import proximal_newton


class SparseLinearModel(CodedRegressor, CodedModel):
    """Squared errors, fitted to centred data; subclasses say with which penalty."""

    def _fit(self, X: Any, y: Floats, weights: Floats) -> None:
        shares = weights / weights.sum()
        centre = shares @ y if self.fit_intercept else np.zeros(y.shape[1:])
        coded, operator, mean, scale = self._scaled_operator(X, shares)
        scales = np.repeat(scale, y.shape[1]) if y.ndim == 2 else scale
        start = np.zeros((X.shape[1], *y.shape[1:]))
        loss, penalty = SquaredLoss(y - centre, shares), self._penalty(scales)
        with coded:
            x = self._solution(coded, partial(proximal_newton, operator, loss, penalty, start))
        self.coef_ = x.T * scale
        intercept = centre - mean @ self.coef_.T
        self.intercept_ = float(intercept) if y.ndim == 1 else intercept

    def _penalty(self, scales: Floats) -> Any:
        """For coefficients in units in which those of X are `scales` times as large."""
        raise NotImplementedError


@dataclass(eq=False, repr=False)
class ElasticNet(SparseLinearModel):
    """Least squares with L1 and L2 penalties, as sklearn's ElasticNet.

    Minimizes |y - X w - c|^2 / (2 samples) + alpha (l1_ratio |w|_1 + (1 - l1_ratio) |w|^2 / 2).

    Parameters
    ----------
    alpha : float
        0 or more.
    l1_ratio : float
        From 0 to 1.
    fit_intercept : bool
    tol : float
        Relative, of the duality gap.
    max_iter : int
        Each iteration is a few coded maps.
    blocks, tasks, code, executor, timeout, verbose : optional
        As for `polarmap.glm.Ridge`; lines are of the objective and the norm of the gradient map.

    Attributes
    ----------
    coef_ : (features,) or (targets, features)
    intercept_ : float or (targets,)
    objective_ : float
        The minimum found: the weighted mean of (y - X w - c)^2 / 2, summed over targets, plus the penalty.
    dual_gap_ : float or None
        objective_ is at most that far above its minimum; None with alpha=0.
    gradient_map_ : float
        Norm of the gradient map for scaled features, 0 at the minimum: the residual of the KKT conditions.
    n_iter_ : int
    report_ : Report
        Of the last coded map.

    Examples
    --------
    >>> from concurrent.futures import ThreadPoolExecutor
    >>> from sklearn.datasets import load_diabetes
    >>> X, y = load_diabetes(return_X_y=True)
    >>> with ThreadPoolExecutor(4) as pool:
    ...     model = ElasticNet(alpha=0.01, blocks=6, executor=pool).fit(X, y)
    >>> round(model.score(X, y), 3), model.dual_gap_ <= 1e-6 * model.objective_
    (0.379, True)
    """

    alpha: float = 1.0
    l1_ratio: float = 0.5

    def _check_options(self) -> None:
        super()._check_options()
        self._check_numbers(alpha=0.0, l1_ratio=0.0)
        if self.l1_ratio > 1:
            raise ModelError(f"l1_ratio must be a number from 0 to 1, not {self.l1_ratio!r}")

    def _penalty(self, scales: Floats) -> Any:
        l1, l2 = self.alpha * self.l1_ratio, self.alpha * (1 - self.l1_ratio)
        return ElasticNetPenalty(l1 * scales, l2 * scales**2)


@dataclass(eq=False, repr=False)
class Lasso(ElasticNet):
    """Least squares with an L1 penalty, as sklearn's Lasso: few coefficients are not 0.

    Minimizes |y - X w - c|^2 / (2 samples) + alpha |w|_1. Parameters and attributes as for `ElasticNet`,
    without l1_ratio.

    Examples
    --------
    >>> from concurrent.futures import ThreadPoolExecutor
    >>> from sklearn.datasets import load_diabetes
    >>> X, y = load_diabetes(return_X_y=True)
    >>> with ThreadPoolExecutor(4) as pool:
    ...     model = Lasso(alpha=0.5, blocks=6, executor=pool).fit(X, y)
    >>> np.flatnonzero(model.coef_).tolist()
    [2, 3, 6, 8]
    """

    l1_ratio: float = field(default=1.0, init=False)


@dataclass(eq=False, repr=False)
class NonNegativeLeastSquares(SparseLinearModel):
    """Least squares with coefficients of 0 or more, as sklearn's LinearRegression(positive=True).

    Minimizes |y - X w - c|^2 / (2 samples) over w >= 0; c may be negative. Parameters and attributes as for
    `ElasticNet`, without alpha and l1_ratio; tol is of the gradient map, `dual_gap_` None.

    Examples
    --------
    >>> from concurrent.futures import ThreadPoolExecutor
    >>> X = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> with ThreadPoolExecutor(4) as pool:
    ...     model = NonNegativeLeastSquares(fit_intercept=False, blocks=2, executor=pool)
    ...     model = model.fit(X, [2.0, -1.0, 2.0])
    >>> model.coef_.round(5).tolist()
    [2.0, 0.0]
    """

    def _penalty(self, scales: Floats) -> Any:
        with needed_by("NonNegativeLeastSquares", "pyproximal", "convex"):
            from pyproximal import Box
        return Box(lower=0.0)


@dataclass(eq=False, repr=False)
class SparseLogisticRegression(LogisticModel, LinearPredictorModel):
    """Logistic regression with an L1 penalty, as sklearn's LogisticRegression(l1_ratio=1, solver="saga").

    Minimizes C sum_i loss_i + |w|_1, binary or multinomial; intercepts are not penalized.

    Parameters
    ----------
    C : float
        Inverse strength of the penalty, positive; `np.inf` for none.
    class_weight, fit_intercept
        As for `polarmap.glm.LogisticRegression`.
    tol : float
        Relative, of the gradient map to the largest one met.
    max_iter, blocks, tasks, code, executor, timeout, verbose
        As for `ElasticNet`.

    Attributes
    ----------
    classes_, coef_, intercept_, n_iter_, report_
        As for `polarmap.glm.LogisticRegression`.
    objective_ : float
        Of the mean loss plus |w|_1 / (C sum of weights).
    gradient_map_ : float
        As for `ElasticNet`.

    Examples
    --------
    >>> from concurrent.futures import ThreadPoolExecutor
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> with ThreadPoolExecutor(4) as pool:
    ...     model = SparseLogisticRegression(C=0.1, tol=1e-3, blocks=6, executor=pool).fit(X, y)
    >>> round(model.score(X, y), 2), int((model.coef_ == 0).sum())
    (0.95, 10)
    """

    _penalizes_squares = False

    def _minimizer(
        self, operator: Any, loss: WeightedLoss, penalty: Floats, start: Floats
    ) -> Callable[..., Solution]:
        l1 = ElasticNetPenalty(np.repeat(penalty, loss.shape[1]))
        return partial(proximal_newton, operator, loss, l1, start)
