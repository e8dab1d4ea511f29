"""The penalized loss against differences, and its minimum against scikit-learn's Newton solvers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.sparse.linalg import aslinearoperator
from sklearn import linear_model
from sklearn.datasets import load_breast_cancer, load_diabetes

from benchmarks.numpy_estimators import with_numpy_products
from polarmap.glm import LogisticRegression, PoissonRegression, Ridge
from polarmap.models import proximal_newton
from polarmap.models.losses import BernoulliFamily, MultinomialFamily, WeightedLoss
from polarmap.models.operators import AppendedInterceptOperator
from polarmap.models.penalized_loss import ScipyObjective
from polarmap.models.penalties import ElasticNetPenalty
from polarmap.models.proximal_gradient import CompositeProblem
from polarmap.testing import ReplayExecutor

CANCER, LABELS = load_breast_cancer(return_X_y=True)
CANCER = (CANCER - CANCER.mean(axis=0)) / CANCER.std(axis=0)
DIABETES, PROGRESS = load_diabetes(return_X_y=True)
WEIGHTS = np.random.default_rng(0).random(len(CANCER))
NEWTON = {"solver": "newton-cholesky", "tol": 1e-12, "max_iter": 1000}
HERE = {"blocks": 4, "executor": ReplayExecutor()}


def assert_same(found: Any, expected: Any) -> None:
    scale = np.abs(expected.coef_).max()
    np.testing.assert_allclose(found.coef_, expected.coef_, rtol=0, atol=1e-8 * scale)
    np.testing.assert_allclose(found.intercept_, expected.intercept_, rtol=1e-8)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("of_class", [None, "balanced", {0: 2.0, 1: 0.5}])
@pytest.mark.parametrize("largest_gram", [1000, 0], ids=["newton", "scipy alone"])
def test_logistic_regression_is_the_true_minimum(
    weights: Any, of_class: Any, largest_gram: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proximal_newton, "MAX_GRAM_SIZE", largest_gram)
    ours = with_numpy_products(LogisticRegression(class_weight=of_class)).fit(CANCER, LABELS, weights)
    theirs = linear_model.LogisticRegression(class_weight=of_class, **NEWTON)
    assert_same(ours, theirs.fit(CANCER, LABELS, sample_weight=weights))


def test_poisson_regression_and_ridge_take_weights() -> None:
    weights = WEIGHTS[: len(DIABETES)]
    poisson = linear_model.PoissonRegressor(alpha=0.1, **NEWTON).fit(DIABETES, PROGRESS, weights)
    assert_same(PoissonRegression(0.1, **HERE).fit(DIABETES, PROGRESS, weights), poisson)
    ridge = linear_model.Ridge(0.1).fit(DIABETES, PROGRESS, weights)
    assert_same(Ridge(0.1, **HERE).fit(DIABETES, PROGRESS, weights), ridge)


STREAM = np.random.default_rng(0)
A = STREAM.standard_normal((20, 3))
PENALTY = np.array([0.1, 0.2, 0.3])
CLASSES = np.arange(20) % 3


def objective(classes: int, unit: float) -> ScipyObjective:
    y = np.eye(3)[CLASSES] if classes == 3 else (CLASSES[:, None] == 0).astype(float)
    loss = WeightedLoss(
        MultinomialFamily() if classes == 3 else BernoulliFamily(), y, np.arange(1.0, 21.0) / 210
    )
    operator = AppendedInterceptOperator(aslinearoperator(A), unit) if unit else aslinearoperator(A)
    squares = np.repeat(np.append(PENALTY, 0.0) if unit else PENALTY, y.shape[1])
    return ScipyObjective(CompositeProblem(operator, loss, ElasticNetPenalty(0.0, squares)), squares)


def point(classes: int, unit: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((3 + bool(unit)) * (classes if classes > 2 else 1))


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("unit", [0.0, 2.0])
def test_gradient_and_hessian_are_the_derivatives(classes: int, unit: float) -> None:
    some = objective(classes, unit)
    theta, direction = point(classes, unit, 1), point(classes, unit, 2)
    step = 1e-5 * direction
    (more, rising), (less, falling) = (
        some.value_and_gradient(theta + step),
        some.value_and_gradient(theta - step),
    )
    assert (more - less) / 2e-5 == pytest.approx(some.value_and_gradient(theta)[1] @ direction, rel=1e-6)
    np.testing.assert_allclose(
        (rising - falling) / 2e-5, some.hessian_product(theta, direction), rtol=1e-5, atol=1e-8
    )


def test_nan_is_infinitely_bad_and_has_no_hessian() -> None:
    some = objective(2, 1.0)
    theta = np.full_like(point(2, 1.0, 1), np.nan)
    assert some.value_and_gradient(theta)[0] == np.inf
    assert np.isnan(some.hessian_product(theta, theta)).all()
