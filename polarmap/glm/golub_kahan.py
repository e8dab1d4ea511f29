"""How far scipy's lsqr and lsmr have come, which they tell nobody, read off the products they ask for."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse.linalg import LinearOperator

from polarmap.glm.progress import Progress

Floats = npt.NDArray[np.float64]


class GolubKahan(LinearOperator):  # type: ignore[misc]
    """A system as lsqr and lsmr see it, of which every A v followed by A' u prints the line of an iteration.

    Both solvers build orthonormal u and v with A v_i = alpha_i u_i + beta_i+1 u_i+1 and
    A' u_i+1 = beta_i+1 v_i + alpha_i+1 v_i+1, so products and operands give alpha and beta, and these
    the norms of residual and gradient by the rotations of Paige and Saunders (lsqr), Fong and Saunders
    (lsmr). The residual of lsmr takes more than these, and is not printed.

    Parameters
    ----------
    system : LinearOperator (M, N)
    target : (M,)
    solver : {"lsqr", "lsmr"}
    progress : Progress
    """

    def __init__(self, system: Any, target: Floats, solver: str, progress: Progress) -> None:
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
