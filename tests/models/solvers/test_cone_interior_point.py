"""The interior-point method for ReLU networks: minimum, bounds and products; the oracle is a conic solver."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from conic_networks import conic_classifier_objective, conic_network_objective
from plain_networks import PlainClassifier, PlainOperator, PlainRegressor
from straggling_models import options

from polarmap.convexnn import ConvexMLPRegressor
from polarmap.models.activation_gates import sample_gates
from polarmap.models.cones import ConeConstrainedLoss
from polarmap.models.losses import BernoulliFamily, GaussianFamily, ProfiledLoss
from polarmap.models.solvers import cone_interior_point as module
from polarmap.models.solvers.cone_interior_point import cone_interior_point

STREAM = np.random.default_rng(0)
X = STREAM.standard_normal((40, 2))
Y = np.abs(X[:, 0]) - np.maximum(X[:, 1], 0) + 0.1 * STREAM.standard_normal(40)
SHARES = np.full(40, 1 / 40)


@pytest.mark.parametrize("alpha", [0.1, 0.01, 0.001])
def test_the_minimum_is_that_of_a_conic_solver_in_thirty_iterations(alpha: float) -> None:
    model = PlainRegressor(alpha, activation="relu", n_gates=20, tol=1e-6).fit(X, Y)
    best = conic_network_objective(model, X, Y)
    assert model.objective_ == pytest.approx(best, rel=2e-6)
    assert model.dual_gap_ <= 1e-6 * model.objective_
    assert model.n_iter_ <= 30
    assert model.coefs_[0].shape[1] < 30  # fewer than the 40 possible units


@pytest.mark.parametrize("n_gates", [1, 5])
@pytest.mark.parametrize("alpha", [0.1, 0.01])
def test_the_minimum_of_several_classes_is_that_of_a_conic_solver(alpha: float, n_gates: int) -> None:
    codes = np.digitize(Y, [0, 1])
    model = PlainClassifier(alpha, activation="relu", n_gates=n_gates, tol=1e-7).fit(X, codes)
    assert model.objective_ == pytest.approx(conic_classifier_objective(model, X, codes), rel=1e-6)
    assert model.dual_gap_ <= 1e-7 * model.objective_
    assert model.n_iter_ <= 40


@pytest.mark.parametrize("kind", [PlainRegressor, PlainClassifier])
def test_many_gates_are_coupled_by_conjugate_gradients(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    make = partial(kind, 0.02, activation="relu", n_gates=20, tol=1e-7)
    y = Y if kind is PlainRegressor else Y > 0.2
    direct = make().fit(X, y)
    monkeypatch.setattr(module, "MAX_SYSTEM_SIZE", 0)
    iterative = make().fit(X, y)
    assert iterative.objective_ == pytest.approx(direct.objective_, rel=1e-7)
    assert iterative.n_iter_ <= direct.n_iter_ + 5


@pytest.mark.parametrize("kind", [PlainRegressor, PlainClassifier])
@pytest.mark.parametrize("alpha", [0.3, 0.03])
def test_fits_converge_with_almost_useful_units(kind: Any, alpha: float) -> None:
    for seed in range(15):
        stream = np.random.default_rng(seed)
        samples = stream.standard_normal((24, 3)) * [1.0, 3.0, 0.2] + [0.0, 1.0, 0.0]
        y = np.maximum(samples @ [1.0, -0.5, 2.0], 0) - 0.3 * samples[:, 0]
        y = y + 0.1 * stream.standard_normal(24) if kind is PlainRegressor else y > np.median(y)
        for holes in (samples, np.where(stream.random(samples.shape) < 0.4, 0.0, samples)):
            # A fit that does not converge warns, which fails the test.
            model = kind(alpha, activation="relu", n_gates=6, tol=1e-6).fit(holes, y)
            assert model.dual_gap_ <= 1e-6 * model.objective_
            assert model.n_iter_ <= 40


@pytest.mark.parametrize(("kind", "y"), [(PlainRegressor, Y), (PlainClassifier, np.digitize(Y, [0, 1]))])
def test_uninformative_features_do_no_harm(kind: Any, y: np.ndarray) -> None:
    samples = np.column_stack([X, np.ones(40), np.full(40, 0.1), np.zeros(40), X[:, 0]])
    model = kind(0.03, activation="relu", n_gates=6).fit(samples, y)  # warns if it does not converge
    assert model.dual_gap_ <= 1e-6 * model.objective_


def test_a_failing_worker_changes_nothing() -> None:
    model = ConvexMLPRegressor(0.03, activation="relu", n_gates=10, tol=1e-4, **options()).fit(X, Y)
    alone = PlainRegressor(0.03, activation="relu", n_gates=10, tol=1e-4).fit(X, Y)
    assert model.n_iter_ == alone.n_iter_
    np.testing.assert_allclose(model.predict(X), alone.predict(X), atol=1e-6)


@pytest.mark.parametrize("fit_intercept", [True, False])
def test_the_minimum_with_and_without_biases_is_that_of_a_conic_solver(fit_intercept: bool) -> None:
    chosen = {"activation": "relu", "n_gates": 6, "tol": 1e-6, "fit_intercept": fit_intercept}
    regressor = PlainRegressor(0.05, **chosen).fit(X, Y)
    assert regressor.objective_ == pytest.approx(conic_network_objective(regressor, X, Y), rel=2e-6)
    codes = (Y > 0.2).astype(int)
    classifier = PlainClassifier(0.05, **chosen).fit(X, codes)
    assert classifier.objective_ == pytest.approx(conic_classifier_objective(classifier, X, codes), rel=2e-6)
    assert regressor.n_iter_ < 40 and classifier.n_iter_ < 40


def solved(family: Any, y: np.ndarray, tol: float, max_iter: int) -> tuple[Any, int, list[Any]]:
    gates = sample_gates(X, SHARES, 8, True, np.random.RandomState(0))
    loss = ProfiledLoss(family, y.reshape(-1, 1).astype(float), SHARES, True)
    interior = np.vstack([gates.directions, gates.offsets])
    cones = ConeConstrainedLoss(loss, gates.patterns, gates.margins, interior)
    operator, callback_lines = PlainOperator(np.column_stack([X, np.ones(40)])), []
    solution = cone_interior_point(
        operator, cones, 0.02, tol=tol, max_iter=max_iter, callback=lambda *line: callback_lines.append(line)
    )
    sides = np.hstack([2.0 * gates.patterns - 1] * 2)
    assert (sides * (operator @ solution.x)).min() >= -1e-12
    return solution, operator.n_products - 1, callback_lines


@pytest.mark.parametrize(("family", "y"), [(GaussianFamily(), Y), (BernoulliFamily(), Y > 0)])
def test_each_iteration_needs_three_products_and_has_bounds(family: Any, y: np.ndarray) -> None:
    best, products, callback_lines = solved(family, y, 1e-8, 100)
    assert best.converged and products == 3 * best.n_iter + 3 and len(callback_lines) == best.n_iter
    for max_iter in range(1, best.n_iter, 5):
        solution, *_ = solved(family, y, 0.0, max_iter)
        assert not solution.converged and solution.n_iter == max_iter
        assert -1e-9 <= solution.objective - best.objective <= solution.dual_gap + 1e-12


@pytest.mark.parametrize("y", [np.zeros(40), np.full(40, 7.0)])
def test_constant_targets_need_no_unit(y: np.ndarray) -> None:
    model = PlainRegressor(0.1, activation="relu", n_gates=5).fit(X, y)
    np.testing.assert_allclose(model.predict(X), y, atol=1e-10)
    assert not model.coefs_[0].any()
