"""Losses with an L2 penalty minimized by scipy's solvers and Newton steps, each product a coded map."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.sparse.linalg import LinearOperator, cg

from polarmap.dtypes import FLOAT64_EPS, Floats
from polarmap.models.linear_predictor import LinearPredictorModel
from polarmap.models.losses import WeightedLoss
from polarmap.models.penalties import ElasticNetPenalty
from polarmap.models.proximal_gradient import Problem, Solution, after_steps
from polarmap.models.proximal_newton import NewtonSteps, first_iterations

NEWTON_STEPS = 2
LOOSE = 1e-6  # a tol above which nobody asks for more digits
SMALL = 1e-3  # a gradient below which Newton's steps can be trusted
NEWTON_TOL = 1e-2  # times tol: the gradient at which Newton's steps by Gram matrices end
MINIMIZERS = {"lbfgs": "L-BFGS-B", "trust-ncg": "trust-ncg", "trust-krylov": "trust-krylov"}


@dataclass(eq=False, repr=False)
class SmoothModel(LinearPredictorModel):
    """A model whose coefficients minimize a loss with an L2 penalty."""

    _: KW_ONLY
    solver: str = "lbfgs"
    tol: float = 1e-7
    max_iter: int = 500

    def _check_options(self) -> None:
        super()._check_options()
        self._check_choice("solver", MINIMIZERS)

    def _minimizer(
        self, operator: Any, loss: WeightedLoss, penalty: Floats, start: Floats
    ) -> Callable[..., Solution]:
        return partial(smooth_minimum, self.solver, operator, loss, penalty, start)


def smooth_minimum(
    solver: str,
    operator: Any,
    loss: WeightedLoss,
    penalty: Floats,
    start: Floats,
    *,
    tol: float,
    max_iter: int,
    callback: Callable[[float, float], None] | None = None,
) -> Solution:
    """Minimize loss(A V) + sum(penalty * V^2) / 2 of V (features, outputs), by MINIMIZERS[solver] first.

    What takes long ends by Newton steps. penalty : (features,). Other parameters are as for `fista`, but tol,
    of the gradient.
    """
    squares = np.repeat(penalty, start.shape[1])
    problem = Problem(operator, loss, ElasticNetPenalty(0.0, squares))
    iterations, count = first_iterations(operator, start, max_iter), 0
    if iterations:
        objective = PenalizedLoss(problem, squares, callback)
        found = _found_by_scipy(objective, start, solver, tol, iterations)
        count = max(1, int(found.nit))
        converged = found.status == 0 or _is_flat(float(np.abs(found.jac).max(initial=0.0)), found.fun, tol)
        if converged or iterations == max_iter:
            x, value, gradient = _after_newton_steps(objective, found, tol)
            level = float(np.linalg.norm(gradient))
            return Solution(x.reshape(start.shape), float(value), None, level, count, converged)
        start = found.x.reshape(start.shape)
    steps = NewtonSteps(problem, start, unit=1.0)
    steps.count = count
    solution = after_steps(steps, NEWTON_TOL * tol, max_iter, callback)
    is_flat = _is_flat(solution.gradient_map, solution.objective, tol)
    return solution._replace(converged=solution.converged or is_flat)


def _is_flat(gradient: float, value: float, tol: float) -> bool:
    """Whether steps that gradients ask for are no more than tol asks for, or rounding."""
    return gradient <= 10 * max(tol, _gradient_rounding(value))


class PenalizedLoss:
    """A smooth problem as scipy's solvers see it, of vectors theta: V row by row.

    squares : l2 of each number.
    callback : told of the iterations whose ends `ended` is told.
    """

    def __init__(
        self, problem: Problem, squares: Floats, callback: Callable[[float, float], None] | None = None
    ) -> None:
        self._problem, self._squares, self.callback = problem, squares, callback
        self._predictors: dict[bytes, Floats] = {}  # predictors of the last points: a Hessian reuses them
        self._seen: dict[bytes, tuple[float, float]] = {}  # since the last iteration, for its line

    def value(self, theta: Floats) -> float:
        """Of the objective, by a product that its gradient there needs no more."""
        return self._problem.objective(theta, self._predictor(theta))

    def value_and_gradient(self, theta: Floats) -> tuple[float, Floats]:
        """Value and gradient of the objective; inf where it would be NaN, which trust regions reject."""
        if not np.isfinite(theta).all():
            return np.inf, np.zeros_like(theta)
        value = self.value(theta)
        gradient = self._gradient(self._problem.loss.gradient(self._predictor(theta)), theta)
        if self.callback is not None:
            self._seen[theta.tobytes()] = value, float(np.linalg.norm(gradient))
        return value, gradient

    def ended(self, theta: Floats) -> None:
        """Tell what is known of theta, which may also be where the iteration before has ended."""
        key = theta.tobytes()
        self._seen = {key: self._seen[key]}
        if self.callback is not None:
            self.callback(*self._seen[key])

    def hessian_product(self, theta: Floats, direction: Floats) -> Floats:
        """The Hessian at theta times a direction; NaN for NaN."""
        if not (np.isfinite(theta).all() and np.isfinite(direction).all()):
            return np.full_like(direction, np.nan)
        curved = self._problem.loss.hessian_product(self._predictor(theta), self._linear_predictor(direction))
        return self._gradient(curved, direction)

    def _predictor(self, theta: Floats) -> Floats:
        key = theta.tobytes()
        if key not in self._predictors:
            if len(self._predictors) > 2:
                del self._predictors[next(iter(self._predictors))]
            self._predictors[key] = self._linear_predictor(theta)
        return self._predictors[key]

    def _linear_predictor(self, theta: Floats) -> Floats:
        return self._problem.forward(theta.reshape(-1, self._problem.loss.shape[1]))

    def _gradient(self, residual: Floats, theta: Floats) -> Floats:
        """A' residual + squares * theta."""
        return self._problem.backward(residual).reshape(-1) + self._squares * theta


def _found_by_scipy(objective: PenalizedLoss, start: Floats, solver: str, tol: float, max_iter: int) -> Any:
    first, options = start.reshape(-1), {"gtol": tol, "maxiter": max_iter}
    if solver == "lbfgs":
        options |= {"ftol": 4 * FLOAT64_EPS, "maxls": 50, "maxfun": 50 * max_iter}
    else:  # closer, trust regions compare values that differ by rounding, and trlib meets NaN
        options["gtol"] = max(tol, _gradient_rounding(objective.value(first)))
    with np.errstate(invalid="ignore"):  # of trlib
        return minimize(
            objective.value_and_gradient,
            first,
            method=MINIMIZERS[solver],
            jac=True,
            hessp=None if solver == "lbfgs" else objective.hessian_product,
            callback=objective.ended if objective.callback is not None else None,
            options=options,
        )


def _gradient_rounding(value: float) -> float:
    """The gradient g at which a step lowers the value, by about g^2 / 2, no more than 16 roundings do.

    That is where the Hessian has about 1 on its diagonal.
    """
    return float(np.sqrt(32 * FLOAT64_EPS * max(1.0, abs(value))))


def _after_newton_steps(objective: PenalizedLoss, found: Any, tol: float) -> tuple[Floats, float, Floats]:
    """The point that scipy found, brought closer than values can tell apart, with its value and gradient.

    By gradients alone. Where the Hessian is far from the identity, coefficients are further off than these.
    """
    x, value, gradient = found.x, found.fun, found.jac
    if tol > LOOSE or np.linalg.norm(gradient) > SMALL:
        return x, value, gradient
    for _ in range(NEWTON_STEPS):
        size = float(np.linalg.norm(gradient))
        if size <= FLOAT64_EPS:
            break
        hessian = LinearOperator((len(x),) * 2, partial(objective.hessian_product, x), dtype=np.float64)
        step, _ = cg(hessian, -gradient, rtol=1e-3, maxiter=len(x))
        closer = x + step
        if not np.isfinite(closer).all():
            break
        after, left = objective.value_and_gradient(closer)
        if np.linalg.norm(left) > size / 2:
            break
        x, value, gradient = closer, after, left
    return x, value, gradient
