"""Generalized linear models whose every product with the data is a coded map; scikit-learn's conventions.

Solvers are those of scipy: nothing is optimized by hand here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from polarmap.errors import ModelError
from polarmap.glm.fitting import CodedModel, Penalized, minimized, solve
from polarmap.glm.losses import Bernoulli, Loss, Multinomial, Poisson

try:
    from scipy.special import expit, softmax
    from sklearn.base import ClassifierMixin, RegressorMixin
    from sklearn.metrics import d2_tweedie_score
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import validate_data
except ImportError as error:
    raise ImportError("polarmap.glm needs scipy and scikit-learn: pip install 'polarmap[glm]'") from error

__all__ = ["LeastSquares", "LogisticRegression", "PoissonRegression", "Ridge"]

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]


class Ridge(RegressorMixin, CodedModel):  # type: ignore[misc]
    """Least squares with an L2 penalty: min |y - X w - c|^2 + alpha |w|^2, as sklearn's Ridge.

    Parameters
    ----------
    alpha : float
        0 or more; `LeastSquares` is the one of 0.
    fit_intercept : bool
    solver : {"lsqr", "lsmr", "cg"}
        Of scipy.sparse.linalg; "cg" on the normal equations.
    tol : float
        Relative, of the solver.
    max_iter : int
        Each iteration is two coded maps.
    blocks, workers, code, executor, timeout : optional
        As for `CodedOperator`. Clones share the executor. A pool stays behind when
        a model is pickled: what is loaded predicts, and refuses to fit until it is given another.

    Attributes
    ----------
    coef_ : (features,) or (targets, features)
    intercept_ : float or (targets,)
    n_iter_ : int, or (targets,)
    report_ : Report
        Of the last coded map.

    Raises
    ------
    ModelError
        Options that cannot be; too few samples to determine the coefficients; features that depend on
        each other so closely that no digit is left.

    Examples
    --------
    >>> from concurrent.futures import ThreadPoolExecutor
    >>> from sklearn.datasets import load_diabetes
    >>> X, y = load_diabetes(return_X_y=True)
    >>> with ThreadPoolExecutor(4) as pool:
    ...     model = Ridge(alpha=0.1, blocks=6, executor=pool).fit(X, y)
    >>> round(model.score(X, y), 3)
    0.513
    """

    def __init__(
        self,
        alpha: float = 1.0,
        *,
        fit_intercept: bool = True,
        solver: str = "lsqr",
        tol: float = 1e-12,
        max_iter: int = 1000,
        blocks: int | None = None,
        workers: int | None = None,
        code: Any = "auto",
        executor: Any = None,
        timeout: float | None = None,
    ) -> None:
        self.alpha, self.fit_intercept, self.solver = alpha, fit_intercept, solver
        self.tol, self.max_iter = tol, max_iter
        self.blocks, self.workers, self.code = blocks, workers, code
        self.executor, self.timeout = executor, timeout

    def fit(self, X: Any, y: Any) -> Any:
        """Fit to X (samples, features) and y (samples,) or (samples, targets)."""
        X, y = validate_data(self, X, y, dtype=np.float64, multi_output=True, y_numeric=True)
        y = y.astype(np.float64)
        alpha = self._penalty()
        self._check_numbers(tol=0.0, max_iter=1)
        self._check_solver(("lsqr", "lsmr", "cg"))
        unknowns = X.shape[1] + bool(self.fit_intercept)
        if alpha == 0 and len(X) < unknowns:
            raise ModelError(
                f"n_samples = {len(X)} cannot determine {unknowns} coefficients: the system is singular; use "
                "more samples, or Ridge(alpha=...) with alpha > 0"
            )
        A, mean, scale = self._scaled(X, alpha / len(X))
        targets = y.reshape(len(y), -1)
        centre = targets.mean(axis=0) if self.fit_intercept else np.zeros(targets.shape[1])
        with self._operator(A) as operator:
            system = Penalized(operator, np.sqrt(alpha) * scale)
            solved = [solve(self, system, target) for target in (targets - centre).T]
            self.report_ = operator.report
        coef = np.stack([v for v, _ in solved]) * scale
        intercept, n_iter = centre - coef @ mean, np.array([n for _, n in solved])
        single = y.ndim == 1
        self.coef_ = coef[0] if single else coef
        self.intercept_ = float(intercept[0]) if single else intercept
        self.n_iter_ = int(n_iter[0]) if single else n_iter
        return self

    def predict(self, X: Any) -> Floats:
        """X coef_ + intercept_."""
        return self._linear(X)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def _penalty(self) -> float:
        self._check_numbers(alpha=0.0)
        return float(self.alpha)


class LeastSquares(Ridge):
    """Ordinary least squares: min |y - X w - c|^2, as sklearn's LinearRegression.

    Features that depend on each other exactly leave w undetermined; then one of the minimizers is
    returned. Parameters, attributes and errors as for `Ridge`, without alpha.

    Examples
    --------
    >>> from concurrent.futures import ThreadPoolExecutor
    >>> X = np.array([[0.0], [1.0], [2.0], [3.0]])
    >>> with ThreadPoolExecutor(4) as pool:
    ...     model = LeastSquares(blocks=2, executor=pool).fit(X, [1.0, 3.0, 5.0, 7.0])
    >>> bool(np.isclose(model.coef_[0], 2)), bool(np.isclose(model.intercept_, 1))
    (True, True)
    """

    def __init__(
        self,
        *,
        fit_intercept: bool = True,
        solver: str = "lsqr",
        tol: float = 1e-12,
        max_iter: int = 1000,
        blocks: int | None = None,
        workers: int | None = None,
        code: Any = "auto",
        executor: Any = None,
        timeout: float | None = None,
    ) -> None:
        self.fit_intercept, self.solver = fit_intercept, solver
        self.tol, self.max_iter = tol, max_iter
        self.blocks, self.workers, self.code = blocks, workers, code
        self.executor, self.timeout = executor, timeout

    def _penalty(self) -> float:
        return 0.0


class LogisticRegression(ClassifierMixin, CodedModel):  # type: ignore[misc]
    """Logistic regression with an L2 penalty, binary or multinomial, as sklearn's.

    Minimizes C sum_i loss_i + |w|^2 / 2.

    Parameters
    ----------
    C : float
        Inverse strength of the penalty, positive; `np.inf` for none.
    fit_intercept : bool
    solver : {"lbfgs", "trust-ncg", "trust-krylov"}
        Of scipy.optimize; the last two use products with the Hessian.
    tol : float
        Of the gradient of the mean loss, for coefficients in units in which its Hessian is about 1.
    max_iter : int
        Each iteration is two coded maps or more.
    blocks, workers, code, executor, timeout : optional
        As for `CodedOperator`. Clones share the executor. A pool stays behind when
        a model is pickled: what is loaded predicts, and refuses to fit until it is given another.

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
        fit_intercept: bool = True,
        solver: str = "lbfgs",
        tol: float = 1e-7,
        max_iter: int = 500,
        blocks: int | None = None,
        workers: int | None = None,
        code: Any = "auto",
        executor: Any = None,
        timeout: float | None = None,
    ) -> None:
        self.C, self.fit_intercept, self.solver = C, fit_intercept, solver
        self.tol, self.max_iter = tol, max_iter
        self.blocks, self.workers, self.code = blocks, workers, code
        self.executor, self.timeout = executor, timeout

    def fit(self, X: Any, y: Any) -> Any:
        """Fit to X (samples, features) and labels y (samples,)."""
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        self._check_numbers(C=np.finfo(np.float64).tiny)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ModelError(f"y holds one class only, {self.classes_[0]!r}: there is nothing to tell apart")
        binary = len(self.classes_) == 2
        onehot = np.eye(len(self.classes_))[codes]
        loss: Loss = Bernoulli() if binary else Multinomial()
        penalty = 1.0 / (self.C * len(X))
        self.coef_, self.intercept_ = minimized(self, X, onehot[:, 1:] if binary else onehot, loss, penalty)
        return self

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


class PoissonRegression(RegressorMixin, CodedModel):  # type: ignore[misc]
    """Poisson regression with a log link and an L2 penalty, as sklearn's PoissonRegressor.

    Minimizes mean_i(exp(eta_i) - y_i eta_i) + alpha |w|^2 / 2 with eta = X w + c.

    Parameters
    ----------
    alpha : float
        0 or more.
    fit_intercept, solver, tol, max_iter, blocks, workers, code, executor, timeout
        As for `LogisticRegression`.

    Attributes
    ----------
    coef_ : (features,)
    intercept_ : float
    n_iter_ : int
    report_ : Report
        Of the last coded map.

    Raises
    ------
    ModelError
        Options that cannot be; negative counts; counts that are all zero.

    Examples
    --------
    >>> from concurrent.futures import ThreadPoolExecutor
    >>> X = np.arange(20.0).reshape(-1, 1) / 10
    >>> with ThreadPoolExecutor(4) as pool:
    ...     model = PoissonRegression(alpha=0.0, blocks=4, executor=pool).fit(X, np.exp(2 * X[:, 0]))
    >>> bool(np.isclose(model.coef_[0], 2))
    True
    """

    def __init__(
        self,
        alpha: float = 1.0,
        *,
        fit_intercept: bool = True,
        solver: str = "lbfgs",
        tol: float = 1e-7,
        max_iter: int = 500,
        blocks: int | None = None,
        workers: int | None = None,
        code: Any = "auto",
        executor: Any = None,
        timeout: float | None = None,
    ) -> None:
        self.alpha, self.fit_intercept, self.solver = alpha, fit_intercept, solver
        self.tol, self.max_iter = tol, max_iter
        self.blocks, self.workers, self.code = blocks, workers, code
        self.executor, self.timeout = executor, timeout

    def fit(self, X: Any, y: Any) -> Any:
        """Fit to X (samples, features) and counts y (samples,), which need not be whole."""
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True)
        y = y.astype(np.float64)
        self._check_numbers(alpha=0.0)
        if (y < 0).any():
            raise ModelError(f"y holds {int((y < 0).sum())} negative counts, the lowest {y.min():g}")
        if not y.any():
            raise ModelError("y holds zero counts only: their logarithm has no finite fit")
        coef, intercept = minimized(self, X, y.reshape(-1, 1), Poisson(), float(self.alpha))
        self.coef_, self.intercept_ = coef[0], float(intercept[0])
        return self

    def predict(self, X: Any) -> Floats:
        """Expected counts."""
        return np.exp(self._linear(X))

    def score(self, X: Any, y: Any) -> float:
        """D^2, the share of the deviance explained, as sklearn's PoissonRegressor."""
        return float(d2_tweedie_score(y, self.predict(X), power=1))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.positive_only = True
        return tags
