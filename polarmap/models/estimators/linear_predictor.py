"""The base class of models with a linear predictor X w + c.

The intercept c is treated as the coefficient of a constant feature, and is not penalized.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from polarmap.dtypes import Floats
from polarmap.models.estimators.coded_estimator import CodedEstimator
from polarmap.models.losses import WeightedLoss
from polarmap.models.solvers.solver import Solution


class LinearPredictorEstimator(CodedEstimator):
    """Base class of models that minimize a loss of the linear predictor X w + c plus a penalty.

    A subclass implements `_make_solver`, which creates the solver, and sets `_is_l2_penalty`.
    """

    _is_l2_penalty = True

    def _fit_coefficients(self, X: Any, loss: WeightedLoss, penalty_strength: float) -> tuple[Floats, Floats]:
        """Minimize the loss plus the penalty, and return the coefficients and intercepts.

        Parameters
        ----------
        X : array or sparse array (samples, features)
            Features.
        loss : WeightedLoss
            Loss whose weights sum to 1.
        penalty_strength : float
            Strength of the L2 penalty, or of the L1 penalty if `_is_l2_penalty` is False.

        Returns
        -------
        coef : array (outputs, features)
        intercept : array (outputs,)
        """
        curvature = loss.compute_null_curvature()
        ridge_penalty = penalty_strength if self._is_l2_penalty else 0.0
        intercept_scaling = 1.0 / np.sqrt(curvature)
        coded_operator, operator, mean, scale = self._make_standardized_operator(
            X,
            loss.weights[:, 0],
            ridge_penalty,
            curvature,
            intercept_scaling=intercept_scaling if self.fit_intercept else None,
        )
        start = np.zeros((len(scale), loss.shape[1]))
        penalty_strengths = penalty_strength * (scale**2 if self._is_l2_penalty else scale)
        if self.fit_intercept:
            start = np.vstack([start, loss.fit_null_predictor() / intercept_scaling])
            penalty_strengths = np.append(penalty_strengths, 0.0)
        with coded_operator:
            solve = self._make_solver(operator, loss, penalty_strengths, start)
            solution = self._minimize(coded_operator, solve)
        coef = (solution[: len(scale)] * scale[:, np.newaxis]).T
        return coef, (intercept_scaling * solution[-1] if self.fit_intercept else 0.0) - coef @ mean

    def _make_solver(
        self, operator: Any, loss: WeightedLoss, penalty_strengths: Floats, start: Floats
    ) -> Callable[..., Solution]:
        """Return a solver that minimizes loss(operator V) plus the penalty of V.

        `_minimize` calls the solver with the keywords tol, max_iter and callback.

        Parameters
        ----------
        operator : LinearOperator (samples, rows)
            Standardized features.
        loss : WeightedLoss
            Loss of the linear predictor operator V.
        penalty_strengths : array (rows,)
            Strength of the penalty of each row of V.
        start : array (rows, outputs)
            Starting point V.
        """
        raise NotImplementedError
