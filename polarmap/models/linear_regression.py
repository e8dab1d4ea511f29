"""Linear regression by least squares, with an L2 penalty or none."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import numpy as np

from polarmap.dtypes import Floats
from polarmap.errors import ModelError
from polarmap.models.coded_model import CodedModel, CodedRegressor
from polarmap.models.fit_progress import FitProgress
from polarmap.models.krylov import AugmentedOperator, solve_least_squares


@dataclass(eq=False, repr=False)
class Ridge(CodedRegressor, CodedModel):
    """Least squares with an L2 penalty: min |y - X w - c|^2 + alpha |w|^2, as sklearn's Ridge.

    Parameters
    ----------
    alpha : float
        0 or more; `LeastSquares` is the one of 0.
    fit_intercept : bool
    solver : {"lsqr", "lsmr", "cg"}
        Of scipy.sparse.linalg, or conjugate gradients on the normal equations. What takes long is begun anew
        on features that their Gram matrix has made orthogonal, for a dense X with up to 1,000 of them.
    tol : float
        Relative, of the solver.
    max_iter : int
        Each iteration is two coded maps.
    blocks, tasks, code, executor, timeout : optional
        As for `CodedOperator`. Clones share the executor. Of a pickled model it stays behind, unless a path
        or a name describes it: what is loaded predicts, and refuses to fit until it is given another.
    verbose : int
        1: a line for each iteration, of the objective (not with "lsmr"), the norm of its gradient for scaled
        features, and seconds. 2: also its products, and how many blocks the last of them decoded.

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
        Too few samples to determine the coefficients; features that depend on each other so closely that no
        digit is left.

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

    def _check_options(self) -> None:
        super()._check_options()
        self._check_numbers(alpha=0.0)
        self._check_choice("solver", ("lsqr", "lsmr", "cg"))

    def _fit(self, X: Any, y: Floats, weights: Floats) -> None:
        samples, unknowns = X.shape[0], X.shape[1] + bool(self.fit_intercept)
        if self.alpha == 0 and samples < unknowns:
            raise ModelError(
                f"n_samples = {samples} cannot determine {unknowns} coefficients: the system is "
                "singular; use more samples, or Ridge(alpha=...) with alpha > 0"
            )
        shares, root = weights / weights.sum(), np.sqrt(weights)
        coded, A, mean, scale = self._scaled_operator(X, shares, self.alpha / weights.sum(), root=root)
        targets = y.reshape(len(y), -1)
        centre = shares @ targets if self.fit_intercept else np.zeros(targets.shape[1])
        with coded:
            system = AugmentedOperator(A, np.sqrt(self.alpha) * scale)
            solved = [
                solve_least_squares(self, system, target, FitProgress(name, coded, self.verbose))
                for name, target in zip(
                    self._names(targets.shape[1]), ((targets - centre) * root[:, np.newaxis]).T
                )
            ]
            self.report_ = coded.report
        coef = np.stack([v for v, _ in solved]) * scale
        intercept, n_iter = centre - coef @ mean, np.array([n for _, n in solved])
        single = y.ndim == 1
        self.coef_ = coef[0] if single else coef
        self.intercept_ = float(intercept[0]) if single else intercept
        self.n_iter_ = int(n_iter[0]) if single else n_iter

    def _names(self, targets: int) -> list[str]:
        """Names of the fits of each target, for lines of progress."""
        name = type(self).__name__
        return [name] if targets == 1 else [f"{name}, target {i + 1} of {targets}" for i in range(targets)]


@dataclass(eq=False, repr=False)
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

    alpha: float = field(default=0.0, init=False)
