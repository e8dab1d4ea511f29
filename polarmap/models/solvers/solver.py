"""The interface of all iterative solvers, the loop that runs them, and the solution that they return.

    run_solver(solver):  step -> callback -> step -> callback -> ... -> polish -> make_solution

The loop ends when the solver has converged or stalled, or after `max_iter` iterations. It also ends if the
deadline of the operator passes, which then raises an exception in one of the solver's products.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from polarmap.dtypes import Floats
from polarmap.errors import DeadlineExceededError


class Solution(NamedTuple):
    """The solution returned by `fista` or another solver.

    Attributes
    ----------
    x : array (N,) or (N, outputs)
        The minimizer, or the iterate closest to it.
    objective : float
        Objective loss(A x) + penalty(x).
    dual_gap : float or None
        Upper bound on the difference between the objective and its minimum. None if the loss or the penalty
        has no conjugate.
    optimality : float
        Solver's measure of optimality, 0 at a minimum. For `fista`, it is the norm of the gradient map
        L (x - prox(x - gradient / L)).
    n_iter : int
        Number of iterations.
    converged : bool
        Whether the solution satisfies `tol`, or is as accurate as rounding allows.
    timed_out : bool
        Whether the deadline of the operator (`CodedOperator.set_deadline`) passed before the solver had
        finished. If so, x is the best iterate so far.
    """

    x: Floats
    objective: float
    dual_gap: float | None
    optimality: float
    n_iter: int
    converged: bool
    timed_out: bool = False


class Solver(Protocol):
    """An iterative method that keeps a current iterate and measures how far it is from a minimum.

    Only `step` and `polish` compute products with the data and change the solver. If a product raises an
    exception, `make_solution` still returns the best iterate completed before.
    """

    @property
    def n_iter(self) -> int:
        """The number of iterations so far."""

    @property
    def objective(self) -> float:
        """The objective at the current iterate."""

    @property
    def optimality(self) -> float:
        """The solver's measure of optimality at the current iterate; 0 at a minimum."""

    @property
    def has_converged(self) -> bool:
        """True if the current iterate satisfies the tolerance."""

    @property
    def has_stalled(self) -> bool:
        """True if further iterations are unlikely to get closer to a minimum."""

    def step(self) -> None:
        """Run one iteration, and measure how close the new iterate is to a minimum."""

    def polish(self) -> None:
        """Compute a few final products to improve the best iterate or measure it more accurately."""

    def make_solution(self) -> Solution:
        """Return the best solution so far."""


def run_solver(solver: Solver, max_iter: int, callback: Callable[[float, float], None] | None) -> Solution:
    """Run a solver until it converges, stalls or reaches the iteration limit, and return its solution.

    If the deadline of the operator passes first, the best solution so far is returned.

    Parameters
    ----------
    solver : Solver
        Solver at its starting point.
    max_iter : int
        Maximum number of iterations, including those that `solver.n_iter` counts at the start.
    callback : callable or None
        Called with the objective and the measure of optimality after each iteration.

    Raises
    ------
    DeadlineExceededError
        If the deadline of the operator passes before the end of the first iteration.
    """
    try:
        while solver.n_iter < max_iter:
            solver.step()
            if callback is not None:
                callback(solver.objective, solver.optimality)
            if solver.has_converged or solver.has_stalled:
                break
        solver.polish()
    except DeadlineExceededError:
        if solver.n_iter == 0:
            raise
        return solver.make_solution()._replace(timed_out=True)
    return solver.make_solution()
