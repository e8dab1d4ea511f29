"""What both convex networks share: the extracted network, scikit-learn's MLP of it, what cannot be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from plain_networks import PlainClassifier, PlainRegressor
from scipy.sparse import csr_array
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.estimator_checks import estimator_checks_generator
from straggling_models import Straggling

from polarmap import Fault, FaultyExecutor, ReplayExecutor
from polarmap.convexnn import ConvexMLPClassifier, ConvexMLPRegressor
from polarmap.errors import ModelError, NotDecodableError

STREAM = np.random.default_rng(0)
X = STREAM.standard_normal((24, 3)) * [1.0, 3.0, 0.2] + [0.0, 1.0, 0.0]
Y = np.maximum(X @ [1.0, -0.5, 2.0], 0) - 0.3 * X[:, 0]

CHECKED = [
    # Fits; what scikit-learn asks of parameters, tags and pickles the models share with those of convex.
    *["check_fit2d_1feature", "check_fit2d_1sample"],
    *["check_estimators_dtypes", "check_estimators_nan_inf", "check_fit_idempotent"],
    *["check_estimators_pickle", "check_n_features_in", "check_parameters_default_constructible"],
    *["check_sample_weight_equivalence_on_dense_data", "check_classifiers_train"],
    *["check_regressors_train", "check_regressor_multioutput", "check_estimators_unfitted", "check_fit1d"],
    *["check_classifiers_one_label", "check_estimator_sparse_array"],
    *["check_do_not_raise_errors_in_init_or_set_param", "check_dont_overwrite_attributes"],
]


def checks() -> Any:
    for kind in (PlainRegressor, PlainClassifier):
        for estimator, check in estimator_checks_generator(kind(0.1, n_gates=3, tol=0.03, max_iter=100)):
            name = getattr(check, "func", check).__name__
            if name in CHECKED:
                if "equivalence" in name:
                    estimator.set_params(tol=1e-13, max_iter=1000)
                yield pytest.param(estimator, check, id=f"{kind.__name__}-{name}")


@pytest.mark.parametrize(("estimator", "check"), list(checks()))
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_estimator_checks(estimator: Any, check: Any) -> None:
    check(estimator)


def test_scikit_learn_goes_on_with_the_network() -> None:
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
    with pytest.raises(ModelError, match=r"is no MLP of scikit-learn's: use network_"):
        PlainRegressor(1.0, n_gates=3).fit(X, Y).to_mlp()


@pytest.mark.parametrize("activation", ["gated_relu", "relu"])
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
    model = PlainRegressor(0.3, n_gates=4)
    first, again = model.fit(X, Y).gates_, model.fit(X, Y).gates_
    np.testing.assert_array_equal(first, again)
    assert (model.set_params(random_state=1).fit(X, Y).gates_ != first).any()


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
def test_networks_that_cannot_be(kind: Any, chosen: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        kind(**chosen, blocks=2, executor=ReplayExecutor()).fit(X, np.arange(24) % 2)


def test_a_fit_that_is_cut_short_says_so_to_the_caller_of_fit() -> None:
    for activation in ("gated_relu", "relu"):
        with pytest.warns(ConvergenceWarning, match="max_iter=3") as caught:
            model = PlainRegressor(0.01, activation=activation, n_gates=4, max_iter=3).fit(X, Y)
        assert caught[0].filename == __file__
        assert model.n_iter_ == 3


def test_too_many_dead_workers_are_no_silent_failure() -> None:
    dead = FaultyExecutor(Straggling(), {task: Fault("kill", attempts=99) for task in range(4)})
    with pytest.raises(NotDecodableError, match="needed results"):
        ConvexMLPRegressor(blocks=4, workers=7, executor=dead).fit(X, Y)
