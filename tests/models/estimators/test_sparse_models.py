"""Sparse and nonnegative regressions with one dead and one late worker; the oracle is scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls
from sklearn import datasets, linear_model
from straggling_models import Straggling, options, standardized

from polarmap.convex import ElasticNet, Lasso, NonNegativeLeastSquares, SparseLogisticRegression
from polarmap.testing import ReplayExecutor

X, Y = datasets.load_diabetes(return_X_y=True)
WEIGHTS = np.random.default_rng(0).integers(0, 4, len(X)).astype(float)
CANCER, LABELS = standardized(datasets.load_breast_cancer)
CANCER = CANCER[::4, ::5]
LABELS = LABELS[::4]
EXACT = {"tol": 1e-13, "max_iter": 1_000_000}
HERE = {"blocks": 2, "tasks": 3, "executor": ReplayExecutor()}


def objective(model: Any, alpha: float, l1_ratio: float, weights: Any = None, y: np.ndarray = Y) -> float:
    """Return the objective by the formula in the documentation of ElasticNet."""
    errors = (y - model.predict(X)) ** 2
    mean = np.average(errors, axis=0, weights=weights).sum()
    square = float(np.sum(model.coef_**2))
    penalty = alpha * (l1_ratio * np.abs(model.coef_).sum() + (1 - l1_ratio) * square / 2)
    return float(mean / 2 + penalty)


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize(("alpha", "l1_ratio"), [(0.5, 1.0), (2.0, 0.9), (0.01, 0.5), (0.1, 0.0)])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # l1_ratio=0 in scikit-learn
def test_elastic_nets_are_those_of_sklearn(alpha: float, l1_ratio: float, fit_intercept: bool) -> None:
    model = ElasticNet(alpha, l1_ratio, fit_intercept=fit_intercept, **options()).fit(X, Y)
    oracle = linear_model.ElasticNet(alpha, l1_ratio=l1_ratio, fit_intercept=fit_intercept, **EXACT)
    best = objective(oracle.fit(X, Y), alpha, l1_ratio)
    assert objective(model, alpha, l1_ratio) == pytest.approx(best, rel=1e-6)
    assert model.objective_ == pytest.approx(best, rel=1e-6)
    assert 0 <= model.objective_ - best + 1e-9 * best <= model.dual_gap_ + 2e-9 * best
    assert model.dual_gap_ <= 1e-6 * best
    assert {0, 1} <= set(model.report_.recovered)


def test_lasso_is_that_of_sklearn() -> None:
    model = Lasso(0.5, **options()).fit(X, Y)
    oracle = linear_model.Lasso(0.5, **EXACT).fit(X, Y)
    np.testing.assert_array_equal(model.coef_ != 0, oracle.coef_ != 0)
    np.testing.assert_allclose(model.coef_, oracle.coef_, atol=1e-2)
    assert model.intercept_ == pytest.approx(oracle.intercept_)
    assert model.dual_gap_ <= 1e-6 * model.objective_
    assert "l1_ratio" not in model.get_params()
    slope = (X - X.mean(axis=0)).T @ (Y - model.predict(X)) / len(X)
    np.testing.assert_allclose(
        slope[model.coef_ != 0], 0.5 * np.sign(model.coef_[model.coef_ != 0]), rtol=1e-4
    )
    assert np.abs(slope).max() <= 0.5 * (1 + 1e-4)


def test_smaller_tol_improves_coefficients_beyond_the_objective() -> None:
    model = Lasso(2.0, tol=1e-14, **HERE).fit(X, Y)
    oracle = linear_model.Lasso(2.0, **EXACT).fit(X, Y)
    np.testing.assert_allclose(model.coef_, oracle.coef_, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("model", [Lasso(0.5), ElasticNet(0.02), NonNegativeLeastSquares()])
def test_weights_are_equivalent_to_copies(model: Any) -> None:
    copies = np.repeat(np.arange(len(X)), WEIGHTS.astype(int))
    model.set_params(tol=1e-10, **HERE)
    coef = model.fit(X, Y, WEIGHTS).coef_
    again = model.fit(X[copies], Y[copies])
    np.testing.assert_allclose(coef, again.coef_, rtol=1e-4, atol=1e-4)
    oracle = {
        "Lasso": linear_model.Lasso(0.5, **EXACT),
        "ElasticNet": linear_model.ElasticNet(0.02, **EXACT),
        "NonNegativeLeastSquares": linear_model.LinearRegression(positive=True),
    }[type(model).__name__]
    np.testing.assert_allclose(coef, oracle.fit(X, Y, WEIGHTS).coef_, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model", [Lasso(0.5), NonNegativeLeastSquares()])
def test_several_targets(model: Any) -> None:
    targets = np.column_stack([Y, -Y[::-1]])
    fitted = model.set_params(tol=1e-9, **HERE).fit(X, targets)
    assert fitted.coef_.shape == (2, 10) and fitted.intercept_.shape == (2,)
    assert fitted.predict(X).shape == targets.shape
    both = fitted.coef_
    for column in range(2):
        alone = model.fit(X, targets[:, column])
        np.testing.assert_allclose(both[column], alone.coef_, rtol=1e-3, atol=1e-3)
        assert np.isscalar(alone.intercept_)


@pytest.mark.parametrize("fit_intercept", [True, False])
def test_nonnegative_least_squares_are_those_of_sklearn(fit_intercept: bool) -> None:
    model = NonNegativeLeastSquares(fit_intercept=fit_intercept, **options()).fit(X, Y)
    oracle = linear_model.LinearRegression(positive=True, fit_intercept=fit_intercept).fit(X, Y)
    assert model.coef_.min() >= 0
    np.testing.assert_allclose(model.coef_, oracle.coef_, atol=1e-5 * oracle.coef_.max())
    assert model.score(X, Y) == pytest.approx(oracle.score(X, Y), rel=1e-9)
    assert model.dual_gap_ is None and model.optimality_ < 1e-4
    assert {0, 1} <= set(model.report_.recovered)


@settings(max_examples=15)
@given(samples=st.integers(2, 25), features=st.integers(1, 8), seed=st.integers(0, 99))
@example(samples=2, features=2, seed=46)
@example(samples=6, features=7, seed=24)
def test_nonnegative_least_squares_of_any_shape(samples: int, features: int, seed: int) -> None:
    stream = np.random.default_rng(seed)
    A = stream.standard_normal((samples, features)) * 10.0 ** stream.integers(-3, 4, features)
    b = stream.standard_normal(samples)
    here = {"blocks": 2, "executor": Straggling()}
    model = NonNegativeLeastSquares(fit_intercept=False, tol=1e-8, max_iter=20_000, **here)
    # The norm is 0 if A has more columns than rows. A fit then leaves a residual of about 1e-5.
    best = nnls(A, b)[1]
    assert np.linalg.norm(b - model.fit(A, b).predict(A)) == pytest.approx(best, rel=1e-6, abs=1e-5)


def test_strong_penalty_leaves_only_the_mean() -> None:
    model = Lasso(1e6, **HERE).fit(X, Y)
    assert not model.coef_.any()
    assert model.intercept_ == pytest.approx(Y.mean())
    assert model.dual_gap_ == pytest.approx(0, abs=1e-9)


def test_without_a_penalty_there_is_no_gap() -> None:
    model = Lasso(0.0, **HERE).fit(X[:, :3], Y)
    assert model.dual_gap_ is None
    oracle = linear_model.LinearRegression().fit(X[:, :3], Y)
    np.testing.assert_allclose(model.coef_, oracle.coef_, rtol=1e-4)


def logistic_objective(model: Any, X: np.ndarray, y: np.ndarray, weights: Any = 1.0) -> float:
    """Return C times the sum of the losses + |w|_1."""
    losses = -model.predict_log_proba(X)[np.arange(len(y)), y] * weights
    return float(model.C * losses.sum() + np.abs(model.coef_).sum())


@pytest.mark.parametrize("C", [0.03, 0.3])
def test_the_minimum_of_logistic_losses_is_that_of_sklearn(C: float) -> None:
    model = SparseLogisticRegression(C, **options()).fit(CANCER, LABELS)
    oracle = linear_model.LogisticRegression(C=C, l1_ratio=1.0, solver="saga", tol=1e-10, max_iter=100_000)
    best = logistic_objective(oracle.fit(CANCER, LABELS), CANCER, LABELS)
    assert logistic_objective(model, CANCER, LABELS) == pytest.approx(best, rel=1e-7)
    assert {0, 1} <= set(model.report_.recovered)
    pull = C * CANCER.T @ (LABELS - model.predict_proba(CANCER)[:, 1])
    coef = model.coef_[0]
    np.testing.assert_allclose(pull[coef != 0], np.sign(coef[coef != 0]), atol=1e-4)
    assert np.abs(pull).max() <= 1 + 1e-4 and model.optimality_ < 1e-5
    assert model.objective_ * C * len(LABELS) == pytest.approx(logistic_objective(model, CANCER, LABELS))


@pytest.mark.parametrize("chosen", [{}, {"fit_intercept": False}, {"class_weight": "balanced"}])
def test_two_classes_are_those_of_sklearn(chosen: dict[str, Any]) -> None:
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
    X, y = standardized(datasets.load_iris)
    model = SparseLogisticRegression(0.1, tol=1e-8, **HERE).fit(X, y)
    oracle = linear_model.LogisticRegression(C=0.1, l1_ratio=1.0, solver="saga", tol=1e-9, max_iter=100_000)
    oracle.fit(X, y)
    assert logistic_objective(model, X, y) == pytest.approx(logistic_objective(oracle, X, y), rel=1e-7)
    np.testing.assert_allclose(model.predict_proba(X), oracle.predict_proba(X), atol=1e-4)
    np.testing.assert_array_equal(model.coef_ == 0, oracle.coef_ == 0)


def test_logistic_regression_without_penalty() -> None:
    stream = np.random.default_rng(0)
    X = stream.standard_normal((200, 3))
    y = stream.random(200) < 1 / (1 + np.exp(-X @ [1, -2, 0.5]))
    model = SparseLogisticRegression(np.inf, **HERE).fit(X, y)
    oracle = linear_model.LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-12).fit(X, y)
    np.testing.assert_allclose(model.coef_, oracle.coef_, atol=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_fit_that_starts_at_its_minimum_has_converged(seed: int) -> None:
    # Only rounding errors are left of the gradient. A ConvergenceWarning would fail the test.
    stream = np.random.default_rng(seed)
    same = np.tile(stream.standard_normal(8), (60, 1))
    model = SparseLogisticRegression(**HERE).fit(same, stream.random(60) > 0.4)
    assert not model.coef_.any() and model.optimality_ < 1e-12
    model = NonNegativeLeastSquares(**HERE).fit(X, np.full(len(X), stream.random()))
    assert np.abs(model.coef_).max() < 1e-12 and model.optimality_ < 1e-12


@pytest.mark.parametrize("weights", [None, np.random.default_rng(3).uniform(0.5, 2.0, len(LABELS))])
def test_objectives_have_the_documented_scale(weights: np.ndarray | None) -> None:
    # The documented objectives are the mean of (y - Xw - c)^2 / 2, and the logistic losses with the penalty,
    # divided by C times the sum of the weights.
    share = np.ones(len(LABELS)) if weights is None else weights
    squares = NonNegativeLeastSquares(**HERE).fit(CANCER, 1.0 * LABELS, sample_weight=weights)
    rest = LABELS - CANCER @ squares.coef_ - squares.intercept_
    assert squares.objective_ == pytest.approx(np.average(rest**2, weights=share) / 2)
    model = SparseLogisticRegression(C=0.3, **HERE).fit(CANCER, LABELS, sample_weight=weights)
    losses = np.logaddexp(0, (1 - 2 * LABELS) * model.decision_function(CANCER))
    whole = 0.3 * share @ losses + np.abs(model.coef_).sum()
    assert model.objective_ == pytest.approx(whole / (0.3 * share.sum()))
