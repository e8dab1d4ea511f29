"""Linear regression with an L1 penalty, with L1 and L2, or with coefficients that are not negative."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyproximal

from polarmap.blocks.code_choice import CodeName
from polarmap.code.polar import PolarCode
from polarmap.convex.losses import SquaredLoss
from polarmap.convex.penalties import ElasticNetPenalty
from polarmap.convex.proximal_model import ProximalModel
from polarmap.errors import ModelError, without_our_frames
from polarmap.glm.linear_regressor import LinearRegressor

Floats = npt.NDArray[np.float64]


class _LinearModel(LinearRegressor, ProximalModel):
    """Squared errors, fitted to centred data; subclasses say with which penalty."""

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Fit to X (samples, features), which may be sparse, and y (samples,) or (samples, targets)."""
        with without_our_frames:
            X, y = self._validated(X, y)
            self._check_options()
            weights = self._weights(sample_weight, X)
            kept = weights > 0
            X, y, weights = X[kept], y[kept], weights[kept]
            self._fit_to(X, y, weights / weights.sum())
            return self

    def _fit_to(self, X: Any, y: Floats, shares: Floats) -> None:
        """Set coef_ and intercept_ by samples with these shares in the mean of the losses."""
        centre = shares @ y if self.fit_intercept else np.zeros(y.shape[1:])
        scaled, mean, scale = self._scaled_operator(X, shares, 0.0)
        scales = np.repeat(scale, y.shape[1]) if y.ndim == 2 else scale
        start = np.zeros((X.shape[1], *y.shape[1:]))
        loss, penalty = SquaredLoss(y - centre, shares), self._penalty(scales)
        with scaled as operator:
            found = self._solve(operator, operator, loss, penalty, start)
        self.coef_ = (found.x.T * scale).T.T
        intercept = centre - mean @ self.coef_.T
        self.intercept_ = float(intercept) if y.ndim == 1 else intercept

    def _check_options(self) -> None:
        raise NotImplementedError

    def _penalty(self, scales: Floats) -> Any:
        """For coefficients in units in which those of X are `scales` times as large."""
        raise NotImplementedError


class ElasticNet(_LinearModel):
    """Least squares with L1 and L2 penalties, as sklearn's ElasticNet.

    Minimizes |y - X w - c|^2 / (2 samples) + alpha (l1_ratio |w|_1 + (1 - l1_ratio) |w|^2 / 2); with
    `sample_weight`, a weighted mean of squares. Stops at a duality gap of `tol` times the objective.

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
        Each iteration is two coded maps.
    blocks, workers, code, executor, timeout : optional
        As for `CodedOperator`. Clones share the executor. A pickled model has what describes it: the path
        that a `polarmap.Pool` is of, None for one of this machine. Other pools stay behind: what is loaded
        predicts, and refuses to fit until it is given another.
    verbose : int
        1: a line on standard output for each iteration, of the objective, the norm of the gradient map for
        scaled features, and seconds. 2: also its products, and how many blocks the last of them
        decoded. 0: nothing.

    Attributes
    ----------
    coef_ : (features,) or (targets, features)
    intercept_ : float or (targets,)
    objective_ : float
    dual_gap_ : float or None
        objective_ is at most that far above its minimum; None with alpha=0.
    gradient_map_ : float
        Norm of the gradient map for scaled features, 0 at the minimum: the residual of the KKT conditions.
    n_iter_ : int
    report_ : Report
        Of the last coded map.

    Raises
    ------
    ModelError
        Options that cannot be.

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

    def __init__(
        self,
        alpha: float = 1.0,
        l1_ratio: float = 0.5,
        *,
        fit_intercept: bool = True,
        tol: float = 1e-6,
        max_iter: int = 5000,
        blocks: int | None = None,
        workers: int | None = None,
        code: CodeName | PolarCode = "auto",
        executor: Any = None,
        timeout: float | None = None,
        verbose: int = 0,
    ) -> None:
        self.alpha, self.l1_ratio, self.fit_intercept = alpha, l1_ratio, fit_intercept
        self.tol, self.max_iter = tol, max_iter
        self.blocks, self.workers, self.code = blocks, workers, code
        self.executor, self.timeout, self.verbose = executor, timeout, verbose

    def _check_options(self) -> None:
        self._check_numbers(alpha=0.0, l1_ratio=0.0)
        if self.l1_ratio > 1:
            raise ModelError(f"l1_ratio must be a number from 0 to 1, not {self.l1_ratio!r}")

    def _penalty(self, scales: Floats) -> Any:
        l1, l2 = self.alpha * self.l1_ratio, self.alpha * (1 - self.l1_ratio)
        return ElasticNetPenalty(l1 * scales, l2 * scales**2)


class Lasso(ElasticNet):
    """Least squares with an L1 penalty, as sklearn's Lasso: few coefficients are not 0.

    Minimizes |y - X w - c|^2 / (2 samples) + alpha |w|_1. Parameters, attributes and errors as for
    `ElasticNet`, without l1_ratio.

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

    l1_ratio = 1.0

    def __init__(
        self,
        alpha: float = 1.0,
        *,
        fit_intercept: bool = True,
        tol: float = 1e-6,
        max_iter: int = 5000,
        blocks: int | None = None,
        workers: int | None = None,
        code: CodeName | PolarCode = "auto",
        executor: Any = None,
        timeout: float | None = None,
        verbose: int = 0,
    ) -> None:
        self.alpha, self.fit_intercept = alpha, fit_intercept
        self.tol, self.max_iter = tol, max_iter
        self.blocks, self.workers, self.code = blocks, workers, code
        self.executor, self.timeout, self.verbose = executor, timeout, verbose


class NonNegativeLeastSquares(_LinearModel):
    """Least squares with coefficients of 0 or more, as sklearn's LinearRegression(positive=True).

    Minimizes |y - X w - c|^2 / (2 samples) over w >= 0; c may be negative. Stops where the norm of the
    gradient map is `tol` times its largest. Parameters, attributes and errors as for `ElasticNet`, without
    alpha and l1_ratio; `dual_gap_` is None.

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

    def __init__(
        self,
        *,
        fit_intercept: bool = True,
        tol: float = 1e-6,
        max_iter: int = 5000,
        blocks: int | None = None,
        workers: int | None = None,
        code: CodeName | PolarCode = "auto",
        executor: Any = None,
        timeout: float | None = None,
        verbose: int = 0,
    ) -> None:
        self.fit_intercept, self.tol, self.max_iter = fit_intercept, tol, max_iter
        self.blocks, self.workers, self.code = blocks, workers, code
        self.executor, self.timeout, self.verbose = executor, timeout, verbose

    def _check_options(self) -> None:
        """There are none of its own."""

    def _penalty(self, scales: Floats) -> Any:
        return pyproximal.Box(lower=0.0)
