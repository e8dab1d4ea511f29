"""Models of a linear predictor X w + c: c is the coefficient of a constant feature, which no penalty sees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from polarmap.dtypes import Floats
from polarmap.models.coded_model import CodedModel
from polarmap.models.losses import WeightedLoss
from polarmap.models.proximal_gradient import Solution


class LinearPredictorModel(CodedModel):
    """A model that minimizes a loss of the linear predictor plus a penalty: `_minimizer` says how."""

    _penalizes_squares = True

    def _coefficients(self, X: Any, loss: WeightedLoss, penalty: float) -> tuple[Floats, Floats]:
        """Coefficients (outputs, features) and intercepts (outputs,) for a loss with weights of sum 1."""
        curvature = loss.null_curvature()
        ridge = penalty if self._penalizes_squares else 0.0
        unit = 1.0 / np.sqrt(curvature)
        coded, operator, mean, scale = self._scaled_operator(
            X, loss.weights[:, 0], ridge, curvature, unit=unit if self.fit_intercept else None
        )
        start = np.zeros((len(scale), loss.shape[1]))
        strengths = penalty * (scale**2 if self._penalizes_squares else scale)
        if self.fit_intercept:
            start, strengths = np.vstack([start, loss.null_predictor() / unit]), np.append(strengths, 0.0)
        with coded:
            V = self._solution(coded, self._minimizer(operator, loss, strengths, start))
        coef = (V[: len(scale)] * scale[:, np.newaxis]).T
        return coef, (unit * V[-1] if self.fit_intercept else 0.0) - coef @ mean

    def _minimizer(
        self, operator: Any, loss: WeightedLoss, penalty: Floats, start: Floats
    ) -> Callable[..., Solution]:
        """What `_solution` takes, for the loss of operator V plus the penalty of each row of V."""
        raise NotImplementedError
