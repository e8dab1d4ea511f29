"""Least norms over a box by an interior point method, whose systems are those of weighted Gram matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from polarmap.dtypes import FLOAT64_EPS, Floats
from polarmap.models.penalties import LinearOnBox
from polarmap.models.proximal_gradient import Solution, after_steps

SHORTEST_START = 0.1  # of the way from 0 to the middle of the box: next to a bound all steps are short
LEAST_PULL = 1e-3  # of the slope at 0, where the gradient is nothing
FIRST_MULTIPLIERS = 0.1  # times the mean size of the gradient
TO_THE_BOUNDARY = 0.99  # of the way, at the most
WAITING = 1e-3  # of the gap of the column that is last: columns that are further wait
PATIENCE = 5  # iterations that get no closer
LARGEST_WEIGHT = 1e7  # of these steps: they get as far by several, in systems that have digits
REFINEMENTS = 3  # of the numbers between the bounds, while they are not near enough


def interior_point(
    operator: Any,
    penalty: LinearOnBox,
    shape: tuple[int, int],
    *,
    tol: float,
    max_iter: int,
    callback: Callable[[float, float], None] | None = None,
) -> Solution:
    """Minimize |A' x|^2 / 2 + penalty(x) by Mehrotra's predictor and corrector (1992), column by column.

    An iteration is four products, and a Gram matrix A' diag(weights) A for each column. Parameters are as
    for `fista`, but the operator is A, and has `gram(weights)`. Its rows are of norm 1; the box holds 0.
    """
    return after_steps(_InteriorSteps(operator, penalty, shape), tol, max_iter, callback)


class _Direction(NamedTuple):
    """Changes of x and of the multipliers of both bounds."""

    x: Floats
    of_lower: Floats
    of_upper: Floats


class _InteriorSteps:
    """A point within the box, its distance to both bounds, and positive multipliers of these.

    The gradient is the difference of the multipliers, all the way.
    """

    def __init__(self, operator: Any, penalty: LinearOnBox, shape: tuple[int, int]) -> None:
        self._operator, self.count, self.is_stuck = operator, 0, False
        self._lower, self._upper, self._slope = (
            part.reshape(shape) for part in (penalty.lower, penalty.upper, penalty.slope)
        )
        middle, room = (self._lower + self._upper) / 2, FLOAT64_EPS * float((self._upper - self._lower).max())
        image, curved = self._products(middle)
        # The shortest way down from 0 along that to the middle.
        fall, square = -np.sum(self._slope * middle, axis=0), np.sum(image**2, axis=0)
        share = np.clip(fall / np.where(square > 0, square, 1.0), SHORTEST_START, 1.0)
        self.x, self._image, self._gradient = share * middle, share * image, share * curved + self._slope
        # A bound of 0 on both sides leaves no interior.
        self._below, self._above = self.x - self._lower + room, self._upper - self.x + room
        room = np.minimum(self._below, self._above)
        pull = np.abs(self._gradient).mean(axis=0) + LEAST_PULL * np.abs(self._slope).mean(axis=0)
        pull[pull == 0] = 1.0
        least = FIRST_MULTIPLIERS * pull * room.mean(axis=0) / room
        self._of_lower = np.maximum(self._gradient, 0.0) + least
        self._of_upper = self._of_lower - self._gradient
        self._totals, self._waited = self._products_of_pairs(), 0
        self._nearest = self.gap, self.x

    def _products(self, x: Floats) -> tuple[Floats, Floats]:
        image = np.asarray(self._operator.rmatmat(x))
        return image, np.asarray(self._operator.matmat(image))

    @property
    def objective(self) -> float:
        """Where the iteration is."""
        return float(np.sum(self._image**2) / 2 + np.sum(self._slope * self.x))

    @property
    def map_norm(self) -> float:
        """Norm of the gradient map for steps of length 1."""
        return float(np.linalg.norm(self.x - np.clip(self.x - self._gradient, self._lower, self._upper)))

    @property
    def gap(self) -> float:
        """To the dual point A'x (Fenchel, Rockafellar)."""
        room = np.where(self._gradient > 0, self.x - self._lower, self.x - self._upper)
        return float(np.maximum(0.0, np.sum(self._gradient * room)))  # NaN stays what it is

    def has_converged(self, tol: float) -> bool:
        """By products with x itself: in those of its steps rounding adds up."""
        if self._is_near(tol):
            self._set(self.x)
        return self._is_near(tol)

    def _is_near(self, tol: float) -> bool:
        """By the gap, or where it is no more than rounding."""
        rounding = 16 * FLOAT64_EPS * float(np.sum(np.abs(self._slope * self.x)))
        return self.gap <= max(tol * abs(self.objective), rounding)

    def step(self) -> None:
        """To where the products of distances and multipliers are smaller, and equal."""
        weights = self._weights()
        late = self._totals >= WAITING * self._totals.max()
        systems = self._systems(weights, late)
        predicted = self._direction(self._predicted(systems, weights), 0.0, 0.0)
        mean = self._mean_product(predicted, 0.0)
        target = mean * (self._mean_product(predicted, self._longest(predicted)) / mean) ** 3
        lower = target - predicted.x * predicted.of_lower
        upper = target + predicted.x * predicted.of_upper
        right = lower / self._below - upper / self._above - self._gradient
        x, image, curved = self._newton(systems, weights, right)
        corrected = self._direction(x, lower, upper)
        share = late * np.minimum(1.0, TO_THE_BOUNDARY * self._longest(corrected))
        self._go(corrected, share)
        self._image, self._gradient = self._image + share * image, self._gradient + share * curved
        if self.gap < self._nearest[0]:
            self._nearest = self.gap, self.x
        before, self._totals = self._totals, self._products_of_pairs()
        self._waited = 0 if self._totals.max() < 0.99 * before.max() else self._waited + 1
        # The gap is no more than that, but for rounding.
        self.is_stuck = self._waited >= PATIENCE or self.gap > 2 * self._totals.sum()

    def _products_of_pairs(self) -> Floats:
        """The sum of distances times multipliers, of each column."""
        return np.asarray(np.sum(self._below * self._of_lower + self._above * self._of_upper, axis=0))

    def solution(self, tol: float) -> Solution:
        """With the numbers that go to a bound on it, if that is near enough to the minimum, too."""
        gap, inside = self._nearest
        pull, width = np.abs(self._slope).mean(axis=0), self._upper - self._lower
        goes_down = self._below * pull <= self._of_lower * width
        goes_up = self._above * pull <= self._of_upper * width
        weights = np.where(goes_down | goes_up, 0.0, np.minimum(LARGEST_WEIGHT, self._weights()))
        self._set(np.where(goes_up, self._upper, np.where(goes_down, self._lower, inside)))
        systems = self._systems(weights)
        for _ in range(REFINEMENTS):
            self._set(self.x + self._newton(systems, weights, -self._gradient)[0])
            if self._is_near(tol):
                break
        if not self._is_near(tol) and not self.gap < gap:
            self._set(inside)
        return Solution(self.x, self.objective, self.gap, self.map_norm, self.count, self._is_near(tol))

    def _set(self, x: Floats) -> None:
        """Go to the point of the box that is next to x."""
        self.x = np.clip(x, self._lower, self._upper)
        self._image, curved = self._products(self.x)
        self._gradient = curved + self._slope

    def _weights(self) -> Floats:
        return np.asarray(1.0 / (self._of_lower / self._below + self._of_upper / self._above))

    def _systems(self, weights: Floats, late: Any = True) -> Floats:
        """1 + A' diag(weights) A for each column that is late, 1 for others; more where 1 is rounding."""
        one = np.eye(self._operator.shape[1])
        systems = np.tile(one, (self.x.shape[1], 1, 1))
        for column in np.flatnonzero(late & weights.any(axis=0)):
            gram = self._operator.gram(weights[:, column])
            systems[column] = max(1.0, FLOAT64_EPS * float(np.trace(gram))) * one + gram
        return systems

    def _predicted(self, systems: Floats, weights: Floats) -> Floats:
        """Newton's x to where no distance times its multiplier is left, but for second order.

        Image and gradient, of which its right side is made, are had anew by the same two products: in the
        sums of steps rounding adds up.
        """
        products = np.asarray(self._operator.rmatmat(np.hstack([self.x, weights * self._slope])))
        self._image, pull = np.hsplit(products, 2)
        image = _solved(systems, self._image - pull)
        curved, after = np.hsplit(np.asarray(self._operator.matmat(np.hstack([self._image, image]))), 2)
        self._gradient = curved + self._slope
        return -weights * (after + self._slope)

    def _newton(self, systems: Floats, weights: Floats, right: Floats) -> tuple[Floats, Floats, Floats]:
        """The x with A A'x + x / weights = right, where weights are not 0, and its products."""
        image = _solved(systems, np.asarray(self._operator.rmatmat(weights * right)))
        curved = np.asarray(self._operator.matmat(image))
        return weights * (right - curved), image, curved

    def _direction(self, x: Floats, lower: Any, upper: Any) -> _Direction:
        """To where distances times multipliers are `lower` and `upper`, but for second order."""
        of_lower = (lower - self._of_lower * x) / self._below - self._of_lower
        of_upper = (upper + self._of_upper * x) / self._above - self._of_upper
        return _Direction(x, of_lower, of_upper)

    def _longest(self, direction: _Direction) -> Floats:
        """How much of it keeps all distances and multipliers positive, for each column."""
        shares = [np.ones(self.x.shape[1])]
        for value, change in (
            (self._below, direction.x),
            (self._above, -direction.x),
            (self._of_lower, direction.of_lower),
            (self._of_upper, direction.of_upper),
        ):
            ratios = np.full_like(value, np.inf)
            np.divide(value, -change, out=ratios, where=change < 0)
            shares.append(ratios.min(axis=0))
        return np.asarray(np.min(shares, axis=0))

    def _mean_product(self, direction: _Direction, share: Any) -> Floats:
        """Of distances and multipliers, after a share of a direction."""
        below, above = self._below + share * direction.x, self._above - share * direction.x
        of_lower = self._of_lower + share * direction.of_lower
        of_upper = self._of_upper + share * direction.of_upper
        return np.asarray(np.mean(below * of_lower + above * of_upper, axis=0) / 2)

    def _go(self, direction: _Direction, share: Floats) -> None:
        self.x = self.x + share * direction.x
        self._below, self._above = self._below + share * direction.x, self._above - share * direction.x
        self._of_lower = self._of_lower + share * direction.of_lower
        self._of_upper = self._of_upper + share * direction.of_upper
        self.count += 1


def _solved(systems: Floats, right: Floats) -> Floats:
    """Of each column the solution of its system."""
    return np.asarray(np.linalg.solve(systems, right.T[..., np.newaxis])[..., 0].T)
