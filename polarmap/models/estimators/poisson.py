"""Poisson regression with a log link, for counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.utils.validation import validate_data

from polarmap.dtypes import Floats
from polarmap.errors import ModelError
from polarmap.models.estimators.smooth_estimator import SmoothEstimator
from polarmap.models.losses import PoissonFamily, WeightedLoss


@dataclass(eq=False, repr=False)
class PoissonRegression(RegressorMixin, SmoothEstimator):  # type: ignore[misc]
    """Poisson regression with a log link and an L2 penalty, like scikit-learn's PoissonRegressor.

    The model minimizes mean_i(exp(eta_i) - y_i eta_i) + alpha |w|^2 / 2, where eta = X w + c. The counts y_i
    must be 0 or more, but need not be integers.

    Parameters
    ----------
    alpha : float
        Strength of the penalty, 0 or more.
    fit_intercept, solver, tol, max_iter, blocks, tasks, code, executor, timeout, verbose
        As for `LogisticRegression`.

    Attributes
    ----------
    coef_ : array (features,)
        Coefficients w.
    intercept_ : float
        Intercept c.
    objective_, optimality_ : float
        Penalized mean loss, and norm of its gradient for scaled features.
    n_iter_ : int
        Number of iterations.
    report_ : Report
        Report of the last coded map.

    Examples
    --------
    >>> from concurrent.futures import ThreadPoolExecutor
    >>> X = np.arange(20.0).reshape(-1, 1) / 10
    >>> with ThreadPoolExecutor(4) as pool:
    ...     model = PoissonRegression(alpha=0.0, blocks=4, executor=pool).fit(X, np.exp(2 * X[:, 0]))
    >>> bool(np.isclose(model.coef_[0], 2))
    True
    """

    alpha: float = 1.0

    def _check_parameters(self) -> None:
        super()._check_parameters()
        self._check_lower_bounds(alpha=0.0)

    def _check_training_data(self, X: Any, y: Any) -> tuple[Any, Floats]:
        X, y = validate_data(self, X, y, accept_sparse="csr", dtype=np.float64, y_numeric=True)
        y = y.astype(np.float64)
        if (y < 0).any():
            raise ModelError(
                f"y must be 0 or more, but has {int((y < 0).sum())} negative counts, the lowest {y.min():g}"
            )
        return X, y

    def _fit(self, X: Any, y: Floats, sample_weight: Floats) -> None:
        if not y.any():
            raise ModelError(
                "y must hold a positive count, but all are 0: the intercept would be minus infinity"
            )
        loss = WeightedLoss(PoissonFamily(), y.reshape(-1, 1), sample_weight / sample_weight.sum())
        coef, intercept = self._fit_coefficients(X, loss, float(self.alpha))
        self.coef_, self.intercept_ = coef[0], float(intercept[0])

    def predict(self, X: Any) -> Floats:
        """Return the expected count of each sample of X (samples, features)."""
        return np.exp(self._predict_outputs(X))

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return D^2, the fraction of deviance explained, like scikit-learn's PoissonRegressor.

        Parameters
        ----------
        X : array or sparse array (samples, features)
            Features.
        y : array (samples,)
            Observed counts.
        sample_weight : array (samples,), optional
            Weight of each sample; 1 by default.
        """
        # Imported lazily, because sklearn.metrics adds 5 % to the time it takes to import the models.
        from sklearn.metrics import d2_tweedie_score

        return float(d2_tweedie_score(y, self.predict(X), sample_weight=sample_weight, power=1))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.positive_only = True
        return tags
