"""Poisson regression with one dead and one late worker in every product; the oracle is scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import datasets, linear_model
from straggling_models import assert_same_model, options, standardized

from polarmap.glm import PoissonRegression
from polarmap.testing import ReplayExecutor


@pytest.mark.parametrize("solver", ["lbfgs", "trust-ncg", "trust-krylov"])
@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_poisson_regression_is_that_of_sklearn(solver: str, alpha: float) -> None:
    X, y = standardized(datasets.load_diabetes)
    model = PoissonRegression(alpha, solver=solver, tol=1e-8, **options()).fit(X, y)
    oracle = linear_model.PoissonRegressor(alpha=alpha, solver="newton-cholesky", tol=1e-12).fit(X, y)
    assert_same_model(model, oracle, X)
    assert model.score(X, y) == pytest.approx(oracle.score(X, y))


def test_poisson_line_searches_overshoot_without_overflow() -> None:
    X, y = np.array([[0.0], [0.0], [0.0], [1000.0]]), [1.0, 2.0, 1.0, 5e8]
    model = PoissonRegression(0.0, blocks=2, executor=ReplayExecutor()).fit(X, y)
    np.testing.assert_allclose(model.predict(X), [4 / 3, 4 / 3, 4 / 3, 5e8], rtol=1e-3)
