"""The base class of models that minimize a smooth loss with an L2 penalty."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any

from polarmap.dtypes import Floats
from polarmap.models.estimators.linear_predictor import LinearPredictorEstimator
from polarmap.models.losses import WeightedLoss
from polarmap.models.solvers.smooth_solvers import SCIPY_METHODS, minimize_smooth
from polarmap.models.solvers.solver import Solution


@dataclass(eq=False, repr=False)
class SmoothEstimator(LinearPredictorEstimator):
    """Base class of models that minimize a smooth loss plus an L2 penalty with a solver of SciPy."""

    _: KW_ONLY
    solver: str = "lbfgs"
    tol: float = 1e-7
    max_iter: int = 500

    def _check_parameters(self) -> None:
        super()._check_parameters()
        self._check_choice("solver", SCIPY_METHODS)

    def _make_solver(
        self, operator: Any, loss: WeightedLoss, penalty_strengths: Floats, start: Floats
    ) -> Callable[..., Solution]:
        return partial(minimize_smooth, self.solver, operator, loss, penalty_strengths, start)
