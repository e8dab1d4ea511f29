"""Penalized losses minimized by scipy's solvers, each product with the data a coded map."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.sparse.linalg import LinearOperator, cg

from polarmap.glm.coded_model import EPS, CodedModel
from polarmap.glm.convergence import warn_if_not_converged
from polarmap.glm.losses import Loss, null_curvature
from polarmap.glm.objective import Objective
from polarmap.glm.progress import Progress

Floats = npt.NDArray[np.float64]

NEWTON_STEPS = 2
LOOSE = 1e-6  # a tol above which nobody asks for more digits
SMALL = 1e-3  # a gradient below which Newton's steps can be trusted
MINIMIZERS = {"lbfgs": "L-BFGS-B", "trust-ncg": "trust-ncg", "trust-krylov": "trust-krylov"}


class MinimizedModel(CodedModel):
    """A model whose coefficients minimize a penalized loss."""

    def _minimize(
        self, X: Any, y: Floats, weights: Floats, loss: Loss, penalty: float
    ) -> tuple[Floats, Floats]:
        """Coefficients (outputs, features) and intercepts (outputs,); sets n_iter_ and report_."""
        self._check_numbers(tol=0.0, max_iter=1, verbose=0)
        self._check_solver(MINIMIZERS)
        shares = weights / weights.sum()
        curvature = null_curvature(loss, y, shares[:, np.newaxis])
        scaled, mean, scale = self._scaled_operator(X, shares, penalty, curvature)
        unit = 1.0 / np.sqrt(curvature) if self.fit_intercept else 0.0
        with scaled as operator:
            objective = Objective(operator, y, shares, loss, penalty * scale**2, unit)
            progress = Progress(type(self).__name__, operator, self.verbose)
            found = _minimum(objective, self.solver, self.tol, self.max_iter, progress)
            x = _after_newton_steps(objective, found, self.tol)
            self.report_ = operator.report
        V, b = objective.split(x)
        self.n_iter_ = max(1, int(found.nit))
        is_flat = np.abs(found.jac).max(initial=0.0) <= 10 * max(self.tol, _gradient_rounding(found.fun))
        warn_if_not_converged(found.status == 0 or bool(is_flat), self.max_iter, found.message)
        coef = V.T * scale
        return coef, b - coef @ mean if self.fit_intercept else b


def _minimum(objective: Objective, solver: str, tol: float, max_iter: int, progress: Progress) -> Any:
    """What scipy finds."""
    watched = _WatchedObjective(objective, progress)
    options = _options(solver, tol, max_iter, objective.initial_value())
    with np.errstate(invalid="ignore"):  # of trlib
        return minimize(
            watched.value_and_gradient,
            objective.initial_point(),
            method=MINIMIZERS[solver],
            jac=True,
            hessp=None if solver == "lbfgs" else objective.hessian_product,
            callback=watched.ended if progress else None,
            options=options,
        )


def _after_newton_steps(objective: Objective, found: Any, tol: float) -> Floats:
    """The point that scipy found, brought closer than values can tell apart: by gradients alone.

    Where the Hessian is far from the identity, coefficients differ by more than the gradient says.
    """
    x, gradient = found.x, found.jac
    if tol > LOOSE or np.linalg.norm(gradient) > SMALL:
        return np.asarray(x)
    for _ in range(NEWTON_STEPS):
        size = float(np.linalg.norm(gradient))
        if size <= EPS:
            break
        hessian = LinearOperator((len(x),) * 2, partial(objective.hessian_product, x), dtype=np.float64)
        step, _ = cg(hessian, -gradient, rtol=1e-3, maxiter=len(x))
        closer = x + step
        if not np.isfinite(closer).all():
            break
        _, left = objective.value_and_gradient(closer)
        if np.linalg.norm(left) > size / 2:
            break
        x, gradient = closer, left
    return np.asarray(x)


class _WatchedObjective:
    """An objective that knows its value and gradient where an iteration ends, at a point it has seen."""

    def __init__(self, objective: Objective, progress: Progress) -> None:
        self._objective, self._progress = objective, progress
        self._seen: dict[bytes, tuple[float, float]] = {}  # since the last iteration

    def value_and_gradient(self, theta: Floats) -> tuple[float, Floats]:
        """Of the objective at theta."""
        value, gradient = self._objective.value_and_gradient(theta)
        if self._progress:
            self._seen[theta.tobytes()] = value, float(np.linalg.norm(gradient))
        return value, gradient

    def ended(self, theta: Floats) -> None:
        """Print what is known of theta, which may also be where the iteration before has ended."""
        key = theta.tobytes()
        self._seen = {key: self._seen[key]}
        self._progress.iteration(*self._seen[key])


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
