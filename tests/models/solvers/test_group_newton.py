"""Newton steps for gated networks: minimum against a conic solver, bounds, products, working sets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conic_networks import conic_classifier_objective, conic_network_objective
from plain_networks import PlainClassifier, PlainOperator, PlainRegressor
from sklearn.datasets import make_blobs

from polarmap.models.activation_gates import sample_gates
from polarmap.models.losses import BernoulliFamily, GaussianFamily, ProfiledLoss
from polarmap.models.solvers import group_newton as module
from polarmap.models.solvers.group_newton import compute_max_working_columns, group_newton

STREAM = np.random.default_rng(0)
X = STREAM.standard_normal((40, 2))
Y = np.abs(X[:, 0]) - np.maximum(X[:, 1], 0) + 0.1 * STREAM.standard_normal(40)
SHARES = np.full(40, 1 / 40)


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("alpha", [0.1, 0.01, 0.001])
def test_minimum_is_that_of_a_conic_solver(alpha: float, fit_intercept: bool) -> None:
    model = PlainRegressor(alpha, n_gates=20, tol=1e-7, fit_intercept=fit_intercept).fit(X, Y)
    assert model.objective_ == pytest.approx(conic_network_objective(model, X, Y), rel=1e-6)
    assert model.dual_gap_ <= 1e-7 * model.objective_
    assert model.n_iter_ <= 25


@pytest.mark.parametrize("thresholds", [[0], [0, 1]])
@pytest.mark.parametrize("alpha", [0.1, 0.01])
def test_minimum_of_classes_is_that_of_a_conic_solver(alpha: float, thresholds: list[float]) -> None:
    codes = np.digitize(Y, thresholds)
    model = PlainClassifier(alpha, n_gates=5, tol=1e-7).fit(X, codes)
    assert model.objective_ == pytest.approx(conic_classifier_objective(model, X, codes), rel=1e-6)
    assert model.dual_gap_ <= 1e-7 * model.objective_
    assert model.n_iter_ <= 25


def test_three_classes_of_few_samples_take_few_products() -> None:
    samples, codes = make_blobs(n_samples=21, centers=3, random_state=0)
    model = PlainClassifier().fit(samples, codes)  # 5,000 iterations of FISTA do not suffice
    assert model.dual_gap_ <= 1e-6 * model.objective_
    assert model.n_iter_ <= 20


def solve(family: Any, y: np.ndarray, tol: float, max_iter: int) -> tuple[Any, int]:
    gates = sample_gates(X, SHARES, 8, True, np.random.RandomState(0))
    loss = ProfiledLoss(family, y.reshape(-1, 1).astype(float), SHARES, True)
    operator = PlainOperator(np.column_stack([X, np.ones(40)]))
    solution = group_newton(operator, loss, gates.patterns, 0.02, tol=tol, max_iter=max_iter)
    return solution, operator.n_products


@pytest.mark.parametrize(("family", "y"), [(GaussianFamily(), Y), (BernoulliFamily(), Y > 0)])
def test_three_products_an_iteration_and_bounds_at_each(family: Any, y: np.ndarray) -> None:
    best, n_products = solve(family, y, 1e-9, 100)
    assert best.converged and n_products == 3 * best.n_iter + 2
    for max_iter in range(1, best.n_iter):
        solution, _ = solve(family, y, 0.0, max_iter)
        assert not solution.converged and solution.n_iter == max_iter
        assert -1e-9 <= solution.objective - best.objective <= solution.dual_gap + 1e-12


def test_repeated_fits_are_equal_although_products_round(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = (Y > 0.2).astype(int)
    exact = PlainClassifier(n_gates=30).fit(X, codes).decision_function(X)
    multiply = PlainOperator._matmat
    noise = np.random.default_rng(1)

    def multiply_with_noise(operator: Any, V: np.ndarray) -> np.ndarray:
        product = multiply(operator, V)
        return product * (1 + 1e-15 * noise.standard_normal(product.shape))

    monkeypatch.setattr(PlainOperator, "_matmat", multiply_with_noise)
    rounded = PlainClassifier(n_gates=30).fit(X, codes).decision_function(X)
    np.testing.assert_allclose(rounded, exact, rtol=1e-6, atol=1e-7)


def test_solver_stalls_if_working_set_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SYSTEM_SIZE", 6)  # two columns
    solution, _ = solve(GaussianFamily(), Y, 1e-9, 100)
    assert not solution.converged and solution.n_iter < 100
    assert np.count_nonzero(solution.x.any(axis=0)) <= 2


@pytest.mark.parametrize("n_samples", [1, 100, 10_000])
@pytest.mark.parametrize("n_outputs", [1, 10])
def test_gram_weights_of_largest_working_set_are_within_the_limit(n_samples: int, n_outputs: int) -> None:
    n_columns = compute_max_working_columns(n_samples, 1, n_outputs)

    def count_weights(columns: int) -> int:
        return n_samples * (columns * (columns + 1) // 2 + columns * n_outputs)

    assert n_columns <= module.MAX_SYSTEM_SIZE and count_weights(n_columns) <= module.MAX_GRAM_WEIGHTS
    is_largest = count_weights(n_columns + 1) > module.MAX_GRAM_WEIGHTS
    assert is_largest or n_columns == module.MAX_SYSTEM_SIZE
