"""Penalized losses minimized by scipy's solvers and Newton steps, each product with the data a coded map."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.sparse.linalg import LinearOperator, cg

from polarmap.code.dtypes import EPS, Floats
from polarmap.models.fit_progress import FitProgress, warn_if_not_converged
from polarmap.models.linear_predictor import LinearPredictorModel
from polarmap.models.losses import WeightedLoss
from polarmap.models.penalties import ElasticNetPenalty
from polarmap.models.proximal_gradient import Problem, after_steps
from polarmap.models.proximal_newton import NewtonSteps, first_iterations

NEWTON_STEPS = 2
LOOSE = 1e-6  # a tol above which nobody asks for more digits
SMALL = 1e-3  # a gradient below which Newton's steps can be trusted
NEWTON_TOL = 1e-2  # times tol: the gradient at which Newton's steps by Gram matrices end
MINIMIZERS = {"lbfgs": "L-BFGS-B", "trust-ncg": "trust-ncg", "trust-krylov": "trust-krylov"}


@dataclass(eq=False, repr=False)
class MinimizedModel(LinearPredictorModel):
    """A model whose coefficients minimize a smooth penalized loss."""

    _: KW_ONLY
    solver: str = "lbfgs"
    tol: float = 1e-7
    max_iter: int = 500

    def _check_options(self) -> None:
        super()._check_options()
        self._check_choice("solver", MINIMIZERS)

    def _minimum(
        self, coded: Any, operator: Any, loss: WeightedLoss, penalty: Floats, start: Floats
    ) -> Floats:
        progress = FitProgress(type(self).__name__, coded, self.verbose)
        objective = PenalizedLoss(operator, loss, penalty, progress)
        iterations, self.n_iter_ = first_iterations(operator, start, self.max_iter), 0
        if iterations:
            found = _minimized(objective, start.reshape(-1), self.solver, self.tol, iterations)
            self.n_iter_ = max(1, int(found.nit))
            converged = found.status == 0 or self._is_flat(
                float(np.abs(found.jac).max(initial=0.0)), found.fun
            )
            if converged or iterations == self.max_iter:
                warn_if_not_converged(converged, self.max_iter, found.message)
                return _after_newton_steps(objective, found, self.tol).reshape(start.shape)
            start = found.x.reshape(start.shape)
        squares = ElasticNetPenalty(0.0, np.repeat(penalty, start.shape[1]))
        steps = NewtonSteps(Problem(operator, loss, squares), start, unit=1.0)
        steps.count = self.n_iter_
        callback = progress.iteration if progress else None
        solution = after_steps(steps, NEWTON_TOL * self.tol, self.max_iter, callback)
        self.n_iter_ = solution.n_iter
        converged = solution.converged or self._is_flat(solution.gradient_map, solution.objective)
        warn_if_not_converged(converged, self.max_iter)
        return solution.x

    def _is_flat(self, gradient: float, value: float) -> bool:
        """Whether steps that gradients ask for are no more than tol asks for, or rounding."""
        return gradient <= 10 * max(self.tol, _gradient_rounding(value))


class PenalizedLoss:
    """loss(A V) + sum(penalty * V^2) / 2 of V (features, outputs) row by row; products with A are coded maps.

    penalty : (features,), of each row of V.
    """

    def __init__(
        self, operator: Any, loss: WeightedLoss, penalty: Floats, progress: FitProgress | None = None
    ) -> None:
        self._operator, self._loss, self.progress = operator, loss, progress
        self._penalty, self._shape = penalty[:, np.newaxis], (operator.shape[1], loss.shape[1])
        self._predictors: dict[bytes, Floats] = {}  # predictors of the last points: a Hessian reuses them
        self._seen: dict[bytes, tuple[float, float]] = {}  # since the last iteration, for its line

    def value(self, theta: Floats) -> float:
        """Of the objective, by a product that its gradient there needs no more."""
        squares = theta.reshape(self._shape) ** 2
        return self._loss.value(self._predictor(theta)) + 0.5 * float(np.sum(self._penalty * squares))

    def value_and_gradient(self, theta: Floats) -> tuple[float, Floats]:
        """Value and gradient of the objective; inf where it would be NaN, which trust regions reject."""
        if not np.isfinite(theta).all():
            return np.inf, np.zeros_like(theta)
        value = self.value(theta)
        gradient = self._gradient(self._loss.gradient(self._predictor(theta)), theta)
        if self.progress:
            self._seen[theta.tobytes()] = value, float(np.linalg.norm(gradient))
        return value, gradient

    def ended(self, theta: Floats) -> None:
        """Print what is known of theta, which may also be where the iteration before has ended."""
        key = theta.tobytes()
        self._seen = {key: self._seen[key]}
        if self.progress:
            self.progress.iteration(*self._seen[key])

    def hessian_product(self, theta: Floats, direction: Floats) -> Floats:
        """The Hessian at theta times a direction; NaN for NaN."""
        if not (np.isfinite(theta).all() and np.isfinite(direction).all()):
            return np.full_like(direction, np.nan)
        curved = self._loss.hessian_product(self._predictor(theta), self._linear_predictor(direction))
        return self._gradient(curved, direction)

    def _predictor(self, theta: Floats) -> Floats:
        key = theta.tobytes()
        if key not in self._predictors:
            if len(self._predictors) > 2:
                del self._predictors[next(iter(self._predictors))]
            self._predictors[key] = self._linear_predictor(theta)
        return self._predictors[key]

    def _linear_predictor(self, theta: Floats) -> Floats:
        return np.asarray(self._operator @ theta.reshape(self._shape))

    def _gradient(self, residual: Floats, theta: Floats) -> Floats:
        """A' residual + penalty * V."""
        product = np.asarray(self._operator.H @ residual)
        return (product + self._penalty * theta.reshape(self._shape)).reshape(-1)


def _minimized(objective: PenalizedLoss, start: Floats, solver: str, tol: float, max_iter: int) -> Any:
    """What scipy finds."""
    with np.errstate(invalid="ignore"):  # of trlib
        return minimize(
            objective.value_and_gradient,
            start,
            method=MINIMIZERS[solver],
            jac=True,
            hessp=None if solver == "lbfgs" else objective.hessian_product,
            callback=objective.ended if objective.progress else None,
            options=_options(solver, tol, max_iter, objective.value(start)),
        )


def _options(solver: str, tol: float, max_iter: int, value: float) -> dict[str, Any]:
    """Options of one of scipy's solvers for an objective of about that value."""
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


def _after_newton_steps(objective: PenalizedLoss, found: Any, tol: float) -> Floats:
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
