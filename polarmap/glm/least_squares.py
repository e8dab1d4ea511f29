"""Least squares with an L2 penalty by scipy's solvers, each product with the data a coded map."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse.linalg import LinearOperator, cg, lsmr, lsqr

from polarmap.errors import ModelError
from polarmap.glm.convergence import warn_if_not_converged
from polarmap.glm.golub_kahan import GolubKahan
from polarmap.glm.progress import Progress

Floats = npt.NDArray[np.float64]

MAX_CONDITION = 1e12  # of scaled features, above which least squares have no digits left


class AugmentedOperator(LinearOperator):  # type: ignore[misc]
    """[A; diag(root)]: rows below A for the penalty of each feature; A alone if there is none."""

    def __init__(self, A: Any, root: Floats) -> None:
        self._A, self._root = A, root if root.any() else np.zeros(0)
        super().__init__(np.float64, (A.shape[0] + len(self._root), A.shape[1]))

    def _matvec(self, v: Floats) -> Floats:
        v = np.reshape(v, -1)
        below = self._root * v if len(self._root) else self._root
        return np.concatenate([self._A.matvec(v), below])

    def _rmatvec(self, u: Floats) -> Floats:
        u = np.reshape(u, -1)
        above, below = u[: self._A.shape[0]], u[self._A.shape[0] :]
        product = self._A.rmatvec(above)
        return np.asarray(product + self._root * below if len(self._root) else product)


def solve_least_squares(
    model: Any, system: AugmentedOperator, target: Floats, progress: Progress
) -> tuple[Floats, int]:
    """The least squares solution v and the number of iterations."""
    right = np.concatenate([target, np.zeros(system.shape[0] - len(target))])
    if model.solver == "cg":
        return _solve_normal_equations(model, system, right, progress)
    watched = GolubKahan(system, right, model.solver, progress) if progress else system
    options = {"atol": model.tol, "btol": model.tol, "conlim": MAX_CONDITION}
    if model.solver == "lsqr":
        v, stop, n_iter, *_ = lsqr(watched, right, iter_lim=model.max_iter, **options)
    else:
        v, stop, n_iter, *_ = lsmr(watched, right, maxiter=model.max_iter, **options)
    if stop in (3, 6):
        raise ModelError(
            f"the features depend on each other: the condition number of the system exceeds "
            f"{MAX_CONDITION:.0e}, so its solution has no digits; drop features or raise alpha"
        )
    warn_if_not_converged(stop != 7, model.max_iter)
    return np.asarray(v), max(1, int(n_iter))


def _solve_normal_equations(
    model: Any, system: AugmentedOperator, right: Floats, progress: Progress
) -> tuple[Floats, int]:
    product = system.rmatvec(right)
    steps = _ConjugateSteps(system, product, float(right @ right), progress)
    v, stop = cg(
        LinearOperator((system.shape[1],) * 2, matvec=steps.normal_product, dtype=np.float64),
        product,
        rtol=model.tol,
        maxiter=model.max_iter,
        callback=steps.ended,
    )
    warn_if_not_converged(stop == 0, model.max_iter)
    return np.asarray(v), max(1, steps.count)


class _ConjugateSteps:
    """The iterations of cg on A'A v = A'b: how many there were, and the residual after each."""

    def __init__(self, system: AugmentedOperator, right: Floats, square: float, progress: Progress) -> None:
        self._system, self._right, self._square, self._progress = system, right, square, progress
        self._v, self._residual, self.count = np.zeros(len(right)), right, 0

    def normal_product(self, direction: Floats) -> Floats:
        """A'A times a direction."""
        self._direction = np.array(direction)
        self._product = np.asarray(self._system.rmatvec(self._system.matvec(direction)))
        return self._product

    def ended(self, v: Floats) -> None:
        """Note that the iteration has led to v."""
        self.count += 1
        if self._progress:
            step = (v - self._v) @ self._direction / (self._direction @ self._direction)
            self._v, self._residual = np.array(v), self._residual - step * self._product
            # |b - A v|^2 where A'A v = A'b - residual
            objective = self._square - v @ (self._right + self._residual)
            self._progress.iteration(float(objective), 2 * float(np.linalg.norm(self._residual)))
