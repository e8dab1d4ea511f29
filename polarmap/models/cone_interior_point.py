"""ReLU networks of one output by an interior point: units within their cones, and norms of their weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from polarmap.codes.dtypes import EPS, Floats
from polarmap.models.cones import ConeLoss
from polarmap.models.penalties import GroupNorms
from polarmap.models.proximal_gradient import Solution, after_steps

LARGEST_SYSTEM = 2000  # unknowns, of which Newton's systems are solved as dense ones
SHRINK = 0.1  # of the mean product of a distance and its multiplier, which a step aims at
BALANCED = 0.1  # of alpha: the most that slopes and norms lack of each other when products get smaller
TO_THE_BOUNDARY = 0.97  # of the way, at the most
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
    """Minimize loss(A W) + alpha sum |W_c| over the columns of W with A W in the cones, for one output.

    Newton's method for the optimality of W and multipliers of the cones, whose products with the distances
    are all made equal and ever smaller. An iteration is a product with A, one with A' and Gram matrices of A.
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
        self._loss, samples = cones.loss, len(cones.patterns)
        self._open = cones.patterns.astype(np.float64)
        self._signs = np.repeat([1.0, -1.0], self._open.shape[1])
        self._norms = GroupNorms(alpha, np.ones(operator.shape[1]), len(self._signs))
        self._sides = np.tile(2.0 * self._open - 1.0, 2)
        self._bounds = np.tile(cones.margins > 0, 2)
        total = self._loss.value(np.zeros(self._loss.shape))
        self._rounding = 16 * EPS * (float(np.sum(self._loss.weights * self._loss.y**2)) or 1.0)
        self._product = max(total, self._rounding) / self._bounds.size
        # Where the norms, and the logarithms of the distances, are in balance.
        norms = samples * self._product / alpha
        self.x = np.tile(norms * cones.interior / np.linalg.norm(cones.interior, axis=0), 2)
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
        system = self._system(lengths, roots)
        x = -np.linalg.solve(system, gradient.T.reshape(-1)).reshape(gradient.T.shape).T
        image = np.asarray(self._operator.matmat(x))
        apart = np.where(self._bounds, self._sides * image, 0.0)
        held = (target - self._multipliers * apart) / self._distances - self._multipliers
        held = np.where(self._bounds, held, 0.0)
        share = min(_longest(self._distances, apart), _longest(self._multipliers, held))
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
        slope = self._loss.gradient(outputs)
        mean = outputs + self._loss.intercept(outputs)
        self._curved = self._loss.hessian_product(mean, np.ones_like(mean))
        inward = np.where(self._bounds, self._sides / self._distances, 0.0)
        columns = self._open * slope, self._sides * self._multipliers, inward, self._open * self._curved
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

    def _system(self, lengths: Floats, roots: Floats) -> Floats:
        """The second derivatives, of columns one after another: of the loss, the distances and the norms."""
        features, columns = self.x.shape
        weights = self._multipliers / self._distances
        if not np.array_equal(self._curved, self._coupled_at):
            first, second = np.triu_indices(self._open.shape[1])
            pairs = self._curved * self._open[:, first] * self._open[:, second]
            weights, self._coupled_at = np.hstack([weights, pairs]), self._curved
        grams = np.moveaxis(np.asarray(self._operator.gram(weights)), 2, 0)
        if len(grams) > columns:
            self._coupling = self._coupled(grams[columns:])
        blocks = self._coupling.copy().reshape(columns, features, columns, features)
        each = np.arange(columns)
        along = np.einsum("ac,bc->cab", self.x, self.x) * (self._alpha / (roots * lengths))[:, None, None]
        norms = (np.eye(features) - along) * (self._alpha / lengths)[:, None, None]
        blocks[each, :, each, :] += grams[:columns] + norms
        return blocks.reshape(self._coupling.shape)

    def _coupled(self, grams: Floats) -> Floats:
        """The second derivatives of the loss, by Gram matrices of pairs of gates; the intercept follows."""
        gates, features = self._open.shape[1], self.x.shape[0]
        first, second = np.triu_indices(gates)
        whole = np.empty((gates, features, gates, features))
        whole[first, :, second, :] = grams
        whole[second, :, first, :] = grams.swapaxes(1, 2)
        if self._loss.fit_intercept:
            follows = self._with_intercept.T
            whole -= follows[:, :, None, None] * follows / float(self._curved.sum())
        signs = np.array([[1.0, -1.0], [-1.0, 1.0]])
        coupling: Floats = np.kron(signs, whole.reshape(gates * features, -1))
        return coupling


def _longest(values: Floats, changes: Floats) -> float:
    """How much of the changes keeps positive values positive."""
    falls = changes < 0
    return min(1.0, TO_THE_BOUNDARY * float(np.min(values[falls] / -changes[falls], initial=np.inf)))
