"""Linear support vector machines, which are fitted by solving their dual problem.

The only constraint of the dual problem is a box: every variable has a lower and an upper bound.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any

import numpy as np
from scipy import sparse

from polarmap.dtypes import Array, Floats
from polarmap.errors import ModelError
from polarmap.models.estimators.coded_estimator import CodedClassifierMixin, CodedEstimator
from polarmap.models.losses import SquaredLoss
from polarmap.models.penalties import LinearBoxPenalty
from polarmap.models.solvers.box_interior_point import box_interior_point
from polarmap.models.solvers.proximal_gradient import fista
from polarmap.models.solvers.proximal_newton import MAX_GRAM_SIZE


@dataclass(eq=False, repr=False)
class LinearSVC(CodedClassifierMixin, CodedEstimator):
    """A linear support vector machine with the hinge loss, like scikit-learn's LinearSVC(loss="hinge").

    The model minimizes (|w|^2 + c^2) / 2 + C sum_i max(0, 1 - y_i (x_i w + c)) with y_i = 1 or -1. With more
    than two classes, each class is fitted against the rest (one-vs-rest). The solver maximizes the dual,
    sum(a) - |X' Y a|^2 / 2 with Y = diag(y), over variables a between 0 and C.

    Parameters
    ----------
    C : float
        Inverse of the strength of the penalty, positive and finite.
    class_weight : dict or "balanced", optional
        Factor of C for the samples of each class, keyed by label. With "balanced", the factors are inversely
        proportional to the total weights of the classes. With more than two classes, a factor is only used
        when its class is fitted against the rest, and only for the samples of the class.
    fit_intercept : bool
        Whether to fit an intercept c. It is the coefficient of a constant feature 1, so it is also penalized.
    tol : float
        Relative tolerance of the duality gap.
    max_iter : int
        Maximum number of iterations. Each takes a few coded maps.
    blocks, tasks, code, executor, timeout, verbose : optional
        As for `ElasticNet`. `verbose` prints objective and gradient of the dual problem.

    Attributes
    ----------
    classes_ : array (classes,)
        Class labels, sorted.
    coef_ : array (1, features) for two classes, (classes, features) for more
        Coefficients w.
    intercept_ : array (1,) or (classes,)
        Intercepts c.
    dual_coef_ : array (outputs, samples)
        y_i a_i of each sample with positive weight, such that coef_ = dual_coef_ @ X.
    objective_ : float
        Objective of the primal problem, summed over outputs.
    dual_gap_ : float
        Upper bound on the difference between `objective_` and its minimum.
    optimality_ : float
        Norm of the gradient map of the dual problem, for samples scaled to norm sqrt(sample_weight).
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
    ...     model = LinearSVC(C=0.01, tol=1e-2, blocks=6, executor=pool).fit(X, y == 0)
    >>> model.score(X, y == 0), model.dual_gap_ <= 1e-2 * model.objective_
    (1.0, True)
    """

    C: float = 1.0
    _: KW_ONLY
    class_weight: Any = None

    def _check_parameters(self) -> None:
        super()._check_parameters()
        self._check_lower_bounds(C=np.finfo(np.float64).tiny)
        if not np.isfinite(self.C):
            raise ModelError(
                f"C must be finite, not {self.C!r}: without a penalty, overlapping classes cannot be fitted"
            )

    def _fit_classes(self, X: Any, indicators: Floats, class_indices: Array, sample_weight: Floats) -> None:
        label_signs = 2.0 * indicators - 1.0
        A = _append_constant_column(X) if self.fit_intercept else X
        density = A.nnz / (A.shape[0] * A.shape[1]) if sparse.issparse(A) else 1.0
        # Newton steps need a dense A, whereas FISTA also works with a sparse A. But few Newton steps are
        # enough, so they take less time unless A is very sparse.
        uses_newton_steps = A.shape[1] * label_signs.shape[1] <= MAX_GRAM_SIZE * density
        if uses_newton_steps and sparse.issparse(A):
            A = A.toarray()
        sample_norms = sparse.linalg.norm(A, axis=1) if sparse.issparse(A) else np.linalg.norm(A, axis=1)
        sample_norms[sample_norms == 0] = 1.0
        norm_column = (sample_norms / np.sqrt(sample_weight))[:, np.newaxis]
        # The solvers use scaled dual variables: a of sample x is replaced by y a |x| / sqrt(sample_weight).
        # The diagonal of the Hessian is then the sample weight, so that a sample with weight 2 has exactly
        # the same effect as two equal samples.
        bound = self._compute_box_bounds(class_indices, sample_weight, indicators)
        signed_bound = label_signs * norm_column * bound
        penalty = LinearBoxPenalty(
            np.minimum(signed_bound, 0).reshape(-1),
            np.maximum(signed_bound, 0).reshape(-1),
            (-label_signs / norm_column).reshape(-1),
        )
        with self._make_operator(
            sparse.csr_array(A / norm_column) if sparse.issparse(A) else A / norm_column
        ) as coded_operator:
            if uses_newton_steps:
                solve: Any = partial(box_interior_point, coded_operator, penalty, sample_weight)
            else:
                loss = SquaredLoss(np.zeros((A.shape[1], label_signs.shape[1])))
                solve = partial(fista, coded_operator.T, loss, penalty, np.zeros_like(signed_bound))
            dual_solution = self._minimize(coded_operator, solve)
        # The solver has minimized the negative dual objective. The dual objective plus the duality gap is the
        # primal objective.
        self.objective_ = float(self.dual_gap_ or 0.0) - self.objective_
        self.dual_coef_ = (dual_solution / norm_column).T
        augmented_coef = np.asarray(self.dual_coef_ @ A)
        self.coef_ = augmented_coef[:, : X.shape[1]]
        self.intercept_ = augmented_coef[:, -1] if self.fit_intercept else np.zeros(len(augmented_coef))

    def _compute_box_bounds(self, class_indices: Array, sample_weight: Floats, indicators: Floats) -> Floats:
        """Return the upper bounds of the dual variables, shape (samples, outputs).

        They are C times the weight of the sample times the weight of its class.
        """
        class_weights = self._compute_class_weights(class_indices, sample_weight)
        sample_factors = class_weights[class_indices][:, np.newaxis]
        output_factors = (
            sample_factors if len(class_weights) == 2 else np.where(indicators == 1, sample_factors, 1.0)
        )
        return np.asarray(self.C * sample_weight[:, np.newaxis] * output_factors)


def _append_constant_column(X: Any) -> Any:
    """Return [X, 1], as a sparse array if X is sparse."""
    ones = np.ones((X.shape[0], 1))
    return sparse.hstack([X, ones], format="csr") if sparse.issparse(X) else np.hstack([X, ones])
