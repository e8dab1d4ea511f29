"""Models with smooth objectives; the oracles are scikit-learn's Newton solvers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn import linear_model
from sklearn.datasets import load_breast_cancer, load_diabetes

from benchmarks.numpy_estimators import with_numpy_products
from polarmap.glm import LogisticRegression, PoissonRegression, Ridge
from polarmap.models.solvers import proximal_newton
from polarmap.testing import ReplayExecutor

CANCER, LABELS = load_breast_cancer(return_X_y=True)
CANCER = (CANCER - CANCER.mean(axis=0)) / CANCER.std(axis=0)
DIABETES, PROGRESS = load_diabetes(return_X_y=True)
WEIGHTS = np.random.default_rng(0).random(len(CANCER))
NEWTON = {"solver": "newton-cholesky", "tol": 1e-12, "max_iter": 1000}
HERE = {"blocks": 4, "executor": ReplayExecutor()}


def assert_same(actual: Any, expected: Any) -> None:
    scale = np.abs(expected.coef_).max()
    np.testing.assert_allclose(actual.coef_, expected.coef_, rtol=0, atol=1e-8 * scale)
    np.testing.assert_allclose(actual.intercept_, expected.intercept_, rtol=1e-8)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("of_class", [None, "balanced", {0: 2.0, 1: 0.5}])
@pytest.mark.parametrize("largest_gram", [1000, 0], ids=["newton", "scipy alone"])
def test_logistic_regression_is_the_true_minimum(
    weights: Any, of_class: Any, largest_gram: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proximal_newton, "MAX_GRAM_SIZE", largest_gram)
    fitted = with_numpy_products(LogisticRegression(class_weight=of_class)).fit(CANCER, LABELS, weights)
    oracle = linear_model.LogisticRegression(class_weight=of_class, **NEWTON)
    assert_same(fitted, oracle.fit(CANCER, LABELS, sample_weight=weights))


def test_poisson_regression_and_ridge_take_weights() -> None:
    weights = WEIGHTS[: len(DIABETES)]
    poisson = linear_model.PoissonRegressor(alpha=0.1, **NEWTON).fit(DIABETES, PROGRESS, weights)
    assert_same(PoissonRegression(0.1, **HERE).fit(DIABETES, PROGRESS, weights), poisson)
    ridge = linear_model.Ridge(0.1).fit(DIABETES, PROGRESS, weights)
    assert_same(Ridge(0.1, **HERE).fit(DIABETES, PROGRESS, weights), ridge)
