"""Logistic regression with an L2 penalty, and the mixin that it shares with the L1 model."""

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
    """Mixin for models that minimize C times the sum of the samples' logistic losses, plus a penalty.

    List it before a subclass of `LinearPredictorEstimator`, which defines the penalty.
    """

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
    """Logistic regression with an L2 penalty, binary or multinomial, like scikit-learn's.

    The model minimizes C sum_i loss_i + |w|^2 / 2, where loss_i is the logistic loss of sample i.

    Parameters
    ----------
    C : float
        Inverse of the strength of the penalty, positive; `np.inf` for no penalty.
    class_weight : dict or "balanced", optional
        Factor for the weights of the samples of each class, keyed by label. "balanced" gives all classes the
        same total weight. By default, all factors are 1.
    fit_intercept : bool
        Whether to fit an intercept, which is not penalized.
    solver : {"lbfgs", "trust-ncg", "trust-krylov"}
        Method of scipy.optimize.minimize. The last two use products with the Hessian. For a dense X with up
        to 1,000 coefficients, Newton steps finish the fit if many iterations are needed.
    tol : float
        Tolerance of the gradient of the mean loss. The coefficients are scaled such that the Hessian has
        about 1 on its diagonal.
    max_iter : int
        Maximum number of iterations. Each takes at least two coded maps.
    blocks, tasks, code, executor, timeout, verbose : optional
        As for `Ridge`. The objective that `verbose` prints is the penalized mean loss.

    Attributes
    ----------
    classes_ : array (classes,)
        Class labels, sorted.
    coef_ : array (1, features) for two classes, (classes, features) for more
        Coefficients w.
    intercept_ : array (1,) or (classes,)
        Intercepts.
    objective_ : float
        Mean loss plus |w|^2 / (2 C sum of weights).
    optimality_ : float
        Norm of the gradient of the objective for scaled features.
    n_iter_ : int
        Number of iterations.
    report_ : Report
        Report of the last coded map.

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
