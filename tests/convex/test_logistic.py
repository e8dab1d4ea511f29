"""Sparse logistic regression against Clarabel and scikit-learn's, with a worker dead and another late."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conic_solver import conic_minimum
from sklearn import linear_model
from sklearn.datasets import load_breast_cancer, load_iris
from straggling_models import options, standardized

from polarmap import ReplayExecutor
from polarmap.convex import SparseLogisticRegression

CANCER, LABELS = standardized(load_breast_cancer)
CANCER = CANCER[::4, ::5]
LABELS = LABELS[::4]
HERE = {"blocks": 2, "workers": 3, "executor": ReplayExecutor()}


def objective(model: Any, X: np.ndarray, y: np.ndarray, weights: Any = 1.0) -> float:
    """C times the losses + |w|_1."""
    losses = -model.predict_log_proba(X)[np.arange(len(y)), y] * weights
    return float(model.C * losses.sum() + np.abs(model.coef_).sum())


def conic_objective(X: np.ndarray, y: np.ndarray, C: float) -> float:
    """min C sum(t) + sum(s), log(1 + exp(z)) <= t as exp(z - t) + exp(-t) <= 1, with z = -y (X w + c)."""
    samples, features = X.shape
    S = (1.0 - 2.0 * y)[:, np.newaxis] * np.column_stack([X, np.ones(samples)])
    unknowns = 2 * features + 1 + 3 * samples  # w, c, s, t, and the two exponentials u and v
    s, t = features + 1, 2 * features + 1
    u, v = t + samples, t + 2 * samples
    G, h = np.zeros((6 * samples, unknowns)), np.zeros(6 * samples)
    for i in range(samples):
        G[6 * i, : features + 1], G[6 * i, t + i], G[6 * i + 2, u + i] = -S[i], 1, -1
        G[6 * i + 3, t + i], G[6 * i + 5, v + i] = 1, -1
        h[[6 * i + 1, 6 * i + 4]] = 1
    one = np.zeros((samples, unknowns))
    one[:, u:v], one[:, v:] = np.eye(samples), np.eye(samples)
    size = np.zeros((2 * features, unknowns))
    size[:features, :features], size[features:, :features] = np.eye(features), -np.eye(features)
    size[:features, s:t] = size[features:, s:t] = -np.eye(features)
    q = np.zeros(unknowns)
    q[s:t], q[t:u] = 1, C
    cones = [(G, h, "exponential"), (one, np.ones(samples), "nonnegative")]
    cones.append((size, np.zeros(2 * features), "nonnegative"))
    return conic_minimum(np.zeros((unknowns, unknowns)), q, cones)[1]


@pytest.mark.parametrize("C", [0.03, 0.3])
def test_the_minimum_is_that_of_a_conic_solver(C: float) -> None:
    model = SparseLogisticRegression(C, **options()).fit(CANCER, LABELS)
    assert objective(model, CANCER, LABELS) == pytest.approx(conic_objective(CANCER, LABELS, C), rel=1e-7)
    assert {0, 1} <= set(model.report_.recovered)
    pull = C * CANCER.T @ (LABELS - model.predict_proba(CANCER)[:, 1])
    coef = model.coef_[0]
    np.testing.assert_allclose(pull[coef != 0], np.sign(coef[coef != 0]), atol=1e-4)
    assert np.abs(pull).max() <= 1 + 1e-4 and model.gradient_map_ < 1e-5
    assert model.objective_ * C * len(LABELS) == pytest.approx(objective(model, CANCER, LABELS))


@pytest.mark.parametrize("chosen", [{}, {"fit_intercept": False}, {"class_weight": "balanced"}])
def test_it_is_that_of_sklearn(chosen: dict[str, Any]) -> None:
    names = np.array(["malignant", "benign"])[LABELS]
    weights = np.random.default_rng(0).random(len(names))
    model = SparseLogisticRegression(0.3, tol=1e-8, **chosen, **HERE).fit(CANCER, names, weights)
    oracle = linear_model.LogisticRegression(
        C=0.3, l1_ratio=1.0, solver="saga", tol=1e-10, max_iter=100_000, **chosen
    ).fit(CANCER, names, weights)
    np.testing.assert_allclose(model.coef_, oracle.coef_, atol=1e-5)
    np.testing.assert_allclose(model.intercept_, oracle.intercept_, atol=1e-5)
    assert model.classes_.tolist() == ["benign", "malignant"]
    assert (model.predict(CANCER) == oracle.predict(CANCER)).all()
    assert model.n_iter_ > 1


def test_several_classes_are_those_of_sklearn() -> None:
    X, y = standardized(load_iris)
    model = SparseLogisticRegression(0.1, tol=1e-8, **HERE).fit(X, y)
    oracle = linear_model.LogisticRegression(C=0.1, l1_ratio=1.0, solver="saga", tol=1e-9, max_iter=100_000)
    oracle.fit(X, y)
    assert objective(model, X, y) == pytest.approx(objective(oracle, X, y), rel=1e-7)
    np.testing.assert_allclose(model.predict_proba(X), oracle.predict_proba(X), atol=1e-4)
    np.testing.assert_array_equal(model.coef_ == 0, oracle.coef_ == 0)


def test_without_penalty() -> None:
    stream = np.random.default_rng(0)
    X = stream.standard_normal((200, 3))
    y = stream.random(200) < 1 / (1 + np.exp(-X @ [1, -2, 0.5]))
    model = SparseLogisticRegression(np.inf, **HERE).fit(X, y)
    oracle = linear_model.LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-12).fit(X, y)
    np.testing.assert_allclose(model.coef_, oracle.coef_, atol=1e-4)
