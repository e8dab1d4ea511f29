"""The interface of all iterative solvers, the loop that runs them, and the solution that they return."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from polarmap.dtypes import Floats


class Solution(NamedTuple):
    """The solution of `fista` or another solver.

    Attributes
    ----------
    x : (N,) or (N, outputs)
        The minimizer, or the closest iterate.
    objective : float
        loss(A x) + penalty(x).
    dual_gap : float or None
        An upper bound on the distance of the objective to its minimum. None if the loss or the penalty has no
        conjugate.
    optimality : float
        The solver's measure of optimality, 0 at a minimum. For `fista` it is the norm of the gradient map
        L (x - prox(x - gradient / L)).
    n_iter : int
        The number of iterations.
    converged : bool
        Whether the solution is as accurate as `tol` asks for, or as rounding allows.
    """

    x: Floats
    objective: float
    dual_gap: float | None
    optimality: float
    n_iter: int
    converged: bool


class Solver(Protocol):
    """An iterative method, its current iterate, and measures of how far the iterate is from a minimum."""

    @property
    def n_iter(self) -> int:
        """The number of iterations so far."""

    @property
    def objective(self) -> float:
        """The objective at the current iterate."""

    @property
    def optimality(self) -> float:
        """The solver's measure of optimality at the current iterate, 0 at a minimum."""

    @property
    def has_stalled(self) -> bool:
        """Whether further iterations get no closer to a minimum."""

    def step(self) -> None:
        """Run one iteration."""

    def has_converged(self, tol: float) -> bool:
        """Return whether the iterate is as close to a minimum as `tol` asks for."""

    def make_solution(self, tol: float) -> Solution:
        """Return the best solution so far, which counts as converged if it satisfies `tol`."""


def run_solver(
    solver: Solver, tol: float, max_iter: int, callback: Callable[[float, float], None] | None
) -> Solution:
    """Run a solver until it has converged or stalled, or has done `max_iter` iterations; return its solution.

    callback : called after each iteration with the objective and the measure of optimality.
    """
    while solver.n_iter < max_iter:
        solver.step()
        if callback is not None:
            callback(solver.objective, solver.optimality)
        if solver.has_converged(tol) or solver.has_stalled:
            break
    return solver.make_solution(tol)
