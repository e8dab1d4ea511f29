"""Proximal Newton steps: models of the loss by weighted Gram matrices, minimized with the penalty here."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from polarmap.dtypes import FLOAT64_EPS, Floats
from polarmap.models.proximal_gradient import (
    FistaSteps,
    Problem,
    ProximalSteps,
    Solution,
    after_steps,
    penalty_value,
)

LARGEST_GRAM = 1000  # unknowns: beyond, what Newton steps solve here takes long
NEWTON_COLUMNS = 8  # for as many of a Gram matrix, all steps cost as much as an iteration of two products
MODEL_TOL = 1e-8  # of the gradient map of a model, relative to the largest one met
PROXIMAL_STEPS, NEWTON_STEPS, HALVINGS = 30, 30, 40
FIRST_SIGMA, GROWTH = 1e4, 10.0  # times the mean of the diagonal of H
TRIES = 3  # of a smaller sigma, where one leads no nearer
SLOPE = 1e-4  # the share of its slope by which a step lessens a function at the least
NUDGE = 1e-7  # relative, for the derivative of a prox


def first_iterations(operator: Any, start: Floats, max_iter: int) -> int:
    """How many iterations by gradients cost about as much as all Newton steps will: then it is their turn.

    So a fit costs at most about twice what it does by the better of the two. Without Gram matrices, as of a
    sparse X, or with many unknowns: all iterations.
    """
    outputs = start.size // len(start)
    if not hasattr(operator, "gram") or start.size > LARGEST_GRAM:
        return max_iter
    return min(max_iter, len(start) * outputs * (outputs + 1) // 2 // NEWTON_COLUMNS)


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
    """Minimize loss(A x) + penalty(x) by FISTA, then proximal Newton steps (Lee, Sun and Saunders, 2014).

    A step is a product A d, one A' u, and a Gram matrix A' diag(curvature) A, for several outputs one for
    each pair of these; a squared loss has the same all along. Parameters are as for `fista`; the operator
    has `gram(weights)`, the loss `hessian_product`; the prox of the penalty takes each number on its own.
    """
    problem, gradients = Problem(operator, loss, penalty), first_iterations(operator, start, max_iter)
    if not gradients:
        return after_steps(NewtonSteps(problem, start), tol, max_iter, callback)
    first = FistaSteps(problem, start)
    found = after_steps(first, tol, gradients, callback)
    if found.converged or gradients == max_iter:
        return found
    steps = NewtonSteps(problem, first.x)
    steps.count, steps.largest_map = first.count, first.largest_map
    return after_steps(steps, tol, max_iter, callback)


class NewtonSteps(ProximalSteps):
    """The Hessian at x, and the Gram matrices that it is made of.

    unit : of gradient maps, to which tol refers; by default the largest one met.
    """

    def __init__(self, problem: Problem, x: Floats, unit: float | None = None) -> None:
        super().__init__(problem, x)
        self._unit, self.largest_map = unit, unit or 0.0
        self._grams: dict[bytes, Floats] = {}  # by the weights of samples

    def step(self) -> None:
        """To the minimum of the model, or as much of the way as lessens the objective."""
        self._update_hessian()
        level, before = self.gradient_map(), self.objective
        self.largest_map = self._unit or max(self.largest_map, level)
        gradient, x = self.derivatives()[1], self.x.reshape(-1)
        model = QuadraticModel(self._hessian, gradient.reshape(-1), self.problem.penalty, x, self.curvature)
        move = model.minimum(min(MODEL_TOL * self.largest_map, level / 1000)).reshape(self.x.shape)
        change = self.problem.forward(move)
        length = self._length(move, change, float(np.sum(gradient * move)), before)
        self.x, self.eta, self.count = self.x + length * move, self.eta + length * change, self.count + 1
        self.map_norm = self.gradient_map()
        self.is_stuck = self.map_norm > level / 2 and self.objective >= before - 16 * FLOAT64_EPS * abs(
            before
        )

    def _rounding_of_map(self) -> float:
        """Also of a gradient that the penalty balances."""
        return 4 * super()._rounding_of_map() + 16 * FLOAT64_EPS * float(
            np.linalg.norm(self.derivatives()[1])
        )

    def _update_hessian(self) -> None:
        """That at x, and a bound of its largest eigenvalue; weights that stay keep their Gram matrix."""
        outputs, features, eta = self.eta.size // len(self.eta), len(self.x), self.eta
        columns = [
            column
            for one in np.eye(outputs)
            for column in self._curvature_along(np.broadcast_to(one, (len(eta), outputs)).reshape(eta.shape))
        ]
        known, self._grams = self._grams, {}
        keys = [column.tobytes() for column in columns]
        for key, column in zip(keys, columns):
            if key not in self._grams:
                self._grams[key] = known[key] if key in known else self._gram(column)
        pairs = np.stack([self._grams[key] for key in keys])
        pairs = pairs.reshape(outputs, outputs, features, features).transpose(2, 0, 3, 1)
        self._hessian = pairs.reshape(self.x.size, self.x.size)
        self.curvature = float(np.abs(self._hessian).sum(axis=1).max()) or 1.0

    def _curvature_along(self, direction: Floats) -> Floats:
        """The loss's Hessian of each sample times a direction: (outputs, samples)."""
        return np.asarray(self.problem.loss.hessian_product(self.eta, direction)).reshape(len(self.eta), -1).T

    def _gram(self, weights: Floats) -> Floats:
        """No product where all weights are 0."""
        if not weights.any():
            return np.zeros((len(self.x), len(self.x)))
        return np.asarray(self.problem.operator.gram(weights))

    def _length(self, move: Floats, change: Floats, slope: float, before: float) -> float:
        """The share of a step that lessens the objective enough; products are linear: none is needed."""
        penalty = self.problem.penalty
        slope += penalty_value(penalty, (self.x + move).reshape(-1)) - penalty_value(
            penalty, self.x.reshape(-1)
        )
        for halving in range(HALVINGS):
            length = 0.5**halving
            after = self.problem.objective(self.x + length * move, self.eta + length * change)
            if after <= before + SLOPE * length * slope + 4 * FLOAT64_EPS * abs(before):
                return length
        return 0.0


class QuadraticModel:
    """d'Hd / 2 + gradient'd + penalty(x + d) of moves d from x: near the minimum, nothing cancels.

    curvature : no less than the largest eigenvalue of H.
    """

    def __init__(self, H: Floats, gradient: Floats, penalty: Any, x: Floats, curvature: float) -> None:
        self._H, self._gradient, self._curvature = H, gradient, curvature
        self._penalty, self._x = penalty, x

    def minimum(self, tol: float) -> Floats:
        """Where the norm of the gradient map is at most tol, or as small as rounding lets it be.

        By proximal points, each nearer to the minimum of the model than the one before (Rockafellar, 1976).
        """
        unit, d = 1.0 / (float(np.trace(self._H)) / len(self._x) or 1.0), np.zeros(len(self._x))
        sigma, least, tries = FIRST_SIGMA * unit, self._map_norm(d), 0
        for _ in range(PROXIMAL_STEPS):
            if least <= max(tol, self._rounding(d)) or tries == TRIES:
                break
            point, is_minimum = self._proximal_point(d, sigma, tol)
            found = self._map_norm(point)
            tries += 1
            if found < least:
                d, least, tries = point, found, 0
            # Far from the minimum, Newton's steps to the point of a large sigma come to nothing.
            sigma = GROWTH * sigma if is_minimum and tries == 0 else sigma / GROWTH**2
        return d

    def _prox(self, d: Floats, tau: float) -> Floats:
        """That of the penalty, as a move."""
        return np.asarray(self._penalty.prox(self._x + d, tau) - self._x)

    def _map_norm(self, d: Floats) -> float:
        """Norm of the gradient map."""
        L = self._curvature
        return L * float(np.linalg.norm(d - self._prox(d - (self._H @ d + self._gradient) / L, 1.0 / L)))

    def _rounding(self, d: Floats) -> float:
        sizes = self._curvature * float(np.linalg.norm(d)) + float(np.linalg.norm(self._gradient))
        return 16 * FLOAT64_EPS * sizes

    def _proximal_point(self, centre: Floats, sigma: float, tol: float) -> tuple[Floats, bool]:
        """The p that minimizes the model + |p - centre|^2 / (2 sigma), and whether it was reached.

        By its dual, smooth and convex in z, of which Hz + gradient is the slope at p: semismooth Newton
        steps, whose system has the numbers that the prox lets move (Li, Sun and Toh, 2018).
        """
        z, Hz = centre, self._H @ centre
        value, p, slopes = self._dual(z, Hz, centre, sigma)
        for _ in range(NEWTON_STEPS):
            if np.linalg.norm(Hz - self._H @ p) <= tol / 10:
                return p, True
            step = self._newton_step(p - z, sigma * slopes)
            change = self._H @ step
            slope = float((z - p) @ change)
            for halving in range(HALVINGS):
                length = 0.5**halving
                found = self._dual(z + length * step, Hz + length * change, centre, sigma)
                if found[0] <= value + SLOPE * length * slope + 4 * FLOAT64_EPS * abs(value):
                    break
            z, Hz = z + length * step, Hz + length * change
            value, p, slopes = found
            if slope >= -FLOAT64_EPS * abs(value):
                return p, True
        return p, False

    def _dual(self, z: Floats, Hz: Floats, centre: Floats, sigma: float) -> tuple[float, Floats, Floats]:
        """The dual function, the p of z, and by how much each number of p moves with what it is a prox of."""
        slope = Hz + self._gradient
        v = centre - sigma * slope
        p = self._prox(v, sigma)
        nearness = float(np.sum((p - centre) ** 2)) / (2 * sigma)
        value = float(z @ Hz) / 2 - penalty_value(self._penalty, self._x + p) - float(slope @ p) - nearness
        size = np.abs(v) + np.abs(self._x)
        nudge = NUDGE * (size + 1e-6 * float(size.max(initial=0.0)) + math.ulp(0.0))
        return value, p, np.clip((self._prox(v + nudge, sigma) - p) / nudge, 0.0, 1.0)

    def _newton_step(self, residual: Floats, moves: Floats) -> Floats:
        """The s with s + moves * (H s) = residual."""
        free = moves > 0
        rows, step = self._H[free], residual.copy()
        right = residual[free] - moves[free] * (rows[:, ~free] @ residual[~free])
        step[free] = np.linalg.solve(np.eye(len(rows)) + moves[free, np.newaxis] * rows[:, free], right)
        return step
