"""The interface of all iterative solvers, the loop that runs them, and the solution that they return."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from polarmap.dtypes import Floats


class Solution(NamedTuple):
    """What `fista` has found.

    Attributes
    ----------
    x : (N,) or (N, outputs)
    objective : float
        loss(A x) + penalty(x).
    dual_gap : float or None
        The objective is at most that far above its minimum. None where loss or penalty has no conjugate.
    optimality : float
        Norm of the gradient map L (x - prox(x - gradient / L)), 0 at a minimum.
    n_iter : int
    converged : bool
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
    """What a method finds in `max_iter` steps, or as few as it takes; the callback is told of each."""
    while solver.n_iter < max_iter:
        solver.step()
        if callback is not None:
            callback(solver.objective, solver.optimality)
        if solver.has_converged(tol) or solver.has_stalled:
            break
    return solver.make_solution(tol)
