"""Losses of units' inputs, each kept in the cone of its gate, and how they are minimized: ReLU networks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from polarmap.dtypes import Floats
from polarmap.models.losses import OutputLoss
from polarmap.models.proximal_gradient import Solution, after_steps

NEWTON_STEPS = 30
ROUNDED = 1e-13  # relative to the targets: an equation that holds to that holds
LOOK_EVERY = 10  # iterations of ADMM, at whose end the gap is looked at
IMBALANCE, FACTOR = 2.0, 1.5  # of the residuals, at which rho is changed, and by how much


class ConeLoss:
    """loss(sum_i D_i (E+_i - E-_i)), where (2 D_i - 1) E+_i >= 0 and (2 D_i - 1) E-_i >= 0.

    E = A W has a column for each sign, gate and output, in that order: what the units of a ReLU network see
    of each sample. Within the cones D_i E_i is the ReLU of E_i.

    patterns : the diagonals of the D_i, (samples, gates).
    interior : a point in each cone, (features, gates); margins : |A interior|, (samples, gates).
    """

    def __init__(
        self, loss: OutputLoss, patterns: npt.NDArray[np.bool_], margins: Floats, interior: Floats
    ) -> None:
        self.loss, self._outputs = loss, loss.shape[1]
        self.patterns, self.margins, self.interior = patterns, margins, interior
        passed = patterns.astype(np.float64)[:, np.newaxis, :, np.newaxis]
        self._sides = 2.0 * passed - 1.0
        self._signs = np.concatenate([passed, -passed], axis=1)
        self._margins = margins[:, np.newaxis, :, np.newaxis]
        self._interior = interior[:, np.newaxis, :, np.newaxis]
        self._eta, self._nu, self._c = np.zeros(loss.shape), np.zeros(loss.shape), loss.null
        self._rounded = ROUNDED * (float(np.abs(loss.y).max(initial=0.0)) or 1.0)

    def prox(self, B: Floats, rho: float) -> Floats:
        """The E that minimizes a bound of the loss + rho / 2 sum_i shares_i |E_i - B_i|^2 over the cones.

        The bound is quadratic, by the largest curvature; a squared loss is its own.
        """
        # E is B - sign nu, projected onto the cones, with one nu for each sample and output, where rho nu is
        # the bound's gradient: Newton's method, for all of them and the intercept at once.
        B4, curvature = self._split(B), self.loss.family.largest_curvature
        outputs = self._eta + self._c
        targets = outputs - (self.loss.family.mean(outputs) - self.loss.y) / curvature
        for _ in range(NEWTON_STEPS):
            E, crossed = self._projected(B4)
            self._eta = (self._signs * E).sum(axis=(1, 2))
            error = rho * self._nu - curvature * (self._eta + self._c - targets)
            balance = self._mean(self._nu)
            if max(np.abs(error).max(), rho * np.abs(balance).max()) <= self._rounded:
                break
            slope = rho + curvature * crossed
            change = error / slope
            if self.loss.fit_intercept:
                moved = (self._mean(change) - balance) / (curvature * self._mean(1.0 / slope))
                self._c, change = self._c + moved, change - curvature * moved / slope
            self._nu = self._nu - change
        return E.reshape(B.shape)

    def scale_dual(self, factor: float) -> None:
        """Multiply the dual of the next start, where rho is divided by `factor`."""
        self._nu = self._nu * factor

    def dual(self, U: Floats, rho: float) -> tuple[Floats, Floats]:
        """A gradient u of the loss, and that of `rho` times multipliers U with it: U = sign nu - side mu.

        mu >= 0 is kept and nu replaced by that of u, so that -conjugate(u) is a bound whatever nu was.
        """
        u = self.loss.gradient(self._eta)
        change = (u / (rho * self.loss.weights) - self._nu)[:, np.newaxis, np.newaxis, :]
        return u, rho * (U + (self._signs * change).reshape(U.shape))

    def feasible(self, W: Floats, E: Floats) -> tuple[Floats, Floats]:
        """W (features, columns) and E = A W, moved into the cones along their interior points."""
        E4, W4 = self._split(E), self._split(W)
        heights, ratios = self._sides * E4, np.zeros_like(E4)
        np.divide(-heights, self._margins, out=ratios, where=(heights < 0) & (self._margins > 0))
        length = np.where(W4.any(axis=0), ratios.max(axis=0), 0.0)
        moved = W4 + length * self._interior, E4 + length * self._sides * self._margins
        return moved[0].reshape(W.shape), moved[1].reshape(E.shape)

    def value(self, E: Floats) -> float:
        """The loss at an E within the cones."""
        return self.loss.value(self.outputs(E))

    def outputs(self, E: Floats) -> Floats:
        """Of the network before its intercept, (samples, outputs)."""
        return np.asarray((self._signs * self._split(E)).sum(axis=(1, 2)))

    def _split(self, columns: Floats) -> Floats:
        """(rows, signs, gates, outputs)."""
        return columns.reshape(len(columns), 2, -1, self._outputs)

    def _projected(self, B4: Floats) -> tuple[Floats, Floats]:
        """E by nu, and how many units of each sample and output change with it."""
        heights = self._sides * (B4 - self._signs * self._nu[:, np.newaxis, np.newaxis, :])
        crossed = ((heights > 0) & (self._signs != 0)).sum(axis=(1, 2))
        return self._sides * np.maximum(heights, 0.0), crossed

    def _mean(self, of_samples: Floats) -> Floats:
        """Weighted, of each output: for nu, 0 where the intercept fits best; 0 without one."""
        mean = np.sum(self.loss.weights * of_samples, axis=0)
        return np.asarray(mean if self.loss.fit_intercept else np.zeros_like(mean))


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
    """Minimize loss(A x) + penalty(x) with A x in the cones of the loss, from zeros; parameters as of fista.

    The augmented Lagrangian of E = A x is minimized in turns: over E by `loss.prox`, over x by the prox of
    the penalty, which is exact where A' diag(shares) A = 1 and a majorization where it is less. The gap is
    that of x, moved into the cones, to the dual point of the multipliers U. rho follows the residuals (Boyd
    and others, 2011, 3.4.1). The callback's objective is infinite until it is known, its gradient the norm
    of the last step of x times rho.
    """
    return after_steps(_AdmmSteps(operator, loss, penalty, start, max_iter), tol, max_iter, callback)


class _AdmmSteps:
    """The iteration: x, A x, multipliers U, and the best objective and bound so far."""

    is_stuck = False

    def __init__(self, operator: Any, loss: ConeLoss, penalty: Any, start: Floats, last: int) -> None:
        self._operator, self._loss, self._penalty, self._last = operator, loss, penalty, last
        self.x, self.best, self.count = start, start, 0
        self._Ax = np.zeros((operator.shape[0], start.shape[1]))
        self._U, self._product = np.zeros_like(self._Ax), np.zeros_like(start)
        self._rho, self._next = 1.0, LOOK_EVERY
        self.objective, self.bound, self.map_norm = math.inf, -math.inf, math.inf
        self._residuals = 0.0, 0.0

    @property
    def gap(self) -> float:
        """The distance from the best bound to the best objective."""
        return math.inf if self.objective == math.inf else max(0.0, self.objective - self.bound)

    def has_converged(self, tol: float) -> bool:
        """Whether the gap has been looked at, and is small."""
        return self.gap <= tol * self.objective < math.inf

    def step(self) -> None:
        """E, then U, then x; a look at the gap every tenth time and the last one."""
        self._balance()
        shares = self._loss.loss.weights
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
        if self.count % LOOK_EVERY == 0 or self.count == self._last:
            self._look()

    def solution(self, tol: float) -> Solution:
        """The best that was looked at."""
        return Solution(
            self.best, self.objective, self.gap, self.map_norm, self.count, self.has_converged(tol)
        )

    def _look(self) -> None:
        """Objective and bound, by one product."""
        x, E = self._loss.feasible(self.x, self._Ax)
        objective = self._loss.value(E) + float(self._penalty(x.reshape(-1)))
        if objective < self.objective:
            self.objective, self.best = objective, x
        u, multipliers = self._loss.dual(self._U, self._rho)
        product = self._operator.rmatmat(self._loss.loss.weights * multipliers)
        factor = float(self._penalty.dual_scale(-product.reshape(-1)))
        self.bound = max(self.bound, -self._loss.loss.conjugate(factor * u))

    def _balance(self) -> None:
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
