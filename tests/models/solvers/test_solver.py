"""The loop that runs a solver, and what all solvers have in common: questions cost no products."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
from plain_networks import PlainOperator

from polarmap.models.activation_gates import sample_gates
from polarmap.models.cones import ConeConstrainedLoss
from polarmap.models.losses import GaussianFamily, ProfiledLoss, SquaredLoss
from polarmap.models.penalties import ElasticNetPenalty, LinearBoxPenalty
from polarmap.models.solvers.box_interior_point import _MehrotraSolver
from polarmap.models.solvers.cone_interior_point import _ConeInteriorPointSolver
from polarmap.models.solvers.proximal_gradient import CompositeProblem, FistaSolver
from polarmap.models.solvers.proximal_newton import ProximalNewtonSolver
from polarmap.models.solvers.solver import Solution, Solver, run_solver

STREAM = np.random.default_rng(0)
A, B = STREAM.standard_normal((20, 3)), STREAM.standard_normal(20)


class Halving:
    """A solver of min |x| that halves x, down to `smallest`."""

    def __init__(self, smallest: float = 0.0) -> None:
        self.x, self.n_iter, self.smallest, self.has_stalled = 1.0, 0, smallest, False
        self.has_converged = self.is_polished = False

    @property
    def objective(self) -> float:
        return self.x

    @property
    def optimality(self) -> float:
        return 2 * self.x

    def step(self) -> None:
        self.has_stalled = self.x == self.smallest
        self.x, self.n_iter = max(self.x / 2, self.smallest), self.n_iter + 1
        self.has_converged = self.x <= 0.125

    def polish(self) -> None:
        self.is_polished = True

    def make_solution(self) -> Solution:
        assert self.is_polished
        point = np.array([self.x])
        return Solution(point, self.x, self.x, self.optimality, self.n_iter, self.has_converged)


@pytest.mark.parametrize(
    ("solver", "max_iter", "n_iter", "converged"),
    [(Halving(), 100, 3, True), (Halving(), 2, 2, False), (Halving(0.25), 100, 3, False)],
    ids=["converged", "out of iterations", "stalled"],
)
def test_a_solver_runs_until_it_has_converged_or_stalled(
    solver: Solver, max_iter: int, n_iter: int, converged: bool
) -> None:
    reports: list[tuple[float, float]] = []
    solution = run_solver(solver, max_iter, lambda *report: reports.append(report))
    assert (solution.n_iter, solution.converged) == (n_iter, converged)
    assert len(reports) == n_iter and reports[0] == (0.5, 1.0)


def test_a_solver_that_has_used_up_its_iterations_makes_no_step() -> None:
    solver = Halving()
    solver.n_iter = 7
    assert run_solver(solver, 7, None) == (np.ones(1), 1.0, 1.0, 2.0, 7, False, False)


def make_solvers(operator: PlainOperator) -> list[Any]:
    """All solvers, of tolerances that take some steps."""
    problem = CompositeProblem(operator, SquaredLoss(B), ElasticNetPenalty(0.3))
    box = LinearBoxPenalty(np.zeros(20), np.ones(20), -STREAM.random(20))
    sample_weight = np.full(20, 0.05)
    gates = sample_gates(A, sample_weight, 3, False, np.random.RandomState(0))
    loss = ProfiledLoss(GaussianFamily(), B[:, np.newaxis], sample_weight, False)
    cone_loss = ConeConstrainedLoss(loss, gates.patterns, gates.margins, gates.directions)
    return [
        FistaSolver(problem, np.zeros(3), 1e-4),
        ProximalNewtonSolver(problem, np.zeros(3), 1e-4),
        _MehrotraSolver(operator, box, (20, 1), 1e-4),
        _ConeInteriorPointSolver(operator, cone_loss, 0.02, 1e-4),
    ]


QUESTIONS = ("n_iter", "objective", "optimality", "has_converged", "has_stalled")


@pytest.mark.parametrize("index", range(4), ids=["fista", "newton", "box", "cones"])
def test_questions_neither_change_a_solver_nor_cost_products(index: int) -> None:
    operator = PlainOperator(A)
    solver, has_converged = make_solvers(operator)[index], False
    while not has_converged:
        solver.step()
        n_products, state = operator.n_products, deepcopy(vars(solver))
        answers = [[getattr(solver, question) for question in QUESTIONS] for _ in range(2)]
        solutions = [solver.make_solution() for _ in range(2)]
        assert operator.n_products == n_products and answers[0] == answers[1]
        np.testing.assert_equal(solutions[0], solutions[1])
        for name, value in vars(solver).items():
            if isinstance(value, (np.ndarray, float, int, tuple, type(None))):
                np.testing.assert_equal(value, state[name], name)
        has_converged = solver.has_converged
    solver.polish()
    solution = solver.make_solution()
    assert solution.converged and solution.n_iter == solver.n_iter > 0
