"""FISTA minimizes loss(A x) + penalty(x) by proximal gradient steps with momentum.

An iteration takes two products, A x and A' u. `CompositeProblem` and `ProximalSolver` are also the base of
the proximal Newton method.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from polarmap.dtypes import FLOAT64_EPS, Floats
from polarmap.errors import ModelError
from polarmap.models.solvers.solver import Solution, run_solver

# The duality gap is computed every GAP_INTERVAL iterations, which takes one additional product.
GAP_INTERVAL = 10
# After a step that was too long, the curvature estimate is multiplied by at least this factor. The next step
# is shorter, because the step length is 1 / curvature.
MIN_CURVATURE_GROWTH = 1.2
# If the difference of two losses is smaller than this, relative to the loss, rounding errors make it
# unusable.
CANCELLATION_TOL = 1e-10
# Maximum change of eta = A x in the step that estimates the initial curvature. The step is so short that the
# loss is nearly quadratic along it.
PROBE_STEP = 1e-3


def fista(
    operator: Any,
    loss: Any,
    penalty: Any,
    start: Any = None,
    *,
    tol: float = 1e-6,
    max_iter: int = 5000,
    callback: Callable[[float, float], None] | None = None,
) -> Solution:
    """Minimize loss(A x) + penalty(x) by FISTA with restarts and backtracking.

    An iteration takes two products, A x and A' u (Beck and Teboulle, 2009; O'Donoghue and Candes, 2015). Each
    step that was too long takes one additional product, and so does the duality gap in every tenth iteration.

    Parameters
    ----------
    operator : LinearOperator (M, N)
        Operator A, for example a `CodedOperator`.
    loss : SquaredLoss, LogisticLoss or similar
        Convex and smooth function of eta = A x, with methods value(eta) and gradient(eta). If the loss also
        has a method conjugate(u), the duality gap is computed.
    penalty : proximal operator
        Penalty or constraint of pyproximal (`L1`, `L21`, `Box`, ...) or of `polarmap.convex`. It has a
        method prox(x, tau), and can be called with a vector x: a penalty returns its value, and a constraint
        returns whether x satisfies it. The duality gap also needs methods conjugate(v) and dual_scale(v).
    start : array (N,) or (N, outputs), optional
        Starting point. By default, zeros (N,). If it is a matrix, x is a matrix as well, and `penalty` gets
        x as a vector, row by row.
    tol : float
        Tolerance of the duality gap, relative to the objective. If there is no gap, or if it is as small as
        rounding errors, tolerance of the norm of the gradient map, relative to its largest value so far.
    max_iter : int
        Maximum number of iterations.
    callback : callable, optional
        Called with the objective and the norm of the gradient map after each iteration.

    Returns
    -------
    Solution
        The solution. If the deadline of the operator passes (`CodedOperator.set_deadline`), this is the best
        solution so far.

    Raises
    ------
    ModelError
        If an argument is invalid.
    DeadlineExceededError
        If the deadline of the operator passes before the end of the first iteration.

    Examples
    --------
    >>> import pyproximal
    >>> from concurrent.futures import ThreadPoolExecutor
    >>> from polarmap import CodedOperator
    >>> from polarmap.convex import SquaredLoss
    >>> A, b = np.eye(4), np.array([3.0, -2.0, 1.0, 0.0])
    >>> with ThreadPoolExecutor(4) as pool, CodedOperator(A, blocks=2, executor=pool) as operator:
    ...     found = fista(operator, SquaredLoss(b), pyproximal.Box(lower=0.0))  # nonnegative least squares
    >>> found.x.round(6).tolist(), round(found.objective, 6), found.converged
    ([3.0, 0.0, 1.0, 0.0], 2.0, True)
    """
    _check_fista_arguments(penalty, loss, tol, max_iter)
    problem = CompositeProblem(operator, loss, penalty)
    return run_solver(FistaSolver(problem, problem.check_starting_point(start), tol), max_iter, callback)


class CompositeProblem:
    """The problem of minimizing loss(A x) + penalty(x) over x.

    Parameters
    ----------
    operator, loss, penalty
        As for `fista`.

    Attributes
    ----------
    has_dual_gap : bool
        True if loss and penalty have conjugates, so that the duality gap can be computed.
    """

    def __init__(self, operator: Any, loss: Any, penalty: Any) -> None:
        self.operator, self.loss, self.penalty = operator, loss, penalty
        self.has_dual_gap = hasattr(loss, "conjugate") and hasattr(penalty, "conjugate")

    def check_starting_point(self, start: Any) -> Floats:
        """Return `start` as a new float array, or zeros for None. Raise ModelError if its shape is wrong."""
        n_columns = int(self.operator.shape[1])
        x = np.zeros(n_columns) if start is None else np.array(start, dtype=np.float64)
        if x.ndim not in (1, 2) or len(x) != n_columns:
            raise ModelError(f"start must have shape ({n_columns},) or ({n_columns}, outputs), not {x.shape}")
        return x

    def matmul(self, x: Floats) -> Floats:
        """Return A x. If x is 0, no product is computed."""
        if not x.any():
            return np.zeros((int(self.operator.shape[0]), *x.shape[1:]))
        return np.asarray(self.operator.matvec(x) if x.ndim == 1 else self.operator.matmat(x))

    def check_eta_shape(self, eta: Floats) -> None:
        """Raise ModelError unless the targets of the loss have the shape of `eta`."""
        loss_shape = getattr(self.loss, "shape", eta.shape)
        if loss_shape != eta.shape:
            raise ModelError(
                f"y of the loss must have the shape of A x, {eta.shape}, not {loss_shape}. The operator has "
                f"{len(eta)} rows, so pass y of shape ({len(eta)},), or for several columns of y a start "
                "with as many columns"
            )

    def rmatmul(self, u: Floats) -> Floats:
        """Return A' u. If u is the gradient of the loss, this is the gradient with respect to x."""
        return np.asarray(self.operator.rmatvec(u) if u.ndim == 1 else self.operator.rmatmat(u))

    def prox(self, x: Floats, tau: float) -> Floats:
        """Apply the proximal operator of the penalty to x, and return the result in the shape of x."""
        return np.asarray(self.penalty.prox(x.reshape(-1), tau)).reshape(x.shape)

    def objective(self, x: Floats, eta: Floats) -> float:
        """Return the objective at x, given eta = A x.

        If the penalty is a constraint, x must satisfy it, as every result of `prox` does.
        """
        return float(self.loss.value(eta)) + evaluate_penalty(self.penalty, x.reshape(-1))

    def dual_gap(self, x: Floats, eta: Floats, loss_gradient: Floats, gradient: Floats) -> float:
        """Return the duality gap at x, an upper bound on the suboptimality of the objective.

        Parameters
        ----------
        x : array
            Iterate. The scaled gradient of the loss is its dual point.
        eta : array
            Product A x.
        loss_gradient : array
            Gradient of the loss with respect to eta.
        gradient : array
            Product A' loss_gradient.

        Returns
        -------
        float
            Gap by Fenchel-Rockafellar duality; inf if the dual point cannot be scaled to be feasible.
        """
        dual = -gradient.reshape(-1)
        dual_scale = float(self.penalty.dual_scale(dual))
        if dual_scale == 0.0:
            return math.inf
        loss_conjugate = float(self.loss.conjugate(dual_scale * loss_gradient))
        penalty_conjugate = float(self.penalty.conjugate(dual_scale * dual))
        return max(0.0, self.objective(x, eta) + (loss_conjugate + penalty_conjugate))


def evaluate_penalty(penalty: Any, x: Floats) -> float:
    """Return the penalty at a point x that `prox` has returned.

    The value of a constraint is 0, because such a point satisfies it.
    """
    value = penalty(x)
    return 0.0 if isinstance(value, (bool, np.bool_)) else float(value)


class ProximalSolver:
    """Base class of iterative solvers that measure how close each iterate is to the minimum.

    A subclass implements `_advance`.

    Parameters
    ----------
    problem : CompositeProblem
        Problem to solve.
    x : array (N,) or (N, outputs)
        Starting point.
    tol : float
        As for `fista`.
    eta : array, optional
        Product A x. By default, it is computed.
    """

    gap_interval = 1  # Number of iterations between computations of the duality gap.

    def __init__(self, problem: CompositeProblem, x: Floats, tol: float, eta: Floats | None = None) -> None:
        self.problem, self.x, self.tol, self.n_iter = problem, x, tol, 0
        self.eta = problem.matmul(x) if eta is None else eta
        problem.check_eta_shape(self.eta)
        self.curvature, self.max_optimality, self.optimality = 1.0, 0.0, math.inf
        self._initial_loss = abs(float(problem.loss.value(self.eta)))
        # The result of the last call of `compute_gradients`, preceded by the number of its iteration.
        self._cached_gradients: tuple[int, Floats, Floats] | None = None
        self.has_converged = self.has_stalled = False
        self.best_x, self.best_objective, self.dual_bound = x, math.inf, -math.inf
        self._final_dual_gap: float | None = None  # The duality gap of the solution, computed by `polish`.

    @property
    def objective(self) -> float:
        """The loss plus the penalty at the current iterate."""
        return self.problem.objective(self.x, self.eta)

    def compute_gradients(self) -> tuple[Floats, Floats]:
        """Return the gradients of the loss with respect to eta = A x and x, using one product with A'."""
        if self._cached_gradients is None or self._cached_gradients[0] != self.n_iter:
            loss_gradient = self.problem.loss.gradient(self.eta)
            self._cached_gradients = self.n_iter, loss_gradient, self.problem.rmatmul(loss_gradient)
        return self._cached_gradients[1:]

    def _compute_optimality(self) -> float:
        """Return the norm of the gradient map at x. This takes one product unless gradients are cached."""
        _, gradient = self.compute_gradients()
        prox_point = self.problem.prox(self.x - gradient / self.curvature, 1.0 / self.curvature)
        return self.curvature * float(np.linalg.norm(self.x - prox_point))

    def _compute_dual_gap(self) -> float:
        """Return the duality gap at x, or inf if it is unknown.

        This takes one product unless the gradients are cached.
        """
        if not self.problem.has_dual_gap:
            return math.inf
        dual_gap = self.problem.dual_gap(self.x, self.eta, *self.compute_gradients())
        self.dual_bound = max(self.dual_bound, self.objective - dual_gap)
        return dual_gap

    def step(self) -> None:
        """Move to the next iterate, and measure how close it is to the minimum."""
        self._advance()
        self.has_converged = self._satisfies_tolerance()

    def _advance(self) -> None:
        """Move `x` and `eta` to the next iterate, increment `n_iter`, and set `optimality`."""
        raise NotImplementedError

    def _set_iterate(self, x: Floats, eta: Floats) -> None:
        """Make x the next iterate, given eta = A x."""
        self.x, self.eta, self.n_iter = x, eta, self.n_iter + 1
        if (objective := self.objective) < self.best_objective:
            self.best_x, self.best_objective = x, objective

    def _satisfies_tolerance(self) -> bool:
        """Return whether x satisfies `tol`.

        The duality gap takes a product with A'. It is therefore computed only once every `gap_interval`
        iterations, or if the norm of the gradient map shows that x is probably accurate enough.
        """
        rounding_error, tol = self._estimate_optimality_rounding_error(), self.tol
        is_stationary = self.optimality <= max(tol * self.max_optimality, rounding_error)
        if not self.problem.has_dual_gap or (self.n_iter % self.gap_interval and not is_stationary):
            return is_stationary
        dual_gap, objective = self._compute_dual_gap(), abs(self.objective)
        if dual_gap == math.inf:
            return is_stationary
        rounding = 16 * FLOAT64_EPS * max(self._initial_loss, objective)
        if tol * objective >= rounding:
            return dual_gap <= tol * objective
        return dual_gap <= rounding and is_stationary

    def _estimate_optimality_rounding_error(self) -> float:
        """Estimate by how much rounding errors change the norm of the gradient map."""
        return 4 * FLOAT64_EPS * self.curvature * float(np.linalg.norm(self.x))

    def polish(self) -> None:
        """Make the last iterate the solution, and compute its duality gap and optimality with one product."""
        dual_gap, self.optimality = self._compute_dual_gap(), self._compute_optimality()
        self.best_x, self.best_objective, self._final_dual_gap = self.x, self.objective, dual_gap

    def make_solution(self) -> Solution:
        """Return the last iterate if `polish` has run, otherwise the best iterate so far."""
        objective, optimality = self.best_objective, self.optimality
        # Another step would decrease the objective by about optimality^2 / (2 curvature). If this is not
        # more than a rounding error of the objective, the solution is as accurate as possible.
        rounding = 16 * FLOAT64_EPS * max(self._initial_loss, abs(objective))
        is_at_rounding = optimality**2 / (2.0 * self.curvature) <= rounding
        converged = self.has_converged or (self.has_stalled and is_at_rounding)
        dual_gap = self._final_dual_gap
        if dual_gap is None:
            dual_gap = max(0.0, objective - self.dual_bound)
        finite_gap = None if dual_gap == math.inf else dual_gap
        return Solution(self.best_x, objective, finite_gap, optimality, self.n_iter, converged)


class FistaSolver(ProximalSolver):
    """The state of FISTA: the iterate, the extrapolated point, and an estimate of the curvature."""

    gap_interval = GAP_INTERVAL

    def __init__(self, problem: CompositeProblem, x: Floats, tol: float) -> None:
        super().__init__(problem, x, tol)
        self._extrapolated, self._extrapolated_eta, self._momentum = self.x, self.eta, 1.0
        self.curvature = self._estimate_curvature(*self.compute_gradients())

    def _estimate_curvature(self, loss_gradient: Floats, gradient: Floats) -> float:
        """Estimate the curvature (second derivative) of the loss along its gradient, from one product.

        It determines the length of the first step. Return 1 if it is zero.
        """
        eta_direction = self.problem.matmul(gradient)
        max_change, squared_norm = float(np.abs(eta_direction).max(initial=0.0)), float(np.sum(gradient**2))
        if max_change == 0.0 or squared_norm == 0.0:
            return 1.0
        step_length = PROBE_STEP / max_change
        gradient_change = self.problem.loss.gradient(self.eta + step_length * eta_direction) - loss_gradient
        curvature = float(np.sum(gradient_change * eta_direction)) / (step_length * squared_norm)
        return curvature if 0.0 < curvature < math.inf else 1.0

    def _advance(self) -> None:
        """Step from the extrapolated point to the next x, and extrapolate from there with momentum."""
        loss_gradient = self.problem.loss.gradient(self._extrapolated_eta)
        x, eta = self._take_backtracking_step(loss_gradient, self.problem.rmatmul(loss_gradient))
        is_uphill = float(np.sum((self._extrapolated - x) * (x - self.x))) > 0
        previous_momentum = 1.0 if is_uphill else self._momentum
        self._momentum = (1.0 + math.sqrt(1.0 + 4.0 * previous_momentum**2)) / 2.0
        extrapolation = (previous_momentum - 1.0) / self._momentum
        # Since products are linear, A times the extrapolated point is computed from two known products.
        self._extrapolated = x + extrapolation * (x - self.x)
        self._extrapolated_eta = eta + extrapolation * (eta - self.eta)
        self._set_iterate(x, eta)

    def _take_backtracking_step(self, loss_gradient: Floats, gradient: Floats) -> tuple[Floats, Floats]:
        """Take a proximal gradient step from the extrapolated point, and return the new x and A x.

        The curvature estimate is increased until it bounds the curvature along the step.
        """
        while True:
            x = self.problem.prox(self._extrapolated - gradient / self.curvature, 1.0 / self.curvature)
            eta, displacement = self.problem.matmul(x), x - self._extrapolated
            squared_norm = float(np.sum(displacement**2))
            observed_curvature = 0.0
            if squared_norm:
                divergence = self._compute_bregman_divergence(loss_gradient, eta)
                observed_curvature = 2.0 * divergence / squared_norm
            if observed_curvature <= self.curvature * (1.0 + 1e-6):
                break
            self.curvature = max(MIN_CURVATURE_GROWTH * self.curvature, observed_curvature)
        self.optimality = self.curvature * math.sqrt(squared_norm)
        self.max_optimality = max(self.max_optimality, self.optimality)
        return x, eta

    def _compute_bregman_divergence(self, loss_gradient: Floats, eta: Floats) -> float:
        """Return the Bregman divergence of the loss from the extrapolated point to eta.

        It is the loss at eta minus the linear approximation of the loss at the extrapolated point. If this
        difference would lose too many digits, it is computed from gradients.
        """
        loss, eta_change = self.problem.loss, eta - self._extrapolated_eta
        loss_value, value_before = float(loss.value(eta)), float(loss.value(self._extrapolated_eta))
        divergence = loss_value - value_before - float(np.sum(loss_gradient * eta_change))
        if divergence > CANCELLATION_TOL * abs(loss_value):
            return divergence
        return 0.5 * float(np.sum((loss.gradient(eta) - loss_gradient) * eta_change))


def _check_fista_arguments(penalty: Any, loss: Any, tol: float, max_iter: int) -> None:
    if not callable(penalty) or not hasattr(penalty, "prox"):
        raise ModelError(
            f"penalty must be a proximal operator, such as pyproximal.L1(0.1), not {type(penalty).__name__}"
        )
    if not (hasattr(loss, "value") and hasattr(loss, "gradient")):
        raise ModelError(
            f"loss must have the methods value and gradient, as SquaredLoss(y) has, not {type(loss).__name__}"
        )
    if not 0 <= tol < math.inf:
        raise ModelError(f"tol must be a number, 0 or more, not {tol!r}")
    if max_iter < 1:
        raise ModelError(f"max_iter must be 1 or more, not {max_iter!r}")
