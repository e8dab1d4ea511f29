"""What scikit-learn asks of models: its own checks, clones, pickles, what cannot be."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from joblib import parallel_backend
from sklearn import datasets, linear_model
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler, StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator
from straggling_models import Straggling, options

from polarmap import Fault, FaultyExecutor, Pool, ReplayExecutor
from polarmap.errors import ModelError, NotDecodableError
from polarmap.glm import LeastSquares, LogisticRegression, PoissonRegression, Ridge


def sparse_features() -> Any:
    return scipy.sparse.random_array((40, 3), density=0.4, format="csr", rng=0)


MODELS = [Ridge, LeastSquares, LogisticRegression, PoissonRegression]


def checks() -> Iterator[Any]:
    """All but those of inputs in other array libraries, which scikit-learn skips unless scipy is told, and
    of least squares with fewer samples than coefficients, which LeastSquares refuses."""
    for model in MODELS:
        for estimator, check in estimator_checks_generator(model(blocks=4, executor=Straggling())):
            name = getattr(check, "func", check).__name__
            singular = model is LeastSquares and name.startswith("check_sample_weight_equivalence_on_")
            if "array_api" not in name and not singular:
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


@pytest.mark.parametrize(
    ("made_of", "travels"),
    [(None, None), ("localhost", "localhost"), ("config.yaml", "config.yaml")],
)
def test_a_pool_is_pickled_as_what_it_is_made_of(made_of: Any, travels: Any, tmp_path: Path) -> None:
    if made_of == "config.yaml":
        made_of = travels = str(tmp_path / made_of)
        Path(made_of).write_text("lithops: {backend: localhost, storage: localhost}")
    with Pool(made_of) as pool:
        assert pickle.loads(pickle.dumps(Ridge(executor=pool))).executor == travels
        faulty = FaultyExecutor(pool, {0: Fault("kill")})
        loaded = pickle.loads(pickle.dumps(Ridge(executor=faulty))).executor
        assert loaded == FaultyExecutor(travels, {0: Fault("kill")})
        assert clone(Ridge(executor=pool)).executor is pool


@pytest.mark.parametrize("X", [np.random.default_rng(0).standard_normal((40, 3)), sparse_features()])
def test_searches_with_processes_and_a_pool(X: Any) -> None:
    y = np.arange(40) % 2
    with Pool(workers=2) as pool:
        model = make_pipeline(MaxAbsScaler(), Ridge(blocks=3, executor=pool))
        search = GridSearchCV(model, {"ridge__alpha": [0.1, 1.0]}, cv=2, n_jobs=2).fit(X, y)
        assert search.best_estimator_[-1].executor is pool
        scores = cross_val_score(search.best_estimator_, X, y, cv=2)
    alpha = search.best_params_["ridge__alpha"]
    theirs = make_pipeline(MaxAbsScaler(), linear_model.Ridge(alpha))
    np.testing.assert_allclose(scores, cross_val_score(theirs, X, y, cv=2), rtol=1e-6)


def test_models_stand_in_pipelines() -> None:
    X, y = datasets.load_breast_cancer(return_X_y=True)
    model = make_pipeline(StandardScaler(), LogisticRegression(**options())).fit(X, y)
    assert model.score(X, y) > 0.98


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
