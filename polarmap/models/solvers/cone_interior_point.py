"""An interior-point method for the convex training problem of a ReLU network.

It minimizes a loss plus the norms of the weights of the units. The inputs of each unit must stay in the cone
of its gate. Products with the data, and their Gram matrices, are coded maps.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from scipy.sparse.linalg import LinearOperator, cg

from polarmap.dtypes import FLOAT64_EPS, Floats
from polarmap.models.cones import ConeConstrainedLoss
from polarmap.models.operators import GatedOperator
from polarmap.models.penalties import GroupLassoPenalty
from polarmap.models.solvers.solver import Solution, run_solver

# Newton systems with up to this many weights per output and sign are solved directly. Larger systems are
# solved by conjugate gradients, which need only products with the Hessian.
MAX_SYSTEM_SIZE = 1000
# A step needs a Gram matrix (features, features) for each sign, gate and output. This is the maximum number
# of entries of all these matrices together, which then take 240 MB, plus copies.
MAX_GRAM_ENTRIES = 30_000_000
# The centering parameter: a step aims to multiply the mean of slack * multiplier by this factor.
CENTERING = 0.1
# Residuals of the optimality conditions are considered small if their norms are at most this multiple of
# alpha. Until then, steps do not aim to decrease the mean of slack * multiplier.
RESIDUAL_TOL = 0.1
# A Newton system is solved up to this fraction of the largest residual norm. Once residuals are small, it is
# solved up to this fraction of alpha times the relative duality gap.
INEXACT_NEWTON_TOL = 0.1
MAX_CG_ITERATIONS = 100  # Limit for conjugate gradients, which usually need about ten iterations per system.
FRACTION_TO_BOUNDARY = 0.97  # A step covers at most this fraction of the distance to a bound.
MAX_COLUMN_GROWTH = 0.5  # Maximum relative change of a column per step, until residuals are small.
# The solver counts as stalled after this many iterations without progress.
MAX_STALLED_ITERATIONS = 8
# Because of the barrier, the weights of unused units are tiny but not 0. At the end, a unit is removed if the
# norm of its weights is below this multiple of the norm that the barrier alone causes.
ZERO_UNIT_FACTOR = 10.0


def cone_interior_point(
    operator: Any,
    cone_loss: ConeConstrainedLoss,
    alpha: float,
    *,
    tol: float,
    max_iter: int,
    callback: Callable[[float, float], None] | None = None,
) -> Solution:
    """Fit a ReLU network: minimize loss(A W) + alpha * sum_c |W_c| over the columns W_c of W.

    The unit inputs A W must stay in the cones of the gates. The method is a primal-dual interior-point
    method. Each iteration takes a product with A, a product with A', and Gram matrices of A. If the outputs
    are coupled (multinomial loss) or there are many gates, conjugate gradients take about ten more products
    of each kind.

    Parameters
    ----------
    operator : LinearOperator (samples, features)
        Operator A with a method `gram(weights)`. If units have biases, A has a column of ones.
    cone_loss : ConeConstrainedLoss
        Loss of the network, with the cones.
    alpha : float
        Strength of the penalty, positive.
    tol : float
        Relative tolerance of the duality gap.
    max_iter : int
        Maximum number of iterations.
    callback : callable, optional
        Called with the objective and the norm of the residual after each iteration.

    Returns
    -------
    Solution
        The solution's x is W, with one column for each sign, gate and output, in this order.
    """
    return run_solver(_ConeInteriorPointSolver(operator, cone_loss, alpha, tol), max_iter, callback)


class _ConeInteriorPointSolver:
    """The current iterate of the interior-point method: weights W, with slacks and multipliers.

    W has one column for each sign, gate and output, in this order. The slacks are the distances of the unit
    inputs A W to the boundaries of their cones. A sample on the boundary of a gate imposes no constraint.
    """

    has_stalled = False

    def __init__(self, operator: Any, cone_loss: ConeConstrainedLoss, alpha: float, tol: float) -> None:
        self._operator, self._cone_loss, self._alpha, self._tol = operator, cone_loss, alpha, tol
        self.n_iter = 0
        self._loss, n_features = cone_loss.loss, operator.shape[1]
        (n_samples, self._n_gates), self._n_outputs = cone_loss.patterns.shape, cone_loss.loss.shape[1]
        self._gated_operator = GatedOperator(operator, cone_loss.patterns)
        # Small Newton systems are solved directly. Large systems are solved by conjugate gradients, with a
        # preconditioner that ignores the coupling of gates and outputs.
        is_small = n_features * self._n_gates <= MAX_SYSTEM_SIZE
        self._is_direct = is_small and self._loss.is_separable_by_output
        self._n_coupled_gates = self._n_gates if self._is_direct else 1
        self._open_gates = np.repeat(cone_loss.patterns, self._n_outputs, axis=1).astype(np.float64)
        self._branch_signs = np.repeat([1.0, -1.0], self._open_gates.shape[1])
        self._group_penalty = GroupLassoPenalty(alpha, np.ones(n_features), len(self._branch_signs))
        self._cone_signs = np.tile(2.0 * self._open_gates - 1.0, 2)
        self._constraint_mask = np.tile(np.repeat(cone_loss.margins > 0, self._n_outputs, axis=1), 2)
        null_loss = self._loss.value(np.zeros(self._loss.shape))
        self._rounding_error = 16 * FLOAT64_EPS * (float(np.sum(self._loss.weights * self._loss.y**2)) or 1.0)
        self._mu = max(null_loss, self._rounding_error) / self._constraint_mask.size
        # Choose the initial norm of the columns such that the penalty, which makes them shorter, balances the
        # logarithmic barrier, which makes them longer.
        initial_norm = n_samples * self._mu / alpha
        directions = cone_loss.interior_points / np.linalg.norm(cone_loss.interior_points, axis=0)
        self.x = initial_norm * np.tile(np.repeat(directions, self._n_outputs, axis=1), 2)
        self._image = np.asarray(operator.matmat(self.x))
        self._slacks = np.where(self._constraint_mask, self._cone_signs * self._image, 1.0)
        self._multipliers = np.where(self._constraint_mask, self._mu / self._slacks, 0.0)
        # Cache the Hessian that couples weights of different columns, together with the second derivatives of
        # the loss ("curvatures") from which it was computed. It is computed again when they change.
        self._coupling_curvatures, self._coupling_hessian = np.zeros(0), np.zeros(0)
        self.dual_bound, self._best_iterate, self._n_stalled = -np.inf, (np.inf, self.x, self._image), 0
        self._update_gradient_and_bound()

    @property
    def objective(self) -> float:
        """The objective at the current iterate."""
        return self._compute_objective_at(self.x, self._image)

    @property
    def dual_gap(self) -> float:
        """The best objective so far minus the best lower bound on the minimum."""
        return max(0.0, self._best_iterate[0] - self.dual_bound)

    @property
    def has_converged(self) -> bool:
        """True if the duality gap is at most `tol` times the best objective or within rounding errors."""
        return self._is_gap_within_tol(self._best_iterate[0])

    def _is_gap_within_tol(self, objective: float) -> bool:
        return max(0.0, objective - self.dual_bound) <= max(self._tol * objective, self._rounding_error)

    def step(self) -> None:
        """Take one Newton step, which makes all products slack * multiplier more equal.

        Once the residuals of the optimality conditions are small, the step also makes the products smaller.
        The iterate then approaches the minimum.
        """
        is_balanced = self._max_residual <= RESIDUAL_TOL * self._alpha
        target_mu = CENTERING * self._mu if is_balanced else self._mu
        roots, epigraphs = self._compute_smoothed_norms()
        # The gradient of the penalty is alpha w / t, where t is the smoothed norm of a column w. It changes
        # with mu, the target of slack * multiplier. Add its derivative with respect to mu, times the change.
        centering_gradient = (self._mu - target_mu) * (1.0 + self._mu / roots) / epigraphs**2 * self.x
        gradient = (
            self._column_gradients
            - target_mu * self._barrier_gradient
            + self._alpha * self.x / epigraphs
            + centering_gradient
        )
        newton_tol = self._max_residual
        if is_balanced:
            newton_tol = self._alpha * min(1.0, self.dual_gap / self._best_iterate[0])
        column_hessians = self._compute_column_hessians(epigraphs, roots)
        direction = self._solve_newton(column_hessians, -gradient, INEXACT_NEWTON_TOL * newton_tol)
        image_direction = np.asarray(self._operator.matmat(direction))
        slack_direction = np.where(self._constraint_mask, self._cone_signs * image_direction, 0.0)
        new_multipliers = (target_mu - self._multipliers * slack_direction) / self._slacks
        multiplier_direction = np.where(self._constraint_mask, new_multipliers - self._multipliers, 0.0)
        growth = float((np.linalg.norm(direction, axis=0) / epigraphs).max())
        step_length = min(
            _compute_max_step_length(self._slacks, slack_direction),
            _compute_max_step_length(self._multipliers, multiplier_direction),
            1.0 if is_balanced else MAX_COLUMN_GROWTH / max(MAX_COLUMN_GROWTH, growth),
        )
        self.x, self._image = self.x + step_length * direction, self._image + step_length * image_direction
        self._slacks = self._slacks + step_length * slack_direction
        self._multipliers = self._multipliers + step_length * multiplier_direction
        self._mu = float(np.mean((self._slacks * self._multipliers)[self._constraint_mask]))
        self.n_iter += 1
        gap_before = self.dual_gap
        self._update_gradient_and_bound()
        self._n_stalled = 0 if self.dual_gap < gap_before else self._n_stalled + 1
        self.has_stalled = self._n_stalled >= MAX_STALLED_ITERATIONS

    def polish(self) -> None:
        """Remove unused units from the best iterate, and recompute its product with A.

        The product is recomputed because its rounding errors have accumulated over the iterations.
        """
        objective, x, image = self._best_iterate
        used_mask = np.linalg.norm(x, axis=0) > ZERO_UNIT_FACTOR * len(image) * self._mu / self._alpha
        if self._compute_objective_at(used_mask * x, used_mask * image) <= objective:
            x = used_mask * x
        self._best_iterate = objective, x, np.asarray(self._operator.matmat(x))

    def make_solution(self) -> Solution:
        """Return the best iterate, moved into the cones in case rounding errors have made it infeasible."""
        _, x, image = self._best_iterate
        x, image = self._cone_loss.make_feasible(x, image)
        objective = self._compute_objective_at(x, image)
        dual_gap = max(0.0, objective - self.dual_bound)
        return Solution(
            x, objective, dual_gap, self.optimality, self.n_iter, self._is_gap_within_tol(objective)
        )

    def _compute_objective_at(self, x: Floats, image: Floats) -> float:
        """Return the loss plus the penalty at the weights x, given the product image = A x."""
        return self._cone_loss.value(image) + self._group_penalty(x.reshape(-1))

    def _compute_smoothed_norms(self) -> tuple[Floats, Floats]:
        """Compute a smooth approximation t of the norm of each column w of W.

        t minimizes alpha t - mu log(t^2 - |w|^2), so it is |w| for mu = 0. The gradient of this minimum with
        respect to w is alpha w / t. Returns two arrays (columns,): the square roots in the quadratic formula
        for t, and t.
        """
        roots = np.hypot(self._mu, self._alpha * np.linalg.norm(self.x, axis=0))
        return roots, (self._mu + roots) / self._alpha

    def _update_gradient_and_bound(self) -> None:
        """Compute gradients, residuals and a lower bound on the minimum, using a single product with A'."""
        outputs = self._cone_loss.compute_network_outputs(self._image)
        loss_gradient = self._loss.gradient(outputs)
        self._curvatures = self._loss.compute_hessian_diagonal(outputs)
        inverse_slacks = np.where(self._constraint_mask, self._cone_signs / self._slacks, 0.0)
        gated_columns = [
            self._open_gates * np.tile(values, self._n_gates) for values in (loss_gradient, self._curvatures)
        ]
        columns = gated_columns[0], self._cone_signs * self._multipliers, inverse_slacks, gated_columns[1]
        product = np.asarray(self._operator.rmatmat(np.hstack(columns)))
        split_points = np.cumsum([column_group.shape[1] for column_group in columns])[:-1]
        gate_gradients, multiplier_terms, self._barrier_gradient, self._intercept_coupling = np.split(
            product, split_points, axis=1
        )
        self._column_gradients = self._branch_signs * np.tile(gate_gradients, 2)
        unpenalized_gradients = self._column_gradients - multiplier_terms
        norm_gradients = self._alpha * self.x / self._compute_smoothed_norms()[1]
        residuals = np.linalg.norm(unpenalized_gradients + norm_gradients, axis=0)
        self.optimality, self._max_residual = float(np.linalg.norm(residuals)), float(residuals.max())
        dual_scale = self._group_penalty.dual_scale(unpenalized_gradients.reshape(-1))
        self.dual_bound = max(self.dual_bound, -self._loss.conjugate(dual_scale * loss_gradient))
        if self.objective < self._best_iterate[0]:
            self._best_iterate = self.objective, self.x, self._image

    def _solve_newton(self, column_hessians: Floats, rhs: Floats, atol: float) -> Floats:
        """Solve the Newton system, directly or by conjugate gradients.

        Parameters
        ----------
        column_hessians : array (columns, features, features)
            Hessian of the barrier and the penalty, for each column.
        rhs : array (features, columns)
            Right-hand side.
        atol : float
            Residual norm at which conjugate gradients stop.
        """
        solve = self._make_schur_solver(column_hessians)
        if self._is_direct:
            return solve(rhs)
        outputs = self._cone_loss.compute_network_outputs(self._image)
        multiply = partial(
            self._multiply_by_hessian, column_hessians, self._loss.make_hessian_product(outputs)
        )
        hessian = LinearOperator((rhs.size,) * 2, multiply, dtype=np.float64)
        preconditioner = LinearOperator(
            hessian.shape, lambda v: solve(v.reshape(rhs.shape)).reshape(-1), dtype=np.float64
        )
        options = {"rtol": 0.0, "atol": atol, "maxiter": MAX_CG_ITERATIONS}
        step, _ = cg(hessian, rhs.reshape(-1), M=preconditioner, **options)
        return np.reshape(step, rhs.shape)

    def _make_schur_solver(self, column_hessians: Floats) -> Callable[[Floats], Floats]:
        """Return a function that solves the Newton system for a right-hand side (features, columns).

        The loss depends only on the difference between the columns with sign + and those with sign -, so the
        columns of one sign are eliminated (Schur complement). Coupling between groups of gates is ignored.
        For a direct solution, all gates form one group. For a preconditioner, each gate is a group.
        """
        plus, minus = np.split(column_hessians, 2)
        branch_sums, n_features = plus + minus, len(self.x)
        inverses = np.linalg.inv(branch_sums)
        from_plus, from_minus = minus @ inverses, plus @ inverses
        blocks, gate_indices = self._coupling_hessian.copy(), np.arange(self._n_coupled_gates)
        shape = len(blocks), self._n_coupled_gates, self._n_outputs
        uncoupled = (from_plus @ plus).reshape(*shape, n_features, n_features)
        blocks[:, :, gate_indices, :, gate_indices, :] += uncoupled.swapaxes(0, 1)
        systems = blocks.reshape(*blocks.shape[:2], *(self._n_coupled_gates * n_features,) * 2)
        solve_branch_sums = _make_linear_solver(branch_sums, self._is_direct)
        solve_systems = _make_linear_solver(systems, self._is_direct)

        def solve(rhs: Floats) -> Floats:
            rhs_plus, rhs_minus = np.split(rhs.T[..., np.newaxis], 2)
            reduced_rhs = (from_plus @ rhs_plus - from_minus @ rhs_minus).reshape(*shape, n_features)
            rhs_by_output = reduced_rhs.swapaxes(1, 2)
            differences_by_output = solve_systems(rhs_by_output.reshape(*systems.shape[:3], 1))
            differences_by_gate = differences_by_output.reshape(rhs_by_output.shape).swapaxes(1, 2)
            branch_differences = differences_by_gate.reshape(rhs_plus.shape)
            x_minus = solve_branch_sums(rhs_plus + rhs_minus - plus @ branch_differences)
            return np.concatenate([x_minus + branch_differences, x_minus])[..., 0].T

        return solve

    def _multiply_by_hessian(
        self, column_hessians: Floats, loss_hessian: Callable[[Floats], Floats], direction: Floats
    ) -> Floats:
        """Return the Hessian of the objective times a direction, computed with two products."""
        columns = direction.reshape(self.x.shape)
        plus, minus = np.hsplit(columns, 2)
        outputs = self._gated_operator.matmat((plus - minus).reshape(-1, self._n_outputs))
        gate_products = self._gated_operator.rmatmat(loss_hessian(outputs)).reshape(plus.shape)
        column_products = (column_hessians @ columns.T[..., None])[..., 0].T
        return np.asarray(column_products + np.hstack([gate_products, -gate_products])).reshape(-1)

    def _compute_column_hessians(self, epigraphs: Floats, roots: Floats) -> Floats:
        """Return the Hessian of barrier and penalty for each column, shape (columns, features, features).

        The same map also updates the coupling Hessian, which is the part of the Hessian that couples weights
        of different columns, if the second derivatives of the loss have changed.
        """
        n_features, n_columns = self.x.shape
        weights = self._multipliers / self._slacks
        if not np.array_equal(self._curvatures, self._coupling_curvatures):
            weights = np.hstack([weights, self._compute_gate_pair_weights()])
            self._coupling_curvatures = self._curvatures
        grams = np.moveaxis(np.asarray(self._operator.gram(weights)), 2, 0)
        if len(grams) > n_columns:
            self._coupling_hessian = self._assemble_coupling_hessian(grams[n_columns:])
        norm_factors = (self._alpha / (roots * epigraphs))[:, None, None]
        norm_hessians = np.einsum("ac,bc->cab", self.x, self.x) * norm_factors
        penalty_factors = (self._alpha / epigraphs)[:, None, None]
        return np.asarray(grams[:n_columns] + (np.eye(n_features) - norm_hessians) * penalty_factors)

    def _compute_gate_pair_weights(self) -> Floats:
        """Return the sample weights for the Gram matrices of all pairs of gates in the same group.

        They are the second derivatives of the loss for samples at which both gates are open, and 0 for other
        samples. The array has shape (samples, pairs * groups * outputs).
        """
        first_gates, second_gates = np.triu_indices(self._n_coupled_gates)
        gates = self._open_gates.reshape(len(self._open_gates), -1, self._n_coupled_gates, self._n_outputs)
        pairs = (gates[:, :, first_gates] * gates[:, :, second_gates]).swapaxes(1, 2)
        return (pairs * self._curvatures[:, None, None, :]).reshape(len(pairs), -1)

    def _assemble_coupling_hessian(self, gram_matrices: Floats) -> Floats:
        """Assemble the Hessian of the loss from the Gram matrices of pairs of gates.

        If the loss has an intercept, the result is the Hessian of the loss minimized over the intercept,
        which is a Schur complement.
        """
        n_members, n_features = self._n_coupled_gates, len(self.x)
        n_groups, n_outputs = self._n_gates // n_members, self._n_outputs
        first_gates, second_gates = np.triu_indices(n_members)
        hessian = np.empty((n_groups, n_outputs, n_members, n_features, n_members, n_features))
        pairs = gram_matrices.reshape(len(first_gates), n_groups, n_outputs, n_features, n_features)
        hessian[:, :, first_gates, :, second_gates, :] = pairs
        hessian[:, :, second_gates, :, first_gates, :] = pairs.swapaxes(3, 4)
        if self._loss.fit_intercept:
            intercept_coupling = self._intercept_coupling.reshape(n_features, n_groups, n_members, n_outputs)
            scaled_coupling = intercept_coupling / self._curvatures.sum(axis=0)
            hessian -= np.einsum("agmo,bgno->gomanb", intercept_coupling, scaled_coupling)
        return hessian


def _compute_max_step_length(values: Floats, direction: Floats) -> float:
    """Return a step length, at most 1, that keeps all entries of `values` positive.

    The step covers at most FRACTION_TO_BOUNDARY of the way to the point at which an entry becomes 0.
    """
    decreasing_mask = direction < 0
    ratios = values[decreasing_mask] / -direction[decreasing_mask]
    return min(1.0, FRACTION_TO_BOUNDARY * float(np.min(ratios, initial=np.inf)))


def _make_linear_solver(systems: Any, is_used_once: bool) -> Callable[[Floats], Floats]:
    """Return a function that solves the linear systems `systems` for any right-hand sides.

    If `is_used_once` is True, the function solves the systems directly. Otherwise, it multiplies by their
    inverse matrices, which is faster but less accurate.
    """
    if is_used_once:
        return partial(np.linalg.solve, systems)
    inverses: Floats = np.linalg.inv(systems)
    return lambda right: np.asarray(inverses @ right)
