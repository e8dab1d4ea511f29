"""Convex neural networks.

The oracles are a conic solver, networks trained by gradient descent, and scikit-learn's models.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conic_networks import conic_network_objective, trained_network_objective
from plain_networks import PlainClassifier, PlainRegressor
from scipy.sparse import csr_array
from sklearn.linear_model import LogisticRegression
from straggling_models import options

from polarmap.convexnn import ConvexMLPClassifier, ConvexMLPRegressor, TwoLayerNetwork
from polarmap.errors import ModelError
from polarmap.models.estimators import convex_network
from polarmap.models.estimators.convex_network import extract_hidden_units
from polarmap.testing import ReplayExecutor

STREAM = np.random.default_rng(0)
X = STREAM.standard_normal((24, 3)) * [1.0, 3.0, 0.2] + [0.0, 1.0, 0.0]
Y = np.maximum(X @ [1.0, -0.5, 2.0], 0) - 0.3 * X[:, 0] + 0.1 * STREAM.standard_normal(24)
NAMES = np.array(["a", "b", "c"])
ACTIVATIONS = pytest.mark.parametrize("activation", ["gated_relu", "relu"])


# --- networks as weights -------------------------------------------------------------------------


def test_units_have_the_products_of_the_weights_and_the_least_squares() -> None:
    W = STREAM.standard_normal((4, 2, 3, 2))
    W[:, 1, 2, 0] = 0
    (first, second), bias, gate = extract_hidden_units(W, True)
    assert first.shape == (3, 11) and second.shape == (11, 2) and gate.shape == (11,)
    whole = np.vstack([first, bias])
    product = np.einsum("fu,uo->fo", whole, second)
    np.testing.assert_allclose(product, (W[:, 0] - W[:, 1]).sum(axis=1))
    squares = np.sum(whole**2) + np.sum(second**2)
    np.testing.assert_allclose(squares / 2, np.linalg.norm(W, axis=0).sum())


def test_zero_weights_give_one_unit_of_zeros() -> None:
    (first, second), bias, gate = extract_hidden_units(np.zeros((3, 1, 4, 2)), False)
    assert first.shape == (3, 1) and second.shape == (1, 2) and bias.shape == (1,) and gate.tolist() == [0]
    assert not first.any() and not second.any()


def test_gated_units_keep_negative_values() -> None:
    gates = np.array([[1.0], [0.0], [0.0]]), np.array([0.2]), np.zeros(2, np.intp)
    first, second = STREAM.standard_normal((3, 2)), STREAM.standard_normal((2, 2))
    network = TwoLayerNetwork([first, second], [np.ones(2), np.zeros(2)], gates)
    passed = X[:, :1] + 0.2 >= 0
    expected = (passed * (X @ first + 1)) @ second
    np.testing.assert_allclose(network(X), expected)
    np.testing.assert_allclose(network(csr_array(X)), expected)
    relu = network._replace(gates=None)
    np.testing.assert_allclose(relu(X), np.maximum(X @ first + 1, 0) @ second)


# --- regression ----------------------------------------------------------------------------------


def network_objective(model: Any) -> float:
    """Return the objective of the weights as an MLP: loss + alpha / 2 times the squared weights.

    The intercept of the output is not penalized.
    """
    squares = sum(float(np.sum(weights**2)) for weights in (*model.coefs_, model.intercepts_[0]))
    return float(np.mean((Y - model.predict(X)) ** 2)) / 2 + model.alpha / 2 * squares


def convex_outputs(model: Any) -> np.ndarray:
    """Return the outputs of the convex model, sum_i D_i (X V_i + b_i) + c."""
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
def test_convex_model_and_network_agree(activation: str, alpha: float) -> None:
    model = PlainRegressor(alpha, activation=activation, n_gates=8).fit(X, Y)
    assert model.objective_ == pytest.approx(conic_network_objective(model, X, Y), rel=1e-6)
    assert network_objective(model) == pytest.approx(model.objective_, rel=1e-10)
    np.testing.assert_allclose(convex_outputs(model)[:, 0], model.predict(X), atol=1e-12)
    np.testing.assert_array_equal(model.network_(X)[:, 0], model.predict(X))


def test_relu_network_is_no_worse_than_thirty_gradient_trainings() -> None:
    few, targets = X[:6, :1], Y[:6]
    model = PlainRegressor(0.1, activation="relu", n_gates=300).fit(few, targets)
    # Gates separate 6 points on a line into the first few and the last few, or include all of them.
    assert model.gates_.shape[1] == 11
    objectives = [trained_network_objective(few, targets, 0.1, 8, seed) for seed in range(30)]
    assert model.objective_ <= min(objectives) * (1 + 1e-6)
    assert model.objective_ == pytest.approx(min(objectives), rel=1e-4)


@ACTIVATIONS
def test_several_targets_are_fitted_independently(activation: str) -> None:
    targets = np.column_stack([Y, -(Y**2)])
    model = PlainRegressor(0.3, activation=activation, n_gates=4).fit(X, targets)
    outputs, objective = model.predict(X), model.objective_
    assert outputs.shape == (24, 2) and model.coefs_[1].shape[1] == 2
    np.testing.assert_allclose(convex_outputs(model), outputs, atol=1e-12)
    each = [model.fit(X, target).objective_ for target in targets.T]
    assert objective == pytest.approx(sum(each), rel=2e-6)
    assert model.predict(X).shape == (24,)


@ACTIVATIONS
def test_strong_penalty_leaves_the_mean_and_one_unit_of_zeros(activation: str) -> None:
    here = {"blocks": 2, "tasks": 3, "executor": ReplayExecutor()}
    model = ConvexMLPRegressor(1e3, activation=activation, n_gates=4, **here).fit(X, Y)
    np.testing.assert_allclose(model.predict(X), Y.mean())
    assert model.coefs_[0].shape == (3, 1) and not model.coefs_[0].any()
    assert model.coefs_[1].shape == (1, 1) and not model.coefs_[1].any()


@ACTIVATIONS
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_sparse_features_give_the_model_of_dense_ones(activation: str, fit_intercept: bool) -> None:
    holes = np.where(STREAM.random(X.shape) < 0.4, 0.0, X)
    model = PlainRegressor(0.3, activation=activation, fit_intercept=fit_intercept, n_gates=4)
    dense, objective = model.fit(holes, Y).predict(holes), model.objective_
    sparse = model.fit(csr_array(holes), Y).predict(csr_array(holes))
    assert model.objective_ == pytest.approx(objective, rel=1e-6)
    np.testing.assert_allclose(sparse, dense, atol=1e-2)
    assert fit_intercept or not model.intercepts_[1].any()


def test_gates_are_seeded() -> None:
    model = PlainRegressor(0.3, n_gates=4, tol=1e-2)
    first, again = model.fit(X, Y).gates_, model.fit(X, Y).gates_
    np.testing.assert_array_equal(first, again)
    assert (model.set_params(random_state=1).fit(X, Y).gates_ != first).any()


# --- classification ------------------------------------------------------------------------------


def labels(classes: int) -> np.ndarray:
    return NAMES[np.digitize(X[:, 0] * X[:, 2], [0, 0.2][: classes - 1])]


def assert_consistent(model: Any, y: np.ndarray) -> None:
    """Check that the network has the convex objective, and that the probabilities fit labels and loss."""
    probabilities = model.predict_proba(X)
    assert probabilities.shape == (24, len(model.classes_))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    of_labels = model.predict_log_proba(X)[np.arange(24), np.searchsorted(model.classes_, y)]
    squares = sum(float(np.sum(weights**2)) for weights in (*model.coefs_, model.intercepts_[0]))
    assert -np.mean(of_labels) + model.alpha / 2 * squares == pytest.approx(model.objective_, rel=1e-9)
    np.testing.assert_array_equal(model.classes_[probabilities.argmax(axis=1)], model.predict(X))


@pytest.mark.parametrize("classes", [2, 3])
def test_classifier_reaches_a_gap_of_1e_6(classes: int) -> None:
    y = labels(classes)
    model = PlainClassifier(0.05, n_gates=4).fit(X, y)
    assert model.dual_gap_ <= 1e-6 * model.objective_
    assert_consistent(model, y)


def test_classes_with_dead_and_late_workers() -> None:
    y, chosen = labels(3), {"alpha": 0.05, "n_gates": 4, "tol": 1e-2}
    model = ConvexMLPClassifier(**chosen, **options()).fit(X, y)
    assert {0, 1} <= set(model.report_.recovered)
    alone = PlainClassifier(**chosen).fit(X, y)
    assert alone.n_iter_ == model.n_iter_
    np.testing.assert_allclose(alone.predict_proba(X), model.predict_proba(X), atol=1e-9)


@pytest.mark.parametrize("classes", [2, 3])
def test_gap_of_relu_classifiers_bounds_their_error(classes: int) -> None:
    y = labels(classes)
    model = PlainClassifier(0.05, activation="relu", n_gates=4, tol=1e-4).fit(X, y)
    assert 0 < model.dual_gap_ <= 1e-4 * model.objective_
    assert_consistent(model, y)
    closer = PlainClassifier(0.05, activation="relu", n_gates=4, tol=1e-5).fit(X, y)
    assert 0 <= model.objective_ - closer.objective_ + 1e-12 <= model.dual_gap_


@pytest.mark.parametrize("classes", [2, 3])
def test_one_open_gate_is_a_linear_model(classes: int) -> None:
    # The penalty is almost 0. The constant feature is left out for scikit-learn, which fits an intercept.
    y = labels(classes)
    model = PlainClassifier(1e-4, n_gates=1, tol=1e-2).fit(X, y)
    assert model.gates_.shape == (3, 1) and not model.gates_.any()
    linear = LogisticRegression(C=np.inf, tol=1e-10, max_iter=10_000).fit(X, y)
    np.testing.assert_allclose(model.predict_proba(X), linear.predict_proba(X), atol=0.02)


# --- regression and classification ---------------------------------------------------------------


def test_network_can_be_converted_to_scikit_learn() -> None:
    relu = {"activation": "relu", "n_gates": 4, "tol": 1e-3}
    for model, y in (
        (PlainRegressor(0.3, **relu), Y),
        (PlainRegressor(0.3, **relu), np.column_stack([Y, Y**2])),
        (PlainClassifier(0.1, **relu), Y > 0),
        (PlainClassifier(0.1, **relu), np.digitize(Y, [0, 1])),
    ):
        mlp = model.fit(X, y).to_mlp()
        np.testing.assert_allclose(mlp.predict(X), model.predict(X), atol=1e-12)
        if isinstance(model, ConvexMLPClassifier):
            np.testing.assert_allclose(mlp.predict_proba(X), model.predict_proba(X), atol=1e-12)
    with pytest.raises(ModelError, match=r"cannot be converted to an MLP of scikit-learn\. Use network_"):
        PlainRegressor(1.0, n_gates=3).fit(X, Y).to_mlp()


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"alpha": 0.0}, "alpha must be positive and finite, not 0.0: without weight decay"),
        ({"alpha": np.inf}, "alpha must be positive and finite"),
        ({"n_gates": 0}, "n_gates must be a number, 1 or more, not 0"),
        ({"n_gates": 2.5}, "n_gates must be a whole number, not 2.5"),
        ({"activation": "tanh"}, "activation must be one of gated_relu, relu, not 'tanh'"),
        ({"tol": -1.0}, "tol must be a number, 0 or more"),
        ({"max_iter": 0}, "max_iter must be a number, 1 or more"),
    ],
)
@pytest.mark.parametrize("kind", [ConvexMLPRegressor, ConvexMLPClassifier])
def test_invalid_networks_are_refused(kind: Any, chosen: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        kind(**chosen, blocks=2, executor=ReplayExecutor()).fit(X, np.arange(24) % 2)


@pytest.mark.parametrize(
    ("max_entries", "advice"),
    [(2 * 4**2 * 6, "Pass n_gates=6 or fewer"), (1, "Reduce the number of features")],
)
def test_relu_networks_whose_gram_matrices_are_too_large_are_refused(
    max_entries: int, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convex_network, "MAX_GRAM_ENTRIES", max_entries)
    model = PlainRegressor(0.3, n_gates=7, activation="relu")
    with pytest.raises(ModelError, match=f"{advice}, or use activation='gated_relu'"):
        model.fit(X, Y)
    assert model.set_params(activation="gated_relu", tol=1e-2).fit(X, Y).objective_ > 0
