"""Linear regression by least squares: `Ridge` has an L2 penalty, and `LeastSquares` has none."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import numpy as np

from polarmap.dtypes import Floats
from polarmap.models.estimators.coded_estimator import CodedEstimator, CodedRegressorMixin
from polarmap.models.iteration_log import IterationLog, warn_if_not_converged
from polarmap.models.solvers.least_squares import AugmentedOperator, solve_least_squares
from polarmap.models.solvers.solver import Solution


@dataclass(eq=False, repr=False)
class Ridge(CodedRegressorMixin, CodedEstimator):
    """Least squares with an L2 penalty, like scikit-learn's Ridge.

    The model minimizes |y - X w - c|^2 + alpha |w|^2.

    Parameters
    ----------
    alpha : float
        Strength of the penalty, 0 or more. With 0, the model is that of `LeastSquares`.
    fit_intercept : bool
        Whether to fit an intercept c, which is not penalized.
    solver : {"lsqr", "lsmr", "cg"}
        "lsqr" and "lsmr" are methods of scipy.sparse.linalg, and "cg" is conjugate gradients on the normal
        equations. For a dense X with up to 1,000 features, the solver restarts with features that were
        orthogonalized by their Gram matrix if it would need many iterations.
    tol : float
        Relative tolerance of the solver.
    max_iter : int
        Maximum number of iterations. Each takes two coded maps.
    blocks, tasks, code, executor : optional
        As for `CodedOperator`. Clones of a model share its executor. If an executor cannot be described by a
        name or a path, it is lost when the model is pickled. The loaded model can still predict, but `fit`
        raises ModelError until you set `executor`.
    timeout : float, optional
        Time limit of a fit in seconds. By default, there is no limit. A fit that reaches the limit keeps the
        best solution so far, and a ConvergenceWarning tells how far the objective may be from its minimum.
        Several targets share the time.
    verbose : int
        0 prints nothing. 1 prints a line after each iteration: the objective (not with "lsmr"), the norm of
        its gradient for scaled features, and the duration of the iteration in seconds. 2 also prints the
        number of products, and how many blocks the last product decoded.

    Attributes
    ----------
    coef_ : array (features,) or (targets, features)
        Coefficients w.
    intercept_ : float or array (targets,)
        Intercept c.
    n_iter_ : int or array (targets,)
        Number of iterations.
    report_ : Report
        Report of the last coded map.

    Raises
    ------
    ModelError
        If the features are nearly linearly dependent, so that the coefficients would have no correct digits.
    DeadlineExceededError
        If `timeout` passes before the end of the first iteration.

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

    alpha: float = 1.0
    _: KW_ONLY
    solver: str = "lsqr"
    tol: float = 1e-12
    max_iter: int = 1000

    def _check_parameters(self) -> None:
        super()._check_parameters()
        self._check_lower_bounds(alpha=0.0)
        self._check_choice("solver", ("lsqr", "lsmr", "cg"))

    def _fit(self, X: Any, y: Floats, sample_weight: Floats) -> None:
        normalized_weight, sqrt_weight = sample_weight / sample_weight.sum(), np.sqrt(sample_weight)
        penalty = self.alpha / sample_weight.sum()
        coded_operator, A, mean, scale = self._make_standardized_operator(
            X, normalized_weight, penalty, sqrt_weight=sqrt_weight
        )
        targets = y.reshape(len(y), -1)
        target_mean = normalized_weight @ targets if self.fit_intercept else np.zeros(targets.shape[1])
        with coded_operator:
            system = AugmentedOperator(A, np.sqrt(self.alpha) * scale)
            solutions: list[Solution] = []
            for label, target in zip(
                self._make_iteration_log_labels(targets.shape[1]),
                ((targets - target_mean) * sqrt_weight[:, np.newaxis]).T,
            ):
                # Divide the remaining time equally between the remaining targets.
                self._set_deadline(coded_operator, 1 / (targets.shape[1] - len(solutions)))
                with IterationLog(label, coded_operator, self.verbose) as iteration_log:
                    solution = solve_least_squares(self, system, target, iteration_log)
                warn_if_not_converged(solution, self.max_iter, self.timeout)
                solutions.append(solution)
            self.report_ = coded_operator.report
        coef = np.stack([solution.x for solution in solutions]) * scale
        intercept = target_mean - coef @ mean
        n_iter = np.array([solution.n_iter for solution in solutions])
        is_single_target = y.ndim == 1
        self.coef_ = coef[0] if is_single_target else coef
        self.intercept_ = float(intercept[0]) if is_single_target else intercept
        self.n_iter_ = int(n_iter[0]) if is_single_target else n_iter

    def _make_iteration_log_labels(self, n_targets: int) -> list[str]:
        """Return the name of each target, with which the lines of `verbose` output begin."""
        class_name = type(self).__name__
        if n_targets == 1:
            return [class_name]
        return [f"{class_name}, target {i + 1} of {n_targets}" for i in range(n_targets)]


@dataclass(eq=False, repr=False)
class LeastSquares(Ridge):
    """Ordinary least squares, like scikit-learn's LinearRegression.

    The model minimizes |y - X w - c|^2. If there are fewer samples than coefficients, or if features are
    linearly dependent, w is not unique. The solver then approaches the minimizer with the smallest norm of w
    for standardized features. Parameters, attributes and errors are the same as for `Ridge`, without alpha.

    Examples
    --------
    >>> from concurrent.futures import ThreadPoolExecutor
    >>> X = np.array([[0.0], [1.0], [2.0], [3.0]])
    >>> with ThreadPoolExecutor(4) as pool:
    ...     model = LeastSquares(blocks=2, executor=pool).fit(X, [1.0, 3.0, 5.0, 7.0])
    >>> bool(np.isclose(model.coef_[0], 2)), bool(np.isclose(model.intercept_, 1))
    (True, True)
    """

    alpha: float = field(default=0.0, init=False)
