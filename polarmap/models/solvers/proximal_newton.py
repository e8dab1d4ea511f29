"""A proximal Newton method for loss(A x) + penalty(x).

Each step computes a weighted Gram matrix of A as a coded map. The Gram matrix defines a quadratic model of
the loss. The driver minimizes the model plus the penalty without further products.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from polarmap.dtypes import FLOAT64_EPS, Floats
from polarmap.models.solvers.proximal_gradient import (
    CompositeProblem,
    FistaSolver,
    ProximalSolver,
    evaluate_penalty,
)
from polarmap.models.solvers.solver import Solution, run_solver

# Maximum number of unknowns for Newton steps, whose linear systems are solved on the driver.
MAX_GRAM_SIZE = 1000
# The cost of a fit by Newton steps grows with the number of columns of the Gram matrix. With this many
# columns, all steps together cost about as much as one first-order iteration, which takes two products.
GRAM_COLUMNS_PER_ITERATION = 8
# Each Newton step minimizes a quadratic model of the objective up to this tolerance, relative to the largest
# norm of the gradient map so far.
MODEL_TOL = 1e-8
MAX_PROXIMAL_STEPS, MAX_NEWTON_STEPS, MAX_BACKTRACKS = 30, 30, 40
# The proximal parameter sigma is INITIAL_SIGMA / mean(diagonal of H) at first. After each successful step, it
# is multiplied by SIGMA_GROWTH.
INITIAL_SIGMA, SIGMA_GROWTH = 1e4, 10.0
# After a step without progress, sigma is reduced at most this many times in a row.
MAX_RETRIES = 3
ARMIJO_FRACTION = 1e-4  # A line search accepts a step that achieves this fraction of the predicted decrease.
# The derivative of a proximal operator is computed by a finite difference with this relative step.
FINITE_DIFFERENCE_STEP = 1e-7


def choose_n_first_order_iterations(operator: Any, start: Floats, max_iter: int) -> int:
    """Return how many iterations of a first-order method to run before switching to Newton steps.

    The number is chosen such that the first-order iterations cost about as much as all Newton steps will. A
    fit therefore costs at most about twice as much as with the faster of the two methods. If Newton steps are
    impossible, because there are no Gram matrices (sparse X) or too many unknowns, all iterations are
    first-order.

    Parameters
    ----------
    operator : LinearOperator (samples, features)
        Operator of the features. Newton steps need its method `gram(weights)`.
    start : array (features,) or (features, outputs)
        Starting point. Only its shape is used.
    max_iter : int
        Iteration limit of the fit, which is returned if Newton steps are not possible.
    """
    n_outputs = start.size // len(start)
    if not hasattr(operator, "gram") or start.size > MAX_GRAM_SIZE:
        return max_iter
    return min(max_iter, len(start) * n_outputs * (n_outputs + 1) // 2 // GRAM_COLUMNS_PER_ITERATION)


def proximal_newton(
    operator: Any,
    loss: Any,
    penalty: Any,
    start: Floats,
    *,
    tol: float,
    max_iter: int,
    callback: Callable[[float, float], None] | None = None,
) -> Solution:
    """Minimize loss(A x) + penalty(x) by FISTA, then by proximal Newton steps (Lee, Sun and Saunders, 2014).

    A Newton step takes a product A d, a product A' u, and a Gram matrix A' diag(curvature) A for each pair of
    outputs. For a squared loss, the Gram matrix is computed only once.

    Parameters
    ----------
    operator : LinearOperator
        Operator A. Newton steps need its method `gram(weights)`. Without it, FISTA runs all iterations.
    loss : WeightedLoss
        Loss with a method `hessian_product`.
    penalty : proximal operator
        Separable penalty: its `prox` maps each entry independently of the other entries.
    start : array (features,) or (features, outputs)
        Starting point.
    tol, max_iter, callback
        As for `fista`.

    Returns
    -------
    Solution
    """
    problem = CompositeProblem(operator, loss, penalty)
    n_first_order = choose_n_first_order_iterations(operator, start, max_iter)
    if not n_first_order:
        return run_solver(ProximalNewtonSolver(problem, start, tol), max_iter, callback)
    fista_solver = FistaSolver(problem, start, tol)
    solution = run_solver(fista_solver, n_first_order, callback)
    if solution.converged or solution.timed_out or n_first_order == max_iter:
        return solution
    newton_solver = ProximalNewtonSolver(problem, fista_solver.x, tol, fista_solver.eta)
    newton_solver.warm_start_from(solution)
    newton_solver.max_optimality = fista_solver.max_optimality
    return run_solver(newton_solver, max_iter, callback)


class ProximalNewtonSolver(ProximalSolver):
    """The state of the proximal Newton method: the iterate, its Hessian, and cached Gram matrices.

    Parameters
    ----------
    problem, x, tol, eta
        As for `ProximalSolver`.
    reference_optimality : float, optional
        Norm of the gradient map to which `tol` is relative. By default, the largest norm so far.
    """

    def __init__(
        self,
        problem: CompositeProblem,
        x: Floats,
        tol: float,
        eta: Floats | None = None,
        reference_optimality: float | None = None,
    ) -> None:
        super().__init__(problem, x, tol, eta)
        self._reference_optimality, self.max_optimality = reference_optimality, reference_optimality or 0.0
        self._cached_grams: dict[bytes, Floats] = {}  # Keyed by the bytes of the sample weights.

    def warm_start_from(self, solution: Solution) -> None:
        """Take over the iteration count, best iterate and dual bound of a previous solver."""
        self.n_iter, self.optimality = solution.n_iter, solution.optimality
        self.best_x, self.best_objective = solution.x, solution.objective
        if solution.dual_gap is not None:
            self.dual_bound = solution.objective - solution.dual_gap

    def _advance(self) -> None:
        """Take a step towards the minimum of the quadratic model, using a line search on the objective."""
        self._update_hessian()
        optimality_before, objective_before = self._compute_optimality(), self.objective
        self.max_optimality = self._reference_optimality or max(self.max_optimality, optimality_before)
        gradient, x = self.compute_gradients()[1], self.x.reshape(-1)
        model = QuadraticModel(self._hessian, gradient.reshape(-1), self.problem.penalty, x, self.curvature)
        model_tol = min(MODEL_TOL * self.max_optimality, optimality_before / 1000)
        direction = model.minimize(model_tol).reshape(self.x.shape)
        eta_direction, slope = self.problem.matmul(direction), float(np.sum(gradient * direction))
        step_length = self._line_search(direction, eta_direction, slope, objective_before)
        self._set_iterate(self.x + step_length * direction, self.eta + step_length * eta_direction)
        self.optimality = self._compute_optimality()
        stall_objective = objective_before - 16 * FLOAT64_EPS * abs(objective_before)
        self.has_stalled = self.optimality > optimality_before / 2 and self.objective >= stall_objective

    def _estimate_optimality_rounding_error(self) -> float:
        """Estimate the rounding error of the norm of the gradient map, including that of the gradient."""
        gradient_norm = float(np.linalg.norm(self.compute_gradients()[1]))
        return 4 * super()._estimate_optimality_rounding_error() + 16 * FLOAT64_EPS * gradient_norm

    def _update_hessian(self) -> None:
        """Compute the Hessian at x, and store an upper bound on its largest eigenvalue as `curvature`.

        Gram matrices are reused if their weights have not changed since the last Hessian.
        """
        n_outputs, n_features, eta = self.eta.size // len(self.eta), len(self.x), self.eta
        hessian_columns = [
            hessian_column
            for unit_vector in np.eye(n_outputs)
            for hessian_column in self._hessian_product(
                np.broadcast_to(unit_vector, (len(eta), n_outputs)).reshape(eta.shape)
            )
        ]
        previous_grams, self._cached_grams = self._cached_grams, {}
        keys = [hessian_column.tobytes() for hessian_column in hessian_columns]
        for key, hessian_column in zip(keys, hessian_columns):
            if key not in self._cached_grams:
                previous_gram = previous_grams.get(key)
                self._cached_grams[key] = (
                    self._compute_gram(hessian_column) if previous_gram is None else previous_gram
                )
        gram_blocks = np.stack([self._cached_grams[key] for key in keys])
        gram_blocks = gram_blocks.reshape(n_outputs, n_outputs, n_features, n_features).transpose(2, 0, 3, 1)
        self._hessian = gram_blocks.reshape(self.x.size, self.x.size)
        self.curvature = float(np.abs(self._hessian).sum(axis=1).max()) or 1.0

    def _hessian_product(self, direction: Floats) -> Floats:
        """Return the Hessian of the loss times a direction, as an array (outputs, samples).

        The Hessian is that with respect to eta = A x, and `direction` has the shape of eta.
        """
        return np.asarray(self.problem.loss.hessian_product(self.eta, direction)).reshape(len(self.eta), -1).T

    def _compute_gram(self, weights: Floats) -> Floats:
        """Return A' diag(weights) A. If all weights are 0, no Gram matrix is computed."""
        if not weights.any():
            return np.zeros((len(self.x), len(self.x)))
        return np.asarray(self.problem.operator.gram(weights))

    def _line_search(
        self, direction: Floats, eta_direction: Floats, slope: float, objective_before: float
    ) -> float:
        """Return a step length that decreases the objective sufficiently, or 0 if no step length does.

        `slope` is the directional derivative of the loss. The search needs no products, because A x and A d
        are known.
        """
        penalty = self.problem.penalty
        penalty_before = evaluate_penalty(penalty, self.x.reshape(-1))
        slope += evaluate_penalty(penalty, (self.x + direction).reshape(-1)) - penalty_before
        rounding = 4 * FLOAT64_EPS * abs(objective_before)
        for n_halvings in range(MAX_BACKTRACKS):
            step_length = 0.5**n_halvings
            x, eta = self.x + step_length * direction, self.eta + step_length * eta_direction
            sufficient_objective = objective_before + ARMIJO_FRACTION * step_length * slope + rounding
            if self.problem.objective(x, eta) <= sufficient_objective:
                return step_length
        return 0.0


class QuadraticModel:
    """A quadratic model of the objective near x: d' H d / 2 + gradient' d + penalty(x + d).

    The model is a function of the displacement d, because using x + d would lose digits near the minimum.

    Parameters
    ----------
    H : array (N, N)
        Hessian of the loss at x.
    gradient : array (N,)
        Gradient of the loss at x.
    penalty : proximal operator
        Separable penalty.
    x : array (N,)
        Current iterate.
    curvature : float
        Upper bound on the largest eigenvalue of H.
    """

    def __init__(self, H: Floats, gradient: Floats, penalty: Any, x: Floats, curvature: float) -> None:
        self._H, self._gradient, self._curvature = H, gradient, curvature
        self._penalty, self._x = penalty, x

    def minimize(self, tol: float) -> Floats:
        """Return a minimizer d, at which the norm of the gradient map is at most `tol` or a rounding error.

        The method is the proximal point method (Rockafellar, 1976) with an increasing parameter sigma.
        """
        sigma_unit, d = 1.0 / (float(np.trace(self._H)) / len(self._x) or 1.0), np.zeros(len(self._x))
        sigma, best_optimality, n_failures = INITIAL_SIGMA * sigma_unit, self._compute_optimality(d), 0
        for _ in range(MAX_PROXIMAL_STEPS):
            if n_failures == MAX_RETRIES:
                break
            if best_optimality <= max(tol, self._estimate_optimality_rounding_error(d)):
                break
            proximal_point, is_exact = self._find_proximal_point(d, sigma, tol)
            optimality = self._compute_optimality(proximal_point)
            n_failures += 1
            if optimality < best_optimality:
                d, best_optimality, n_failures = proximal_point, optimality, 0
            # Far from the minimum, Newton's method may fail to find the proximal point for a large sigma.
            sigma = SIGMA_GROWTH * sigma if is_exact and n_failures == 0 else sigma / SIGMA_GROWTH**2
        return d

    def _prox(self, d: Floats, tau: float) -> Floats:
        """Apply the proximal operator of the penalty as a function of the displacement d from x."""
        return np.asarray(self._penalty.prox(self._x + d, tau) - self._x)

    def _compute_optimality(self, d: Floats) -> float:
        """Return the norm of the gradient map at the displacement d."""
        L = self._curvature
        return L * float(np.linalg.norm(d - self._prox(d - (self._H @ d + self._gradient) / L, 1.0 / L)))

    def _estimate_optimality_rounding_error(self, d: Floats) -> float:
        magnitude = self._curvature * float(np.linalg.norm(d)) + float(np.linalg.norm(self._gradient))
        return 16 * FLOAT64_EPS * magnitude

    def _find_proximal_point(self, center: Floats, sigma: float, tol: float) -> tuple[Floats, bool]:
        """Minimize model(p) + |p - center|^2 / (2 sigma), and return p and whether the minimum was reached.

        The dual problem is solved instead, because it is smooth and convex. At its solution z, H z + gradient
        is the gradient of the loss at p. The method takes semismooth Newton steps, whose linear systems only
        involve entries that are not fixed by the proximal operator (Li, Sun and Toh, 2018).
        """
        z, Hz = center, self._H @ center
        value, p, prox_derivative = self._evaluate_dual(z, Hz, center, sigma)
        for _ in range(MAX_NEWTON_STEPS):
            if np.linalg.norm(Hz - self._H @ p) <= tol / 10:
                return p, True
            step = self._solve_newton_system(p - z, sigma * prox_derivative)
            hessian_step = self._H @ step
            directional_derivative = float((z - p) @ hessian_step)
            for n_halvings in range(MAX_BACKTRACKS):
                step_length = 0.5**n_halvings
                new_z, new_Hz = z + step_length * step, Hz + step_length * hessian_step
                new_value, p, prox_derivative = self._evaluate_dual(new_z, new_Hz, center, sigma)
                sufficient_value = value + ARMIJO_FRACTION * step_length * directional_derivative
                if new_value <= sufficient_value + 4 * FLOAT64_EPS * abs(value):
                    break
            z, Hz, value = new_z, new_Hz, new_value
            if directional_derivative >= -FLOAT64_EPS * abs(value):
                return p, True
        return p, False

    def _evaluate_dual(
        self, z: Floats, Hz: Floats, center: Floats, sigma: float
    ) -> tuple[float, Floats, Floats]:
        """Return the dual function at z, the primal point p = prox(v), and the derivative of prox at v.

        Here v is center - sigma * (H z + gradient). The derivative is an array with the derivative of each
        entry of p with respect to the same entry of v, which lies between 0 and 1.
        """
        gradient = Hz + self._gradient
        v = center - sigma * gradient
        p = self._prox(v, sigma)
        proximity = float(np.sum((p - center) ** 2)) / (2 * sigma)
        penalty = evaluate_penalty(self._penalty, self._x + p)
        value = float(z @ Hz) / 2 - penalty - float(gradient @ p) - proximity
        magnitude = np.abs(v) + np.abs(self._x)
        magnitude = magnitude + 1e-6 * float(magnitude.max(initial=0.0)) + math.ulp(0.0)
        perturbation = FINITE_DIFFERENCE_STEP * magnitude
        return value, p, np.clip((self._prox(v + perturbation, sigma) - p) / perturbation, 0.0, 1.0)

    def _solve_newton_system(self, residual: Floats, prox_derivative: Floats) -> Floats:
        """Solve s + prox_derivative * (H s) = residual for s.

        Where the derivative is 0, s equals the residual. Only the other entries are unknown.
        """
        free_mask = prox_derivative > 0
        free_rows, solution = self._H[free_mask], residual.copy()
        free_derivative = prox_derivative[free_mask]
        rhs = residual[free_mask] - free_derivative * (free_rows[:, ~free_mask] @ residual[~free_mask])
        system = np.eye(len(free_rows)) + free_derivative[:, np.newaxis] * free_rows[:, free_mask]
        solution[free_mask] = np.linalg.solve(system, rhs)
        return solution
