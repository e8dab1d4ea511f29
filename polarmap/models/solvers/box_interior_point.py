"""Least norms over a box by an interior point method, whose systems are those of weighted Gram matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from polarmap.dtypes import FLOAT64_EPS, Floats
from polarmap.models.penalties import LinearBoxPenalty
from polarmap.models.solvers.solver import Solution, run_solver

MIN_START_FRACTION = 0.1  # of the way from 0 to the middle of the box: next to a bound all steps are short
MIN_GRADIENT_SCALE = 1e-3  # of the slope at 0, where the gradient is nothing
INITIAL_MULTIPLIER_SCALE = 0.1  # times the mean size of the gradient
FRACTION_TO_BOUNDARY = 0.99  # of the way, at the most
INACTIVE_TOL = 1e-3  # of the gap of the column that is last: columns that are further wait
MAX_STALLED_ITERATIONS = 5  # iterations that get no closer
MAX_WEIGHT = 1e7  # of these steps: they get as far by several, in systems that have digits
MAX_REFINEMENTS = 3  # of the numbers between the bounds, while they are not near enough


def box_interior_point(
    operator: Any,
    penalty: LinearBoxPenalty,
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
    return run_solver(_MehrotraSolver(operator, penalty, shape, tol), max_iter, callback)


class _Direction(NamedTuple):
    """Changes of x and of the multipliers of both bounds."""

    x: Floats
    multipliers_lower: Floats
    multipliers_upper: Floats


class _MehrotraSolver:
    """A point within the box, its distance to both bounds, and positive multipliers of these.

    The gradient is the difference of the multipliers, all the way.
    """

    def __init__(self, operator: Any, penalty: LinearBoxPenalty, shape: tuple[int, int], tol: float) -> None:
        self._operator, self._tol, self.n_iter = operator, tol, 0
        self.has_converged = self.has_stalled = False
        self._lower, self._upper = penalty.lower.reshape(shape), penalty.upper.reshape(shape)
        self._slope = penalty.slope.reshape(shape)
        middle = (self._lower + self._upper) / 2
        image, gram_product = self._multiply_by_gram(middle)
        # The shortest way down from 0 along that to the middle.
        descent, squared_norm = -np.sum(self._slope * middle, axis=0), np.sum(image**2, axis=0)
        step_length = descent / np.where(squared_norm > 0, squared_norm, 1.0)
        step_length = np.clip(step_length, MIN_START_FRACTION, 1.0)
        self.x, self._image = step_length * middle, step_length * image
        self._gradient = step_length * gram_product + self._slope
        # A bound of 0 on both sides leaves no interior.
        min_slack = FLOAT64_EPS * float((self._upper - self._lower).max())
        self._slack_lower = self.x - self._lower + min_slack
        self._slack_upper = self._upper - self.x + min_slack
        slack = np.minimum(self._slack_lower, self._slack_upper)
        slope_scale = np.abs(self._slope).mean(axis=0)
        gradient_scale = np.abs(self._gradient).mean(axis=0) + MIN_GRADIENT_SCALE * slope_scale
        gradient_scale[gradient_scale == 0] = 1.0
        min_multipliers = INITIAL_MULTIPLIER_SCALE * gradient_scale * slack.mean(axis=0) / slack
        self._multipliers_lower = np.maximum(self._gradient, 0.0) + min_multipliers
        self._multipliers_upper = self._multipliers_lower - self._gradient
        self._complementarity_sums, self._n_stalled = self._sum_complementarity(), 0
        self._best_solution, self._best_gap = self._describe_iterate(), self.dual_gap

    def _multiply_by_gram(self, x: Floats) -> tuple[Floats, Floats]:
        image = np.asarray(self._operator.rmatmat(x))
        return image, np.asarray(self._operator.matmat(image))

    @property
    def objective(self) -> float:
        """Where the iteration is."""
        return float(np.sum(self._image**2) / 2 + np.sum(self._slope * self.x))

    @property
    def optimality(self) -> float:
        """Norm of the gradient map for steps of length 1."""
        return float(np.linalg.norm(self.x - np.clip(self.x - self._gradient, self._lower, self._upper)))

    @property
    def dual_gap(self) -> float:
        """To the dual point A'x (Fenchel, Rockafellar)."""
        distance = np.where(self._gradient > 0, self.x - self._lower, self.x - self._upper)
        return float(np.maximum(0.0, np.sum(self._gradient * distance)))  # NaN stays what it is

    def _describe_iterate(self) -> Solution:
        return Solution(
            self.x, self.objective, self.dual_gap, self.optimality, self.n_iter, self._is_optimal()
        )

    def _is_optimal(self) -> bool:
        """Return whether the gap is at most `tol` times the objective, or no more than rounding."""
        rounding = 16 * FLOAT64_EPS * float(np.sum(np.abs(self._slope * self.x)))
        return self.dual_gap <= max(self._tol * abs(self.objective), rounding)

    def step(self) -> None:
        """Move to where the products of distances and multipliers are smaller, and equal."""
        self._take_predictor_corrector_step()
        if self._is_optimal():
            # Products with x itself decide: rounding adds up in the sums of the products of the steps.
            self._move_to_box_point(self.x)
            self.has_converged = self._is_optimal()

    def _take_predictor_corrector_step(self) -> None:
        weights = self._compute_newton_weights()
        active_mask = self._complementarity_sums >= INACTIVE_TOL * self._complementarity_sums.max()
        systems = self._build_newton_systems(weights, active_mask)
        affine_direction = self._complete_direction(self._compute_affine_step(systems, weights), 0.0, 0.0)
        mu = self._compute_duality_measure_after(affine_direction, 0.0)
        max_step_length = self._compute_max_step_length(affine_direction)
        affine_mu = self._compute_duality_measure_after(affine_direction, max_step_length)
        target_mu = mu * (affine_mu / mu) ** 3
        target_lower = target_mu - affine_direction.x * affine_direction.multipliers_lower
        target_upper = target_mu + affine_direction.x * affine_direction.multipliers_upper
        rhs = target_lower / self._slack_lower - target_upper / self._slack_upper - self._gradient
        x, image, gram_product = self._solve_newton(systems, weights, rhs)
        direction = self._complete_direction(x, target_lower, target_upper)
        max_step_length = self._compute_max_step_length(direction)
        step_length = active_mask * np.minimum(1.0, FRACTION_TO_BOUNDARY * max_step_length)
        self._take_step(direction, step_length)
        self._image = self._image + step_length * image
        self._gradient = self._gradient + step_length * gram_product
        if self.dual_gap < self._best_gap:
            self._best_solution, self._best_gap = self._describe_iterate(), self.dual_gap
        previous_sums, self._complementarity_sums = self._complementarity_sums, self._sum_complementarity()
        has_progressed = self._complementarity_sums.max() < 0.99 * previous_sums.max()
        self._n_stalled = 0 if has_progressed else self._n_stalled + 1
        # The gap is no more than that, but for rounding.
        has_lost_digits = self.dual_gap > 2 * self._complementarity_sums.sum()
        self.has_stalled = self._n_stalled >= MAX_STALLED_ITERATIONS or has_lost_digits

    def _sum_complementarity(self) -> Floats:
        """The sum of distances times multipliers, of each column."""
        products_lower = self._slack_lower * self._multipliers_lower
        products_upper = self._slack_upper * self._multipliers_upper
        return np.asarray(np.sum(products_lower + products_upper, axis=0))

    def polish(self) -> None:
        """Put the numbers that approach a bound on it, if that point is near enough to the minimum too."""
        slope_scale, width = np.abs(self._slope).mean(axis=0), self._upper - self._lower
        at_lower_mask = self._slack_lower * slope_scale <= self._multipliers_lower * width
        at_upper_mask = self._slack_upper * slope_scale <= self._multipliers_upper * width
        weights = np.minimum(MAX_WEIGHT, self._compute_newton_weights())
        weights = np.where(at_lower_mask | at_upper_mask, 0.0, weights)
        x = np.where(at_lower_mask, self._lower, self._best_solution.x)
        self._move_to_box_point(np.where(at_upper_mask, self._upper, x))
        systems = self._build_newton_systems(weights)
        for _ in range(MAX_REFINEMENTS):
            self._move_to_box_point(self.x + self._solve_newton(systems, weights, -self._gradient)[0])
            if self._is_optimal():
                break
        if not self._is_optimal() and not self.dual_gap < self._best_gap:
            self._move_to_box_point(self._best_solution.x)
        self._best_solution, self._best_gap = self._describe_iterate(), self.dual_gap

    def make_solution(self) -> Solution:
        """Return the iterate of the smallest gap, or the one that `polish` has found."""
        return self._best_solution._replace(n_iter=self.n_iter)

    def _move_to_box_point(self, x: Floats) -> None:
        """Move to the point of the box that is closest to x."""
        x = np.clip(x, self._lower, self._upper)
        self._image, gram_product = self._multiply_by_gram(x)
        self.x, self._gradient = x, gram_product + self._slope

    def _compute_newton_weights(self) -> Floats:
        ratios_lower = self._multipliers_lower / self._slack_lower
        ratios_upper = self._multipliers_upper / self._slack_upper
        return np.asarray(1.0 / (ratios_lower + ratios_upper))

    def _build_newton_systems(self, weights: Floats, active_mask: Any = True) -> Floats:
        """1 + A' diag(weights) A for each column that is late, 1 for others; more where 1 is rounding."""
        identity = np.eye(self._operator.shape[1])
        systems = np.tile(identity, (self.x.shape[1], 1, 1))
        for column in np.flatnonzero(active_mask & weights.any(axis=0)):
            gram = self._operator.gram(weights[:, column])
            systems[column] = max(1.0, FLOAT64_EPS * float(np.trace(gram))) * identity + gram
        return systems

    def _compute_affine_step(self, systems: Floats, weights: Floats) -> Floats:
        """Newton's x to where no distance times its multiplier is left, but for second order.

        Image and gradient, of which its right side is made, are had anew by the same two products: in the
        sums of steps rounding adds up.
        """
        products = np.asarray(self._operator.rmatmat(np.hstack([self.x, weights * self._slope])))
        self._image, slope_image = np.hsplit(products, 2)
        image = _solve_columns(systems, self._image - slope_image)
        gram_products = np.asarray(self._operator.matmat(np.hstack([self._image, image])))
        gram_product, predicted_gram_product = np.hsplit(gram_products, 2)
        self._gradient = gram_product + self._slope
        return -weights * (predicted_gram_product + self._slope)

    def _solve_newton(self, systems: Floats, weights: Floats, rhs: Floats) -> tuple[Floats, Floats, Floats]:
        """The x with A A'x + x / weights = right, where weights are not 0, and its products."""
        image = _solve_columns(systems, np.asarray(self._operator.rmatmat(weights * rhs)))
        gram_product = np.asarray(self._operator.matmat(image))
        return weights * (rhs - gram_product), image, gram_product

    def _complete_direction(self, x: Floats, target_lower: Any, target_upper: Any) -> _Direction:
        """To where distances times multipliers are `target_lower` and `target_upper`, but for second
        order.
        """
        lower, upper = self._multipliers_lower, self._multipliers_upper
        lower_change = (target_lower - lower * x) / self._slack_lower - lower
        upper_change = (target_upper + upper * x) / self._slack_upper - upper
        return _Direction(x, lower_change, upper_change)

    def _compute_max_step_length(self, direction: _Direction) -> Floats:
        """How much of it keeps all distances and multipliers positive, for each column."""
        step_lengths = [np.ones(self.x.shape[1])]
        for value, change in (
            (self._slack_lower, direction.x),
            (self._slack_upper, -direction.x),
            (self._multipliers_lower, direction.multipliers_lower),
            (self._multipliers_upper, direction.multipliers_upper),
        ):
            ratios = np.full_like(value, np.inf)
            np.divide(value, -change, out=ratios, where=change < 0)
            step_lengths.append(ratios.min(axis=0))
        return np.asarray(np.min(step_lengths, axis=0))

    def _compute_duality_measure_after(self, direction: _Direction, step_length: Any) -> Floats:
        """Of distances and multipliers, after a share of a direction."""
        slack_lower = self._slack_lower + step_length * direction.x
        slack_upper = self._slack_upper - step_length * direction.x
        multipliers_lower = self._multipliers_lower + step_length * direction.multipliers_lower
        multipliers_upper = self._multipliers_upper + step_length * direction.multipliers_upper
        products = slack_lower * multipliers_lower + slack_upper * multipliers_upper
        return np.asarray(np.mean(products, axis=0) / 2)

    def _take_step(self, direction: _Direction, step_length: Floats) -> None:
        self.x = self.x + step_length * direction.x
        self._slack_lower = self._slack_lower + step_length * direction.x
        self._slack_upper = self._slack_upper - step_length * direction.x
        self._multipliers_lower = self._multipliers_lower + step_length * direction.multipliers_lower
        self._multipliers_upper = self._multipliers_upper + step_length * direction.multipliers_upper
        self.n_iter += 1


def _solve_columns(systems: Floats, rhs: Floats) -> Floats:
    """Of each column the solution of its system."""
    return np.asarray(np.linalg.solve(systems, rhs.T[..., np.newaxis])[..., 0].T)
