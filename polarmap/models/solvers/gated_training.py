"""Train gated ReLU networks by Newton steps if the Hessian is small enough, and otherwise by FISTA.

FISTA also continues where Newton steps stall. `ConvexMLPClassifier` and `ConvexMLPRegressor` use this module.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from polarmap.dtypes import Floats
from polarmap.errors import DeadlineExceededError
from polarmap.models.losses import ProfiledLoss
from polarmap.models.operators import AppendedInterceptOperator, GatedOperator
from polarmap.models.penalties import GroupLassoPenalty
from polarmap.models.solvers.group_newton import (
    MIN_WORKING_COLUMNS,
    compute_max_working_columns,
    group_newton,
)
from polarmap.models.solvers.proximal_gradient import fista
from polarmap.models.solvers.solver import Solution
from polarmap.models.whitening import WhiteningOperator

Callback = Callable[[float, float], None] | None


def is_newton_affordable(n_samples: int, n_features: int, n_outputs: int) -> bool:
    """Return whether the data is small enough to train a gated ReLU network by Newton steps on the driver.

    Examples
    --------
    >>> is_newton_affordable(1000, 20, 1), is_newton_affordable(1000, 200, 1)
    (True, False)
    """
    return compute_max_working_columns(n_samples, n_features, n_outputs) >= MIN_WORKING_COLUMNS


@dataclass
class GatedTraining:
    """The training problem of a gated ReLU network, and its solution by Newton steps or FISTA.

    It minimizes loss(sum_i D_i A W_i) + alpha * sum_j |W_j|, where W_i are the weights of the units with gate
    i, W_j is the column of weights of unit j, and D_i is a diagonal matrix of zeros and ones.

    Parameters
    ----------
    operator : LinearOperator
        The matrix A. For Newton steps, and if the loss has an intercept, its last column consists of ones.
    whitening : WhiteningOperator
        The whitening of A with the column of ones.
    loss : ProfiledLoss
        The loss to minimize.
    patterns : bool array (samples, gates)
        The diagonals of the matrices D_i: True if a gate is open for a sample.
    alpha : float
        The strength of the penalty, positive.
    uses_newton : bool
        Whether to take Newton steps first. Then `operator` must have a method `gram(weights)`.
    """

    operator: Any
    whitening: WhiteningOperator
    loss: ProfiledLoss
    patterns: Any
    alpha: float
    uses_newton: bool

    def minimize(self, *, tol: float, max_iter: int, callback: Callback) -> Solution:
        """Solve the problem. The solution's x is W, of shape (features, gates * outputs).

        The keywords are those of `fista`.
        """
        options: dict[str, Any] = {"tol": tol, "callback": callback}
        if not self.uses_newton:
            n_columns = self.patterns.shape[1] * self.loss.shape[1]
            start = np.zeros((len(self.whitening.scale), n_columns))
            return self._run_fista(start, max_iter=max_iter, **options)
        newton = group_newton(
            self.operator, self.loss, self.patterns, self.alpha, max_iter=max_iter, **options
        )
        n_left = max_iter - newton.n_iter
        if newton.converged or newton.timed_out or not n_left:
            return newton
        try:
            solution = self._run_fista(newton.x, max_iter=n_left, **options)
        except DeadlineExceededError:
            return newton._replace(timed_out=True)
        return solution._replace(n_iter=newton.n_iter + solution.n_iter)

    def _run_fista(self, start: Floats, **options: Any) -> Solution:
        """Run FISTA from the weights `start`, with whitened features, for which it converges faster."""
        scale, n_outputs = self.whitening.scale, self.loss.shape[1]
        operator = self.operator
        if self.loss.fit_intercept and not self.uses_newton:
            operator = AppendedInterceptOperator(operator, 1.0)
        # FISTA optimizes the weights z of whitened features. The penalty remains the norm of the original
        # weights, which is |z / scale|.
        penalty = GroupLassoPenalty(self.alpha, 1.0 / scale, start.shape[1])
        gated_operator = GatedOperator(operator @ self.whitening, self.patterns)
        whitened_start = scale[:, np.newaxis] * np.asarray(self.whitening.axes.T @ start)
        solution = fista(gated_operator, self.loss, penalty, whitened_start.reshape(-1, n_outputs), **options)
        return solution._replace(x=np.asarray(self.whitening @ solution.x.reshape(start.shape)))
