"""Logistic regression, binary or multinomial."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import expit, softmax
from sklearn.base import ClassifierMixin
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data

from polarmap.blocks.choose_code import CodeName
from polarmap.code.polar import PolarCode
from polarmap.errors import ModelError
from polarmap.glm.losses import Bernoulli, Loss, Multinomial
from polarmap.glm.minimize import MinimizedModel

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]


class LogisticRegression(ClassifierMixin, MinimizedModel):  # type: ignore[misc]
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
        X, y = validate_data(self, X, y, accept_sparse="csr", dtype=np.float64)
        check_classification_targets(y)
        self._check_numbers(C=np.finfo(np.float64).tiny)
        weights = self._weights(sample_weight, X)
        X, y, weights = X[weights > 0], y[weights > 0], weights[weights > 0]
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ModelError(
                f"y holds one class only, {self.classes_.tolist()[0]!r}: there is nothing to tell apart"
            )
        weights = weights * self._class_weights(codes, weights)[codes]
        binary = len(self.classes_) == 2
        onehot = np.eye(len(self.classes_))[codes]
        loss: Loss = Bernoulli() if binary else Multinomial()
        penalty = 1.0 / (self.C * weights.sum())
        outputs = onehot[:, 1:] if binary else onehot
        self.coef_, self.intercept_ = self._minimize(X, outputs, weights, loss, penalty)
        return self

    def _class_weights(self, codes: Array, weights: Floats) -> Floats:
        """A factor for the weights of each class."""
        if isinstance(self.class_weight, str) and self.class_weight == "balanced":
            totals = np.bincount(codes, weights, len(self.classes_))
            return np.asarray(weights.sum() / (len(totals) * totals))
        return np.asarray(compute_class_weight(self.class_weight, classes=self.classes_, y=self.classes_))

    def decision_function(self, X: Any) -> Floats:
        """(samples,) for two classes, (samples, classes) for more."""
        eta = self._linear(X)
        return eta[:, 0] if eta.shape[1] == 1 else eta

    def predict(self, X: Any) -> Array:
        """The likeliest class of each sample."""
        eta = self.decision_function(X)
        index = (eta > 0).astype(int) if eta.ndim == 1 else eta.argmax(axis=1)
        return np.asarray(self.classes_[index])

    def predict_proba(self, X: Any) -> Floats:
        """(samples, classes)."""
        eta = self.decision_function(X)
        if eta.ndim == 1:
            return np.stack([expit(-eta), expit(eta)], axis=1)
        return np.asarray(softmax(eta, axis=1))

    def predict_log_proba(self, X: Any) -> Floats:
        """(samples, classes)."""
        return np.log(self.predict_proba(X))
