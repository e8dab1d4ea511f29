"""Models of a linear predictor X w + c: c is the coefficient of a constant feature, which no penalty sees."""

from __future__ import annotations

from typing import Any

import numpy as np

from polarmap.code.dtypes import Floats
from polarmap.models.coded_model import CodedModel
from polarmap.models.losses import WeightedLoss


class LinearPredictorModel(CodedModel):
    """A model that minimizes a loss of the linear predictor plus a penalty: `_minimum` says how."""

    _penalizes_squares = True

    def _minimize(self, X: Any, loss: WeightedLoss, penalty: float) -> tuple[Floats, Floats]:
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
            V = self._minimum(coded, operator, loss, strengths, start)
        coef = (V[: len(scale)] * scale[:, np.newaxis]).T
        return coef, (unit * V[-1] if self.fit_intercept else 0.0) - coef @ mean

    def _minimum(
        self, coded: Any, operator: Any, loss: WeightedLoss, penalty: Floats, start: Floats
    ) -> Floats:
        """The V, of the shape of `start`, that minimizes the loss of operator V plus the penalty of each row.

        coded : whose products those of `operator` are made of.
        """
        raise NotImplementedError
