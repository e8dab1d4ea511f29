"""Regression against a conic solver, non-convex training and its own extraction, under faults."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conic_networks import conic_network_objective, trained_network_objective
from plain_networks import PlainRegressor
from straggling_models import options

from polarmap import ReplayExecutor
from polarmap.convexnn import ConvexMLPRegressor

STREAM = np.random.default_rng(0)
X = STREAM.standard_normal((24, 3)) * [1.0, 3.0, 0.2] + [0.0, 1.0, 0.0]
Y = np.maximum(X @ [1.0, -0.5, 2.0], 0) - 0.3 * X[:, 0] + 0.1 * STREAM.standard_normal(24)
ACTIVATIONS = pytest.mark.parametrize("activation", ["gated_relu", "relu"])


def network_objective(model: Any) -> float:
    """Of the weights as an MLP counts them: loss + alpha / 2 times the squares of all but the output's."""
    squares = sum(float(np.sum(weights**2)) for weights in (*model.coefs_, model.intercepts_[0]))
    return float(np.mean((Y - model.predict(X)) ** 2)) / 2 + model.alpha / 2 * squares


def convex_outputs(model: Any) -> np.ndarray:
    """sum_i D_i (X V_i + b_i) + c."""
    gates = X @ model.gates_ + model.gate_intercepts_ >= 0
    pieces = np.einsum("sf,gfo->sgo", X, model.convex_coef_) + model.convex_intercept_
    return np.einsum("sg,sgo->so", gates, pieces) + model.intercepts_[1]


@ACTIVATIONS
def test_the_minimum_is_that_of_a_conic_solver_with_dead_and_late_workers(activation: str) -> None:
    model = ConvexMLPRegressor(0.3, activation=activation, n_gates=4, **options()).fit(X, Y)
    best = conic_network_objective(model, X, Y)
    assert model.objective_ == pytest.approx(best, rel=1e-6)
    assert model.dual_gap_ <= 1e-6 * model.objective_
    assert -1e-8 * best <= model.objective_ - best <= model.dual_gap_ + 1e-8 * best
    assert {0, 1} <= set(model.report_.recovered)
    alone = PlainRegressor(0.3, activation=activation, n_gates=4).fit(X, Y)
    assert alone.n_iter_ == model.n_iter_
    np.testing.assert_allclose(alone.predict(X), model.predict(X), atol=1e-9)


@ACTIVATIONS
@pytest.mark.parametrize("alpha", [0.1, 0.03])
def test_convex_model_and_network_are_one(activation: str, alpha: float) -> None:
    model = PlainRegressor(alpha, activation=activation, n_gates=8).fit(X, Y)
    assert model.objective_ == pytest.approx(conic_network_objective(model, X, Y), rel=1e-6)
    assert network_objective(model) == pytest.approx(model.objective_, rel=1e-10)
    np.testing.assert_allclose(convex_outputs(model)[:, 0], model.predict(X), atol=1e-12)
    np.testing.assert_array_equal(model.network_(X)[:, 0], model.predict(X))


def test_relu_networks_are_never_worse_than_thirty_that_gradients_have_found() -> None:
    few, targets = X[:8, :1], Y[:8]
    model = PlainRegressor(0.1, activation="relu", n_gates=300).fit(few, targets)
    assert model.gates_.shape[1] == 15  # 8 points on a line: the first few, the last few, all
    found = [trained_network_objective(few, targets, 0.1, 8, seed) for seed in range(30)]
    assert model.objective_ <= min(found) * (1 + 1e-6)
    assert model.objective_ == pytest.approx(min(found), rel=1e-4)


@ACTIVATIONS
def test_several_targets_are_those_of_each_alone(activation: str) -> None:
    targets = np.column_stack([Y, -(Y**2)])
    model = PlainRegressor(0.3, activation=activation, n_gates=4).fit(X, targets)
    outputs, objective = model.predict(X), model.objective_
    assert outputs.shape == (24, 2) and model.coefs_[1].shape[1] == 2
    np.testing.assert_allclose(convex_outputs(model), outputs, atol=1e-12)
    each = [model.fit(X, target).objective_ for target in targets.T]
    assert objective == pytest.approx(sum(each), rel=2e-6)
    assert model.predict(X).shape == (24,)


@ACTIVATIONS
def test_a_penalty_beyond_all_leaves_the_mean(activation: str) -> None:
    here = {"blocks": 2, "workers": 3, "executor": ReplayExecutor()}
    model = ConvexMLPRegressor(1e3, activation=activation, n_gates=4, **here).fit(X, Y)
    np.testing.assert_allclose(model.predict(X), Y.mean())
    assert model.coefs_[0].shape == (3, 1) and not model.coefs_[0].any()
