"""Linear support vector machines by their dual, whose only constraint is a box."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any

import numpy as np
from scipy import sparse

from polarmap.dtypes import Array, Floats
from polarmap.errors import ModelError
from polarmap.models.coded_model import CodedClassifier, CodedModel
from polarmap.models.interior_point import interior_point
from polarmap.models.losses import SquaredLoss
from polarmap.models.penalties import LinearOnBox
from polarmap.models.proximal_gradient import fista
from polarmap.models.proximal_newton import LARGEST_GRAM


@dataclass(eq=False, repr=False)
class LinearSVC(CodedClassifier, CodedModel):
    """A linear support vector machine with the hinge loss, as sklearn's LinearSVC(loss="hinge").

    Minimizes (|w|^2 + c^2) / 2 + C sum_i max(0, 1 - y_i (x_i w + c)) with y_i = 1 or -1, for more than two
    classes one against the rest. The dual is solved, whose variables lie between 0 and C: with Y = diag(y),
    max sum(a) - |X' Y a|^2 / 2.

    Parameters
    ----------
    C : float
        Inverse strength of the penalty, positive.
    class_weight : dict or "balanced", optional
        By which C is multiplied for the samples of a class; against the rest, whose C remains.
    fit_intercept : bool
        As the coefficient of a feature that is 1, and penalized like the others.
    tol : float
        Relative, of the duality gap.
    max_iter : int
        Each iteration is a few coded maps.
    blocks, tasks, code, executor, timeout, verbose : optional
        As for `ElasticNet`; lines are of the dual problem.

    Attributes
    ----------
    classes_ : (classes,)
    coef_ : (1, features) for two classes, (classes, features) for more
    intercept_ : (1,) or (classes,)
    dual_coef_ : (outputs, samples)
        y_i a_i of the samples of positive weight: coef_ is dual_coef_ @ X.
    objective_ : float
        Of the primal problem; for several classes, the sum over them.
    dual_gap_ : float
        objective_ is at most that far above its minimum.
    gradient_map_ : float
        Norm of the gradient map of the dual, for samples scaled to norm 1.
    n_iter_ : int
    report_ : Report
        Of the last coded map.

    Examples
    --------
    >>> from concurrent.futures import ThreadPoolExecutor
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> with ThreadPoolExecutor(4) as pool:
    ...     model = LinearSVC(C=0.01, tol=1e-2, blocks=6, executor=pool).fit(X, y == 0)
    >>> model.score(X, y == 0), model.dual_gap_ <= 1e-2 * model.objective_
    (1.0, True)
    """

    C: float = 1.0
    _: KW_ONLY
    class_weight: Any = None

    def _check_options(self) -> None:
        super()._check_options()
        self._check_numbers(C=np.finfo(np.float64).tiny)
        if not np.isfinite(self.C):
            raise ModelError(
                f"C must be a finite number: with C={self.C!r}, classes that overlap have no fit"
            )

    def _fit_classes(self, X: Any, outputs: Floats, codes: Array, weights: Floats) -> None:
        signs = 2.0 * outputs - 1.0
        A = _with_constant(X) if self.fit_intercept else X
        norms = sparse.linalg.norm(A, axis=1) if sparse.issparse(A) else np.linalg.norm(A, axis=1)
        norms[norms == 0] = 1.0
        column = norms[:, np.newaxis]
        # The variable is y a |x|, between 0 and y C |x|: its Hessian has 1 on the diagonal.
        bound = signs * column * self._bounds(codes, weights, outputs)
        penalty = LinearOnBox(
            np.minimum(bound, 0).reshape(-1), np.maximum(bound, 0).reshape(-1), (-signs / column).reshape(-1)
        )
        with self._operator(sparse.csr_array(A / column) if sparse.issparse(A) else A / column) as coded:
            if sparse.issparse(A) or A.shape[1] * signs.shape[1] > LARGEST_GRAM:
                loss = SquaredLoss(np.zeros((A.shape[1], signs.shape[1])))
                method: Any = partial(fista, coded.T, loss, penalty, np.zeros_like(bound))
            else:
                method = partial(interior_point, coded, penalty, bound.shape)
            x = self._solution(coded, method)
        self.objective_ = float(self.dual_gap_ or 0.0) - self.objective_  # minus the dual was minimized
        self.dual_coef_ = (x / column).T
        B = np.asarray(self.dual_coef_ @ A)
        self.coef_ = B[:, : X.shape[1]]
        self.intercept_ = B[:, -1] if self.fit_intercept else np.zeros(len(B))

    def _bounds(self, codes: Array, weights: Floats, outputs: Floats) -> Floats:
        """C of each sample and output."""
        of_class = self._class_weights(codes, weights)
        own = of_class[codes][:, np.newaxis]
        factors = own if len(of_class) == 2 else np.where(outputs == 1, own, 1.0)
        return np.asarray(self.C * weights[:, np.newaxis] * factors)


def _with_constant(X: Any) -> Any:
    """X beside a column of ones, sparse if X is."""
    ones = np.ones((X.shape[0], 1))
    return sparse.hstack([X, ones], format="csr") if sparse.issparse(X) else np.hstack([X, ones])
