"""Least squares with an L2 penalty by scipy's Krylov solvers, and how far these have come."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import numpy as np
from scipy.sparse.linalg import LinearOperator, lsmr, lsqr

from polarmap.dtypes import Floats
from polarmap.errors import ModelError
from polarmap.models.fit_progress import FitProgress, warn_if_not_converged
from polarmap.models.proximal_newton import first_iterations
from polarmap.models.whitening import LEAST_SCALE, Whitening

MAX_CONDITION = 1e12  # of scaled features, above which least squares have no digits left


class AugmentedOperator(LinearOperator):  # type: ignore[misc]
    """[A; diag(root)]: rows below A for the penalty of each feature; A alone if there is none."""

    def __init__(self, A: Any, root: Floats) -> None:
        self.A, self._root = A, root if root.any() else np.zeros(0)
        super().__init__(np.float64, (A.shape[0] + len(self._root), A.shape[1]))

    @cached_property
    def axes(self) -> Whitening:
        """Coordinates in which its columns are orthonormal, but for directions of which A'A has no digits."""
        gram = self.A.gram(np.ones(self.A.shape[0]))
        moments, axes = np.linalg.eigh(gram + np.diag(self._root**2) if len(self._root) else gram)
        scale = np.sqrt(np.maximum(moments, 0.0))
        largest = float(scale.max()) or 1.0
        return Whitening(axes, np.where(scale > LEAST_SCALE * largest, scale, largest))

    def _matvec(self, v: Floats) -> Floats:
        v = np.reshape(v, -1)
        below = self._root * v if len(self._root) else self._root
        return np.concatenate([self.A.matvec(v), below])

    def _rmatvec(self, u: Floats) -> Floats:
        u = np.reshape(u, -1)
        above, below = u[: self.A.shape[0]], u[self.A.shape[0] :]
        product = self.A.rmatvec(above)
        return np.asarray(product + self._root * below if len(self._root) else product)


def solve_least_squares(
    model: Any, system: AugmentedOperator, target: Floats, progress: FitProgress
) -> tuple[Floats, int]:
    """The least squares solution v and the number of iterations.

    What takes long is begun anew on whitened features, of which a few iterations are enough.
    """
    right = np.concatenate([target, np.zeros(system.shape[0] - len(target))])
    first = first_iterations(system.A, np.zeros(system.shape[1]), model.max_iter)
    count, is_done = 0, False
    if first:
        v, count, is_done = _solved(model, system, right, progress, first)
    if not is_done and count < model.max_iter:
        axes, left = system.axes, model.max_iter - count
        z, more, is_done = _solved(model, system @ axes, right, progress, left)
        v, count = np.asarray(axes @ z), count + more
    warn_if_not_converged(is_done, model.max_iter)
    return v, max(1, count)


def _solved(
    model: Any, system: Any, right: Floats, progress: FitProgress, max_iter: int
) -> tuple[Floats, int, bool]:
    """The solution, iterations, whether these were enough; ModelError for features without digits."""
    if model.solver == "cg":
        return _conjugate_gradients(system, right, model.tol, progress, max_iter)
    watched = GolubKahan(system, right, model.solver, progress) if progress else system
    options = {"atol": model.tol, "btol": model.tol, "conlim": MAX_CONDITION}
    if model.solver == "lsqr":
        v, stop, n_iter, *_ = lsqr(watched, right, iter_lim=max_iter, **options)
    else:
        v, stop, n_iter, *_ = lsmr(watched, right, maxiter=max_iter, **options)
    if stop in (3, 6):
        raise ModelError(
            f"the features depend on each other: the condition number of the system exceeds "
            f"{MAX_CONDITION:.0e}, so its solution has no digits; drop features or raise alpha"
        )
    return np.asarray(v), int(n_iter), stop != 7


class GolubKahan(LinearOperator):  # type: ignore[misc]
    """A system as lsqr and lsmr see it, of which every A v followed by A' u prints the line of an iteration.

    Both solvers build orthonormal u and v with A v_i = alpha_i u_i + beta_i+1 u_i+1 and
    A' u_i+1 = beta_i+1 v_i + alpha_i+1 v_i+1, so products and operands give alpha and beta, and these
    the norms of residual and gradient by the rotations of Paige and Saunders (lsqr), Fong and Saunders
    (lsmr). The residual of lsmr takes more than these, and is not printed.
    """

    def __init__(self, system: Any, target: Floats, solver: str, progress: FitProgress) -> None:
        super().__init__(np.float64, system.shape)
        self._system, self._solver, self._progress = system, solver, progress
        self._residual = float(np.linalg.norm(target))
        self._forward: tuple[Floats, Floats] | None = None  # v and A v

    def _matvec(self, v: Floats) -> Floats:
        v = np.array(v).reshape(-1)  # a copy: lsmr goes on in place
        self._forward = v, self._system.matvec(v)
        return self._forward[1]

    def _rmatvec(self, u: Floats) -> Floats:
        product = np.asarray(self._system.rmatvec(u))
        if self._forward is None:
            self._start(float(np.linalg.norm(product)))
        else:
            v, forward = self._forward
            beta = float(np.reshape(u, -1) @ forward)
            self._step(beta, float(np.linalg.norm(product - beta * v)))
        return product

    def _start(self, alpha: float) -> None:
        self._rho_bar, self._gradient = alpha, alpha * self._residual  # half of it: |A' r|
        self._cosine_bar = 1.0  # of the second rotation, which only lsmr makes

    def _step(self, beta: float, alpha: float) -> None:
        """An iteration, by its new coefficients of the bidiagonal matrix."""
        rho = math.hypot(self._rho_bar, beta)
        cosine, sine = self._rho_bar / rho, beta / rho
        self._residual *= sine
        self._rho_bar = cosine * alpha
        if self._solver == "lsqr":
            self._progress.iteration(self._residual**2, 2 * abs(self._rho_bar) * self._residual)
            return
        theta, rho_bar = sine * alpha, self._cosine_bar * rho
        size = math.hypot(rho_bar, theta)
        self._cosine_bar, self._gradient = rho_bar / size, theta / size * self._gradient
        self._progress.iteration(None, 2 * self._gradient)


def _conjugate_gradients(
    system: Any, target: Floats, tol: float, progress: FitProgress, max_iter: int
) -> tuple[Floats, int, bool]:
    """The v with A'A v = A'b, iterations, and whether these were enough."""
    right = np.asarray(system.rmatvec(target))
    v, residual, direction, square = np.zeros_like(right), right, right, float(right @ right)
    count, enough = 0, tol**2 * square
    while square > enough and count < max_iter:
        product = np.asarray(system.rmatvec(system.matvec(direction)))
        step = square / float(direction @ product)
        v, residual, count = v + step * direction, residual - step * product, count + 1
        before, square = square, float(residual @ residual)
        direction = residual + square / before * direction
        if progress:  # |b - A v|^2 where A'A v = A'b - residual
            progress.iteration(float(target @ target - v @ (right + residual)), 2 * math.sqrt(square))
    return v, count, square <= enough
