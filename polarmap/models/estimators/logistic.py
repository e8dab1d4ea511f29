"""Logistic regression with an L2 penalty, and the base of both logistic models: `LogisticMixin`."""

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
    """A mixin for models that minimize C sum_i loss_i plus a penalty, with the logistic loss.

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
    """Logistic regression with an L2 penalty, binary or multinomial, as sklearn's.

    Minimizes C sum_i loss_i + |w|^2 / 2.

    Parameters
    ----------
    C : float
        Inverse strength of the penalty, positive; `np.inf` for no penalty.
    class_weight : dict or "balanced", optional
        Factors for the weights of the samples of each class, by label. "balanced" gives all classes the same
        total weight. None: all factors are 1.
    fit_intercept : bool
        Whether to fit an intercept, which is not penalized.
    solver : {"lbfgs", "trust-ncg", "trust-krylov"}
        A method of scipy.optimize.minimize; the last two use products with the Hessian. If many iterations
        are needed, Newton steps finish the fit, for a dense X with up to 1,000 coefficients.
    tol : float
        Tolerance of the gradient of the mean loss, for coefficients scaled so that its Hessian has about 1 on
        its diagonal.
    max_iter : int
        The largest number of iterations. Each takes two coded maps or more.
    blocks, tasks, code, executor, timeout, verbose : optional
        As for `Ridge`; the printed objective is the penalized mean loss.

    Attributes
    ----------
    classes_ : (classes,)
    coef_ : (1, features) for two classes, (classes, features) for more
    intercept_ : (1,) or (classes,)
    objective_ : float
        The mean loss plus |w|^2 / (2 C sum of weights).
    optimality_ : float
        The norm of the gradient of the objective for scaled features.
    n_iter_ : int
    report_ : Report
        The report of the last coded map.

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
