"""Coded models against scikit-learn's, with a worker dead and another late in every product."""

from __future__ import annotations

import copy
import math
import pickle
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from joblib import parallel_backend
from sklearn import datasets, linear_model
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator

from polarmap import Fault, FaultyExecutor, ReplayExecutor
from polarmap.errors import ModelError, NotDecodableError
from polarmap.glm import LeastSquares, LogisticRegression, PoissonRegression, Ridge

MODELS = [Ridge, LeastSquares, LogisticRegression, PoissonRegression]


class Straggling(ReplayExecutor):
    """Task 1 never reports; can be copied and pickled at any time, as parameters of estimators are."""

    def __init__(self) -> None:
        super().__init__({1: math.inf})

    def __reduce__(self) -> tuple[Any, ...]:
        return Straggling, ()


def options(**more: Any) -> dict[str, Any]:
    """4 of 7 workers suffice; of those with data one is dead and one late."""
    faulty = FaultyExecutor(Straggling(), {0: Fault("kill", attempts=99)})
    return {"blocks": 4, "workers": 7, "executor": faulty, **more}


def standardized(data: Any) -> tuple[np.ndarray, np.ndarray]:
    X, y = data(return_X_y=True)
    return StandardScaler().fit_transform(X), y


def assert_same_model(model: Any, oracle: Any, X: np.ndarray) -> None:
    size = max(1.0, np.abs(oracle.coef_).max())
    np.testing.assert_allclose(model.coef_, oracle.coef_, atol=1e-6 * size, rtol=0)
    np.testing.assert_allclose(
        model.intercept_, oracle.intercept_, atol=1e-6 * max(size, np.abs(oracle.intercept_).max())
    )
    np.testing.assert_allclose(model.predict(X), oracle.predict(X), rtol=1e-6, atol=1e-6 * size)
    assert 0 in model.report_.recovered
    assert model.n_iter_ >= 1


# --- scikit-learn's conventions ------------------------------------------------------------------


def checks() -> Iterator[Any]:
    """All but those of inputs in other array libraries, which scikit-learn skips unless scipy is told."""
    for model in MODELS:
        for estimator, check in estimator_checks_generator(model(blocks=4, executor=Straggling())):
            name = getattr(check, "func", check).__name__
            if "array_api" not in name:
                yield pytest.param(estimator, check, id=f"{model.__name__}-{name}")


@pytest.mark.parametrize(("estimator", "check"), list(checks()))
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # of one-iteration checks
def test_estimator_checks(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.parametrize("model", MODELS)
def test_a_pool_is_shared_by_clones_and_left_behind_by_pickles(model: Any) -> None:
    X, y = np.random.default_rng(0).standard_normal((40, 3)), np.arange(40) % 2
    with ThreadPoolExecutor(4) as pool:
        search = GridSearchCV(model(blocks=3, executor=pool), {"fit_intercept": [True, False]}, cv=2)
        search.fit(X, y)
        assert search.best_estimator_.executor is pool
        loaded = pickle.loads(pickle.dumps(search.best_estimator_))
    np.testing.assert_array_equal(loaded.predict(X), search.predict(X))


STAYED = r"a ThreadPoolExecutor, stayed behind .* can predict, but not fit\. Use n_jobs=1 .* set_params\("


@pytest.mark.parametrize("model", MODELS)
def test_a_model_whose_pool_stayed_behind_refuses_to_fit_until_it_has_another(model: Any) -> None:
    """Without a word it would start processes for every product."""
    with ThreadPoolExecutor(4) as pool:
        loaded = pickle.loads(pickle.dumps(model(blocks=3, executor=FaultyExecutor(pool))))
        again = pickle.loads(pickle.dumps(loaded))
        for lost in (loaded, again, clone(loaded), copy.copy(loaded)):
            assert "<ThreadPoolExecutor, left behind>" in repr(lost)
            with pytest.raises(ModelError, match=STAYED):
                lost.fit(X6, Y6)
        found = loaded.set_params(executor=pool).fit(X6, Y6).predict(X6)
        np.testing.assert_allclose(found, model(blocks=3, executor=pool).fit(X6, Y6).predict(X6))


def test_a_grid_search_in_processes_says_why_no_pool_is_there() -> None:
    X, y = np.random.default_rng(0).standard_normal((40, 3)), np.arange(40) % 2
    with ThreadPoolExecutor(4) as pool:
        search = GridSearchCV(Ridge(blocks=3, executor=pool), {"alpha": [0.1, 1.0]}, cv=2, n_jobs=2)
        with pytest.raises(ValueError, match=r"(?s)All the 4 fits failed.*ModelError: .*" + STAYED):
            search.fit(X, y)
        with parallel_backend("threading"):  # shares memory, so the pool is there
            assert search.fit(X, y).best_estimator_.executor is pool


@pytest.mark.parametrize(
    "executor", [None, "localhost", Path("config.yaml"), FaultyExecutor("localhost", {0: Fault("kill")})]
)
def test_a_named_executor_stays_in_the_pickle(executor: Any) -> None:
    assert pickle.loads(pickle.dumps(Ridge(executor=executor))).executor == executor


def test_models_stand_in_pipelines() -> None:
    X, y = datasets.load_breast_cancer(return_X_y=True)
    model = make_pipeline(StandardScaler(), LogisticRegression(**options())).fit(X, y)
    assert model.score(X, y) > 0.98


# --- least squares -------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["lsqr", "lsmr", "cg"])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("alpha", [0.0, 0.1, 100.0])
@pytest.mark.parametrize("data", [datasets.load_diabetes, datasets.load_breast_cancer])
def test_ridge_is_that_of_sklearn(data: Any, alpha: float, fit_intercept: bool, solver: str) -> None:
    X, y = data(return_X_y=True)  # as they are: columns of breast_cancer differ by 10^5
    if data is datasets.load_breast_cancer and not fit_intercept:
        X, y = standardized(data)
    model = Ridge(alpha, fit_intercept=fit_intercept, solver=solver, **options()).fit(X, y)
    oracle = linear_model.Ridge(alpha, fit_intercept=fit_intercept, solver="svd").fit(X, y)
    assert_same_model(model, oracle, X)


def test_least_squares_is_that_of_sklearn() -> None:
    for data in (datasets.load_diabetes, datasets.load_breast_cancer):
        X, y = data(return_X_y=True)
        model = LeastSquares(**options()).fit(X, y)
        assert_same_model(model, linear_model.LinearRegression().fit(X, y), X)
    assert "alpha" not in model.get_params()


def test_several_targets() -> None:
    X, y = datasets.load_linnerud(return_X_y=True)
    model, oracle = Ridge(**options()).fit(X, y), linear_model.Ridge().fit(X, y)
    assert model.coef_.shape == (3, 3)
    assert model.intercept_.shape == model.n_iter_.shape == (3,)
    np.testing.assert_allclose(model.coef_, oracle.coef_, rtol=1e-8)
    np.testing.assert_allclose(model.predict(X), oracle.predict(X), rtol=1e-8)
    assert model.score(X, y) == pytest.approx(oracle.score(X, y))


@settings(max_examples=25, deadline=None)
@given(samples=st.integers(2, 40), features=st.integers(1, 12), seed=st.integers(0, 99))
def test_ridge_of_any_shape(samples: int, features: int, seed: int) -> None:
    stream = np.random.default_rng(seed)
    X = stream.standard_normal((samples, features)) * 10.0 ** stream.integers(-3, 4, features)
    y = stream.standard_normal(samples)
    model = Ridge(0.5, blocks=4, executor=Straggling()).fit(X, y)
    oracle = linear_model.Ridge(0.5, solver="svd").fit(X, y)
    np.testing.assert_allclose(model.coef_, oracle.coef_, rtol=1e-6, atol=1e-9 * np.abs(oracle.coef_).max())
    np.testing.assert_allclose(model.predict(X), oracle.predict(X), atol=1e-8)


def test_a_constant_column_has_no_coefficient() -> None:
    X = np.column_stack([np.arange(10.0), np.full(10, 0.1)])
    model = LeastSquares(blocks=2, executor=ReplayExecutor()).fit(X, 3 * X[:, 0] + 1)
    np.testing.assert_allclose(model.coef_, [3, 0], atol=1e-12)


# --- likelihoods ---------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["lbfgs", "trust-ncg", "trust-krylov"])
@pytest.mark.parametrize("fit_intercept", [True, False])
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
    X = X[::4] / 16
    model = LogisticRegression(solver=solver, tol=1e-9, **options()).fit(X, y[::4])
    oracle = linear_model.LogisticRegression(solver="newton-cholesky", tol=1e-12).fit(X, y[::4])
    np.testing.assert_allclose(model.coef_, oracle.coef_, atol=1e-6)
    np.testing.assert_allclose(model.intercept_, oracle.intercept_, atol=1e-6)
    np.testing.assert_allclose(model.predict_proba(X), oracle.predict_proba(X), atol=1e-6)
    np.testing.assert_allclose(model.predict_log_proba(X), oracle.predict_log_proba(X), atol=1e-5)


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


def test_without_penalty() -> None:
    stream = np.random.default_rng(0)
    X = stream.standard_normal((200, 3))
    y = stream.random(200) < 1 / (1 + np.exp(-X @ [1, -2, 0.5]))
    model = LogisticRegression(np.inf, tol=1e-9, **options()).fit(X, y)
    oracle = linear_model.LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-12).fit(X, y)
    np.testing.assert_allclose(model.coef_, oracle.coef_, atol=1e-6)


def test_localhost_with_a_killed_worker() -> None:
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((60, 6)))[0]
    y = basis @ np.arange(6.0) + 3  # orthogonal columns: a step or two of the solver
    faulty = FaultyExecutor("localhost", {0: Fault("kill", attempts=99)})
    model = LeastSquares(fit_intercept=False, blocks=3, workers=5, tol=1e-8, executor=faulty, timeout=60).fit(
        basis, y
    )
    np.testing.assert_allclose(model.coef_, basis.T @ y, rtol=1e-6)
    assert 0 in model.report_.recovered


# --- what cannot be ------------------------------------------------------------------------------

X6, Y6 = np.arange(18.0).reshape(6, 3) ** 1.5, np.array([0.0, 1.0, 0.0, 1.0, 1.0, 0.0])


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("X", "y", "message"),
    [
        (np.where(X6[0, 0] == X6, np.nan, X6), Y6, "NaN"),
        (X6, Y6[:5], "inconsistent numbers of samples"),
        (X6[:, 0], Y6, "Expected 2D array"),
        (X6[:, :0], Y6, "0 feature"),
        (X6[:0], Y6[:0], "0 sample"),
    ],
)
def test_data_that_cannot_be(model: Any, X: Any, y: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model(executor=ReplayExecutor()).fit(X, y)


@pytest.mark.parametrize(
    ("model", "X", "y", "message"),
    [
        (LogisticRegression(), X6, np.ones(6), "y holds one class only, .*1.0.*nothing to tell apart"),
        (LogisticRegression(), X6, [[1.0]] * 6, "one class only"),
        (LogisticRegression(), X6, Y6 + np.linspace(0, 1, 6), "continuous"),
        (PoissonRegression(), X6, Y6 - 1, "y holds 3 negative counts, the lowest -1"),
        (PoissonRegression(), X6, 0 * Y6, "zero counts only"),
        (LeastSquares(), X6[:3], Y6[:3], "n_samples = 3 cannot determine 4 coefficients: .*singular"),
        (Ridge(0), X6[:3], Y6[:3], "n_samples = 3 cannot determine 4 coefficients"),
        (Ridge(-1), X6, Y6, "alpha must be a number, 0 or more, not -1"),
        (Ridge("much"), X6, Y6, "alpha must be a number"),
        (Ridge(np.nan), X6, Y6, "alpha must be a number"),
        (Ridge(solver="qr"), X6, Y6, "solver must be one of cg, lsmr, lsqr, not 'qr'"),
        (Ridge(max_iter=0), X6, Y6, "max_iter must be a number, 1 or more, not 0"),
        (LogisticRegression(0.0), X6, Y6, "C must be a number"),
        (LogisticRegression(solver="sgd"), X6, Y6, "solver must be one of lbfgs, trust-krylov, trust-ncg"),
        (PoissonRegression(-0.1), X6, Y6, "alpha must be a number"),
        (PoissonRegression(tol=-1), X6, Y6, "tol must be a number, 0 or more, not -1"),
        (Ridge(workers=3, blocks=3), X6, Y6, "workers=3 leaves no parity"),
    ],
)
@pytest.mark.filterwarnings("ignore:A column-vector y")
def test_models_that_cannot_be(model: Any, X: Any, y: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.set_params(executor=ReplayExecutor()).fit(X, y)


def test_dependent_features_are_named() -> None:
    X = np.random.default_rng(0).standard_normal((50, 3))
    X = np.column_stack([X, X.sum(axis=1) + 1e-14 * X[:, 0] ** 2])
    with pytest.raises(ModelError, match=r"depend on each other: the condition number .* exceeds 1e\+12"):
        LeastSquares(tol=0.0, blocks=4, executor=ReplayExecutor()).fit(X, X[:, 0] ** 2)


def test_a_solver_that_is_cut_short_says_so() -> None:
    X, y = standardized(datasets.load_breast_cancer)
    for model in (
        Ridge(0.0, max_iter=2),
        Ridge(0.0, max_iter=2, solver="cg"),
        LogisticRegression(max_iter=2),
    ):
        with pytest.warns(ConvergenceWarning, match="max_iter=2"):
            model.set_params(blocks=4, executor=ReplayExecutor()).fit(X, y)


def test_prediction_before_fit_and_of_other_features() -> None:
    with pytest.raises(NotFittedError):
        Ridge().predict(X6)
    model = Ridge(blocks=2, executor=ReplayExecutor()).fit(X6, Y6)
    with pytest.raises(ValueError, match="X has 2 features, but Ridge is expecting 3"):
        model.predict(X6[:, :2])


def test_too_many_dead_workers_are_no_silent_failure() -> None:
    dead = FaultyExecutor(ReplayExecutor(), {task: Fault("kill", attempts=99) for task in range(4)})
    with pytest.raises(NotDecodableError, match="needed results"):
        Ridge(blocks=4, workers=7, executor=dead).fit(X6, Y6)


def test_importing_polarmap_does_not_import_sklearn() -> None:
    code = "import sys, polarmap; assert 'sklearn' not in sys.modules; import polarmap.glm"
    subprocess.run([sys.executable, "-c", code], check=True)
