"""What scikit-learn asks of models: its own checks, pipelines, what cannot be, what is printed."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from progress_lines import parsed_lines
from scipy.sparse import csr_array
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from sklearn.utils.estimator_checks import estimator_checks_generator
from straggling_models import Straggling, options

from polarmap import Fault, FaultyExecutor, ReplayExecutor
from polarmap.convex import ElasticNet, Lasso, LinearSVC, NonNegativeLeastSquares, SparseLogisticRegression
from polarmap.errors import ModelError, NotDecodableError

MODELS = [
    *[ElasticNet(0.1), Lasso(0.1), NonNegativeLeastSquares()],
    *[SparseLogisticRegression(), LinearSVC(0.1)],
]
EQUAL_WEIGHTS = "check_sample_weight_equivalence_on_"  # to seven digits of the coefficients


def checks() -> Iterator[Any]:
    """All but those of inputs in other array libraries, which scikit-learn skips unless scipy is told.

    Few need more than some iterations; the dual of LinearSVC has other variables where samples are copied.
    """
    for model in MODELS:
        for estimator, check in estimator_checks_generator(
            model.set_params(blocks=2, executor=Straggling(), max_iter=5, tol=0.03)
        ):
            name = getattr(check, "func", check).__name__
            if name.startswith(EQUAL_WEIGHTS) and isinstance(model, LinearSVC):
                estimator = clone(estimator).set_params(C=1e-3, tol=1e-15, max_iter=300)
            if name == "check_class_weight_classifiers":  # sets max_iter to 1000
                estimator = clone(estimator).set_params(tol=1.0)
            if "array_api" not in name:
                yield pytest.param(estimator, check, id=f"{type(model).__name__}-{name}")


@pytest.mark.parametrize(("estimator", "check"), list(checks()))
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_estimator_checks(estimator: Any, check: Any) -> None:
    check(estimator)


X, Y = np.arange(18.0).reshape(6, 3) ** 1.5, np.array([0.0, 1.0, 0.0, 1.0, 1.0, 0.0])


@pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__)
def test_a_pool_is_shared_by_clones_and_left_behind_by_pickles(model: Any) -> None:
    stream = np.random.default_rng(0)
    many, labels = stream.standard_normal((40, 3)), np.arange(40) % 2
    with ThreadPoolExecutor(4) as pool:
        again = type(model)(blocks=3, executor=pool, tol=1e-3)
        search = GridSearchCV(again, {"fit_intercept": [True, False]}, cv=2).fit(many, labels)
        assert search.best_estimator_.executor is pool
        loaded = pickle.loads(pickle.dumps(search.best_estimator_))
    np.testing.assert_array_equal(loaded.predict(many), search.predict(many))
    with pytest.raises(ModelError, match="a ThreadPoolExecutor, stayed behind"):
        loaded.fit(many, labels)


@pytest.mark.parametrize(
    ("model", "y", "message"),
    [
        (Lasso(-1), Y, "alpha must be a number, 0 or more, not -1"),
        (Lasso("much"), Y, "alpha must be a number"),
        (ElasticNet(1.0, -0.1), Y, "l1_ratio must be a number, 0 or more"),
        (ElasticNet(1.0, 1.1), Y, "l1_ratio must be a number from 0 to 1, not 1.1"),
        (Lasso(max_iter=0), Y, "max_iter must be a number, 1 or more, not 0"),
        (NonNegativeLeastSquares(tol=-1), Y, "tol must be a number, 0 or more, not -1"),
        (SparseLogisticRegression(0.0), Y, "C must be a number"),
        (SparseLogisticRegression(), np.ones(6), "y holds one class only"),
        (LinearSVC(), np.ones(6), "y holds one class only"),
        (LinearSVC(C=-1), Y, "C must be a number"),
        (LinearSVC(), Y + np.linspace(0, 1, 6), "continuous"),
        (Lasso(workers=3, blocks=3), Y, "workers=3 leaves no parity"),
        (Lasso(), np.where(Y, np.nan, Y), "NaN"),
        (Lasso(), Y[:5], "inconsistent numbers of samples"),
    ],
)
def test_models_that_cannot_be(model: Any, y: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.set_params(executor=ReplayExecutor()).fit(X, y)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__)
def test_weights_that_cannot_be(model: Any) -> None:
    with pytest.raises(ModelError, match="sample_weight holds 1 negative weights"):
        model.fit(X, Y, [1, 1, 1, 1, 1, -1])


def test_too_many_dead_workers_are_no_silent_failure() -> None:
    dead = FaultyExecutor(ReplayExecutor(), {task: Fault("kill", attempts=99) for task in range(4)})
    with pytest.raises(NotDecodableError, match="needed results"):
        Lasso(blocks=4, workers=7, executor=dead).fit(X, Y)


def test_a_fit_that_is_cut_short_says_so_to_the_caller_of_fit() -> None:
    for model in (Lasso(1e-3), SparseLogisticRegression(100.0)):
        with pytest.warns(ConvergenceWarning, match="max_iter=2") as caught:
            model.set_params(max_iter=2, **options()).fit(X, Y)
        assert caught[0].filename == __file__


def test_a_line_for_each_iteration(capsys: pytest.CaptureFixture[str]) -> None:
    model = ElasticNet(0.1, tol=1e-3, **options(verbose=1)).fit(X, Y)
    lines = parsed_lines(capsys.readouterr().out)
    assert [line["iteration"] for line in lines] == list(range(1, model.n_iter_ + 1))
    assert lines[-1]["objective"] == pytest.approx(model.objective_, rel=2e-6)
    assert lines[-1]["gradient"] < 0.1 * lines[0]["gradient"]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__)
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_sparse_features_give_the_model_of_dense_ones(model: Any, fit_intercept: bool) -> None:
    stream = np.random.default_rng(0)
    many, labels = stream.standard_normal((40, 5)) * (stream.random((40, 5)) < 0.4), np.arange(40) % 2
    model = clone(model).set_params(tol=1e-10, fit_intercept=fit_intercept, blocks=2, max_iter=500)
    dense = model.set_params(executor=Straggling()).fit(many, labels)
    coef, scores = dense.coef_, dense.predict(many)
    again = model.fit(csr_array(many), labels)
    np.testing.assert_allclose(again.coef_, coef, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(again.predict(csr_array(many)), scores, rtol=1e-4, atol=1e-6)
