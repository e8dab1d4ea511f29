"""Scaled sparse features, with the dense matrix as the oracle; models of them, with scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse
from sklearn import linear_model
from straggling_models import assert_same_model, options

from polarmap import CodedOperator
from polarmap.glm import LeastSquares, LogisticRegression, PoissonRegression, Ridge
from polarmap.glm.scaled_operator import ScaledOperator, moments

STREAM = np.random.default_rng(0)
X = scipy.sparse.random_array((90, 8), density=0.3, format="csr", rng=1) * (1 + np.arange(8.0))
LABELS = (np.asarray(X.sum(axis=1)) + STREAM.standard_normal(90) > 6).astype(int)
WEIGHTS = STREAM.random(90) * (STREAM.random(90) > 0.1)
TARGET = X @ np.arange(8.0) + 3 + STREAM.standard_normal(90)


def test_products_are_those_of_the_dense_matrix() -> None:
    mean, scale, root = STREAM.random(8), STREAM.random(8), STREAM.random(90)
    A = root[:, None] * (X.toarray() - mean) * scale
    V, U = STREAM.standard_normal((8, 3)), STREAM.standard_normal((90, 3))
    with ScaledOperator(CodedOperator(X, **options()), mean, scale, root) as operator:
        for found, expected in [
            (operator @ V, A @ V),
            (operator @ V[:, 0], A @ V[:, 0]),
            (operator.rmatmat(U), A.T @ U),
            (operator.rmatvec(U[:, 0]), A.T @ U[:, 0]),
        ]:
            np.testing.assert_allclose(found, expected, atol=1e-10)
        assert operator.products == 4 and operator.report is not None


@pytest.mark.parametrize("is_centred", [True, False])
def test_moments_are_those_of_the_dense_matrix(is_centred: bool) -> None:
    shares = WEIGHTS / WEIGHTS.sum()
    mean, square = moments(X, shares, is_centred)
    dense = X.toarray()
    expected = shares @ dense if is_centred else np.zeros(8)
    np.testing.assert_allclose(mean, expected)
    np.testing.assert_allclose(square, shares @ (dense - expected) ** 2)


def test_a_constant_feature_deviates_by_rounding_only() -> None:
    constant = scipy.sparse.csr_array(np.full((90, 1), 1e8 / 3))
    mean, square = moments(constant, np.full(90, 1 / 90), True)
    assert square[0] <= (1e-14 * mean[0]) ** 2


@pytest.mark.parametrize("kind", [scipy.sparse.csr_array, scipy.sparse.csc_matrix, scipy.sparse.coo_array])
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
def test_models_of_sparse_features_are_scikit_learns(
    model: Any, oracle: Any, y: Any, weights: Any, kind: Any
) -> None:
    data = kind(X)
    model.set_params(**options()).fit(data, y, weights)
    assert_same_model(model, oracle.fit(data, y, weights), data)


def test_multinomial_and_several_targets() -> None:
    classes = np.digitize(np.asarray(X.sum(axis=1)), [4.0, 8.0])
    theirs = linear_model.LogisticRegression(tol=1e-9, max_iter=9999).fit(X, classes)
    assert_same_model(LogisticRegression(**options()).fit(X, classes), theirs, X)
    both = np.stack([TARGET, TARGET**2], axis=1)
    dense = Ridge(**options()).fit(X.toarray(), both)
    found = Ridge(**options()).fit(X, both)
    np.testing.assert_allclose(found.coef_, dense.coef_, rtol=1e-8)
