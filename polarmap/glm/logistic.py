"""Logistic regression, binary or multinomial."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import expit, softmax

from polarmap.blocks.code_choice import CodeName
from polarmap.code.polar import PolarCode
from polarmap.errors import without_our_frames
from polarmap.glm.linear_classifier import LinearClassifier
from polarmap.glm.losses import Bernoulli, Loss, Multinomial
from polarmap.glm.minimize import MinimizedModel

Floats = npt.NDArray[np.float64]


class LogisticRegression(LinearClassifier, MinimizedModel):
    """Logistic regression with an L2 penalty, binary or multinomial, as sklearn's.

    Minimizes C sum_i loss_i + |w|^2 / 2.

    Parameters
    ----------
    C : float
        Inverse strength of the penalty, positive; `np.inf` for none.
    class_weight : dict or "balanced", optional
        By which the weights of the samples of a class are multiplied; "balanced": so that all classes weigh
        the same.
    fit_intercept : bool
    solver : {"lbfgs", "trust-ncg", "trust-krylov"}
        Of scipy.optimize; the last two use products with the Hessian.
    tol : float
        Of the gradient of the mean loss, for coefficients in units in which its Hessian is about 1.
    max_iter : int
        Each iteration is two coded maps or more.
    blocks, workers, code, executor, timeout : optional
        As for `CodedOperator`. Clones share the executor. A pickled model has what describes it: the path
        that a `polarmap.Pool` is of, None for one of this machine. Other pools stay behind: what is loaded
        predicts, and refuses to fit until it is given another.
    verbose : int
        1: a line on standard output for each iteration, of the penalized mean loss, the norm of
        its gradient for scaled features, and seconds. 2: also its products, and how many blocks the
        last of them decoded. 0: nothing.

    Attributes
    ----------
    classes_ : (classes,)
    coef_ : (1, features) for two classes, (classes, features) for more
    intercept_ : (1,) or (classes,)
    n_iter_ : int
    report_ : Report
        Of the last coded map.

    Raises
    ------
    ModelError
        Options that cannot be; a single class.

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

    def __init__(
        self,
        C: float = 1.0,
        *,
        class_weight: Any = None,
        fit_intercept: bool = True,
        solver: str = "lbfgs",
        tol: float = 1e-7,
        max_iter: int = 500,
        blocks: int | None = None,
        workers: int | None = None,
        code: CodeName | PolarCode = "auto",
        executor: Any = None,
        timeout: float | None = None,
        verbose: int = 0,
    ) -> None:
        self.C, self.class_weight = C, class_weight
        self.fit_intercept, self.solver = fit_intercept, solver
        self.tol, self.max_iter = tol, max_iter
        self.blocks, self.workers, self.code = blocks, workers, code
        self.executor, self.timeout, self.verbose = executor, timeout, verbose

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Fit to X (samples, features), which may be sparse, and labels y (samples,)."""
        with without_our_frames:
            self._check_numbers(C=np.finfo(np.float64).tiny)
            X, codes, weights = self._checked_samples(X, y, sample_weight)
            weights = weights * self._class_weights(codes, weights)[codes]
            loss: Loss = Bernoulli() if len(self.classes_) == 2 else Multinomial()
            penalty = 1.0 / (self.C * weights.sum())
            self.coef_, self.intercept_ = self._minimize(X, self._outputs(codes), weights, loss, penalty)
            return self

    def predict_proba(self, X: Any) -> Floats:
        """(samples, classes)."""
        eta = self.decision_function(X)
        if eta.ndim == 1:
            return np.stack([expit(-eta), expit(eta)], axis=1)
        return np.asarray(softmax(eta, axis=1))

    def predict_log_proba(self, X: Any) -> Floats:
        """(samples, classes)."""
        return np.log(self.predict_proba(X))
