"""Logistic regression, binary or multinomial."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np

from polarmap.dtypes import Array, Floats
from polarmap.models.estimators.coded_estimator import ProbabilisticClassifierMixin
from polarmap.models.estimators.smooth_estimator import SmoothEstimator
from polarmap.models.losses import WeightedLoss


@dataclass(eq=False, repr=False)
class LogisticMixin(ProbabilisticClassifierMixin):
    """C sum_i loss_i plus a penalty: before a `LinearPredictorEstimator`, which says which."""

    C: float = 1.0
    _: KW_ONLY
    class_weight: Any = None

    def _check_parameters(self) -> None:
        super()._check_parameters()
        self._check_lower_bounds(C=np.finfo(np.float64).tiny)

    def _fit_classes(self, X: Any, indicators: Floats, class_indices: Array, sample_weight: Floats) -> None:
        class_weights = self._compute_class_weights(class_indices, sample_weight)
        sample_weight = sample_weight * class_weights[class_indices]
        loss = WeightedLoss(self._get_loss_family(), indicators, sample_weight / sample_weight.sum())
        self.coef_, self.intercept_ = self._fit_coefficients(X, loss, 1.0 / (self.C * sample_weight.sum()))


@dataclass(eq=False, repr=False)
class LogisticRegression(LogisticMixin, SmoothEstimator):
    """Logistic regression with an L2 penalty, binary or multinomial, as sklearn's.

    Minimizes C sum_i loss_i + |w|^2 / 2.

    Parameters
    ----------
    C : float
        Inverse strength of the penalty, positive; `np.inf` for none.
    class_weight : dict or "balanced", optional
        Factors for the samples of each class; "balanced": so that all classes weigh the same.
    fit_intercept : bool
    solver : {"lbfgs", "trust-ncg", "trust-krylov"}
        Of scipy.optimize; the last two use products with the Hessian. Newton steps end what takes long, for
        a dense X with up to 1,000 coefficients.
    tol : float
        Of the gradient of the mean loss, for coefficients in units in which its Hessian is about 1.
    max_iter : int
        Each iteration is two coded maps or more.
    blocks, tasks, code, executor, timeout, verbose : optional
        As for `Ridge`; lines are of the penalized mean loss.

    Attributes
    ----------
    classes_ : (classes,)
    coef_ : (1, features) for two classes, (classes, features) for more
    intercept_ : (1,) or (classes,)
    objective_ : float
        Of the mean loss plus |w|^2 / (2 C sum of weights).
    optimality_ : float
        Norm of its gradient for scaled features.
    n_iter_ : int
    report_ : Report
        Of the last coded map.

    Examples
    --------
    >>> from concurrent.futures import ThreadPoolExecutor
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> with ThreadPoolExecutor(4) as pool:
    ...     model = LogisticRegression(blocks=6, executor=pool).fit(X, y)
    >>> round(model.score(X, y), 2)
    0.97
    """
