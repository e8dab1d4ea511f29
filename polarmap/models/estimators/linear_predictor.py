"""Models of a linear predictor X w + c: c is the coefficient of a constant feature, which no penalty sees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from polarmap.dtypes import Floats
from polarmap.models.estimators.coded_estimator import CodedEstimator
from polarmap.models.losses import WeightedLoss
from polarmap.models.solvers.solver import Solution


class LinearPredictorEstimator(CodedEstimator):
    """A model that minimizes a loss of the linear predictor plus a penalty: `_make_solver` says how."""

    _is_l2_penalty = True

    def _fit_coefficients(self, X: Any, loss: WeightedLoss, penalty_strength: float) -> tuple[Floats, Floats]:
        """Coefficients (outputs, features) and intercepts (outputs,) for a loss with weights of sum 1."""
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
        """What `_minimize` takes, for the loss of operator V plus the penalty of each row of V."""
        raise NotImplementedError
