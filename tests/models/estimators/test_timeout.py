"""Fits that `timeout` ends: the best solution so far, and how far it is from the minimum."""

from __future__ import annotations

import math
import re
import time
import warnings
from typing import Any

import numpy as np
import pytest
from plain_networks import PlainClassifier, PlainOperator, PlainRegressor
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

from benchmarks.numpy_estimators import with_numpy_products
from polarmap.convex import ElasticNet, LinearSVC, NonNegativeLeastSquares, SparseLogisticRegression
from polarmap.errors import DeadlineExceededError, ModelError
from polarmap.glm import LeastSquares, LogisticRegression, PoissonRegression, Ridge
from polarmap.models.solvers import proximal_newton
from polarmap.testing import ReplayExecutor

STREAM = np.random.default_rng(0)
X = STREAM.standard_normal((60, 16)) @ np.diag(np.logspace(0, -2, 16)) @ STREAM.standard_normal((16, 16))
Y = X @ np.linspace(-1, 1, 16) + STREAM.standard_normal(60)
MODELS = [
    *(Ridge(1e-3, solver=solver) for solver in ("lsqr", "lsmr", "cg")),
    *(LogisticRegression(100.0, solver=solver) for solver in ("lbfgs", "trust-ncg", "trust-krylov")),
    PoissonRegression(1e-3),
    *(ElasticNet(1e-3), NonNegativeLeastSquares(), SparseLogisticRegression(100.0), LinearSVC(1.0)),
    *(PlainRegressor(0.01, n_gates=4, activation=activation) for activation in ("gated_relu", "relu")),
    PlainClassifier(0.01, n_gates=4, activation="relu"),
]
every_model = pytest.mark.parametrize("model", MODELS, ids=lambda model: repr(model).split(",")[0])


def targets_of(model: Any) -> np.ndarray:
    if isinstance(model, PoissonRegression):
        return np.exp(Y / 3)
    return Y if hasattr(model, "alpha") and not isinstance(model, PlainClassifier) else Y > 0


class LimitedOperator(PlainOperator):
    """An operator whose deadline passes after `max_products` products."""

    max_products = math.inf

    def set_deadline(self, seconds: float) -> None:
        assert 0 < seconds <= 60.0

    def _count(self) -> None:
        if self.n_products >= self.max_products:
            raise DeadlineExceededError("the deadline has passed")

    def _matmat(self, V: np.ndarray) -> Any:
        self._count()
        return super()._matmat(V)

    def _rmatmat(self, U: np.ndarray) -> Any:
        self._count()
        return super()._rmatmat(U)

    def gram(self, weights: np.ndarray) -> Any:
        self._count()
        return super().gram(weights)


def fit(model: Any, y: np.ndarray, max_products: float) -> tuple[Any, LimitedOperator, list[str]]:
    """Fit a copy of a model, whose operator is limited; return also the texts of the warnings."""
    made: list[LimitedOperator] = []

    class LimitedEstimator(type(model)):  # type: ignore[misc]
        def _make_operator(self, A: Any) -> LimitedOperator:
            made.append(LimitedOperator(A))
            made[0].max_products = max_products
            return made[0]

    limited = LimitedEstimator(**model.get_params()).set_params(timeout=60.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        limited.fit(X, y)
    return limited, made[0], [str(one.message) for one in caught if one.category is ConvergenceWarning]


def training_loss(model: Any, y: np.ndarray) -> float:
    if hasattr(model, "objective_"):
        return float(model.objective_)
    residual = y - model.predict(X)
    return float(residual @ residual + model.alpha * model.coef_ @ model.coef_)


def find_min_products(model: Any, y: np.ndarray) -> int:
    """Return how many products a fit needs to have a solution: with fewer it raises."""
    for max_products in range(12):
        try:
            fit(model, y, max_products)
        except DeadlineExceededError:
            with pytest.raises(DeadlineExceededError, match="not ended its first iteration"):
                fit(model, y, max_products)
        else:
            return max_products
    raise AssertionError("no solution after twelve products")


@every_model
@pytest.mark.parametrize("largest_gram", [1000, 0], ids=["newton", "gradients alone"])
def test_a_fit_may_end_after_any_product(
    model: Any, largest_gram: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proximal_newton, "MAX_GRAM_SIZE", largest_gram)
    y = targets_of(model)
    best, operator, _ = fit(model, y, math.inf)
    minimum, losses, n_first = training_loss(best, y), [], find_min_products(model, y)
    for max_products in range(n_first, operator.n_products, max(1, operator.n_products // 12)):
        found, _, messages = fit(model, y, max_products)
        losses.append(training_loss(found, y))
        assert np.isfinite(found.predict(X)).all() and found.n_iter_ >= 1
        assert losses[-1] >= minimum - 1e-6 * abs(minimum)
        if not messages:  # what is left is a measurement of a solution that has converged
            assert losses[-1] == pytest.approx(minimum, rel=1e-5)
            continue
        (message,) = messages
        assert message.startswith(
            f"the fit has stopped at timeout=60.0 s, after {found.n_iter_} iterations: "
        )
        assert message.endswith("; raise timeout or tol")
        gap = re.search(r"the objective is at most (\S+) above its minimum", message)
        if gap:
            assert losses[-1] - minimum <= 1.01 * float(gap[1]) + 1e-9 * abs(minimum)
        else:
            assert float(re.search(r"optimality is (\S+), and 0 at the minimum", message)[1]) >= 0
    assert losses
    assert losses[-1] <= min(losses) * (1 + 1e-9) + 1e-12 and losses[-1] < losses[0] + 1e-12


def test_several_targets_have_equal_parts_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    deadlines: list[float] = []
    monkeypatch.setattr(LimitedOperator, "set_deadline", lambda operator, seconds: deadlines.append(seconds))
    fit(Ridge(), np.column_stack([Y, -Y, Y**2]), math.inf)
    assert [round(60 / seconds) for seconds in deadlines] == [3, 2, 1]


class HangingExecutor(ReplayExecutor):
    """Run `n_maps` maps, then only such whose tasks never end."""

    def __init__(self, n_maps: int) -> None:
        super().__init__()
        self.n_maps = n_maps

    def open(self, job_spec: Any) -> Any:
        self.n_maps -= 1
        executor = ReplayExecutor(dict.fromkeys(range(99), math.inf)) if self.n_maps < 0 else self
        return ReplayExecutor.open(executor, job_spec)


def test_a_map_that_hangs_ends_with_the_fit() -> None:
    started_at = time.monotonic()
    model = ElasticNet(1e-3, blocks=3, executor=HangingExecutor(9), timeout=5.0)
    with pytest.warns(ConvergenceWarning, match=r"stopped at timeout=5.0 s, after \d iterations"):
        model.fit(X, Y)
    assert model.coef_.any() and "_fit_ends_at" not in vars(model)
    with pytest.raises(DeadlineExceededError, match=r"first iteration within timeout=5.0 s"):
        clone(model).set_params(executor=HangingExecutor(0)).fit(X, Y)
    assert time.monotonic() - started_at < 60


def test_enough_time_changes_nothing() -> None:
    for model in (LeastSquares(blocks=3, executor=ReplayExecutor()), ElasticNet(0.1, blocks=3)):
        expected = model.set_params(executor=ReplayExecutor()).fit(X, Y).coef_
        limited = clone(model).set_params(timeout=600).fit(X, Y)
        np.testing.assert_array_equal(limited.coef_, expected)
        assert limited.get_params()["timeout"] == 600


@pytest.mark.parametrize("timeout", [0, -1.0, np.nan, "1", True])
def test_times_that_cannot_be(timeout: Any) -> None:
    with pytest.raises(ModelError, match="timeout must be a positive number of seconds or None, got"):
        with_numpy_products(Ridge()).set_params(timeout=timeout).fit(X, Y)
