"""Least squares with an L2 penalty by Krylov methods: LSQR, LSMR or conjugate gradients.

`solve_least_squares` first runs the method without a preconditioner. If this takes many iterations, it
computes one Gram matrix and runs the method again, on features that are orthonormalized by this matrix.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import numpy as np
from scipy.sparse.linalg import LinearOperator, lsmr, lsqr

from polarmap.dtypes import Floats
from polarmap.errors import DeadlineExceededError, ModelError
from polarmap.models.iteration_log import IterationLog
from polarmap.models.solvers.proximal_newton import choose_n_first_order_iterations
from polarmap.models.solvers.solver import Solution
from polarmap.models.whitening import MIN_RELATIVE_SCALE, WhiteningOperator

# Maximum condition number of the scaled system. Beyond it, the solution would have no correct digits.
MAX_CONDITION = 1e12


class AugmentedOperator(LinearOperator):  # type: ignore[misc]
    """An operator that appends rows for the L2 penalty to A: [A; diag(sqrt_penalty)].

    Parameters
    ----------
    A : LinearOperator (samples, features)
        Standardized features.
    sqrt_penalty : array (features,)
        Square root of the penalty strength of each feature. If all are 0, no rows are appended.
    """

    def __init__(self, A: Any, sqrt_penalty: Floats) -> None:
        self.A, self._sqrt_penalty = A, sqrt_penalty if sqrt_penalty.any() else np.zeros(0)
        super().__init__(np.float64, (A.shape[0] + len(self._sqrt_penalty), A.shape[1]))

    @cached_property
    def preconditioner(self) -> WhiteningOperator:
        """A right preconditioner: an operator W such that this operator times W has orthonormal columns.

        Directions in which the Gram matrix has no correct digits are rotated, but not scaled to norm 1.
        """
        gram = self.A.gram(np.ones(self.A.shape[0]))
        if len(self._sqrt_penalty):
            gram = gram + np.diag(self._sqrt_penalty**2)
        eigenvalues, axes = np.linalg.eigh(gram)
        scale = np.sqrt(np.maximum(eigenvalues, 0.0))
        max_scale = float(scale.max()) or 1.0
        return WhiteningOperator(axes, np.where(scale > MIN_RELATIVE_SCALE * max_scale, scale, max_scale))

    def _matvec(self, v: Floats) -> Floats:
        v = np.reshape(v, -1)
        penalty_rows = self._sqrt_penalty * v if len(self._sqrt_penalty) else self._sqrt_penalty
        return np.concatenate([self.A.matvec(v), penalty_rows])

    def _rmatvec(self, u: Floats) -> Floats:
        u = np.reshape(u, -1)
        data_rows, penalty_rows = u[: self.A.shape[0]], u[self.A.shape[0] :]
        product = self.A.rmatvec(data_rows)
        return np.asarray(product + self._sqrt_penalty * penalty_rows if len(self._sqrt_penalty) else product)


def solve_least_squares(
    estimator: Any, system: AugmentedOperator, target: Floats, iteration_log: IterationLog
) -> Solution:
    """Find the least-squares solution v of system @ v = [target; 0].

    If many iterations would be needed, the solver restarts with whitened features, for which a few suffice.

    Parameters
    ----------
    estimator : Ridge
        Model whose `solver`, `tol` and `max_iter` are used.
    system : AugmentedOperator
        Features, with the rows of the penalty.
    target : array (samples,)
        Right-hand side for the rows of the features.
    iteration_log : IterationLog
        Log that prints a line after each iteration.

    Returns
    -------
    Solution
        The objective is the squared norm of the residual, and the optimality is the norm of the gradient.

    Raises
    ------
    ModelError
        If the features are linearly dependent up to rounding ("lsqr" and "lsmr" only).
    DeadlineExceededError
        If the deadline of the operator passes before the end of the first iteration.
    """
    rhs = np.concatenate([target, np.zeros(system.shape[0] - len(target))])
    n_unpreconditioned = choose_n_first_order_iterations(
        system.A, np.zeros(system.shape[1]), estimator.max_iter
    )
    first = None
    if n_unpreconditioned:
        first = _run_krylov(estimator, system, rhs, iteration_log, n_unpreconditioned)
        if first.converged or first.timed_out or first.n_iter >= estimator.max_iter:
            return first._replace(n_iter=max(1, first.n_iter))
    n_first = 0 if first is None else first.n_iter
    try:
        whitened = system @ system.preconditioner
        second = _run_krylov(estimator, whitened, rhs, iteration_log, estimator.max_iter - n_first)
    except DeadlineExceededError:
        if first is None:
            raise
        return first._replace(timed_out=True)
    n_iter = max(1, n_first + second.n_iter)
    if second.timed_out and first is not None and first.objective < second.objective:
        return first._replace(n_iter=n_iter, timed_out=True)
    return second._replace(x=np.asarray(system.preconditioner @ second.x), n_iter=n_iter)


def _run_krylov(
    estimator: Any, system: Any, rhs: Floats, iteration_log: IterationLog, max_iter: int
) -> Solution:
    """Run the estimator's solver ("lsqr", "lsmr" or "cg") for at most `max_iter` iterations.

    Raises
    ------
    ModelError
        If the features are linearly dependent up to rounding.
    DeadlineExceededError
        If the deadline of the operator passes before the end of the first iteration.
    """
    if estimator.solver == "cg":
        return _run_conjugate_gradients(system, rhs, estimator.tol, iteration_log, max_iter)
    monitored = BidiagonalizationMonitor(system, rhs, estimator.solver, iteration_log)
    options = {"atol": estimator.tol, "btol": estimator.tol, "conlim": MAX_CONDITION}
    try:
        if estimator.solver == "lsqr":
            v, stop_code, n_iter, residual_norm, _, _, _, gradient_norm, *_ = lsqr(
                monitored, rhs, iter_lim=max_iter, **options
            )
        else:
            v, stop_code, n_iter, residual_norm, gradient_norm, *_ = lsmr(
                monitored, rhs, maxiter=max_iter, **options
            )
    except DeadlineExceededError:
        if monitored.n_iter == 0:
            raise
        return monitored.make_solution()
    if stop_code in (3, 6):
        raise ModelError(
            "the features are linearly dependent, or nearly so: the condition number of the system exceeds "
            f"{MAX_CONDITION:.0e}, and its solution would have no correct digits. Drop features or raise "
            "alpha"
        )
    objective, optimality = float(residual_norm**2), 2 * float(gradient_norm)
    return Solution(np.asarray(v), objective, None, optimality, int(n_iter), stop_code != 7)


class BidiagonalizationMonitor(LinearOperator):  # type: ignore[misc]
    """Wraps a linear system and monitors the iterations of SciPy's lsqr or lsmr.

    These functions do not support callbacks and return nothing if interrupted by a deadline. Both build
    orthonormal vectors u_i and v_i with A v_i = alpha_i u_i + beta_i+1 u_i+1 and
    A' u_i+1 = beta_i+1 v_i + alpha_i+1 v_i+1 (Golub-Kahan bidiagonalization). The wrapper sees all products
    and derives alpha and beta from them. The rotations of Paige and Saunders (lsqr) or Fong and Saunders
    (lsmr) then give the norms of the residual and the gradient, which `iteration_log` prints. The residual of
    lsmr would need more rotations and is not printed.

    `make_solution` returns the solution of lsqr after the last complete iteration, even if lsmr is running:
    it minimizes the residual over the same subspace.

    Parameters
    ----------
    system : LinearOperator
        System to wrap.
    target : array (rows,)
        Right-hand side that is passed to the solver.
    solver : {"lsqr", "lsmr"}
        Function that uses the wrapper.
    iteration_log : IterationLog
        Log that prints a line after each iteration.
    """

    def __init__(self, system: Any, target: Floats, solver: str, iteration_log: IterationLog) -> None:
        super().__init__(np.float64, system.shape)
        self._system, self._solver, self._iteration_log, self.n_iter = system, solver, iteration_log, 0
        self._residual_norm = float(np.linalg.norm(target))  # |target - A x| for the iterate x of lsqr.
        self._signed_residual_norm = self._residual_norm
        self._last_product: tuple[Floats, Floats] | None = None  # The latest v, and A v.

    def make_solution(self) -> Solution:
        """Return the solution of lsqr after the last complete iteration, marked as timed out."""
        gradient_norm = 2 * abs(self._rho_bar) * self._residual_norm
        return Solution(self._x, self._residual_norm**2, None, gradient_norm, self.n_iter, False, True)

    def _matvec(self, v: Floats) -> Floats:
        v = np.array(v).reshape(-1)  # A copy is needed, because lsmr overwrites v.
        self._last_product = v, self._system.matvec(v)
        return self._last_product[1]

    def _rmatvec(self, u: Floats) -> Floats:
        product = np.asarray(self._system.rmatvec(u))
        if self._last_product is None:
            self._start_bidiagonalization(np.reshape(product, -1))
        else:
            v, product_with_v = self._last_product
            beta = float(np.reshape(u, -1) @ product_with_v)
            self._update_solution_and_norms(beta, np.reshape(product, -1) - beta * v)
        return product

    def _start_bidiagonalization(self, scaled_v: Floats) -> None:
        alpha = float(np.linalg.norm(scaled_v))
        # The objective is |r|^2 for the residual r, and its gradient is 2 A' r. Track half of its norm.
        self._rho_bar, self._half_gradient_norm = alpha, alpha * self._residual_norm
        self._cosine_bar = 1.0  # Cosine of the second of the two rotations that lsmr takes per iteration.
        self._x, self._direction = np.zeros_like(scaled_v), scaled_v / (alpha or 1.0)

    def _update_solution_and_norms(self, beta: float, scaled_v: Floats) -> None:
        """Update the norms and the solution after one iteration, and print a line.

        Parameters
        ----------
        beta : float
            New coefficient beta_i+1 of the bidiagonal matrix.
        scaled_v : array
            Vector alpha_i+1 v_i+1.
        """
        alpha = float(np.linalg.norm(scaled_v))
        rho = math.hypot(self._rho_bar, beta) or 1.0
        cosine, sine = self._rho_bar / rho, beta / rho
        self._x = self._x + cosine * self._signed_residual_norm / rho * self._direction
        self._direction = scaled_v / (alpha or 1.0) - sine * alpha / rho * self._direction
        self._signed_residual_norm *= -sine
        self._residual_norm, self.n_iter = abs(self._signed_residual_norm), self.n_iter + 1
        self._rho_bar = cosine * alpha
        theta, rho_bar = sine * alpha, self._cosine_bar * rho
        theta_norm = math.hypot(rho_bar, theta) or 1.0
        self._cosine_bar = rho_bar / theta_norm
        self._half_gradient_norm *= theta / theta_norm
        if not self._iteration_log:
            return
        if self._solver == "lsqr":
            gradient_norm = 2 * abs(self._rho_bar) * self._residual_norm
            self._iteration_log.log_iteration(self._residual_norm**2, gradient_norm)
        else:
            self._iteration_log.log_iteration(None, 2 * self._half_gradient_norm)


def _run_conjugate_gradients(
    system: Any, target: Floats, tol: float, iteration_log: IterationLog, max_iter: int
) -> Solution:
    """Solve A'A v = A' target by conjugate gradients, with at most `max_iter` iterations."""
    rhs = np.asarray(system.rmatvec(target))
    v, residual, direction, squared_residual = np.zeros_like(rhs), rhs, rhs, float(rhs @ rhs)
    n_iter, squared_tol, timed_out = 0, tol**2 * squared_residual, False
    while squared_residual > squared_tol and n_iter < max_iter:
        try:
            product = np.asarray(system.rmatvec(system.matvec(direction)))
        except DeadlineExceededError:
            if n_iter == 0:
                raise
            timed_out = True
            break
        step_length = squared_residual / float(direction @ product)
        v, residual, n_iter = v + step_length * direction, residual - step_length * product, n_iter + 1
        previous_squared_residual, squared_residual = squared_residual, float(residual @ residual)
        direction = residual + squared_residual / previous_squared_residual * direction
        if iteration_log:
            objective = _compute_squared_residual(target, rhs, v, residual)
            iteration_log.log_iteration(objective, 2 * math.sqrt(squared_residual))
    objective, optimality = (
        _compute_squared_residual(target, rhs, v, residual),
        2 * math.sqrt(squared_residual),
    )
    return Solution(v, objective, None, optimality, n_iter, squared_residual <= squared_tol, timed_out)


def _compute_squared_residual(target: Floats, rhs: Floats, v: Floats, residual: Floats) -> float:
    """Return the squared residual norm |target - A v|^2, given rhs = A' target and residual = rhs - A'A v."""
    return float(target @ target - v @ (rhs + residual))
