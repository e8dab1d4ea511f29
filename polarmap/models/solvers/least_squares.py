"""Least squares with an L2 penalty by Krylov methods (LSQR, LSMR, CG), preconditioned by a Gram matrix."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import numpy as np
from scipy.sparse.linalg import LinearOperator, lsmr, lsqr

from polarmap.dtypes import Floats
from polarmap.errors import ModelError
from polarmap.models.iteration_log import IterationLog, warn_if_not_converged
from polarmap.models.solvers.proximal_newton import count_first_order_iterations
from polarmap.models.whitening import MIN_RELATIVE_SCALE, WhiteningOperator

MAX_CONDITION = 1e12  # of scaled features, above which least squares have no digits left


class AugmentedOperator(LinearOperator):  # type: ignore[misc]
    """[A; diag(root)]: rows below A for the penalty of each feature; A alone if there is none."""

    def __init__(self, A: Any, sqrt_penalty: Floats) -> None:
        self.A, self._sqrt_penalty = A, sqrt_penalty if sqrt_penalty.any() else np.zeros(0)
        super().__init__(np.float64, (A.shape[0] + len(self._sqrt_penalty), A.shape[1]))

    @cached_property
    def preconditioner(self) -> WhiteningOperator:
        """Coordinates in which its columns are orthonormal, but for directions of which A'A has no digits."""
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
) -> tuple[Floats, int]:
    """The least squares solution v and the number of iterations.

    What takes long is begun anew on whitened features, of which a few iterations are enough.
    """
    rhs = np.concatenate([target, np.zeros(system.shape[0] - len(target))])
    n_unpreconditioned = count_first_order_iterations(system.A, np.zeros(system.shape[1]), estimator.max_iter)
    n_iter, has_converged = 0, False
    if n_unpreconditioned:
        v, n_iter, has_converged = _run_krylov(estimator, system, rhs, iteration_log, n_unpreconditioned)
    if not has_converged and n_iter < estimator.max_iter:
        n_remaining, whitened = estimator.max_iter - n_iter, system @ system.preconditioner
        z, n_more, has_converged = _run_krylov(estimator, whitened, rhs, iteration_log, n_remaining)
        v, n_iter = np.asarray(system.preconditioner @ z), n_iter + n_more
    warn_if_not_converged(has_converged, estimator.max_iter)
    return v, max(1, n_iter)


def _run_krylov(
    estimator: Any, system: Any, rhs: Floats, iteration_log: IterationLog, max_iter: int
) -> tuple[Floats, int, bool]:
    """The solution, iterations, whether these were enough; ModelError for features without digits."""
    if estimator.solver == "cg":
        return _run_conjugate_gradients(system, rhs, estimator.tol, iteration_log, max_iter)
    monitored = system
    if iteration_log:
        monitored = BidiagonalizationMonitor(system, rhs, estimator.solver, iteration_log)
    options = {"atol": estimator.tol, "btol": estimator.tol, "conlim": MAX_CONDITION}
    if estimator.solver == "lsqr":
        v, stop_code, n_iter, *_ = lsqr(monitored, rhs, iter_lim=max_iter, **options)
    else:
        v, stop_code, n_iter, *_ = lsmr(monitored, rhs, maxiter=max_iter, **options)
    if stop_code in (3, 6):
        raise ModelError(
            f"the features depend on each other: the condition number of the system exceeds "
            f"{MAX_CONDITION:.0e}, so its solution has no digits; drop features or raise alpha"
        )
    return np.asarray(v), int(n_iter), stop_code != 7


class BidiagonalizationMonitor(LinearOperator):  # type: ignore[misc]
    """A system as lsqr and lsmr see it, of which every A v followed by A' u prints the line of an iteration.

    Both solvers build orthonormal u and v with A v_i = alpha_i u_i + beta_i+1 u_i+1 and
    A' u_i+1 = beta_i+1 v_i + alpha_i+1 v_i+1, so products and operands give alpha and beta, and these
    the norms of residual and gradient by the rotations of Paige and Saunders (lsqr), Fong and Saunders
    (lsmr). The residual of lsmr takes more than these, and is not printed.
    """

    def __init__(self, system: Any, target: Floats, solver: str, iteration_log: IterationLog) -> None:
        super().__init__(np.float64, system.shape)
        self._system, self._solver, self._iteration_log = system, solver, iteration_log
        self._residual_norm = float(np.linalg.norm(target))
        self._last_product: tuple[Floats, Floats] | None = None  # v and A v

    def _matvec(self, v: Floats) -> Floats:
        v = np.array(v).reshape(-1)  # a copy: lsmr goes on in place
        self._last_product = v, self._system.matvec(v)
        return self._last_product[1]

    def _rmatvec(self, u: Floats) -> Floats:
        product = np.asarray(self._system.rmatvec(u))
        if self._last_product is None:
            self._start_bidiagonalization(float(np.linalg.norm(product)))
        else:
            v, product_with_v = self._last_product
            beta = float(np.reshape(u, -1) @ product_with_v)
            self._update_residual_norms(beta, float(np.linalg.norm(product - beta * v)))
        return product

    def _start_bidiagonalization(self, alpha: float) -> None:
        self._rho_bar, self._half_gradient_norm = alpha, alpha * self._residual_norm  # half of it: |A' r|
        self._cosine_bar = 1.0  # of the second rotation, which only lsmr makes

    def _update_residual_norms(self, beta: float, alpha: float) -> None:
        """An iteration, by its new coefficients of the bidiagonal matrix."""
        rho = math.hypot(self._rho_bar, beta)
        cosine, sine = self._rho_bar / rho, beta / rho
        self._residual_norm *= sine
        self._rho_bar = cosine * alpha
        if self._solver == "lsqr":
            gradient_norm = 2 * abs(self._rho_bar) * self._residual_norm
            self._iteration_log.log_iteration(self._residual_norm**2, gradient_norm)
            return
        theta, rho_bar = sine * alpha, self._cosine_bar * rho
        theta_norm = math.hypot(rho_bar, theta)
        self._cosine_bar = rho_bar / theta_norm
        self._half_gradient_norm = theta / theta_norm * self._half_gradient_norm
        self._iteration_log.log_iteration(None, 2 * self._half_gradient_norm)


def _run_conjugate_gradients(
    system: Any, target: Floats, tol: float, iteration_log: IterationLog, max_iter: int
) -> tuple[Floats, int, bool]:
    """The v with A'A v = A'b, iterations, and whether these were enough."""
    rhs = np.asarray(system.rmatvec(target))
    v, residual, direction, squared_residual = np.zeros_like(rhs), rhs, rhs, float(rhs @ rhs)
    n_iter, squared_tol = 0, tol**2 * squared_residual
    while squared_residual > squared_tol and n_iter < max_iter:
        product = np.asarray(system.rmatvec(system.matvec(direction)))
        step_length = squared_residual / float(direction @ product)
        v, residual, n_iter = v + step_length * direction, residual - step_length * product, n_iter + 1
        previous_squared_residual, squared_residual = squared_residual, float(residual @ residual)
        direction = residual + squared_residual / previous_squared_residual * direction
        if iteration_log:  # |b - A v|^2 where A'A v = A'b - residual
            objective = float(target @ target - v @ (rhs + residual))
            iteration_log.log_iteration(objective, 2 * math.sqrt(squared_residual))
    return v, n_iter, squared_residual <= squared_tol
