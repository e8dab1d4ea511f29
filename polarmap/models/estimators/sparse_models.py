"""Linear and logistic regression with an L1 penalty, and least squares with nonnegative coefficients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from polarmap.dtypes import Floats
from polarmap.errors import ModelError
from polarmap.models.estimators.coded_estimator import CodedEstimator, CodedRegressorMixin
from polarmap.models.estimators.linear_predictor import LinearPredictorEstimator
from polarmap.models.estimators.logistic import LogisticMixin
from polarmap.models.losses import SquaredLoss, WeightedLoss
from polarmap.models.penalties import ElasticNetPenalty
from polarmap.models.solvers.proximal_newton import proximal_newton
from polarmap.models.solvers.solver import Solution
from polarmap.optional import require_extra


class PenalizedLinearRegression(CodedRegressorMixin, CodedEstimator):
    """Base class of models that minimize the squared error on centred data plus a penalty."""

    def _fit(self, X: Any, y: Floats, sample_weight: Floats) -> None:
        normalized_weight = sample_weight / sample_weight.sum()
        target_mean = normalized_weight @ y if self.fit_intercept else np.zeros(y.shape[1:])
        coded_operator, operator, mean, scale = self._make_standardized_operator(X, normalized_weight)
        coefficient_scales = np.repeat(scale, y.shape[1]) if y.ndim == 2 else scale
        start = np.zeros((X.shape[1], *y.shape[1:]))
        loss = SquaredLoss(y - target_mean, normalized_weight)
        penalty = self._make_penalty(coefficient_scales)
        with coded_operator:
            solve = partial(proximal_newton, operator, loss, penalty, start)
            scaled_coef = self._minimize(coded_operator, solve)
        self.coef_ = scaled_coef.T * scale
        intercept = target_mean - mean @ self.coef_.T
        self.intercept_ = float(intercept) if y.ndim == 1 else intercept

    def _make_penalty(self, coefficient_scales: Floats) -> Any:
        """Create the penalty, as a function of the coefficients of standardized features.

        Parameters
        ----------
        coefficient_scales : array (features,) or (features * targets,)
            Factors by which coefficients of standardized features are multiplied to get coefficients of X.
        """
        raise NotImplementedError


@dataclass(eq=False, repr=False)
class ElasticNet(PenalizedLinearRegression):
    """Least squares with L1 and L2 penalties, like scikit-learn's ElasticNet.

    The model minimizes |y - X w - c|^2 / (2 samples) + alpha (l1_ratio |w|_1 + (1 - l1_ratio) |w|^2 / 2).

    Parameters
    ----------
    alpha : float
        Strength of the penalty, 0 or more.
    l1_ratio : float
        Share of the L1 penalty, from 0 (only L2) to 1 (only L1).
    fit_intercept : bool
        Whether to fit an intercept c, which is not penalized.
    tol : float
        Relative tolerance of the duality gap.
    max_iter : int
        Maximum number of iterations. Each takes a few coded maps.
    blocks, tasks, code, executor, timeout, verbose : optional
        As for `polarmap.glm.Ridge`. The gradient that `verbose` prints is the norm of the gradient map.

    Attributes
    ----------
    coef_ : array (features,) or (targets, features)
        Coefficients w.
    intercept_ : float or array (targets,)
        Intercept c.
    objective_ : float
        Weighted mean of (y - X w - c)^2 / 2, summed over targets, plus the penalty.
    dual_gap_ : float or None
        Upper bound on the difference between `objective_` and its minimum. None with alpha=0.
    optimality_ : float
        Norm of the gradient map for scaled features, which is the residual of the KKT conditions.
    n_iter_ : int
        Number of iterations.
    report_ : Report
        Report of the last coded map.

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

    def _check_parameters(self) -> None:
        super()._check_parameters()
        self._check_lower_bounds(alpha=0.0, l1_ratio=0.0)
        if self.l1_ratio > 1:
            raise ModelError(f"l1_ratio must be a number from 0 to 1, not {self.l1_ratio!r}")

    def _make_penalty(self, coefficient_scales: Floats) -> Any:
        l1, l2 = self.alpha * self.l1_ratio, self.alpha * (1 - self.l1_ratio)
        return ElasticNetPenalty(l1 * coefficient_scales, l2 * coefficient_scales**2)


@dataclass(eq=False, repr=False)
class Lasso(ElasticNet):
    """Least squares with an L1 penalty, which sets many coefficients to 0, like scikit-learn's Lasso.

    The model minimizes |y - X w - c|^2 / (2 samples) + alpha |w|_1. Parameters and attributes are the same as
    for `ElasticNet`, without l1_ratio.

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
class NonNegativeLeastSquares(PenalizedLinearRegression):
    """Least squares with nonnegative coefficients, like scikit-learn's LinearRegression(positive=True).

    The model minimizes |y - X w - c|^2 / (2 samples) over w >= 0. The intercept c may be negative. Parameters
    and attributes are the same as for `ElasticNet`, without alpha and l1_ratio. `tol` is the relative
    tolerance of the gradient map, and `dual_gap_` is None.

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

    def _make_penalty(self, coefficient_scales: Floats) -> Any:
        with require_extra("NonNegativeLeastSquares", "pyproximal", "convex"):
            from pyproximal import Box
        return Box(lower=0.0)


@dataclass(eq=False, repr=False)
class SparseLogisticRegression(LogisticMixin, LinearPredictorEstimator):
    """Logistic regression with an L1 penalty, which sets many coefficients to 0.

    The model minimizes C sum_i loss_i + |w|_1, where loss_i is the binary or multinomial logistic loss of
    sample i. Intercepts are not penalized. The model corresponds to scikit-learn's
    LogisticRegression(l1_ratio=1, solver="saga").

    Parameters
    ----------
    C : float
        Inverse of the strength of the penalty, positive; `np.inf` for no penalty.
    class_weight, fit_intercept
        As for `polarmap.glm.LogisticRegression`.
    tol : float
        Tolerance of the norm of the gradient map, relative to the largest norm in the fit.
    max_iter, blocks, tasks, code, executor, timeout, verbose
        As for `ElasticNet`.

    Attributes
    ----------
    classes_, coef_, intercept_, n_iter_, report_
        As for `polarmap.glm.LogisticRegression`.
    objective_ : float
        Mean loss plus |w|_1 / (C sum of weights).
    optimality_ : float
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

    _is_l2_penalty = False

    def _make_solver(
        self, operator: Any, loss: WeightedLoss, penalty_strengths: Floats, start: Floats
    ) -> Callable[..., Solution]:
        l1_penalty = ElasticNetPenalty(np.repeat(penalty_strengths, loss.shape[1]))
        return partial(proximal_newton, operator, loss, l1_penalty, start)
