"""Minimize smooth losses with an L2 penalty, by solvers of SciPy and by Newton steps.

`minimize_smooth` starts with a solver of SciPy, whose iterations take a few products each. Once the solver
has cost about as much as Newton's method would cost in total, Newton steps with Gram matrices finish the fit.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.sparse.linalg import LinearOperator, cg

from polarmap.dtypes import FLOAT64_EPS, Floats
from polarmap.errors import DeadlineExceededError
from polarmap.models.losses import WeightedLoss
from polarmap.models.penalties import ElasticNetPenalty
from polarmap.models.solvers.proximal_gradient import CompositeProblem
from polarmap.models.solvers.proximal_newton import ProximalNewtonSolver, choose_n_first_order_iterations
from polarmap.models.solvers.solver import Solution, run_solver

MAX_NEWTON_STEPS = 2  # Maximum number of Newton steps that polish SciPy's solution.
POLISH_MAX_TOL = 1e-6  # With a larger `tol`, SciPy's solution is not polished.
POLISH_MAX_GRADIENT = 1e-3  # With a larger gradient norm, Newton steps without a line search might diverge.
NEWTON_TOL = 1e-2  # Newton steps with Gram matrices stop when the gradient norm is below NEWTON_TOL * tol.
SCIPY_METHODS = {"lbfgs": "L-BFGS-B", "trust-ncg": "trust-ncg", "trust-krylov": "trust-krylov"}


def minimize_smooth(
    solver: str,
    operator: Any,
    loss: WeightedLoss,
    penalty_strengths: Floats,
    start: Floats,
    *,
    tol: float,
    max_iter: int,
    callback: Callable[[float, float], None] | None = None,
) -> Solution:
    """Minimize loss(A V) + sum_j penalty_strengths_j |V_j|^2 / 2 over V (features, outputs).

    A SciPy solver runs first. Once its iterations have cost about as much as all Newton steps would, Newton
    steps with Gram matrices take over from its last iterate.

    Parameters
    ----------
    solver : {"lbfgs", "trust-ncg", "trust-krylov"}
        Solver of SciPy, a key of SCIPY_METHODS.
    operator : LinearOperator (samples, features)
        Operator A. If it has no method `gram(weights)`, the solver of SciPy runs all iterations.
    loss : WeightedLoss
        Loss of A V (samples, outputs).
    penalty_strengths : array (features,)
        Strength of the L2 penalty of each row of V.
    start : array (features, outputs)
        Starting point V.
    tol : float
        Absolute tolerance of the gradient.
    max_iter : int
        Maximum number of iterations of both methods together.
    callback : callable, optional
        Called with the objective and the norm of its gradient after each iteration.

    Raises
    ------
    DeadlineExceededError
        If the deadline of the operator passes before the end of the first iteration.
    """
    l2_weights = np.repeat(penalty_strengths, start.shape[1])
    problem = CompositeProblem(operator, loss, ElasticNetPenalty(0.0, l2_weights))
    n_scipy_iter = choose_n_first_order_iterations(operator, start, max_iter)
    solution = None
    if n_scipy_iter:
        objective = ScipyObjective(problem, l2_weights, callback)
        solution = _minimize_by_scipy(objective, start, solver, tol, n_scipy_iter, n_scipy_iter == max_iter)
        if solution.converged or solution.timed_out or n_scipy_iter == max_iter:
            return solution
        start = solution.x
    try:
        newton_solver = ProximalNewtonSolver(problem, start, NEWTON_TOL * tol, reference_optimality=1.0)
    except DeadlineExceededError:
        if solution is None:
            raise
        return solution._replace(timed_out=True)
    if solution is not None:
        newton_solver.warm_start_from(solution)
    solution = run_solver(newton_solver, max_iter, callback)
    is_stationary = _is_stationary(solution.optimality, solution.objective, tol)
    return solution._replace(converged=solution.converged or is_stationary)


def _is_stationary(gradient_norm: float, objective: float, tol: float) -> bool:
    """Return whether the gradient norm is at most 10 times the larger of `tol` and its rounding error."""
    return gradient_norm <= 10 * max(tol, _estimate_gradient_rounding_error(objective))


def _minimize_by_scipy(
    objective: ScipyObjective, start: Floats, solver: str, tol: float, max_iter: int, is_last: bool
) -> Solution:
    """Run a SciPy solver and return its solution.

    The solution is polished by Newton steps if the solver has converged, or if no other method follows
    (`is_last`).
    """
    try:
        scipy_result = _run_scipy(objective, start, solver, tol, max_iter)
    except DeadlineExceededError:
        if objective.n_iter == 0:
            raise
        x, value, gradient = objective.best_point
        gradient_norm = float(np.linalg.norm(gradient))
        return Solution(x.reshape(start.shape), value, None, gradient_norm, objective.n_iter, False, True)
    x, value, gradient = scipy_result.x, scipy_result.fun, scipy_result.jac
    max_gradient = float(np.abs(gradient).max(initial=0.0))
    converged = scipy_result.status == 0 or _is_stationary(max_gradient, value, tol)
    if converged or is_last:
        x, value, gradient = _polish_by_newton(objective, scipy_result, tol)
    gradient_norm, n_iter = float(np.linalg.norm(gradient)), max(1, int(scipy_result.nit))
    return Solution(x.reshape(start.shape), float(value), None, gradient_norm, n_iter, converged)


class ScipyObjective:
    """The objective in the form required by SciPy's solvers: a function of a vector theta.

    theta is the matrix V, row by row.

    Parameters
    ----------
    problem : CompositeProblem
        Problem to solve.
    l2_weights : array
        Strength of the L2 penalty of each entry of theta.
    callback : callable, optional
        Called with the objective and the norm of its gradient after each iteration.

    Attributes
    ----------
    n_iter : int
        Number of finished iterations, counted by `report_iteration`.
    best_point : tuple
        The theta with the smallest objective so far, its objective, and its gradient.
    """

    def __init__(
        self,
        problem: CompositeProblem,
        l2_weights: Floats,
        callback: Callable[[float, float], None] | None = None,
    ) -> None:
        self._problem, self._l2_weights, self.callback = problem, l2_weights, callback
        # Cache the linear predictors of the last points, so that Hessian products can reuse them. The keys
        # are the bytes of theta.
        self._cached_predictors: dict[bytes, Floats] = {}
        # The objective and the gradient norm at each point that SciPy has tried since the last iteration.
        # Once SciPy accepts a point, its values are passed to the callback. The keys are the bytes of theta.
        self._evaluations: dict[bytes, tuple[float, float]] = {}
        self.n_iter, self.best_point = 0, (np.zeros(0), np.inf, np.zeros(0))

    def value(self, theta: Floats) -> float:
        """Return the objective at theta. The product A V is cached for the gradient and the Hessian."""
        return self._problem.objective(theta, self._get_linear_predictor(theta))

    def value_and_gradient(self, theta: Floats) -> tuple[float, Floats]:
        """Return the objective and its gradient at theta.

        If theta is not finite, return inf and zeros. Trust-region methods reject steps to an infinite
        objective, but fail with NaN.
        """
        if not np.isfinite(theta).all():
            return np.inf, np.zeros_like(theta)
        value = self.value(theta)
        loss_gradient = self._problem.loss.gradient(self._get_linear_predictor(theta))
        gradient = self._compute_penalized_gradient(loss_gradient, theta)
        if value < self.best_point[1]:
            self.best_point = theta.copy(), value, gradient
        if self.callback is not None:
            self._evaluations[theta.tobytes()] = value, float(np.linalg.norm(gradient))
        return value, gradient

    def report_iteration(self, theta: Floats) -> None:
        """Count a finished iteration, and call the callback with the objective and gradient norm at theta."""
        self.n_iter += 1
        if self.callback is not None:
            key = theta.tobytes()
            self._evaluations = {key: self._evaluations[key]}
            self.callback(*self._evaluations[key])

    def hessian_product(self, theta: Floats, direction: Floats) -> Floats:
        """Return the Hessian at theta times a direction, or NaN if theta or the direction is not finite."""
        if not (np.isfinite(theta).all() and np.isfinite(direction).all()):
            return np.full_like(direction, np.nan)
        eta, eta_direction = self._get_linear_predictor(theta), self._compute_linear_predictor(direction)
        loss_hessian_product = self._problem.loss.hessian_product(eta, eta_direction)
        return self._compute_penalized_gradient(loss_hessian_product, direction)

    def _get_linear_predictor(self, theta: Floats) -> Floats:
        key = theta.tobytes()
        if key not in self._cached_predictors:
            if len(self._cached_predictors) > 2:
                del self._cached_predictors[next(iter(self._cached_predictors))]
            self._cached_predictors[key] = self._compute_linear_predictor(theta)
        return self._cached_predictors[key]

    def _compute_linear_predictor(self, theta: Floats) -> Floats:
        return self._problem.matmul(theta.reshape(-1, self._problem.loss.shape[1]))

    def _compute_penalized_gradient(self, residual: Floats, theta: Floats) -> Floats:
        """Return A' residual + l2_weights * theta as a vector.

        This is the gradient of the objective if `residual` is the gradient of the loss with respect to A V.
        Hessian products have the same form.
        """
        return self._problem.rmatmul(residual).reshape(-1) + self._l2_weights * theta


def _run_scipy(objective: ScipyObjective, start: Floats, solver: str, tol: float, max_iter: int) -> Any:
    initial_theta, options = start.reshape(-1), {"gtol": tol, "maxiter": max_iter}
    if solver == "lbfgs":
        options |= {"ftol": 4 * FLOAT64_EPS, "maxls": 50, "maxfun": 50 * max_iter}
    else:
        # Below this gradient norm, trust-region methods compare objectives that differ only by rounding, and
        # trlib, which implements "trust-krylov", fails with NaN.
        options["gtol"] = max(tol, _estimate_gradient_rounding_error(objective.value(initial_theta)))
    with np.errstate(invalid="ignore"):  # trlib computes with NaN.
        return minimize(
            objective.value_and_gradient,
            initial_theta,
            method=SCIPY_METHODS[solver],
            jac=True,
            hessp=None if solver == "lbfgs" else objective.hessian_product,
            callback=objective.report_iteration,
            options=options,
        )


def _estimate_gradient_rounding_error(objective: float) -> float:
    """Return the gradient norm below which rounding errors of the objective hide the progress of a step.

    The diagonal of the Hessian is about 1, so for a gradient norm g, a step decreases the objective by about
    g^2 / 2. At the returned norm, this decrease is 16 rounding errors.
    """
    return float(np.sqrt(32 * FLOAT64_EPS * max(1.0, abs(objective))))


def _polish_by_newton(
    objective: ScipyObjective, scipy_result: Any, tol: float
) -> tuple[Floats, float, Floats]:
    """Improve SciPy's solution by Newton steps, and return it with its objective and gradient.

    A step is accepted if it halves the gradient norm. The objective is not compared, because so close to the
    minimum its differences are mere rounding errors.
    """
    x, value, gradient = scipy_result.x, scipy_result.fun, scipy_result.jac
    if tol > POLISH_MAX_TOL or np.linalg.norm(gradient) > POLISH_MAX_GRADIENT:
        return x, value, gradient
    for _ in range(MAX_NEWTON_STEPS):
        gradient_norm = float(np.linalg.norm(gradient))
        if gradient_norm <= FLOAT64_EPS:
            break
        hessian = LinearOperator((len(x),) * 2, partial(objective.hessian_product, x), dtype=np.float64)
        try:
            step, _ = cg(hessian, -gradient, rtol=1e-3, maxiter=len(x))
            new_x = x + step
            new_value, new_gradient = objective.value_and_gradient(new_x)
        except DeadlineExceededError:
            break
        if not np.isfinite(new_x).all():
            break
        if np.linalg.norm(new_gradient) > gradient_norm / 2:
            break
        x, value, gradient = new_x, new_value, new_gradient
    return x, value, gradient
