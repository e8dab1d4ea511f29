"""Linear regression by least squares, with an L2 penalty or none."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from polarmap.blocks.code_choice import CodeName
from polarmap.code.polar import PolarCode
from polarmap.errors import ModelError, without_our_frames
from polarmap.glm.least_squares import AugmentedOperator, solve_least_squares
from polarmap.glm.linear_regressor import LinearRegressor
from polarmap.glm.progress import Progress

Floats = npt.NDArray[np.float64]


class Ridge(LinearRegressor):
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
        As for `CodedOperator`. Clones share the executor. A pickled model has what describes it: the path
        that a `polarmap.Pool` is of, None for one of this machine. Other pools stay behind: what is loaded
        predicts, and refuses to fit until it is given another.
    verbose : int
        1: a line on standard output for each iteration, of the objective (not with "lsmr"), the norm of
        its gradient for scaled features, and seconds. 2: also its products, and how many blocks the
        last of them decoded. 0: nothing.

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
        code: CodeName | PolarCode = "auto",
        executor: Any = None,
        timeout: float | None = None,
        verbose: int = 0,
    ) -> None:
        self.alpha, self.fit_intercept, self.solver = alpha, fit_intercept, solver
        self.tol, self.max_iter = tol, max_iter
        self.blocks, self.workers, self.code = blocks, workers, code
        self.executor, self.timeout, self.verbose = executor, timeout, verbose

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Fit to X (samples, features), which may be sparse, and y (samples,) or (samples, targets)."""
        with without_our_frames:
            X, y = self._validated(X, y)
            alpha = self._penalty()
            self._check_numbers(tol=0.0, max_iter=1, verbose=0)
            self._check_solver(("lsqr", "lsmr", "cg"))
            unknowns = X.shape[1] + bool(self.fit_intercept)
            weights = self._weights(sample_weight, X)
            samples = int((weights > 0).sum())
            if alpha == 0 and samples < unknowns:
                raise ModelError(
                    f"n_samples = {samples} cannot determine {unknowns} coefficients: the system is "
                    "singular; use more samples, or Ridge(alpha=...) with alpha > 0"
                )
            shares, root = weights / weights.sum(), np.sqrt(weights)
            scaled, mean, scale = self._scaled_operator(X, shares, alpha / weights.sum(), root=root)
            targets = y.reshape(len(y), -1)
            centre = shares @ targets if self.fit_intercept else np.zeros(targets.shape[1])
            with scaled as operator:
                system = AugmentedOperator(operator, np.sqrt(alpha) * scale)
                solved = [
                    solve_least_squares(self, system, target, Progress(name, operator, self.verbose))
                    for name, target in zip(
                        self._names(targets.shape[1]), ((targets - centre) * root[:, np.newaxis]).T
                    )
                ]
                self.report_ = operator.report
            coef = np.stack([v for v, _ in solved]) * scale
            intercept, n_iter = centre - coef @ mean, np.array([n for _, n in solved])
            single = y.ndim == 1
            self.coef_ = coef[0] if single else coef
            self.intercept_ = float(intercept[0]) if single else intercept
            self.n_iter_ = int(n_iter[0]) if single else n_iter
            return self

    def _names(self, targets: int) -> list[str]:
        """Of the fits of each target, for lines of progress."""
        name = type(self).__name__
        return [name] if targets == 1 else [f"{name}, target {i + 1} of {targets}" for i in range(targets)]

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
        code: CodeName | PolarCode = "auto",
        executor: Any = None,
        timeout: float | None = None,
        verbose: int = 0,
    ) -> None:
        self.fit_intercept, self.solver = fit_intercept, solver
        self.tol, self.max_iter = tol, max_iter
        self.blocks, self.workers, self.code = blocks, workers, code
        self.executor, self.timeout, self.verbose = executor, timeout, verbose

    def _penalty(self) -> float:
        return 0.0
