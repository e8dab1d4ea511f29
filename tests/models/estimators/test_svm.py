"""Support vector machines with one dead and one late worker; the oracles are Clarabel and scikit-learn."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conic_solver import conic_minimum
from scipy import sparse
from sklearn import svm
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.exceptions import ConvergenceWarning
from straggling_models import options, standardized

from benchmarks.numpy_estimators import with_numpy_products
from polarmap import CodedOperator
from polarmap.convex import LinearSVC, SparseLogisticRegression
from polarmap.models.estimators.coded_estimator import CodedEstimator
from polarmap.testing import ReplayExecutor

CANCER, LABELS = standardized(load_breast_cancer)
CANCER, LABELS = CANCER[::6, ::5], LABELS[::6]
WEIGHTS = np.random.default_rng(0).random(len(LABELS))
HERE = {"blocks": 2, "tasks": 3, "executor": ReplayExecutor()}


def conic_objective(X: np.ndarray, y: np.ndarray, bounds: np.ndarray) -> float:
    """Return the minimum of |(w, c)|^2 / 2 + the sum of bounds times slacks, by a conic solver."""
    Z = (2.0 * y - 1.0)[:, np.newaxis] * np.column_stack([X, np.ones(len(X))])
    unknowns, samples = Z.shape[1], len(Z)
    P = np.diag(np.append(np.ones(unknowns), np.zeros(samples)))
    q = np.append(np.zeros(unknowns), bounds)
    margin, positive = np.hstack([-Z, -np.eye(samples)]), np.hstack([np.zeros(Z.shape), -np.eye(samples)])
    return conic_minimum(
        P, q, [(margin, -np.ones(samples), "nonnegative"), (positive, np.zeros(samples), "nonnegative")]
    )[1]


def objective(model: Any, X: np.ndarray, y: np.ndarray, bounds: Any) -> float:
    slack = np.maximum(0, 1 - (2 * y - 1) * model.decision_function(X))
    return float((np.sum(model.coef_**2) + np.sum(model.intercept_**2)) / 2 + np.sum(bounds * slack))


@pytest.mark.parametrize("C", [0.01, 0.1])
def test_the_minimum_is_that_of_a_conic_solver(C: float) -> None:
    model = LinearSVC(C, **options()).fit(CANCER, LABELS)
    best = conic_objective(CANCER, LABELS, np.full(len(LABELS), C))
    assert objective(model, CANCER, LABELS, C) == pytest.approx(best, rel=1e-6)
    assert model.objective_ == pytest.approx(best, rel=1e-6)
    assert -1e-9 <= model.objective_ - best <= model.dual_gap_ + 1e-9
    assert model.dual_gap_ <= 1e-6 * model.objective_
    assert {0, 1} <= set(model.report_.recovered)
    np.testing.assert_allclose(model.dual_coef_ @ CANCER, model.coef_)
    signed = model.dual_coef_[0] * (2 * LABELS - 1)
    assert signed.min() >= 0 and signed.max() <= C * (1 + 1e-12)


@pytest.mark.parametrize("samples", [5_000, 20_000])
def test_many_samples_need_few_iterations(samples: int) -> None:
    stream = np.random.default_rng(0)
    X = stream.standard_normal((samples, 20))
    y = (X[:, :10].sum(axis=1) + stream.standard_normal(samples) > 0).astype(int)
    model = with_numpy_products(LinearSVC()).fit(X, y)
    assert model.n_iter_ < 50 and model.dual_gap_ <= 1e-6 * model.objective_
    assert model.objective_ == pytest.approx(objective(model, X, y, 1.0), rel=1e-9)
    signed = model.dual_coef_[0] * (2 * y - 1)  # a feasible point of the dual problem, to check the gap
    dual = signed.sum() - (np.sum(model.coef_**2) + np.sum(model.intercept_**2)) / 2
    assert signed.min() >= 0 and signed.max() <= 1 + 1e-12
    assert model.objective_ - dual <= 2e-6 * model.objective_


@pytest.mark.parametrize("class_weight", [None, "balanced", {0: 2.0, 1: 0.5}])
def test_weights_are_those_of_sklearn(class_weight: Any) -> None:
    model = LinearSVC(0.05, class_weight=class_weight, **HERE).fit(CANCER, LABELS, WEIGHTS)
    factors = np.ones(2) if class_weight is None else np.array([2.0, 0.5])
    if class_weight == "balanced":
        factors = WEIGHTS.sum() / (2 * np.bincount(LABELS, WEIGHTS))
    bounds = 0.05 * WEIGHTS * factors[LABELS]
    best = conic_objective(CANCER, LABELS, bounds)
    assert objective(model, CANCER, LABELS, bounds) == pytest.approx(best, rel=1e-6)
    if class_weight != "balanced":  # scikit-learn ignores sample weights when it balances classes
        chosen = {"loss": "hinge", "tol": 1e-10, "max_iter": 1_000_000, "class_weight": class_weight}
        oracle = svm.LinearSVC(C=0.05, **chosen).fit(CANCER, LABELS, WEIGHTS)
        np.testing.assert_allclose(model.coef_, oracle.coef_, atol=2e-3)


# The first matrix is solved by the interior-point method, and the second by FISTA.
@pytest.mark.parametrize(("density", "n_features"), [(0.5, 12), (0.03, 60)])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_sample_with_a_weight_equals_copies_of_the_sample(
    n_classes: int, density: float, n_features: int
) -> None:
    stream = np.random.default_rng(0)
    X = sparse.random_array((50, n_features), density=density, format="csr", rng=stream)
    y, weights = stream.integers(0, n_classes, 50), stream.integers(0, 5, 50)
    rows = np.repeat(np.arange(50), weights)
    weighted, copied = with_numpy_products(LinearSVC(tol=0.01)), with_numpy_products(LinearSVC(tol=0.01))
    weighted.fit(X, y, weights)
    copied.fit(X[rows], y[rows])
    assert weighted.n_iter_ == copied.n_iter_
    np.testing.assert_allclose(weighted.coef_, copied.coef_, rtol=1e-7, atol=1e-10)
    np.testing.assert_allclose(weighted.intercept_, copied.intercept_, rtol=1e-7)
    assert weighted.objective_ == pytest.approx(copied.objective_)
    dense = with_numpy_products(LinearSVC()).fit(X.toarray(), y, weights)
    assert abs(weighted.objective_ - dense.objective_) <= 0.01 * dense.objective_


@pytest.mark.parametrize("chosen", [{}, {"fit_intercept": False}, {"class_weight": {0: 3.0}}])
def test_several_classes_are_those_of_sklearn(chosen: dict[str, Any]) -> None:
    X, y = standardized(load_iris)
    names = np.array(["setosa", "versicolor", "virginica"])[y]
    if "class_weight" in chosen:
        chosen = {"class_weight": {"setosa": 3.0}}
    model = LinearSVC(0.02, **chosen, **HERE).fit(X, names)
    oracle = svm.LinearSVC(C=0.02, loss="hinge", tol=1e-10, max_iter=1_000_000, **chosen).fit(X, names)
    assert model.coef_.shape == (3, 4) and model.dual_coef_.shape == (3, 150)
    np.testing.assert_allclose(model.coef_, oracle.coef_, atol=2e-3)
    np.testing.assert_allclose(model.decision_function(X), oracle.decision_function(X), atol=5e-3)
    assert np.mean(model.predict(X) == oracle.predict(X)) > 0.98


def test_sample_of_zeros_has_no_effect() -> None:
    X, y = np.array([[0.0], [2.0], [-2.0]]), [1, 1, 0]
    model = LinearSVC(10.0, fit_intercept=False, blocks=1, tasks=2, executor=ReplayExecutor()).fit(X, y)
    assert model.coef_[0, 0] == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize("C", [1e-3, 1.0])
def test_badly_scaled_features_raise_a_warning(C: float) -> None:
    far = CANCER + 1e7
    with pytest.warns(ConvergenceWarning, match="can get no closer"):
        model = LinearSVC(C, **HERE).fit(far, LABELS)
    assert model.objective_ == pytest.approx(objective(model, far, LABELS, C), rel=1e-2)
    assert model.dual_gap_ > 1e-6 * model.objective_


def test_number_of_products_on_breast_cancer_is_that_of_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    page = " ".join((Path(__file__).parents[3] / "docs" / "convex.md").read_text(encoding="utf-8").split())
    match = re.search(
        r"standardized features, `LinearSVC\(1\)` takes (\d+) products and "
        r"`SparseLogisticRegression\(1\)` takes (\d+)\."
        r".*takes (\d+) products if they are scaled to the range from 0 to 1, and (\d+) if",
        page,
    )
    assert match is not None
    X, y = load_breast_cancer(return_X_y=True)
    standard, unit = (X - X.mean(axis=0)) / X.std(axis=0), (X - X.min(axis=0)) / np.ptp(X, axis=0)
    operators = list[CodedOperator]()

    def kept(self: Any, A: Any) -> CodedOperator:
        operators.append(operator(self, A))
        return operators[-1]

    operator = CodedEstimator._make_operator
    monkeypatch.setattr(CodedEstimator, "_make_operator", kept)
    LinearSVC(1.0, **HERE).fit(standard, y)
    SparseLogisticRegression(1.0, **HERE).fit(standard, y)
    for features in (unit, X):
        LinearSVC(1.0, **HERE).fit(features, y)
    counted = [each.n_products for each in operators]
    assert counted == [pytest.approx(int(number), abs=6) for number in match.groups()]
