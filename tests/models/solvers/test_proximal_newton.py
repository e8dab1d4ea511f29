"""The proximal Newton method on many kinds of data; the oracles are optimality conditions and FISTA."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyproximal
import pytest
from conic_solver import conic_minimum
from hypothesis import example, given, settings
from hypothesis import strategies as st
from l1_problems import L1Problem, l1_problems
from plain_networks import PlainOperator
from scipy.sparse import csr_array
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer
from straggling_models import standardized

from benchmarks.numpy_estimators import with_numpy_products
from polarmap.convex import (
    ElasticNet,
    ElasticNetPenalty,
    Lasso,
    LinearBoxPenalty,
    LinearSVC,
    LogisticLoss,
    NonNegativeLeastSquares,
    SparseLogisticRegression,
    SquaredLoss,
    fista,
)
from polarmap.glm import LogisticRegression, Ridge
from polarmap.models.estimators import svm
from polarmap.models.solvers import proximal_newton as module
from polarmap.models.solvers.proximal_newton import QuadraticModel, proximal_newton

STREAM = np.random.default_rng(0)
A = STREAM.standard_normal((40, 6))
COPIES = np.hstack([A, A + 1e-7 * STREAM.standard_normal(A.shape)])
DATA = {
    "as it is": A,
    "of all scales": A * 10.0 ** np.arange(-3, 3),
    "nearly copied": COPIES,
    "copied": np.hstack([A, A]),
    "wide": STREAM.standard_normal((15, 40)),
}


def minimum(A: np.ndarray, loss: Any, penalty: Any, **options: Any) -> Any:
    start = np.zeros((A.shape[1], *loss.shape[1:]))
    return proximal_newton(PlainOperator(A), loss, penalty, start, **{"tol": 1e-9, "max_iter": 100} | options)


@settings(max_examples=30)
@given(l1_problems)
def test_l1_penalties_of_any_shape_and_unit(problem: L1Problem) -> None:
    solution = minimum(problem.A, SquaredLoss(problem.b), ElasticNetPenalty(problem.strength))
    assert solution.converged and solution.n_iter <= 5
    problem.check(solution.x, 1e-5)


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("strength", [1e-4, 1e-2, 0.3])
def test_logistic_losses_take_a_few_steps(name: str, strength: float) -> None:
    X = DATA[name]
    scale = np.sqrt((X**2).mean(axis=0))
    loss = LogisticLoss((X[:, 0] + 0.3 * np.random.default_rng(1).standard_normal(len(X)) > 0).astype(float))
    solution = minimum(X / scale, loss, ElasticNetPenalty(strength), tol=1e-7)
    assert solution.converged and solution.n_iter <= 20
    slope = -(X / scale).T @ loss.gradient(X / scale @ solution.x) / strength
    np.testing.assert_allclose(slope[solution.x != 0], np.sign(solution.x[solution.x != 0]), atol=2e-2)
    assert np.abs(slope).max() <= 1 + 2e-2
    slow = fista(PlainOperator(X / scale), loss, ElasticNetPenalty(strength), tol=1e-6)
    assert solution.objective <= slow.objective * (1 + 1e-7)


@pytest.mark.parametrize("outputs", [2, 4])
def test_losses_with_coupled_classes(outputs: int) -> None:
    y = np.eye(outputs)[np.digitize(A[:, 0], [-0.5, 0.0, 0.5][: outputs - 1])]
    loss, penalty = LogisticLoss(y), ElasticNetPenalty(0.5, 0.1)
    solution = minimum(A, loss, penalty)
    slow = fista(PlainOperator(A), loss, penalty, np.zeros((6, outputs)), tol=1e-9)
    assert solution.converged and solution.n_iter <= 12
    assert solution.objective == pytest.approx(slow.objective, rel=1e-10)
    np.testing.assert_allclose(solution.x, slow.x, atol=1e-4)


def test_squared_loss_needs_one_gram_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    # Skip the first-order iterations that come before the first Gram matrix.
    monkeypatch.setattr(module, "GRAM_COLUMNS_PER_ITERATION", 1000)
    operator, targets = PlainOperator(A), STREAM.standard_normal((40, 3))
    loss, penalty = SquaredLoss(targets), ElasticNetPenalty(3.0)
    solution = proximal_newton(operator, loss, penalty, np.zeros((6, 3)), tol=1e-9, max_iter=10)
    assert solution.converged and solution.n_iter == 1
    assert operator.n_products == 4  # gradient at 0, Gram matrix, step, and gradient after the step


def test_solver_stops_without_progress() -> None:
    solution = minimum(COPIES, SquaredLoss(A[:, 0]), ElasticNetPenalty(1e-3), tol=0.0, max_iter=10_000)
    assert solution.n_iter < 50 and solution.dual_gap < 1e-7 * solution.objective


def test_step_that_would_increase_the_loss_is_shortened() -> None:
    y = (A[:, 0] > 0).astype(float)  # separable classes, so the losses are almost linear far from the minimum
    far = np.full(6, 30.0)
    loss, penalty = LogisticLoss(y), ElasticNetPenalty(1e-2)
    solution = proximal_newton(PlainOperator(A), loss, penalty, far, tol=1e-8, max_iter=100)
    assert solution.converged
    assert solution.objective == pytest.approx(minimum(A, loss, penalty).objective, rel=1e-8)


@settings(max_examples=30)
@given(size=st.integers(1, 12), rank=st.integers(1, 12), seed=st.integers(0, 99), is_box=st.booleans())
@example(size=8, rank=10, seed=20, is_box=True)  # far from the minimum, most variables are at a bound
@example(size=12, rank=8, seed=17, is_box=True)
def test_quadratic_model_is_minimized(size: int, rank: int, seed: int, is_box: bool) -> None:
    stream = np.random.default_rng(seed)
    R = stream.standard_normal((rank, size))
    H, c = R.T @ R, R.T @ stream.standard_normal(rank)
    penalty = LinearBoxPenalty(-np.ones(size), np.ones(size), c / 3) if is_box else pyproximal.Box(lower=0.0)
    L = float(np.abs(H).sum(axis=1).max())
    start = penalty.prox(stream.standard_normal(size), 1.0)
    model = QuadraticModel(H, H @ start - c, penalty, start, L)
    x = start + model.minimize(1e-9 * np.linalg.norm(c))
    slope, eye = c / 3 if is_box else np.zeros(size), np.eye(size)
    sides = [(-eye, np.ones(size) if is_box else np.zeros(size), "nonnegative")]
    sides += [(eye, np.ones(size), "nonnegative")] if is_box else []
    best = conic_minimum(H, slope - c, sides)[1]
    assert x.min() >= -is_box and (not is_box or x.max() <= 1)
    assert x @ H @ x / 2 + (slope - c) @ x == pytest.approx(best, rel=1e-7, abs=1e-8)


# --- fits by Newton steps, and by first-order methods for X that is sparse or wide -----------------------

CANCER, LABELS = standardized(load_breast_cancer)
LABELS = 1 - LABELS  # most features are positively correlated with these labels
MODELS = [
    (Lasso(0.01), 30),
    (ElasticNet(0.01), 30),
    (NonNegativeLeastSquares(), 30),
    (SparseLogisticRegression(), 60),
    (LinearSVC(), 100),
]


@pytest.mark.parametrize(
    ("model", "most"),
    [*MODELS, (LogisticRegression(), 30), *((Ridge(solver=solver), 20) for solver in ("lsqr", "lsmr", "cg"))],
    ids=lambda one: type(one).__name__,
)
def test_fits_need_few_products(model: Any, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[PlainOperator] = []
    monkeypatch.setattr(
        type(model), "_make_operator", lambda self, A: made.append(PlainOperator(A)) or made[-1]
    )
    clone(model).fit(CANCER, LABELS)
    assert made[0].n_products <= most


@pytest.mark.parametrize(
    "model", [model for model, _ in MODELS], ids=lambda patched_module: type(patched_module).__name__
)
def test_first_order_methods_find_the_same_minimum(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = CANCER[::4, ::5], LABELS[::4]
    model = with_numpy_products(model).set_params(tol=1e-7)
    objective, steps = model.fit(X, y).objective_, model.n_iter_
    assert model.fit(csr_array(X), y).objective_ == pytest.approx(objective, rel=1e-6)
    for patched_module in (module, svm):
        monkeypatch.setattr(patched_module, "MAX_GRAM_SIZE", 3)
    assert model.fit(X, y).objective_ == pytest.approx(objective, rel=1e-6)
    assert model.n_iter_ > steps
