"""Proximal Newton method for loss(A W) + alpha * sum_j |W_j|, over few columns W_j at a time.

Each step computes, by coded maps, the Hessian of a working set: the nonzero columns, and the zero columns
that violate optimality most. The driver then minimizes the quadratic model plus the penalty without further
products.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from polarmap.dtypes import FLOAT64_EPS, Floats, Indices, Mask
from polarmap.models.losses import ProfiledLoss
from polarmap.models.operators import GatedOperator
from polarmap.models.penalties import GroupLassoPenalty
from polarmap.models.solvers.solver import Solution, run_solver

# A step optimizes a working set of columns of W. This is the maximum number of weights in it, because the
# driver solves linear systems of this size.
MAX_SYSTEM_SIZE = 1000
# A step computes several Gram matrices A' diag(weights) A, each with its own weight per sample. This is the
# maximum number of weights of all these matrices. They are sent to every worker, up to 32 MB.
MAX_GRAM_WEIGHTS = 4_000_000
# A step adds at most this many columns to the nonzero ones, or as many as there are nonzero ones, if more.
MIN_WORKING_COLUMNS = 10
# The solver counts as stalled after this many consecutive iterations in which the duality gap remains above
# this fraction of its previous value.
MAX_STALLED_ITERATIONS, MIN_GAP_FRACTION = 3, 0.9
ARMIJO_FRACTION = 1e-4  # A line search accepts a step that achieves this fraction of the predicted decrease.
MAX_BACKTRACKS = 40
# The quadratic model of a step is minimized with a smoothed penalty, in several stages. At first, the
# smoothing changes the objective by about the duality gap. Each further stage multiplies it by
# SMOOTHING_FACTOR.
N_SMOOTHING_STAGES, SMOOTHING_FACTOR = 3, 0.1
MAX_NEWTON_STEPS = 30  # Maximum number of Newton steps per stage. About four are usual.
# A stage ends when the predicted decrease of a Newton step is below this fraction of what the smoothing adds
# to the objective. The last stage is so accurate that rounding errors of earlier stages do not affect the
# result.
STAGE_TOL, LAST_STAGE_TOL = 0.01, 1e-8
# A column leaves the working set if the norm of its gradient is below this fraction of alpha. At a minimum,
# the norm is alpha for every nonzero column.
UNUSED_GRADIENT_FRACTION = 0.9
# Because of the smoothing, unused columns are tiny but not zero. At the end, a column is set to zero if its
# norm is below this multiple of the norm that the smoothing alone causes.
ZERO_COLUMN_FACTOR = 10.0


def compute_max_working_columns(n_samples: int, n_features: int, n_outputs: int) -> int:
    """Return the maximum size of a working set: the columns of the weights that one step optimizes.

    Larger sets would have a Hessian that takes too much time or memory on the driver or the workers.

    Examples
    --------
    >>> compute_max_working_columns(1000, 20, 1)
    50
    """
    # A set of c columns needs Gram matrices for c (c + 1) / 2 pairs of columns, and for c * n_outputs pairs
    # of a column and an intercept.
    max_grams, half = MAX_GRAM_WEIGHTS // n_samples, n_outputs + 0.5
    return min(MAX_SYSTEM_SIZE // n_features, int(math.sqrt(half**2 + 2 * max_grams) - half))


def group_newton(
    operator: Any,
    loss: ProfiledLoss,
    patterns: Any,
    alpha: float,
    *,
    tol: float,
    max_iter: int,
    callback: Callable[[float, float], None] | None = None,
) -> Solution:
    """Fit a gated ReLU network: minimize loss(sum_i D_i A W_i) + alpha * sum_j |W_j| over weights W.

    W_i are the weights for gate i, and W_j is a column of W. D_i is a diagonal matrix, with a one for each
    sample at which the gate is open and zeros elsewhere. An iteration takes a product with A, a product with
    A', and one map that computes the Gram matrices of all pairs of columns in the working set. The solver
    stalls if a minimum needs more nonzero columns than a working set can hold.

    Parameters
    ----------
    operator : LinearOperator (samples, features)
        A, with a last column of ones if the loss has an intercept, and with a method `gram(weights)`.
    loss : ProfiledLoss
        The loss as a function of the outputs of the network.
    patterns : bool array (samples, gates)
        The diagonals of the D_i.
    alpha : float
        The strength of the penalty, positive.
    tol : float
        The relative tolerance of the duality gap.
    max_iter : int
        The maximum number of iterations.
    callback : callable, optional
        Called with the objective and the norm of the gradient map after each iteration.

    Returns
    -------
    Solution
        Its x is W (features, gates * outputs), with one column for each gate and output, in that order.
    """
    return run_solver(_GroupNewtonSolver(operator, loss, patterns, alpha, tol), max_iter, callback)


class _GroupNewtonSolver:
    """The state of `group_newton`: the weights W and their outputs, gradient, and lower bound on the minimum.

    The best weights so far are kept as well.
    """

    def __init__(self, operator: Any, loss: ProfiledLoss, patterns: Any, alpha: float, tol: float) -> None:
        self._operator, self._loss, self._alpha, self._tol = operator, loss, alpha, tol
        self._open_gates = np.asarray(patterns, dtype=np.float64)
        self._gated_operator = GatedOperator(operator, patterns)
        n_columns = self._open_gates.shape[1] * loss.shape[1]
        self.x = np.zeros((operator.shape[1], n_columns))
        self._eta = np.zeros(loss.shape)
        self._penalty = GroupLassoPenalty(alpha, np.ones(len(self.x)), n_columns)
        self._rounding_error = 16 * FLOAT64_EPS * (float(np.sum(loss.weights * loss.y**2)) or 1.0)
        n_samples, n_features = operator.shape
        self._max_columns = compute_max_working_columns(n_samples, n_features, loss.shape[1])
        self.n_iter, self._n_stalled, self._dual_bound = 0, 0, -np.inf
        self.has_stalled, self._smoothing, self._best_iterate = False, 0.0, (np.inf, self.x)
        self._update_gradient_and_bound()

    @property
    def objective(self) -> float:
        """The objective at the current iterate."""
        return self._compute_objective_at(self.x, self._eta)

    @property
    def dual_gap(self) -> float:
        """The difference between the best objective and the best lower bound."""
        return max(0.0, self._best_iterate[0] - self._dual_bound)

    @property
    def has_converged(self) -> bool:
        """True if the duality gap is at most `tol` times the best objective, or within rounding errors."""
        return self.dual_gap <= max(self._tol * self._best_iterate[0], self._rounding_error)

    def step(self) -> None:
        """Minimize the quadratic model over a working set of columns, and take a step towards its minimum."""
        columns, gap_before = self._choose_working_set(), self.dual_gap
        # Round the smoothing to a power of SMOOTHING_FACTOR. Otherwise, rounding errors of the duality gap
        # would change the smoothing, and therefore the result of the step.
        exponent = math.log(max(gap_before, self._rounding_error) / (2 * len(columns)), SMOOTHING_FACTOR)
        smoothing = SMOOTHING_FACTOR ** round(exponent)
        self._smoothing = SMOOTHING_FACTOR ** (N_SMOOTHING_STAGES - 1) * smoothing
        hessian, weights = self._compute_hessian(columns), self.x[:, columns].T
        model = _GroupModel(hessian, self._gradient[:, columns].T, weights, self._alpha)
        direction = np.zeros_like(self.x)
        direction[:, columns] = (model.minimize(smoothing) - weights).T
        eta_direction = self._gated_operator.matmat(direction.reshape(-1, self._loss.shape[1]))
        # The smoothing shifts the minimum of the model, so a step close to the minimum may increase the
        # objective. The last argument is the largest increase that the smoothing can cause.
        step_length = self._line_search(direction, eta_direction, 2 * len(columns) * self._smoothing)
        self.x = self.x + step_length * direction
        self._eta = self._eta + step_length * eta_direction
        self.n_iter += 1
        self._update_gradient_and_bound()
        is_progress = self.dual_gap < MIN_GAP_FRACTION * gap_before
        self._n_stalled = 0 if is_progress else self._n_stalled + 1
        self.has_stalled = self._n_stalled >= MAX_STALLED_ITERATIONS

    def polish(self) -> None:
        """Remove unused columns from the best iterate, if this does not increase the objective.

        A column is considered unused if it is so short that smoothing alone may have made it nonzero.
        """
        objective, x = self._best_iterate
        min_norm = ZERO_COLUMN_FACTOR * self._smoothing / self._alpha
        sparser = x * (np.linalg.norm(x, axis=0) > min_norm)
        eta = self._gated_operator.matmat(sparser.reshape(-1, self._loss.shape[1]))
        if (sparser_objective := self._compute_objective_at(sparser, eta)) <= objective:
            self._best_iterate = sparser_objective, sparser

    def make_solution(self) -> Solution:
        """Return the best iterate."""
        objective, x = self._best_iterate
        return Solution(x, objective, self.dual_gap, self.optimality, self.n_iter, self.has_converged)

    def _compute_objective_at(self, x: Floats, eta: Floats) -> float:
        return self._loss.value(eta) + self._penalty(x.reshape(-1))

    def _update_gradient_and_bound(self) -> None:
        """Compute the gradient at the iterate by one product, and update the lower bound on the minimum."""
        loss_gradient = self._loss.gradient(self._eta)
        self._gradient = np.asarray(self._gated_operator.rmatmat(loss_gradient)).reshape(self.x.shape)
        dual_scale = self._penalty.dual_scale(self._gradient.reshape(-1))
        self._dual_bound = max(self._dual_bound, -self._loss.conjugate(dual_scale * loss_gradient))
        if (objective := self.objective) < self._best_iterate[0]:
            self._best_iterate = objective, self.x
        subgradient = self._alpha * self.x / np.maximum(np.linalg.norm(self.x, axis=0), np.finfo(float).tiny)
        excess = np.maximum(np.linalg.norm(self._gradient, axis=0) - self._alpha, 0.0)
        residuals = np.linalg.norm(self._gradient + subgradient, axis=0)
        self.optimality = float(np.linalg.norm(np.where(self.x.any(axis=0), residuals, excess)))

    def _choose_working_set(self) -> Indices:
        """Return the indices of the columns of W to optimize in this step.

        These are the nonzero columns, and the zero columns that violate the optimality conditions most.
        """
        is_used_mask, norms = self.x.any(axis=0), np.linalg.norm(self._gradient, axis=0)
        n_used = int(is_used_mask.sum())
        n_violating = int((~is_used_mask & (norms > self._alpha)).sum())
        n_added = min(n_violating, max(n_used, MIN_WORKING_COLUMNS), self._max_columns - n_used)
        ranking = np.argsort(np.where(is_used_mask, -np.inf, -norms), kind="stable")
        return np.sort(ranking[: max(1, n_used + n_added)])

    def _compute_hessian(self, columns: Indices) -> Floats:
        """Compute the Hessian of the loss with respect to the given columns of the weights, in one map.

        Returns an array (columns, features, columns, features).
        """
        gates, outputs = np.divmod(columns, self._loss.shape[1])
        n_columns, n_features = len(columns), len(self.x)
        output_hessians = self._loss.compute_output_hessians(self._eta)
        first, second = np.triu_indices(n_columns)
        is_coupled_pair = np.asarray(output_hessians.any(axis=0))
        is_coupled_mask = is_coupled_pair[outputs[first], outputs[second]]
        first, second = first[is_coupled_mask], second[is_coupled_mask]
        open_gates = self._open_gates[:, gates]
        pair_weights = open_gates[:, first] * open_gates[:, second]
        pair_weights = pair_weights * output_hessians[:, outputs[first], outputs[second]]
        # The last feature is constant 1, so the last column of each of these Gram matrices is the part of the
        # Hessian that couples weights and intercept.
        intercept_weights = (open_gates[:, :, np.newaxis] * output_hessians[:, outputs]).reshape(
            len(open_gates), -1
        )
        weights = [pair_weights, intercept_weights] if self._loss.fit_intercept else [pair_weights]
        grams = np.moveaxis(np.asarray(self._operator.gram(np.hstack(weights))), 2, 0)
        hessian = np.zeros((n_columns, n_columns, n_features, n_features))
        hessian[first, second] = hessian[second, first] = grams[: len(first)]
        hessian = hessian.swapaxes(1, 2)
        if self._loss.fit_intercept:
            coupling = grams[len(first) :, :, -1].reshape(n_columns, -1, n_features).swapaxes(1, 2)
            # Use the pseudoinverse, because the Hessian of a softmax is singular: adding a constant to all
            # outputs changes nothing.
            inverse = np.linalg.pinv(output_hessians.sum(axis=0), rcond=1e-12, hermitian=True)
            hessian = hessian - np.einsum("jfo,op,kgp->jfkg", coupling, inverse, coupling)
        return hessian

    def _line_search(self, direction: Floats, eta_direction: Floats, max_increase: float) -> float:
        """Return a step length at which the objective decreases sufficiently, or 0 if none is found.

        A decrease is sufficient if it satisfies the Armijo condition, relaxed by `max_increase`.
        """
        objective_before = self.objective
        slope = float(np.sum(self._gradient * direction))
        slope += self._penalty((self.x + direction).reshape(-1)) - self._penalty(self.x.reshape(-1))
        max_increase += 4 * FLOAT64_EPS * abs(objective_before)
        for n_halvings in range(MAX_BACKTRACKS):
            step_length = 0.5**n_halvings
            objective = self._compute_objective_at(
                self.x + step_length * direction, self._eta + step_length * eta_direction
            )
            if objective <= objective_before + ARMIJO_FRACTION * step_length * slope + max_increase:
                return step_length
        return 0.0


class _GroupModel:
    """A quadratic model of the loss near the weights W, plus the penalty, as a function of new weights V.

    It is <gradient, V - W> + <V - W, H (V - W)> / 2 + alpha * sum_j |V_j|.

    Parameters
    ----------
    hessian : array (columns, features, columns, features)
        The Hessian H of the loss at W.
    gradient, weights : arrays (columns, features)
        The gradient of the loss at W = weights.
    alpha : float
        The strength of the penalty.
    """

    def __init__(self, hessian: Floats, gradient: Floats, weights: Floats, alpha: float) -> None:
        self._hessian = hessian.reshape(weights.size, weights.size)
        self._gradient, self._weights, self._alpha = gradient, weights, alpha

    def minimize(self, smoothing: float) -> Floats:
        """Return a minimizer V of the model, found by Newton's method.

        The norms in the penalty are smoothed, because Newton's method needs derivatives. The smoothing is
        reduced in several stages.

        Parameters
        ----------
        smoothing : float
            The initial strength mu of the smoothing: the penalty alpha |v| of a column v is replaced by the
            minimum over t of alpha t - mu log(t^2 - |v|^2).
        """
        V = self._weights
        for _ in range(N_SMOOTHING_STAGES - 1):
            V = self._minimize_smoothed(V, smoothing, STAGE_TOL)
            smoothing *= SMOOTHING_FACTOR
        V = self._minimize_smoothed(V, smoothing, LAST_STAGE_TOL)
        gradient_norms = np.linalg.norm(self._evaluate_quadratic_part(V)[1], axis=1)
        used_mask = gradient_norms > UNUSED_GRADIENT_FRACTION * self._alpha
        if used_mask.all() or not used_mask.any():
            return V
        # Minimize again without the removed columns, because their removal changes the gradient slightly.
        sparser = np.zeros_like(V)
        sparser[used_mask] = self._restrict_to_columns(used_mask)._minimize_smoothed(
            V[used_mask], smoothing, LAST_STAGE_TOL
        )
        return sparser if self._evaluate_unsmoothed(sparser) <= self._evaluate_unsmoothed(V) else V

    def _restrict_to_columns(self, used_mask: Mask) -> _GroupModel:
        """Return the model as a function of the used columns only, with all other columns set to 0."""
        base = np.where(used_mask[:, np.newaxis], self._weights, 0.0)
        hessian = self._hessian.reshape(*base.shape, *base.shape)[used_mask][:, :, used_mask]
        gradient = self._evaluate_quadratic_part(base)[1]
        return _GroupModel(hessian, gradient[used_mask], base[used_mask], self._alpha)

    def _evaluate_quadratic_part(self, V: Floats) -> tuple[float, Floats]:
        """Return the quadratic part of the model at V, and its gradient."""
        change = V - self._weights
        product = (self._hessian @ change.reshape(-1)).reshape(V.shape)
        return float(np.sum(change * (self._gradient + product / 2))), self._gradient + product

    def _evaluate_unsmoothed(self, V: Floats) -> float:
        """Return the value of the model at V, with the exact norms in the penalty."""
        return self._evaluate_quadratic_part(V)[0] + self._alpha * float(np.linalg.norm(V, axis=1).sum())

    def _minimize_smoothed(self, V: Floats, mu: float, tol: float) -> Floats:
        """Minimize the model with smoothed norms by Newton's method with a line search, starting from V.

        Stop when the predicted decrease of a step is at most `tol` times `mu` times the number of columns.
        """
        value, gradient = self._evaluate_smoothed(V, mu)
        for _ in range(MAX_NEWTON_STEPS):
            system = self._hessian + self._compute_penalty_hessian(V, mu)
            step = -np.linalg.solve(system, gradient.reshape(-1)).reshape(V.shape)
            slope = float(np.sum(gradient * step))
            if -slope <= tol * mu * len(V):
                break
            for n_halvings in range(MAX_BACKTRACKS):
                step_length = 0.5**n_halvings
                new_value, new_gradient = self._evaluate_smoothed(V + step_length * step, mu)
                if new_value <= value + ARMIJO_FRACTION * step_length * slope:
                    break
            else:
                break
            V, value, gradient = V + step_length * step, new_value, new_gradient
        return V

    def _evaluate_smoothed(self, V: Floats, mu: float) -> tuple[float, Floats]:
        """Return the value and the gradient at V of the model with smoothed norms."""
        value, gradient = self._evaluate_quadratic_part(V)
        _, epigraphs = self._compute_smoothed_column_norms(V, mu)
        barrier = self._alpha * epigraphs - mu * np.log(2 * mu * epigraphs / self._alpha)
        return value + float(barrier.sum()), gradient + self._alpha * V / epigraphs

    def _compute_smoothed_column_norms(self, V: Floats, mu: float) -> tuple[Floats, Floats]:
        """Compute the smoothed norm t of each column v: the minimizer of alpha t - mu log(t^2 - |v|^2).

        Returns two arrays (columns, 1): the square roots in the quadratic formula for t, which are needed for
        derivatives, and t.
        """
        roots = np.hypot(mu, self._alpha * np.linalg.norm(V, axis=1, keepdims=True))
        return roots, (mu + roots) / self._alpha

    def _compute_penalty_hessian(self, V: Floats, mu: float) -> Floats:
        """Return the Hessian of the penalty with smoothed norms, which has one diagonal block per column."""
        roots, epigraphs = self._compute_smoothed_column_norms(V, mu)
        n_columns, n_features = V.shape
        blocks = np.zeros((n_columns, n_features, n_columns, n_features))
        directions = V * np.sqrt(self._alpha / (roots * epigraphs))
        outer_products = directions[:, :, np.newaxis] * directions[:, np.newaxis, :]
        diagonal = np.arange(n_columns)
        factors = (self._alpha / epigraphs)[:, :, np.newaxis]
        blocks[diagonal, :, diagonal, :] = factors * (np.eye(n_features) - outer_products)
        return blocks.reshape(self._hessian.shape)
