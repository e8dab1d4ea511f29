"""Operators of scaled and gated features; the oracles are dense matrices and scikit-learn's models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse
from scipy.sparse.linalg import aslinearoperator
from sklearn import linear_model
from straggling_models import assert_same_model, options

from benchmarks.numpy_estimators import with_numpy_products
from polarmap import CodedOperator
from polarmap.convex import ElasticNet, Lasso, LinearSVC, NonNegativeLeastSquares, SparseLogisticRegression
from polarmap.glm import LeastSquares, LogisticRegression, PoissonRegression, Ridge
from polarmap.models.operators import (
    AppendedInterceptOperator,
    GatedOperator,
    StandardizedOperator,
    compute_weighted_mean_and_variance,
)

STREAM = np.random.default_rng(0)
X = scipy.sparse.random_array((90, 8), density=0.3, format="csr", rng=1) * (1 + np.arange(8.0))
LABELS = (np.asarray(X.sum(axis=1)) + STREAM.standard_normal(90) > 6).astype(int)
WEIGHTS = STREAM.random(90) * (STREAM.random(90) > 0.1)
TARGET = X @ np.arange(8.0) + 3 + STREAM.standard_normal(90)


def test_products_are_those_of_the_dense_matrix() -> None:
    mean, scale, root = STREAM.random(8), STREAM.random(8), STREAM.random(90)
    A = root[:, None] * (X.toarray() - mean) * scale
    V, U = STREAM.standard_normal((8, 3)), STREAM.standard_normal((90, 3))
    with CodedOperator(X, **options()) as coded:
        operator = StandardizedOperator(coded, mean, scale, root)
        for actual, expected in [
            (operator @ V, A @ V),
            (operator @ V[:, 0], A @ V[:, 0]),
            (operator.rmatmat(U), A.T @ U),
            (operator.rmatvec(U[:, 0]), A.T @ U[:, 0]),
        ]:
            np.testing.assert_allclose(actual, expected, atol=1e-10)
        assert coded.n_products == 4


def test_products_with_an_appended_constant_are_those_of_the_whole_matrix() -> None:
    A = STREAM.standard_normal((5, 3))
    whole, operator = (
        np.column_stack([A, np.full(5, 0.7)]),
        AppendedInterceptOperator(aslinearoperator(A), 0.7),
    )
    assert operator.shape == (5, 4)
    for shape in ((4,), (4, 2)):
        V, U = STREAM.standard_normal(shape), STREAM.standard_normal((5, *shape[1:]))
        np.testing.assert_allclose(operator @ V, whole @ V)
        np.testing.assert_allclose(operator.T @ U, whole.T @ U)


def test_products_of_gated_features_are_those_of_the_dense_operator() -> None:
    stream = np.random.default_rng(0)
    A, patterns = stream.standard_normal((7, 3)), stream.random((7, 4)) < 0.5
    operator = GatedOperator(aslinearoperator(A), patterns)
    whole = np.stack([patterns.T[gate][:, None] * A for gate in range(4)], axis=2).reshape(7, 12)
    for shape in ((), (2,)):
        V, U = stream.standard_normal((12, *shape)), stream.standard_normal((7, *shape))
        np.testing.assert_allclose(operator @ V, whole @ V, atol=1e-14)
        np.testing.assert_allclose(operator.T @ U, whole.T @ U, atol=1e-14)


@pytest.mark.parametrize("is_centred", [True, False])
def test_moments_are_those_of_the_dense_matrix(is_centred: bool) -> None:
    shares = WEIGHTS / WEIGHTS.sum()
    mean, square = compute_weighted_mean_and_variance(X, shares, is_centred)
    dense = X.toarray()
    expected = shares @ dense if is_centred else np.zeros(8)
    np.testing.assert_allclose(mean, expected)
    np.testing.assert_allclose(square, shares @ (dense - expected) ** 2)


def test_a_constant_feature_deviates_by_rounding_only() -> None:
    constant = scipy.sparse.csr_array(np.full((90, 1), 1e8 / 3))
    mean, square = compute_weighted_mean_and_variance(constant, np.full(90, 1 / 90), True)
    assert square[0] <= (1e-14 * mean[0]) ** 2


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize(
    ("model", "oracle", "y"),
    [
        (Ridge(0.5), linear_model.Ridge(0.5, solver="sparse_cg", tol=1e-13), TARGET),
        (
            Ridge(0.5, fit_intercept=False),
            linear_model.Ridge(0.5, fit_intercept=False, solver="sparse_cg", tol=1e-13),
            TARGET,
        ),
        (LeastSquares(solver="cg"), linear_model.LinearRegression(tol=1e-13), TARGET),
        (LogisticRegression(), linear_model.LogisticRegression(tol=1e-9, max_iter=9999), LABELS),
        (PoissonRegression(0.1), linear_model.PoissonRegressor(alpha=0.1, tol=1e-10, max_iter=9999), LABELS),
    ],
    ids=["ridge", "ridge-origin", "least-squares", "logistic", "poisson"],
)
def test_models_of_sparse_features_are_scikit_learns(model: Any, oracle: Any, y: Any, weights: Any) -> None:
    model.set_params(**options()).fit(X, y, weights)
    assert_same_model(model, oracle.fit(X, y, weights), X)


@pytest.mark.parametrize(
    ("model", "y", "kind"),
    [
        (Ridge(), TARGET, scipy.sparse.coo_array),
        (LogisticRegression(), LABELS, scipy.sparse.csc_matrix),
    ],
    ids=lambda one: type(one).__name__,
)
def test_any_sparse_format_is_supported(model: Any, y: Any, kind: Any) -> None:
    coef = model.set_params(**options()).fit(X, y, WEIGHTS).coef_
    np.testing.assert_allclose(model.fit(kind(X), y, WEIGHTS).coef_, coef, rtol=1e-12)


@pytest.mark.parametrize(
    ("model", "y"),
    [
        *((model, TARGET) for model in (ElasticNet(0.1), Lasso(0.1), NonNegativeLeastSquares())),
        *((model, LABELS) for model in (SparseLogisticRegression(), LinearSVC(0.01))),
    ],
    ids=lambda one: type(one).__name__,
)
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_convex_models_of_sparse_features_are_those_of_dense_ones(
    model: Any, y: Any, fit_intercept: bool
) -> None:
    chosen = {"tol": 1e-10, "max_iter": 500, "fit_intercept": fit_intercept}
    model = with_numpy_products(model).set_params(**chosen)
    dense = X[:40].toarray()
    coef, predicted = model.fit(dense, y[:40]).coef_, model.predict(dense)
    again = model.fit(X[:40], y[:40])
    np.testing.assert_allclose(again.coef_, coef, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(again.predict(X[:40]), predicted, rtol=1e-4, atol=1e-6)
    scores = X[:40] @ again.coef_.T + again.intercept_
    predictions = again.decision_function(X[:40]) if hasattr(again, "classes_") else again.predict(X[:40])
    np.testing.assert_allclose(predictions, scores[:, 0] if scores.ndim == 2 else scores)


def test_multinomial_and_several_targets() -> None:
    classes = np.digitize(np.asarray(X.sum(axis=1)), [4.0, 8.0])
    oracle = linear_model.LogisticRegression(tol=1e-9, max_iter=9999).fit(X, classes)
    assert_same_model(LogisticRegression(**options()).fit(X, classes), oracle, X)
    both = np.stack([TARGET, TARGET**2], axis=1)
    dense = Ridge(**options()).fit(X.toarray(), both)
    ridge = Ridge(**options()).fit(X, both)
    np.testing.assert_allclose(ridge.coef_, dense.coef_, rtol=1e-8)
