"""The loop that runs a solver, and properties that all solvers share, such as deadlines that end fits."""

from __future__ import annotations

import math
import re
import time
import warnings
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
from plain_networks import PlainClassifier, PlainOperator, PlainRegressor
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

from benchmarks.numpy_estimators import with_numpy_products
from polarmap.convex import ElasticNet, LinearSVC, NonNegativeLeastSquares, SparseLogisticRegression
from polarmap.errors import DeadlineExceededError, ModelError
from polarmap.glm import LeastSquares, LogisticRegression, PoissonRegression, Ridge
from polarmap.models.activation_gates import sample_gates
from polarmap.models.cones import ConeConstrainedLoss
from polarmap.models.losses import GaussianFamily, ProfiledLoss, SquaredLoss
from polarmap.models.penalties import ElasticNetPenalty, LinearBoxPenalty
from polarmap.models.solvers import proximal_newton
from polarmap.models.solvers.box_interior_point import _MehrotraSolver
from polarmap.models.solvers.cone_interior_point import _ConeInteriorPointSolver
from polarmap.models.solvers.proximal_gradient import CompositeProblem, FistaSolver
from polarmap.models.solvers.proximal_newton import ProximalNewtonSolver
from polarmap.models.solvers.solver import Solution, Solver, run_solver
from polarmap.testing import ReplayExecutor

STREAM = np.random.default_rng(0)
A, B = STREAM.standard_normal((20, 3)), STREAM.standard_normal(20)


class Halving:
    """A solver of min |x| that halves x in each step, down to `smallest`."""

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
    """Return all solvers, with tolerances that take several steps."""
    problem = CompositeProblem(operator, SquaredLoss(B), ElasticNetPenalty(0.3))
    box = LinearBoxPenalty(np.zeros(20), np.ones(20), -STREAM.random(20))
    sample_weight = np.full(20, 0.05)
    gates = sample_gates(A, sample_weight, 3, False, np.random.RandomState(0))
    loss = ProfiledLoss(GaussianFamily(), B[:, np.newaxis], sample_weight, False)
    cone_loss = ConeConstrainedLoss(loss, gates.patterns, gates.margins, gates.directions)
    return [
        FistaSolver(problem, np.zeros(3), 1e-4),
        ProximalNewtonSolver(problem, np.zeros(3), 1e-4),
        _MehrotraSolver(operator, box, np.ones(20), 1e-4),
        _ConeInteriorPointSolver(operator, cone_loss, 0.02, 1e-4),
    ]


QUESTIONS = ("n_iter", "objective", "optimality", "has_converged", "has_stalled")


@pytest.mark.parametrize("index", range(4), ids=["fista", "newton", "box", "cones"])
def test_queries_have_no_side_effects_and_cost_no_products(index: int) -> None:
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


# --- deadlines, set by the timeout of models ----------------------------------------------------


X = STREAM.standard_normal((60, 16)) @ np.diag(np.logspace(0, -2, 16)) @ STREAM.standard_normal((16, 16))
Y = X @ np.linspace(-1, 1, 16) + STREAM.standard_normal(60)
MODELS = [
    *(Ridge(1e-3, solver=solver) for solver in ("lsqr", "lsmr", "cg")),
    *(LogisticRegression(100.0, solver=solver) for solver in ("lbfgs", "trust-ncg", "trust-krylov")),
    PoissonRegression(1e-3),
    *(ElasticNet(1e-3), NonNegativeLeastSquares(), SparseLogisticRegression(100.0), LinearSVC(1.0)),
    *(PlainRegressor(0.01, n_gates=4, activation=activation) for activation in ("gated_relu", "relu")),
    PlainClassifier(0.01, n_gates=4, activation="relu"),
]
every_model = pytest.mark.parametrize("model", MODELS, ids=lambda model: repr(model).split(",")[0])


def targets_of(model: Any) -> np.ndarray:
    if isinstance(model, PoissonRegression):
        return np.exp(Y / 3)
    return Y if hasattr(model, "alpha") and not isinstance(model, PlainClassifier) else Y > 0


class LimitedOperator(PlainOperator):
    """An operator whose deadline passes after `max_products` products."""

    max_products = math.inf

    def set_deadline(self, seconds: float) -> None:
        assert 0 < seconds <= 60.0

    def _count(self) -> None:
        if self.n_products >= self.max_products:
            raise DeadlineExceededError("the deadline has passed")

    def _matmat(self, V: np.ndarray) -> Any:
        self._count()
        return super()._matmat(V)

    def _rmatmat(self, U: np.ndarray) -> Any:
        self._count()
        return super()._rmatmat(U)

    def gram(self, weights: np.ndarray) -> Any:
        self._count()
        return super().gram(weights)


def fit(model: Any, y: np.ndarray, max_products: float) -> tuple[Any, LimitedOperator, list[str]]:
    """Fit a copy of a model with a limited operator. Return the model, the operator and all warnings."""
    made: list[LimitedOperator] = []

    class LimitedEstimator(type(model)):  # type: ignore[misc]
        def _make_operator(self, A: Any) -> LimitedOperator:
            made.append(LimitedOperator(A))
            made[0].max_products = max_products
            return made[0]

    limited = LimitedEstimator(**model.get_params()).set_params(timeout=60.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        limited.fit(X, y)
    return (
        limited,
        made[0],
        [str(warning.message) for warning in caught if warning.category is ConvergenceWarning],
    )


def training_loss(model: Any, y: np.ndarray) -> float:
    if hasattr(model, "objective_"):
        return float(model.objective_)
    residual = y - model.predict(X)
    return float(residual @ residual + model.alpha * model.coef_ @ model.coef_)


def find_min_products(model: Any, y: np.ndarray) -> int:
    """Return the minimum number of products for a solution. A fit with fewer products raises an error."""
    for max_products in range(12):
        try:
            fit(model, y, max_products)
        except DeadlineExceededError:
            with pytest.raises(DeadlineExceededError, match="did not finish its first iteration"):
                fit(model, y, max_products)
        else:
            return max_products
    raise AssertionError("no solution after twelve products")


@every_model
@pytest.mark.parametrize("largest_gram", [1000, 0], ids=["newton", "gradients alone"])
def test_a_fit_may_end_after_any_product(
    model: Any, largest_gram: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proximal_newton, "MAX_GRAM_SIZE", largest_gram)
    y = targets_of(model)
    best, operator, _ = fit(model, y, math.inf)
    minimum, losses, n_first = training_loss(best, y), [], find_min_products(model, y)
    for max_products in range(n_first, operator.n_products, max(1, operator.n_products // 12)):
        fitted, _, messages = fit(model, y, max_products)
        losses.append(training_loss(fitted, y))
        assert np.isfinite(fitted.predict(X)).all() and fitted.n_iter_ >= 1
        assert losses[-1] >= minimum - 1e-6 * abs(minimum)
        if not messages:  # the solution has converged, and only its final measurement was cut off
            assert losses[-1] == pytest.approx(minimum, rel=1e-5)
            continue
        (message,) = messages
        assert message.startswith(
            f"the fit has stopped at timeout=60.0 s, after {fitted.n_iter_} iterations: "
        )
        assert message.endswith("; raise timeout or tol")
        gap = re.search(r"the objective is at most (\S+) above its minimum", message)
        if gap:
            assert losses[-1] - minimum <= 1.01 * float(gap[1]) + 1e-9 * abs(minimum)
        else:
            assert float(re.search(r"optimality is (\S+), and 0 at the minimum", message)[1]) >= 0
    assert losses
    assert losses[-1] <= min(losses) + 1e-9 * abs(minimum) + 1e-12 and losses[-1] < losses[0] + 1e-12


def test_several_targets_share_the_time_equally(monkeypatch: pytest.MonkeyPatch) -> None:
    deadlines: list[float] = []
    monkeypatch.setattr(LimitedOperator, "set_deadline", lambda operator, seconds: deadlines.append(seconds))
    fit(Ridge(), np.column_stack([Y, -Y, Y**2]), math.inf)
    assert [round(60 / seconds) for seconds in deadlines] == [3, 2, 1]


class HangingExecutor(ReplayExecutor):
    """An executor whose tasks never end after the first `n_maps` maps."""

    def __init__(self, n_maps: int) -> None:
        super().__init__()
        self.n_maps = n_maps

    def open(self, job_spec: Any) -> Any:
        self.n_maps -= 1
        executor = ReplayExecutor(dict.fromkeys(range(99), math.inf)) if self.n_maps < 0 else self
        return ReplayExecutor.open(executor, job_spec)


def test_a_map_that_hangs_ends_with_the_fit() -> None:
    started_at = time.monotonic()
    model = ElasticNet(1e-3, blocks=3, executor=HangingExecutor(9), timeout=5.0)
    with pytest.warns(ConvergenceWarning, match=r"stopped at timeout=5.0 s, after \d iterations"):
        model.fit(X, Y)
    assert model.coef_.any() and "_fit_ends_at" not in vars(model)
    with pytest.raises(DeadlineExceededError, match=r"first iteration within timeout=5.0 s"):
        clone(model).set_params(executor=HangingExecutor(0)).fit(X, Y)
    assert time.monotonic() - started_at < 60


def test_enough_time_changes_nothing() -> None:
    for model in (LeastSquares(blocks=3, executor=ReplayExecutor()), ElasticNet(0.1, blocks=3)):
        expected = model.set_params(executor=ReplayExecutor()).fit(X, Y).coef_
        limited = clone(model).set_params(timeout=600).fit(X, Y)
        np.testing.assert_array_equal(limited.coef_, expected)
        assert limited.get_params()["timeout"] == 600


@pytest.mark.parametrize("timeout", [0, -1.0, np.nan, "1", True])
def test_invalid_timeouts_are_refused(timeout: Any) -> None:
    with pytest.raises(ModelError, match="timeout must be a positive number of seconds or None, got"):
        with_numpy_products(Ridge()).set_params(timeout=timeout).fit(X, Y)
