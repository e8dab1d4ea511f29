"""ReLU networks by an interior point: units within their cones, and norms of their weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from scipy.sparse.linalg import LinearOperator, cg

from polarmap.dtypes import FLOAT64_EPS, Floats
from polarmap.models.cones import ConeLoss
from polarmap.models.gates import GatedOperator
from polarmap.models.penalties import GroupNorms
from polarmap.models.proximal_gradient import Solution, after_steps

LARGEST_SYSTEM = 1000  # weights of an output and sign, beyond which gates are coupled by products
LARGEST_GRAMS = 30_000_000  # numbers in one of each sign, gate and output: 240 MB, and some copies
SHRINK = 0.1  # of the mean product of a distance and its multiplier, which a step aims at
BALANCED = 0.1  # of alpha: the most that slopes and norms lack of each other when products get smaller
INEXACT = 0.1  # of what is not yet balanced, and then of alpha times the relative gap: the error of a step
CONJUGATE_STEPS = 100  # at the most, where some ten are enough
TO_THE_BOUNDARY = 0.97  # of the way, at the most
GROWTH = 0.5  # of the length of a column, by which it changes at the most until slopes are balanced
PATIENCE = 8  # iterations that get no closer
UNUSED = 10.0  # times the norm at which a unit that is of no use is held by its multipliers


def cone_interior_point(
    operator: Any,
    cones: ConeLoss,
    alpha: float,
    *,
    tol: float,
    max_iter: int,
    callback: Callable[[float, float], None] | None = None,
) -> Solution:
    """Minimize loss(A W) + alpha sum |W_c| over the columns of W with A W in the cones.

    Newton's method for the optimality of W and multipliers of the cones, whose products with the distances
    are all made equal and ever smaller. An iteration is a product with A, one with A' and Gram matrices of A;
    where outputs depend on each other, or gates are many, also some ten of both for conjugate gradients.
    Parameters as of `admm`, but the operator is A with a column of ones where units have a bias, and
    has `gram(weights)`.
    """
    return after_steps(_ConeSteps(operator, cones, alpha), tol, max_iter, callback)


class _ConeSteps:
    """Weights W whose A W lies within the cones, at these distances of their borders, and multipliers.

    Columns are those of both signs, gate by gate. A sample on the border of a gate bounds nothing.
    """

    is_stuck = False

    def __init__(self, operator: Any, cones: ConeLoss, alpha: float) -> None:
        self._operator, self._cones, self._alpha, self.count = operator, cones, alpha, 0
        self._loss, features = cones.loss, operator.shape[1]
        (samples, self._gates), self._outputs = cones.patterns.shape, cones.loss.shape[1]
        self._gated = GatedOperator(operator, cones.patterns)
        # Systems that are solved are Newton's own, or leave out how gates, and outputs, depend on each other.
        is_small = features * self._gates <= LARGEST_SYSTEM
        self._is_direct = is_small and self._loss.has_separate_outputs
        self._coupled_gates = self._gates if self._is_direct else 1
        self._open = np.repeat(cones.patterns, self._outputs, axis=1).astype(np.float64)
        self._signs = np.repeat([1.0, -1.0], self._open.shape[1])
        self._norms = GroupNorms(alpha, np.ones(features), len(self._signs))
        self._sides = np.tile(2.0 * self._open - 1.0, 2)
        self._bounds = np.tile(np.repeat(cones.margins > 0, self._outputs, axis=1), 2)
        total = self._loss.value(np.zeros(self._loss.shape))
        self._rounding = 16 * FLOAT64_EPS * (float(np.sum(self._loss.weights * self._loss.y**2)) or 1.0)
        self._product = max(total, self._rounding) / self._bounds.size
        # Where the norms, and the logarithms of the distances, are in balance.
        norms = samples * self._product / alpha
        directions = cones.interior / np.linalg.norm(cones.interior, axis=0)
        self.x = norms * np.tile(np.repeat(directions, self._outputs, axis=1), 2)
        self._image = np.asarray(operator.matmat(self.x))
        self._distances = np.where(self._bounds, self._sides * self._image, 1.0)
        self._multipliers = np.where(self._bounds, self._product / self._distances, 0.0)
        self._coupled_at, self._coupling = np.zeros(0), np.zeros(0)  # curvatures, and what follows of them
        self.bound, self._best, self._waited = -np.inf, (np.inf, self.x, self._image), 0
        self._look()

    @property
    def objective(self) -> float:
        """Where the iteration is."""
        return self._value(self.x, self._image)

    @property
    def gap(self) -> float:
        """The distance from the best bound to the best objective."""
        return max(0.0, self._best[0] - self.bound)

    def has_converged(self, tol: float) -> bool:
        """Whether the gap is small, or rounding."""
        return self.gap <= max(tol * self._best[0], self._rounding)

    def step(self) -> None:
        """To where all products of distances and multipliers are equal; smaller once the rest is balanced."""
        is_balanced = self._residual <= BALANCED * self._alpha
        target = SHRINK * self._product if is_balanced else self._product
        roots, lengths = self._roots_and_lengths()
        # How alpha w / t changes with what the products aim at.
        faster = (self._product - target) * (1.0 + self._product / roots) / lengths**2 * self.x
        gradient = self._slopes - target * self._push + self._alpha * self.x / lengths + faster
        near = self._alpha * min(1.0, self.gap / self._best[0]) if is_balanced else self._residual
        x = self._newton_step(self._own_derivatives(lengths, roots), -gradient, INEXACT * near)
        image = np.asarray(self._operator.matmat(x))
        apart = np.where(self._bounds, self._sides * image, 0.0)
        held = (target - self._multipliers * apart) / self._distances - self._multipliers
        held = np.where(self._bounds, held, 0.0)
        growth = float((np.linalg.norm(x, axis=0) / lengths).max())
        shares = _longest(self._distances, apart), _longest(self._multipliers, held)
        share = min(*shares, 1.0 if is_balanced else GROWTH / max(GROWTH, growth))
        self.x, self._image = self.x + share * x, self._image + share * image
        self._distances = self._distances + share * apart
        self._multipliers = self._multipliers + share * held
        self._product = float(np.mean((self._distances * self._multipliers)[self._bounds]))
        self.count += 1
        before = self.gap
        self._look()
        self._waited = 0 if self.gap < before else self._waited + 1
        self.is_stuck = self._waited >= PATIENCE

    def solution(self, tol: float) -> Solution:
        """The best, without units that are of no use, and moved into the cones as far as rounding led out."""
        _, x, image = self._best
        used = np.linalg.norm(x, axis=0) > UNUSED * len(image) * self._product / self._alpha
        if self._value(used * x, used * image) <= self._best[0]:
            x = used * x
        x, image = self._cones.feasible(x, np.asarray(self._operator.matmat(x)))
        objective = self._value(x, image)
        gap = max(0.0, objective - self.bound)
        is_near = gap <= max(tol * objective, self._rounding)
        return Solution(x, objective, gap, self.map_norm, self.count, is_near)

    def _value(self, x: Floats, image: Floats) -> float:
        """The loss and the norms at W = x, A W = image."""
        return self._cones.value(image) + self._norms(x.reshape(-1))

    def _roots_and_lengths(self) -> tuple[Floats, Floats]:
        """The t of each column that minimizes alpha t - product log(t^2 - |w|^2): |w| where that is 0.

        The gradient of that minimum is alpha w / t. Before it the root in the quadratic formula of t.
        """
        roots = np.hypot(self._product, self._alpha * np.linalg.norm(self.x, axis=0))
        return roots, (self._product + roots) / self._alpha

    def _look(self) -> None:
        """Slopes, by one product, and the bound that they and the multipliers give."""
        outputs = self._cones.outputs(self._image)
        slope, self._curved = self._loss.gradient(outputs), self._loss.curvatures(outputs)
        inward = np.where(self._bounds, self._sides / self._distances, 0.0)
        of_gates = [self._open * np.tile(each, self._gates) for each in (slope, self._curved)]
        columns = of_gates[0], self._sides * self._multipliers, inward, of_gates[1]
        product = np.asarray(self._operator.rmatmat(np.hstack(columns)))
        ends = np.cumsum([part.shape[1] for part in columns])[:-1]
        slopes, held, self._push, self._with_intercept = np.split(product, ends, axis=1)
        self._slopes = self._signs * np.tile(slopes, 2)
        rest = self._slopes - held
        residuals = np.linalg.norm(rest + self._alpha * self.x / self._roots_and_lengths()[1], axis=0)
        self.map_norm, self._residual = float(np.linalg.norm(residuals)), float(residuals.max())
        factor = self._norms.dual_scale(rest.reshape(-1))
        self.bound = max(self.bound, -self._loss.conjugate(factor * slope))
        if self.objective < self._best[0]:
            self._best = self.objective, self.x, self._image

    def _newton_step(self, own: Floats, right: Floats, enough: float) -> Floats:
        """Where the second derivatives of the objective become `right`, but for an error of norm `enough`.

        own : of each column, those of distances and norms.
        """
        solved = self._eliminated(own)
        if self._is_direct:
            return solved(right)
        shape, of_loss = (right.size,) * 2, self._loss.hessian(self._cones.outputs(self._image))
        hessian = LinearOperator(shape, partial(self._curved_along, own, of_loss), dtype=np.float64)
        near = LinearOperator(shape, lambda v: solved(v.reshape(right.shape)).reshape(-1), dtype=np.float64)
        step, _ = cg(hessian, right.reshape(-1), M=near, rtol=0.0, atol=enough, maxiter=CONJUGATE_STEPS)
        return np.reshape(step, right.shape)

    def _eliminated(self, own: Floats) -> Callable[[Floats], Floats]:
        """Solves systems of coupled gates, by the difference of both signs, which the loss sees."""
        plus, minus = np.split(own, 2)
        sums, features = plus + minus, len(self.x)
        inverses = np.linalg.inv(sums)
        from_plus, from_minus = minus @ inverses, plus @ inverses
        blocks, gate = self._coupling.copy(), np.arange(self._coupled_gates)
        shape = len(blocks), self._coupled_gates, self._outputs
        alone = (from_plus @ plus).reshape(*shape, features, features)
        blocks[:, :, gate, :, gate, :] += alone.swapaxes(0, 1)
        systems = blocks.reshape(*blocks.shape[:2], *(self._coupled_gates * features,) * 2)
        of_sums, of_systems = (_solver(each, self._is_direct) for each in (sums, systems))

        def solved(right: Floats) -> Floats:
            of_plus, of_minus = np.split(right.T[..., np.newaxis], 2)
            rows = (from_plus @ of_plus - from_minus @ of_minus).reshape(*shape, features).swapaxes(1, 2)
            joint = of_systems(rows.reshape(*systems.shape[:3], 1)).reshape(rows.shape).swapaxes(1, 2)
            apart = joint.reshape(of_plus.shape)
            x_minus = of_sums(of_plus + of_minus - plus @ apart)
            return np.concatenate([x_minus + apart, x_minus])[..., 0].T

        return solved

    def _curved_along(self, own: Floats, of_loss: Callable[[Floats], Floats], direction: Floats) -> Floats:
        """The second derivatives of the objective times a direction, by two products."""
        columns = direction.reshape(self.x.shape)
        plus, minus = np.hsplit(columns, 2)
        outputs = self._gated.matmat((plus - minus).reshape(-1, self._outputs))
        slopes = self._gated.rmatmat(of_loss(outputs)).reshape(plus.shape)
        within = (own @ columns.T[..., None])[..., 0].T
        return np.asarray(within + np.hstack([slopes, -slopes])).reshape(-1)

    def _own_derivatives(self, lengths: Floats, roots: Floats) -> Floats:
        """Second derivatives of distances and norms, of each column; also sets those of the loss."""
        features, columns = self.x.shape
        weights = self._multipliers / self._distances
        if not np.array_equal(self._curved, self._coupled_at):
            weights, self._coupled_at = np.hstack([weights, self._pair_weights()]), self._curved
        grams = np.moveaxis(np.asarray(self._operator.gram(weights)), 2, 0)
        if len(grams) > columns:
            self._coupling = self._coupled(grams[columns:])
        along = np.einsum("ac,bc->cab", self.x, self.x) * (self._alpha / (roots * lengths))[:, None, None]
        return np.asarray(
            grams[:columns] + (np.eye(features) - along) * (self._alpha / lengths)[:, None, None]
        )

    def _pair_weights(self) -> Floats:
        """Of samples, for the Gram matrices of pairs of gates that are coupled: of pair, group and output."""
        first, second = np.triu_indices(self._coupled_gates)
        gates = self._open.reshape(len(self._open), -1, self._coupled_gates, self._outputs)
        pairs = (gates[:, :, first] * gates[:, :, second]).swapaxes(1, 2)
        return (pairs * self._curved[:, None, None, :]).reshape(len(pairs), -1)

    def _coupled(self, grams: Floats) -> Floats:
        """The second derivatives of the loss, by such Gram matrices; the intercept of each output follows."""
        members, features = self._coupled_gates, len(self.x)
        groups, outputs = self._gates // members, self._outputs
        first, second = np.triu_indices(members)
        whole = np.empty((groups, outputs, members, features, members, features))
        pairs = grams.reshape(len(first), groups, outputs, features, features)
        whole[:, :, first, :, second, :] = pairs
        whole[:, :, second, :, first, :] = pairs.swapaxes(3, 4)
        if self._loss.fit_intercept:
            follows = self._with_intercept.reshape(features, groups, members, outputs)
            whole -= np.einsum("agmo,bgno->gomanb", follows, follows / self._curved.sum(axis=0))
        return whole


def _longest(values: Floats, changes: Floats) -> float:
    """How much of the changes keeps positive values positive."""
    falls = changes < 0
    return min(1.0, TO_THE_BOUNDARY * float(np.min(values[falls] / -changes[falls], initial=np.inf)))


def _solver(systems: Any, is_used_once: bool) -> Callable[[Floats], Floats]:
    """Solves systems, again and again by their inverses, which have fewer digits."""
    if is_used_once:
        return partial(np.linalg.solve, systems)
    inverses: Floats = np.linalg.inv(systems)
    return lambda right: np.asarray(inverses @ right)
