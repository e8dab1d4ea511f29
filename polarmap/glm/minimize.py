"""Penalized losses minimized by scipy's solvers, each product with the data a coded map."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from polarmap.glm.coded_model import EPS, CodedModel
from polarmap.glm.convergence import warn_if_not_converged
from polarmap.glm.losses import Loss, null_curvature
from polarmap.glm.objective import Objective

Floats = npt.NDArray[np.float64]

MINIMIZERS = {"lbfgs": "L-BFGS-B", "trust-ncg": "trust-ncg", "trust-krylov": "trust-krylov"}


class MinimizedModel(CodedModel):
    """A model whose coefficients minimize a penalized loss."""

    def _minimize(self, X: Floats, y: Floats, loss: Loss, penalty: float) -> tuple[Floats, Floats]:
        """Coefficients (outputs, features) and intercepts (outputs,); sets n_iter_ and report_."""
        self._check_numbers(tol=0.0, max_iter=1)
        self._check_solver(MINIMIZERS)
        curvature = null_curvature(loss, y)
        A, mean, scale = self._scaled(X, penalty, curvature)
        unit = 1.0 / np.sqrt(curvature) if self.fit_intercept else 0.0
        with self._operator(A) as operator:
            objective = Objective(operator, y, loss, penalty * scale**2, unit)
            found = _minimum(objective, self.solver, self.tol, self.max_iter)
            self.report_ = operator.report
        V, b = objective.split(found.x)
        self.n_iter_ = max(1, int(found.nit))
        is_flat = np.abs(found.jac).max(initial=0.0) <= 10 * max(self.tol, _gradient_rounding(found.fun))
        warn_if_not_converged(found.status == 0 or bool(is_flat), self.max_iter, found.message)
        coef = V.T * scale
        return coef, b - coef @ mean if self.fit_intercept else b


def _minimum(objective: Objective, solver: str, tol: float, max_iter: int) -> Any:
    """What scipy finds."""
    options = _options(solver, tol, max_iter, objective.initial_value())
    with np.errstate(invalid="ignore"):  # of trlib
        return minimize(
            objective.value_and_gradient,
            objective.initial_point(),
            method=MINIMIZERS[solver],
            jac=True,
            hessp=None if solver == "lbfgs" else objective.hessian_product,
            options=options,
        )


def _options(solver: str, tol: float, max_iter: int, value: float) -> dict[str, Any]:
    """Of one of scipy's solvers for an objective of about that value."""
    options: dict[str, Any] = {"gtol": tol, "maxiter": max_iter}
    if solver == "lbfgs":
        return options | {"ftol": 4 * EPS, "maxls": 50, "maxfun": 50 * max_iter}
    # Closer, trust regions compare values that differ by rounding, and trlib meets NaN.
    return options | {"gtol": max(tol, _gradient_rounding(value))}


def _gradient_rounding(value: float) -> float:
    """The gradient g at which a step lowers the value, by about g^2 / 2, no more than 16 roundings do.

    That is where the Hessian has about 1 on its diagonal.
    """
    return float(np.sqrt(32 * EPS * max(1.0, abs(value))))
