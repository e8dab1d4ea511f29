"""The alternating direction method of multipliers on a whitened coded operator: two products an iteration."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from polarmap.convex.proximal_gradient import Solution
from polarmap.convexnn.cones import ConeLoss

Floats = npt.NDArray[np.float64]

LOOK_EVERY = 10  # iterations, at whose end the gap is looked at
IMBALANCE, FACTOR = 2.0, 1.5  # of the residuals, at which rho is changed, and by how much


def admm(
    operator: Any,
    loss: ConeLoss,
    penalty: Any,
    start: Floats,
    *,
    tol: float,
    max_iter: int,
    callback: Callable[[float, float], None] | None = None,
) -> Solution:
    """Minimize loss(A x) + penalty(x) with A x in the cones of the loss.

    The augmented Lagrangian of E = A x is minimized in turns: over E by `loss.prox`, over x by the prox of
    the penalty, which is exact where A' diag(shares) A = 1 and a majorization where it is less. Products are
    A x and A' U. The gap is that of x, moved into the cones, to the dual point of the multipliers U.
    rho follows the residuals (Boyd and others, 2011, 3.4.1), less and less often.

    Parameters
    ----------
    operator : LinearOperator (samples, features)
        Whitened.
    loss : ConeLoss
    penalty : GroupNorms
    start : (features, columns)
    tol : float
        Relative, of the gap.
    max_iter : int
    callback : callable, optional
        Called with the objective, infinite until it is known, and the norm of the last step of x times rho.
    """
    steps = _Steps(operator, loss, penalty, start)
    while steps.count < max_iter:
        steps.step()
        if steps.count % LOOK_EVERY == 0 or steps.count == max_iter:
            steps.look()
        if callback is not None:
            callback(steps.objective, steps.map_norm)
        if steps.has_converged(tol):
            break
        steps.balance()
    return Solution(
        steps.best,
        steps.objective,
        steps.gap,
        steps.map_norm,
        steps.count,
        steps.has_converged(tol),
    )


class _Steps:
    """The iteration: x, A x, multipliers U, and the best objective and bound so far."""

    def __init__(self, operator: Any, loss: ConeLoss, penalty: Any, start: Floats) -> None:
        self._operator, self._loss, self._penalty = operator, loss, penalty
        self.x, self.best, self.count = start, start, 0
        self._Ax = (
            np.asarray(operator.matmat(start))
            if start.any()
            else np.zeros((operator.shape[0], start.shape[1]))
        )
        self._U, self._product = np.zeros_like(self._Ax), np.zeros_like(start)
        self._rho, self._next = 1.0, LOOK_EVERY
        self.objective, self.bound, self.map_norm = math.inf, -math.inf, math.inf
        self._residuals = 0.0, 0.0

    @property
    def gap(self) -> float:
        """Of the best objective to the best bound."""
        return math.inf if self.objective == math.inf else max(0.0, self.objective - self.bound)

    def has_converged(self, tol: float) -> bool:
        """Whether the gap has been looked at, and is small."""
        return self.gap <= tol * self.objective < math.inf

    def step(self) -> None:
        """E, then U, then x."""
        shares = self._loss.loss.shares
        B = self._Ax + self._U
        E = self._loss.prox(B, self._rho)
        self._U = B - E
        product = np.asarray(self._operator.rmatmat(shares * self._U))
        moved = (self.x - (2 * product - self._product)).reshape(-1)
        x = np.asarray(self._penalty.prox(moved, 1.0 / self._rho)).reshape(self.x.shape)
        self.map_norm = self._rho * float(np.linalg.norm(x - self.x))
        Ax = np.asarray(self._operator.matmat(x))
        apart = _relative(shares, Ax - E, E)
        self._residuals = apart, _relative(shares, Ax - self._Ax, self._U)
        self.x, self._Ax, self._product, self.count = x, Ax, product, self.count + 1

    def look(self) -> None:
        """Objective and bound, by one product."""
        x, E = self._loss.feasible(self.x, self._Ax)
        objective = self._loss.value(E) + float(self._penalty(x.reshape(-1)))
        if objective < self.objective:
            self.objective, self.best = objective, x
        u, multipliers = self._loss.dual(self._U, self._rho)
        product = self._operator.rmatmat(self._loss.loss.shares * multipliers)
        factor = float(self._penalty.dual_scale(-product.reshape(-1)))
        self.bound = max(self.bound, -self._loss.loss.conjugate(factor * u))

    def balance(self) -> None:
        """Another rho, where one residual is far larger than the other; rarer with every time."""
        if self.count < self._next:
            return
        self._next = self.count + max(LOOK_EVERY, self.count // 4)
        primal, dual = self._residuals
        if primal > IMBALANCE * dual:
            factor = FACTOR
        elif dual > IMBALANCE * primal:
            factor = 1.0 / FACTOR
        else:
            return
        self._rho *= factor
        self._U, self._product = self._U / factor, self._product / factor
        self._loss.scale_dual(1.0 / factor)


def _relative(shares: Floats, change: Floats, size: Floats) -> float:
    """Root mean square of a change, relative to that of what changes."""
    total = float(np.sum(shares * size**2))
    return math.sqrt(float(np.sum(shares * change**2)) / total) if total > 0 else 0.0
