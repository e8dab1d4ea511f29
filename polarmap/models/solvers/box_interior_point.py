"""An interior-point method for |A' x|^2 / 2 + <slope, x> over a box: the dual problem of a linear SVM.

Each iteration takes four products with A or A', and one for the weighted Gram matrices of all columns of x.
The linear systems have the size of a Gram matrix, which is the number of features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from polarmap.dtypes import FLOAT64_EPS, Floats
from polarmap.models.penalties import LinearBoxPenalty
from polarmap.models.solvers.solver import Solution, run_solver

# The starting point is on the line from 0 to the center of the box, at least this fraction of the way. If it
# were close to a bound, the first steps would be short.
MIN_START_FRACTION = 0.1
# The initial multipliers are proportional to the mean size of the gradient, plus this fraction of the mean
# slope. They are therefore positive even if the gradient is 0.
MIN_GRADIENT_SCALE = 1e-3
INITIAL_MULTIPLIER_SCALE = 0.1  # Initial size of the multipliers, relative to the mean size of the gradient.
FRACTION_TO_BOUNDARY = 0.99  # A step covers at most this fraction of the distance to a bound.
# A column of x is not changed while its duality gap is below this fraction of the largest one.
INACTIVE_TOL = 1e-3
# The solver counts as stalled after this many iterations without progress.
MAX_STALLED_ITERATIONS = 5
# Maximum weight in the Newton systems of `polish`. Larger weights are reduced to it, so that the systems are
# well-conditioned. This makes the Newton steps less exact, so several steps are taken.
MAX_WEIGHT = 1e7
# Maximum number of Newton steps with which `polish` refines the entries of x that are not at a bound.
MAX_REFINEMENTS = 3


def box_interior_point(
    operator: Any,
    penalty: LinearBoxPenalty,
    row_weight: Floats,
    *,
    tol: float,
    max_iter: int,
    callback: Callable[[float, float], None] | None = None,
) -> Solution:
    """Solve the dual problem of a linear SVM: minimize |A' x|^2 / 2 + penalty(x) over a box.

    The method is Mehrotra's predictor-corrector method (1992). Each iteration takes four products, plus one
    for the Gram matrices A' diag(weights) A of all columns of x that have not converged.

    Parameters
    ----------
    operator : LinearOperator (rows, features)
        Operator A, with a method `gram(weights)`. The norm of each row is the square root of its weight.
    penalty : LinearBoxPenalty
        Penalty of x of shape (rows, columns), passed as a vector row by row. Its box must contain 0.
    row_weight : array (rows,)
        Positive weight of each row. A row with weight 2 has the same effect on all iterates as two equal rows
        with weight 1, each with half of its x.
    tol : float
        Relative tolerance of the duality gap.
    max_iter : int
        Maximum number of iterations.
    callback : callable, optional
        Called with the objective and the norm of the gradient map after each iteration.

    Returns
    -------
    Solution
    """
    return run_solver(_MehrotraSolver(operator, penalty, row_weight, tol), max_iter, callback)


class _Direction(NamedTuple):
    """A search direction: the changes of x and of the multipliers of the lower and the upper bounds."""

    x: Floats
    multipliers_lower: Floats
    multipliers_upper: Floats


class _MehrotraSolver:
    """The current iterate of the interior-point method: a point in the box, with slacks and multipliers.

    The slacks are the distances of x from the bounds, and the multipliers are the dual variables of the
    bounds. The gradient always equals the multipliers of the lower bounds minus those of the upper bounds.
    The method drives each product slack * multiplier, divided by the weight of the row, to the same target.
    """

    def __init__(self, operator: Any, penalty: LinearBoxPenalty, row_weight: Floats, tol: float) -> None:
        self._operator, self._tol, self.n_iter = operator, tol, 0
        self._row_weight, shape = row_weight[:, np.newaxis], (len(row_weight), -1)
        self.has_converged = self.has_stalled = False
        self._lower, self._upper = penalty.lower.reshape(shape), penalty.upper.reshape(shape)
        self._slope = penalty.slope.reshape(shape)
        middle = (self._lower + self._upper) / 2
        image, gram_product = self._multiply_by_gram(middle)
        # Minimize the objective along the line from 0 to the center of the box.
        descent, squared_norm = -np.sum(self._slope * middle, axis=0), np.sum(image**2, axis=0)
        step_length = descent / np.where(squared_norm > 0, squared_norm, 1.0)
        step_length = np.clip(step_length, MIN_START_FRACTION, 1.0)
        self.x, self._image = step_length * middle, step_length * image
        self._gradient = step_length * gram_product + self._slope
        # If the lower and upper bound of an entry are equal, the box has no interior. Adding a tiny number
        # keeps all slacks positive nevertheless.
        min_slack = FLOAT64_EPS * float((self._upper - self._lower).max())
        self._slack_lower = self.x - self._lower + min_slack
        self._slack_upper = self._upper - self.x + min_slack
        slack = np.minimum(self._slack_lower, self._slack_upper)
        slope_scale = self._average(np.abs(self._slope))
        gradient_scale = self._average(np.abs(self._gradient)) + MIN_GRADIENT_SCALE * slope_scale
        gradient_scale[gradient_scale == 0] = 1.0
        initial_mu = INITIAL_MULTIPLIER_SCALE * gradient_scale * self._average(slack)
        min_multipliers = initial_mu * self._row_weight / slack
        self._multipliers_lower = np.maximum(self._gradient, 0.0) + min_multipliers
        self._multipliers_upper = self._multipliers_lower - self._gradient
        self._complementarity_sums, self._n_stalled = self._sum_complementarity(), 0
        self._best_solution, self._best_gap = self._make_solution_of_iterate(), self.dual_gap

    def _average(self, values: Floats) -> Floats:
        """Divide each row of `values` by the norm of the row of A, and return the weighted column means."""
        return np.asarray(np.sum(np.sqrt(self._row_weight) * values, axis=0) / np.sum(self._row_weight))

    def _multiply_by_gram(self, x: Floats) -> tuple[Floats, Floats]:
        image = np.asarray(self._operator.rmatmat(x))
        return image, np.asarray(self._operator.matmat(image))

    @property
    def objective(self) -> float:
        """The objective at the current iterate."""
        return float(np.sum(self._image**2) / 2 + np.sum(self._slope * self.x))

    @property
    def optimality(self) -> float:
        """The norm of the gradient map x - clip(x - gradient) at the current iterate; 0 at a minimum."""
        return float(np.linalg.norm(self.x - np.clip(self.x - self._gradient, self._lower, self._upper)))

    @property
    def dual_gap(self) -> float:
        """The duality gap at x, an upper bound on the distance of the objective from its minimum.

        The dual point is A' x (Fenchel-Rockafellar duality).
        """
        distance = np.where(self._gradient > 0, self.x - self._lower, self.x - self._upper)
        return float(np.maximum(0.0, np.sum(self._gradient * distance)))  # Unlike max, np.maximum keeps NaN.

    def _make_solution_of_iterate(self) -> Solution:
        return Solution(
            self.x, self.objective, self.dual_gap, self.optimality, self.n_iter, self._is_optimal()
        )

    def _is_optimal(self) -> bool:
        """Return whether the duality gap is at most `tol` times the objective or within rounding errors."""
        rounding = 16 * FLOAT64_EPS * float(np.sum(np.abs(self._slope * self.x)))
        return self.dual_gap <= max(self._tol * abs(self.objective), rounding)

    def step(self) -> None:
        """Take one predictor-corrector step, and check whether the new iterate has converged."""
        self._take_predictor_corrector_step()
        if self._is_optimal():
            # Confirm convergence with recomputed products, because the products with x were only updated in
            # each step and have accumulated rounding errors.
            self._move_to_box_point(self.x)
            self.has_converged = self._is_optimal()

    def _take_predictor_corrector_step(self) -> None:
        weights = self._compute_newton_weights()
        active_mask = self._complementarity_sums >= INACTIVE_TOL * self._complementarity_sums.max()
        systems = self._build_newton_systems(weights, active_mask)
        affine_direction = self._compute_primal_dual_direction(
            self._compute_affine_step(systems, weights), 0.0, 0.0
        )
        mu = self._compute_duality_measure_after(affine_direction, 0.0)
        max_step_length = self._compute_max_step_length(affine_direction)
        affine_mu = self._compute_duality_measure_after(affine_direction, max_step_length)
        target = mu * (affine_mu / mu) ** 3 * self._row_weight
        target_lower = target - affine_direction.x * affine_direction.multipliers_lower
        target_upper = target + affine_direction.x * affine_direction.multipliers_upper
        rhs = target_lower / self._slack_lower - target_upper / self._slack_upper - self._gradient
        x, image, gram_product = self._solve_newton(systems, weights, rhs)
        direction = self._compute_primal_dual_direction(x, target_lower, target_upper)
        max_step_length = self._compute_max_step_length(direction)
        step_length = active_mask * np.minimum(1.0, FRACTION_TO_BOUNDARY * max_step_length)
        self._take_step(direction, step_length)
        self._image = self._image + step_length * image
        self._gradient = self._gradient + step_length * gram_product
        if self.dual_gap < self._best_gap:
            self._best_solution, self._best_gap = self._make_solution_of_iterate(), self.dual_gap
        previous_sums, self._complementarity_sums = self._complementarity_sums, self._sum_complementarity()
        has_progressed = self._complementarity_sums.max() < 0.99 * previous_sums.max()
        self._n_stalled = 0 if has_progressed else self._n_stalled + 1
        # In exact arithmetic, the duality gap is at most the sum of slack * multiplier. A larger gap shows
        # that rounding errors dominate, so that further steps are useless.
        has_lost_digits = self.dual_gap > 2 * self._complementarity_sums.sum()
        self.has_stalled = self._n_stalled >= MAX_STALLED_ITERATIONS or has_lost_digits

    def _sum_complementarity(self) -> Floats:
        """Return the sum of slack * multiplier over both bounds, for each column of x."""
        products_lower = self._slack_lower * self._multipliers_lower
        products_upper = self._slack_upper * self._multipliers_upper
        return np.asarray(np.sum(products_lower + products_upper, axis=0))

    def polish(self) -> None:
        """Set entries of x that are close to a bound to this bound, and refine the others by Newton steps.

        The result is kept if it satisfies `tol`, or if its duality gap is the smallest so far.
        """
        slope_scale = np.sqrt(self._row_weight) * self._average(np.abs(self._slope))
        width = self._upper - self._lower
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
        self._best_solution, self._best_gap = self._make_solution_of_iterate(), self.dual_gap

    def make_solution(self) -> Solution:
        """Return the iterate with the smallest duality gap, or the result of `polish` if it has run."""
        return self._best_solution._replace(n_iter=self.n_iter)

    def _move_to_box_point(self, x: Floats) -> None:
        """Project x onto the box, make the result the current iterate, and compute its products with A."""
        x = np.clip(x, self._lower, self._upper)
        self._image, gram_product = self._multiply_by_gram(x)
        self.x, self._gradient = x, gram_product + self._slope

    def _compute_newton_weights(self) -> Floats:
        ratios_lower = self._multipliers_lower / self._slack_lower
        ratios_upper = self._multipliers_upper / self._slack_upper
        return np.asarray(1.0 / (ratios_lower + ratios_upper))

    def _build_newton_systems(self, weights: Floats, active_mask: Any = True) -> Floats:
        """Return the matrix I + A' diag(weights) A of the Newton system of each column of x.

        I is the identity. If rounding errors would cancel its effect, a larger multiple of I is added. For
        columns outside `active_mask`, whose x does not change in this step, the matrix is I.
        """
        identity = np.eye(self._operator.shape[1])
        systems = np.tile(identity, (self.x.shape[1], 1, 1))
        if (gram_mask := active_mask & weights.any(axis=0)).any():
            grams = np.moveaxis(np.asarray(self._operator.gram(weights[:, gram_mask])), -1, 0)
            traces = np.trace(grams, axis1=1, axis2=2)[:, np.newaxis, np.newaxis]
            systems[gram_mask] = np.maximum(1.0, FLOAT64_EPS * traces) * identity + grams
        return systems

    def _compute_affine_step(self, systems: Floats, weights: Floats) -> Floats:
        """Return the change of x in the predictor direction, which aims at slack * multiplier = 0.

        This takes two products with A. They also serve to recompute A' x and the gradient, which have
        accumulated rounding errors.
        """
        products = np.asarray(self._operator.rmatmat(np.hstack([self.x, weights * self._slope])))
        self._image, slope_image = np.hsplit(products, 2)
        image = _solve_columns(systems, self._image - slope_image)
        gram_products = np.asarray(self._operator.matmat(np.hstack([self._image, image])))
        gram_product, predicted_gram_product = np.hsplit(gram_products, 2)
        self._gradient = gram_product + self._slope
        return -weights * (predicted_gram_product + self._slope)

    def _solve_newton(self, systems: Floats, weights: Floats, rhs: Floats) -> tuple[Floats, Floats, Floats]:
        """Solve A A' x + x / weights = rhs for x, and return x, A' x and A A' x.

        An entry of x is 0 if its weight is 0.
        """
        image = _solve_columns(systems, np.asarray(self._operator.rmatmat(weights * rhs)))
        gram_product = np.asarray(self._operator.matmat(image))
        return weights * (rhs - gram_product), image, gram_product

    def _compute_primal_dual_direction(self, x: Floats, target_lower: Any, target_upper: Any) -> _Direction:
        """Return a search direction: the given change `x` and matching changes of the multipliers.

        After a step of length 1, each product slack * multiplier is equal to its target, `target_lower` or
        `target_upper`, to first order.
        """
        lower, upper = self._multipliers_lower, self._multipliers_upper
        lower_change = (target_lower - lower * x) / self._slack_lower - lower
        upper_change = (target_upper + upper * x) / self._slack_upper - upper
        return _Direction(x, lower_change, upper_change)

    def _compute_max_step_length(self, direction: _Direction) -> Floats:
        """Return the largest step length <= 1 for each column that keeps slacks and multipliers >= 0."""
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
        """Return the duality measure of each column after a step of length `step_length` along `direction`.

        It is the mean of slack * multiplier over both bounds, per unit of sample weight.
        """
        slack_lower = self._slack_lower + step_length * direction.x
        slack_upper = self._slack_upper - step_length * direction.x
        multipliers_lower = self._multipliers_lower + step_length * direction.multipliers_lower
        multipliers_upper = self._multipliers_upper + step_length * direction.multipliers_upper
        products = slack_lower * multipliers_lower + slack_upper * multipliers_upper
        return np.asarray(np.sum(products, axis=0) / (2 * np.sum(self._row_weight)))

    def _take_step(self, direction: _Direction, step_length: Floats) -> None:
        self.x = self.x + step_length * direction.x
        self._slack_lower = self._slack_lower + step_length * direction.x
        self._slack_upper = self._slack_upper - step_length * direction.x
        self._multipliers_lower = self._multipliers_lower + step_length * direction.multipliers_lower
        self._multipliers_upper = self._multipliers_upper + step_length * direction.multipliers_upper
        self.n_iter += 1


def _solve_columns(systems: Floats, rhs: Floats) -> Floats:
    """Solve `systems[j] @ x = rhs[:, j]` for each column j, and return the solutions as columns."""
    return np.asarray(np.linalg.solve(systems, rhs.T[..., np.newaxis])[..., 0].T)
