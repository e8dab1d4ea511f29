"""Logistic regression with an L1 penalty."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from polarmap.blocks.code_choice import CodeName
from polarmap.code.polar import PolarCode
from polarmap.convex.constant_feature import ConstantFeature
from polarmap.convex.losses import LogisticLoss
from polarmap.convex.penalties import ElasticNetPenalty
from polarmap.convex.proximal_model import ProximalModel
from polarmap.glm.logistic import LogisticRegression
from polarmap.glm.losses import Loss, null_curvature

Floats = npt.NDArray[np.float64]


class SparseLogisticRegression(LogisticRegression, ProximalModel):
    """Logistic regression with an L1 penalty, as sklearn's LogisticRegression(l1_ratio=1, solver="saga").

    Minimizes C sum_i loss_i + |w|_1, binary or multinomial; intercepts are not penalized. Stops where the
    norm of the gradient map is `tol` times its largest.

    Parameters
    ----------
    C : float
        Inverse strength of the penalty, positive; `np.inf` for none.
    class_weight : dict or "balanced", optional
        By which the weights of the samples of a class are multiplied; "balanced": so that all classes weigh
        the same.
    fit_intercept : bool
    tol : float
        Relative, of the gradient map.
    max_iter : int
        Each iteration is two coded maps.
    blocks, workers, code, executor, timeout, verbose : optional
        As for `ElasticNet`.

    Attributes
    ----------
    classes_ : (classes,)
    coef_ : (1, features) for two classes, (classes, features) for more
    intercept_ : (1,) or (classes,)
    objective_ : float
        Of the mean loss plus |w|_1 / (C sum of weights).
    gradient_map_ : float
        Norm of the gradient map for scaled features, 0 at the minimum: the residual of the KKT conditions.
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
    ...     model = SparseLogisticRegression(C=0.1, tol=1e-3, blocks=6, executor=pool).fit(X, y)
    >>> round(model.score(X, y), 2), int((model.coef_ == 0).sum())
    (0.95, 10)
    """

    def __init__(
        self,
        C: float = 1.0,
        *,
        class_weight: Any = None,
        fit_intercept: bool = True,
        tol: float = 1e-6,
        max_iter: int = 5000,
        blocks: int | None = None,
        workers: int | None = None,
        code: CodeName | PolarCode = "auto",
        executor: Any = None,
        timeout: float | None = None,
        verbose: int = 0,
    ) -> None:
        self.C, self.class_weight, self.fit_intercept = C, class_weight, fit_intercept
        self.tol, self.max_iter = tol, max_iter
        self.blocks, self.workers, self.code = blocks, workers, code
        self.executor, self.timeout, self.verbose = executor, timeout, verbose

    def _minimize(
        self, X: Any, y: Floats, weights: Floats, loss: Loss, penalty: float
    ) -> tuple[Floats, Floats]:
        """Coefficients (outputs, features) and intercepts (outputs,)."""
        shares = weights / weights.sum()
        curvature = null_curvature(loss, y, shares[:, np.newaxis])
        scaled, mean, scale = self._scaled_operator(X, shares, 0.0, curvature)
        unit = 1.0 / np.sqrt(curvature)
        l1, start = penalty * scale, np.zeros((X.shape[1], y.shape[1]))
        if self.fit_intercept:  # without a penalty
            l1 = np.append(l1, 0.0)
            start = np.vstack([start, loss.null_predictor(y, shares[:, np.newaxis]) / unit])
        targets, start = (y[:, 0], start[:, 0]) if y.shape[1] == 1 else (y, start)
        l1 = np.repeat(l1, y.shape[1])
        with scaled as coded:
            operator = ConstantFeature(coded, unit) if self.fit_intercept else coded
            found = self._solve(coded, operator, LogisticLoss(targets, shares), ElasticNetPenalty(l1), start)
        V = found.x.reshape(len(start), -1)
        coef = (V[: len(scale)] * scale[:, np.newaxis]).T
        b = unit * V[-1] if self.fit_intercept else np.zeros(len(coef))
        return coef, b - coef @ mean
