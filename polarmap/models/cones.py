"""Losses of units' inputs, each kept in the cone of its gate, and how they are minimized: ReLU networks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from polarmap.dtypes import Floats
from polarmap.models.losses import ProfiledLoss
from polarmap.models.solvers.solver import Solution, run_solver

MAX_NEWTON_STEPS = 30
RESIDUAL_TOL = 1e-13  # relative to the targets: an equation that holds to that holds
GAP_INTERVAL = 10  # iterations of ADMM, at whose end the gap is looked at
MAX_RESIDUAL_RATIO, RHO_FACTOR = 2.0, 1.5  # of the residuals, at which rho is changed, and by how much


class ConeConstrainedLoss:
    """loss(sum_i D_i (E+_i - E-_i)), where (2 D_i - 1) E+_i >= 0 and (2 D_i - 1) E-_i >= 0.

    E = A W has a column for each sign, gate and output, in that order: what the units of a ReLU network see
    of each sample. Within the cones D_i E_i is the ReLU of E_i.

    patterns : the diagonals of the D_i, (samples, gates).
    interior_points : a point in each cone, (features, gates); margins : |A interior|, (samples, gates).
    """

    def __init__(
        self, loss: ProfiledLoss, patterns: npt.NDArray[np.bool_], margins: Floats, interior_points: Floats
    ) -> None:
        self.loss, self._n_outputs = loss, loss.shape[1]
        self.patterns, self.margins, self.interior_points = patterns, margins, interior_points
        open_gates = patterns.astype(np.float64)[:, np.newaxis, :, np.newaxis]
        self._cone_signs = 2.0 * open_gates - 1.0
        self._branch_signs = np.concatenate([open_gates, -open_gates], axis=1)
        self._margins = margins[:, np.newaxis, :, np.newaxis]
        self._interior_points = interior_points[:, np.newaxis, :, np.newaxis]
        self._eta, self._nu, self._intercept = np.zeros(loss.shape), np.zeros(loss.shape), loss.null_intercept
        self._residual_tol = RESIDUAL_TOL * (float(np.abs(loss.y).max(initial=0.0)) or 1.0)

    def prox(self, point: Floats, rho: float) -> Floats:
        """The E that minimizes a bound of the loss + rho / 2 sum_i shares_i |E_i - B_i|^2 over the cones.

        The bound is quadratic, by the largest curvature; a squared loss is its own.
        """
        # E is B - sign nu, projected onto the cones, with one nu for each sample and output, where rho nu is
        # the bound's gradient: Newton's method, for all of them and the intercept at once.
        split_point, curvature = self._split_by_sign_gate_and_output(point), self.loss.family.max_curvature
        network_outputs = self._eta + self._intercept
        working_targets = network_outputs - (self.loss.family.mean(network_outputs) - self.loss.y) / curvature
        for _ in range(MAX_NEWTON_STEPS):
            unit_inputs, n_active = self._project_on_cones(split_point)
            self._eta = (self._branch_signs * unit_inputs).sum(axis=(1, 2))
            residual = rho * self._nu - curvature * (self._eta + self._intercept - working_targets)
            intercept_gradient = self._compute_weighted_mean(self._nu)
            if max(np.abs(residual).max(), rho * np.abs(intercept_gradient).max()) <= self._residual_tol:
                break
            slope = rho + curvature * n_active
            change = residual / slope
            if self.loss.fit_intercept:
                intercept_curvature = curvature * self._compute_weighted_mean(1.0 / slope)
                mean_change = self._compute_weighted_mean(change)
                intercept_change = (mean_change - intercept_gradient) / intercept_curvature
                self._intercept = self._intercept + intercept_change
                change = change - curvature * intercept_change / slope
            self._nu = self._nu - change
        return unit_inputs.reshape(point.shape)

    def rescale_dual(self, factor: float) -> None:
        """Multiply the dual of the next start, where rho is divided by `factor`."""
        self._nu = self._nu * factor

    def compute_dual_point(self, multipliers: Floats, rho: float) -> tuple[Floats, Floats]:
        """A gradient u of the loss, and that of `rho` times multipliers U with it: U = sign nu - side mu.

        mu >= 0 is kept and nu replaced by that of u, so that -conjugate(u) is a bound whatever nu was.
        """
        loss_gradient = self.loss.gradient(self._eta)
        nu_change = (loss_gradient / (rho * self.loss.weights) - self._nu)[:, np.newaxis, np.newaxis, :]
        multiplier_change = (self._branch_signs * nu_change).reshape(multipliers.shape)
        return loss_gradient, rho * (multipliers + multiplier_change)

    def make_feasible(self, weights: Floats, unit_inputs: Floats) -> tuple[Floats, Floats]:
        """W (features, columns) and E = A W, moved into the cones along their interior points."""
        split_inputs = self._split_by_sign_gate_and_output(unit_inputs)
        split_weights = self._split_by_sign_gate_and_output(weights)
        signed_slacks, violation_ratios = self._cone_signs * split_inputs, np.zeros_like(split_inputs)
        violated_mask = (signed_slacks < 0) & (self._margins > 0)
        np.divide(-signed_slacks, self._margins, out=violation_ratios, where=violated_mask)
        shift_lengths = np.where(split_weights.any(axis=0), violation_ratios.max(axis=0), 0.0)
        feasible_weights = split_weights + shift_lengths * self._interior_points
        feasible_inputs = split_inputs + shift_lengths * self._cone_signs * self._margins
        return feasible_weights.reshape(weights.shape), feasible_inputs.reshape(unit_inputs.shape)

    def value(self, unit_inputs: Floats) -> float:
        """The loss at an E within the cones."""
        return self.loss.value(self.compute_network_outputs(unit_inputs))

    def compute_network_outputs(self, unit_inputs: Floats) -> Floats:
        """Of the network before its intercept, (samples, outputs)."""
        split_inputs = self._split_by_sign_gate_and_output(unit_inputs)
        return np.asarray((self._branch_signs * split_inputs).sum(axis=(1, 2)))

    def _split_by_sign_gate_and_output(self, columns: Floats) -> Floats:
        """(rows, signs, gates, outputs)."""
        return columns.reshape(len(columns), 2, -1, self._n_outputs)

    def _project_on_cones(self, split_point: Floats) -> tuple[Floats, Floats]:
        """E by nu, and how many units of each sample and output change with it."""
        nu = self._nu[:, np.newaxis, np.newaxis, :]
        signed_slacks = self._cone_signs * (split_point - self._branch_signs * nu)
        n_active = ((signed_slacks > 0) & (self._branch_signs != 0)).sum(axis=(1, 2))
        return self._cone_signs * np.maximum(signed_slacks, 0.0), n_active

    def _compute_weighted_mean(self, sample_values: Floats) -> Floats:
        """Weighted, of each output: for nu, 0 where the intercept fits best; 0 without one."""
        mean = np.sum(self.loss.weights * sample_values, axis=0)
        return np.asarray(mean if self.loss.fit_intercept else np.zeros_like(mean))


def admm(
    operator: Any,
    loss: ConeConstrainedLoss,
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
    return run_solver(_AdmmSolver(operator, loss, penalty, start, max_iter), tol, max_iter, callback)


class _AdmmSolver:
    """The iteration: x, A x, multipliers U, and the best objective and bound so far."""

    has_stalled = False

    def __init__(
        self, operator: Any, loss: ConeConstrainedLoss, penalty: Any, start: Floats, max_iter: int
    ) -> None:
        self._operator, self._loss, self._penalty, self._max_iter = operator, loss, penalty, max_iter
        self.x, self.best_x, self.n_iter = start, start, 0
        self._Ax = np.zeros((operator.shape[0], start.shape[1]))
        self._U, self._dual_image = np.zeros_like(self._Ax), np.zeros_like(start)
        self._rho, self._next_rho_update = 1.0, GAP_INTERVAL
        self.objective, self.dual_bound, self.optimality = math.inf, -math.inf, math.inf
        self._residuals = 0.0, 0.0

    @property
    def dual_gap(self) -> float:
        """The distance from the best bound to the best objective."""
        return math.inf if self.objective == math.inf else max(0.0, self.objective - self.dual_bound)

    def has_converged(self, tol: float) -> bool:
        """Whether the gap has been looked at, and is small."""
        return self.dual_gap <= tol * self.objective < math.inf

    def step(self) -> None:
        """E, then U, then x; a look at the gap every tenth time and the last one."""
        self._update_rho()
        sample_weight = self._loss.loss.weights
        B = self._Ax + self._U
        E = self._loss.prox(B, self._rho)
        self._U = B - E
        dual_image = np.asarray(self._operator.rmatmat(sample_weight * self._U))
        gradient_point = (self.x - (2 * dual_image - self._dual_image)).reshape(-1)
        x = np.asarray(self._penalty.prox(gradient_point, 1.0 / self._rho)).reshape(self.x.shape)
        self.optimality = self._rho * float(np.linalg.norm(x - self.x))
        Ax = np.asarray(self._operator.matmat(x))
        primal_residual = _compute_relative_rms_change(sample_weight, Ax - E, E)
        self._residuals = primal_residual, _compute_relative_rms_change(sample_weight, Ax - self._Ax, self._U)
        self.x, self._Ax, self._dual_image, self.n_iter = x, Ax, dual_image, self.n_iter + 1
        if self.n_iter % GAP_INTERVAL == 0 or self.n_iter == self._max_iter:
            self._update_best_objective_and_bound()

    def make_solution(self, tol: float) -> Solution:
        """The best that was looked at."""
        converged = self.has_converged(tol)
        return Solution(self.best_x, self.objective, self.dual_gap, self.optimality, self.n_iter, converged)

    def _update_best_objective_and_bound(self) -> None:
        """Objective and bound, by one product."""
        x, E = self._loss.make_feasible(self.x, self._Ax)
        objective = self._loss.value(E) + float(self._penalty(x.reshape(-1)))
        if objective < self.objective:
            self.objective, self.best_x = objective, x
        loss_gradient, multipliers = self._loss.compute_dual_point(self._U, self._rho)
        product = self._operator.rmatmat(self._loss.loss.weights * multipliers)
        dual_scale = float(self._penalty.dual_scale(-product.reshape(-1)))
        self.dual_bound = max(self.dual_bound, -self._loss.loss.conjugate(dual_scale * loss_gradient))

    def _update_rho(self) -> None:
        """Another rho, where one residual is far larger than the other; rarer with every time."""
        if self.n_iter < self._next_rho_update:
            return
        self._next_rho_update = self.n_iter + max(GAP_INTERVAL, self.n_iter // 4)
        primal, dual = self._residuals
        if primal > MAX_RESIDUAL_RATIO * dual:
            factor = RHO_FACTOR
        elif dual > MAX_RESIDUAL_RATIO * primal:
            factor = 1.0 / RHO_FACTOR
        else:
            return
        self._rho *= factor
        self._U, self._dual_image = self._U / factor, self._dual_image / factor
        self._loss.rescale_dual(1.0 / factor)


def _compute_relative_rms_change(sample_weight: Floats, change: Floats, reference: Floats) -> float:
    """Root mean square of a change, relative to that of what changes."""
    squared_change = float(np.sum(sample_weight * change**2))
    squared_reference = float(np.sum(sample_weight * reference**2))
    return math.sqrt(squared_change / squared_reference) if squared_reference > 0 else 0.0
