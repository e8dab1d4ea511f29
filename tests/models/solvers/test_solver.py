"""The loop that runs a solver: how many iterations, and what a callback is called with."""

from __future__ import annotations

import numpy as np
import pytest

from polarmap.models.solvers.solver import Solution, Solver, run_solver


class Halving:
    """A solver of min |x| that halves x, down to `smallest`."""

    def __init__(self, smallest: float = 0.0) -> None:
        self.x, self.n_iter, self.smallest, self.has_stalled = 1.0, 0, smallest, False

    @property
    def objective(self) -> float:
        return self.x

    @property
    def optimality(self) -> float:
        return 2 * self.x

    def step(self) -> None:
        self.has_stalled = self.x == self.smallest
        self.x, self.n_iter = max(self.x / 2, self.smallest), self.n_iter + 1

    def has_converged(self, tol: float) -> bool:
        return self.x <= tol

    def make_solution(self, tol: float) -> Solution:
        point = np.array([self.x])
        return Solution(point, self.x, self.x, self.optimality, self.n_iter, self.has_converged(tol))


@pytest.mark.parametrize(
    ("solver", "max_iter", "n_iter", "converged"),
    [(Halving(), 100, 3, True), (Halving(), 2, 2, False), (Halving(0.25), 100, 3, False)],
    ids=["converged", "out of iterations", "stalled"],
)
def test_a_solver_runs_until_it_has_converged_or_stalled(
    solver: Solver, max_iter: int, n_iter: int, converged: bool
) -> None:
    reports: list[tuple[float, float]] = []
    solution = run_solver(solver, 0.125, max_iter, lambda *report: reports.append(report))
    assert (solution.n_iter, solution.converged) == (n_iter, converged)
    assert len(reports) == n_iter and reports[0] == (0.5, 1.0)


def test_a_solver_that_has_used_up_its_iterations_makes_no_step() -> None:
    solver = Halving()
    solver.n_iter = 7
    assert run_solver(solver, 0.0, 7, None) == (np.ones(1), 1.0, 1.0, 2.0, 7, False)
