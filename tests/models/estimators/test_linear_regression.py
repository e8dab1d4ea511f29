"""Linear regression with one dead and one late worker in every product; the oracle is scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn import datasets, linear_model
from straggling_models import Straggling, assert_same_model, options, standardized

from benchmarks.numpy_estimators import with_numpy_products
from polarmap.glm import LeastSquares, Ridge
from polarmap.testing import ReplayExecutor


@pytest.mark.parametrize("solver", ["lsqr", "lsmr", "cg"])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("alpha", [0.0, 0.1, 100.0])
@pytest.mark.parametrize("data", [datasets.load_diabetes, datasets.load_breast_cancer])
def test_ridge_is_that_of_sklearn(data: Any, alpha: float, fit_intercept: bool, solver: str) -> None:
    X, y = data(return_X_y=True)  # not standardized: the scales of breast_cancer's columns differ by 10^5
    if data is datasets.load_breast_cancer and not fit_intercept:
        X, y = standardized(data)
    model = Ridge(alpha, fit_intercept=fit_intercept, solver=solver, **options()).fit(X, y)
    oracle = linear_model.Ridge(alpha, fit_intercept=fit_intercept, solver="svd").fit(X, y)
    assert_same_model(model, oracle, X)


def test_least_squares_equal_ridge_without_penalty() -> None:
    assert LeastSquares().alpha == 0.0 and "alpha" not in LeastSquares().get_params()


def test_several_targets() -> None:
    X, y = datasets.load_linnerud(return_X_y=True)
    model, oracle = Ridge(**options()).fit(X, y), linear_model.Ridge().fit(X, y)
    assert model.coef_.shape == (3, 3)
    assert model.intercept_.shape == model.n_iter_.shape == (3,)
    np.testing.assert_allclose(model.coef_, oracle.coef_, rtol=1e-8)
    np.testing.assert_allclose(model.predict(X), oracle.predict(X), rtol=1e-8)
    assert model.score(X, y) == pytest.approx(oracle.score(X, y))


@settings(max_examples=25)
@given(samples=st.integers(2, 40), features=st.integers(1, 12), seed=st.integers(0, 99))
def test_ridge_of_any_shape(samples: int, features: int, seed: int) -> None:
    stream = np.random.default_rng(seed)
    X = stream.standard_normal((samples, features)) * 10.0 ** stream.integers(-3, 4, features)
    y = stream.standard_normal(samples)
    model = Ridge(0.5, blocks=4, executor=Straggling()).fit(X, y)
    oracle = linear_model.Ridge(0.5, solver="svd").fit(X, y)
    np.testing.assert_allclose(model.coef_, oracle.coef_, rtol=1e-6, atol=1e-9 * np.abs(oracle.coef_).max())
    np.testing.assert_allclose(model.predict(X), oracle.predict(X), atol=1e-8)


@settings(max_examples=25)
@given(samples=st.integers(1, 8), features=st.integers(8, 20), seed=st.integers(0, 99))
@pytest.mark.parametrize("is_sparse", [False, True])
def test_least_squares_of_few_samples_has_the_smallest_standardized_coefficients(
    is_sparse: bool, samples: int, features: int, seed: int
) -> None:
    stream = np.random.default_rng(seed)
    X = stream.standard_normal((samples, features)) * 10.0 ** stream.integers(-3, 4, features)
    y, weights = stream.standard_normal(samples), stream.integers(1, 4, samples)
    mean, target_mean = np.average(X, axis=0, weights=weights), np.average(y, weights=weights)
    deviation = np.sqrt(np.average((X - mean) ** 2, axis=0, weights=weights))
    deviation[deviation == 0] = 1.0
    standardized_X = np.sqrt(weights)[:, np.newaxis] * (X - mean) / deviation
    expected = np.linalg.pinv(standardized_X, rtol=1e-9) @ (np.sqrt(weights) * (y - target_mean)) / deviation
    model = with_numpy_products(LeastSquares()).fit(sparse.csr_array(X) if is_sparse else X, y, weights)
    np.testing.assert_allclose(model.coef_ * deviation, expected * deviation, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(model.predict(X), y, atol=1e-8)


def test_a_constant_column_has_no_coefficient() -> None:
    X = np.column_stack([np.arange(10.0), np.full(10, 0.1)])
    model = LeastSquares(blocks=2, executor=ReplayExecutor()).fit(X, 3 * X[:, 0] + 1)
    np.testing.assert_allclose(model.coef_, [3, 0], atol=1e-12)
