"""The interface of all iterative solvers, the loop that runs them, and the solution that they return.

    run_solver(solver):  step -> callback -> step -> callback -> ... -> polish -> make_solution

The loop ends when the solver has converged or stalled, at `max_iter` iterations, or at the deadline of the
operator whose products the solver computes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from polarmap.dtypes import Floats
from polarmap.errors import DeadlineExceededError


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
    timed_out : bool
        Whether the deadline of the operator (`CodedOperator.set_deadline`) passed before the solver ended.
        If so, x is the best iterate so far.
    """

    x: Floats
    objective: float
    dual_gap: float | None
    optimality: float
    n_iter: int
    converged: bool
    timed_out: bool = False


class Solver(Protocol):
    """An iterative method with its current iterate and the distance of the iterate from a minimum.

    Only `step` and `polish` run products and change the solver. If a product raises an exception,
    `make_solution` still returns the best of the iterates that were complete before.
    """

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
    def has_converged(self) -> bool:
        """Whether the current iterate is as close to a minimum as the tolerance of the solver asks for."""

    @property
    def has_stalled(self) -> bool:
        """Whether further iterations are not expected to get closer to a minimum."""

    def step(self) -> None:
        """Run one iteration, and measure how close the new iterate is to a minimum."""

    def polish(self) -> None:
        """Run the last few products, which improve the best iterate or measure it more accurately."""

    def make_solution(self) -> Solution:
        """Return the best solution so far."""


def run_solver(solver: Solver, max_iter: int, callback: Callable[[float, float], None] | None) -> Solution:
    """Run a solver until it converges, stalls or reaches the iteration limit, and return its solution.

    If the deadline of the operator passes first, return the best solution so far.

    Parameters
    ----------
    solver : Solver
    max_iter : int
        The total number of iterations, including those counted in `solver.n_iter` at the start.
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
