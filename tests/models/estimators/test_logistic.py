"""Logistic regression with one dead and one late worker in every product; the oracle is scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import datasets, linear_model
from straggling_models import options, standardized

from polarmap.glm import LogisticRegression
from polarmap.models.solvers import proximal_newton


@pytest.fixture(params=[1000, 0], ids=["newton", "scipy alone"])
def largest_gram(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proximal_newton, "MAX_GRAM_SIZE", request.param)


@pytest.mark.usefixtures("largest_gram")
@pytest.mark.parametrize(
    ("solver", "fit_intercept"),
    [("lbfgs", True), ("trust-ncg", True), ("trust-krylov", True), ("lbfgs", False)],
)
def test_binary_logistic_regression_is_that_of_sklearn(solver: str, fit_intercept: bool) -> None:
    X, y = standardized(datasets.load_breast_cancer)
    names = np.array(["malignant", "benign"])[y]
    chosen = {"C": 0.5, "fit_intercept": fit_intercept}
    model = LogisticRegression(solver=solver, tol=1e-9, **chosen, **options()).fit(X, names)
    oracle = linear_model.LogisticRegression(solver="newton-cholesky", tol=1e-12, **chosen).fit(X, names)
    assert model.classes_.tolist() == ["benign", "malignant"]
    assert (model.predict(X) == oracle.predict(X)).all()
    np.testing.assert_allclose(model.coef_, oracle.coef_, atol=1e-6)
    np.testing.assert_allclose(model.intercept_, oracle.intercept_, atol=1e-6)
    np.testing.assert_allclose(model.predict_proba(X), oracle.predict_proba(X), atol=1e-6)
    np.testing.assert_allclose(model.decision_function(X), oracle.decision_function(X), atol=1e-5)
    assert model.score(X, names) == oracle.score(X, names)
    assert 0 in model.report_.recovered


@pytest.mark.parametrize("solver", ["lbfgs", "trust-krylov"])
def test_multinomial_logistic_regression_is_that_of_sklearn(solver: str) -> None:
    X, y = datasets.load_digits(return_X_y=True)
    X = X[::8] / 16
    model = LogisticRegression(solver=solver, tol=1e-9, **options()).fit(X, y[::8])
    oracle = linear_model.LogisticRegression(solver="newton-cholesky", tol=1e-12).fit(X, y[::8])
    np.testing.assert_allclose(model.coef_, oracle.coef_, atol=1e-6)
    np.testing.assert_allclose(model.intercept_, oracle.intercept_, atol=1e-6)
    np.testing.assert_allclose(model.predict_proba(X), oracle.predict_proba(X), atol=1e-6)
    np.testing.assert_allclose(model.predict_log_proba(X), oracle.predict_log_proba(X), atol=1e-5)


@pytest.mark.usefixtures("largest_gram")
def test_logistic_regression_without_penalty() -> None:
    stream = np.random.default_rng(0)
    X = stream.standard_normal((200, 3))
    y = stream.random(200) < 1 / (1 + np.exp(-X @ [1, -2, 0.5]))
    model = LogisticRegression(np.inf, tol=1e-9, **options()).fit(X, y)
    oracle = linear_model.LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-12).fit(X, y)
    np.testing.assert_allclose(model.coef_, oracle.coef_, atol=1e-6)
