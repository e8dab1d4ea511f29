"""Behaviour that all models share: scikit-learn's estimator checks, clones, pickles, targets and labels."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from joblib import parallel_backend
from plain_networks import PlainClassifier, PlainOperator, PlainRegressor
from scipy import sparse
from sklearn import datasets, linear_model
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler
from sklearn.utils.estimator_checks import estimator_checks_generator
from straggling_models import Straggling

from polarmap import Pool
from polarmap.convex import ElasticNet, Lasso, LinearSVC, NonNegativeLeastSquares, SparseLogisticRegression
from polarmap.convexnn import ConvexMLPClassifier, ConvexMLPRegressor
from polarmap.errors import ModelError, NotDecodableError
from polarmap.glm import LeastSquares, LogisticRegression, PoissonRegression, Ridge
from polarmap.models.estimators.coded_estimator import CodedEstimator
from polarmap.testing import Fault, FaultyExecutor, ReplayExecutor

X6, Y6 = np.arange(18.0).reshape(6, 3) ** 1.5, np.array([0.0, 1.0, 0.0, 1.0, 1.0, 0.0])
X40, Y40 = np.random.default_rng(0).standard_normal((40, 3)), np.arange(40) % 2
DIABETES, PROGRESS = datasets.load_diabetes(return_X_y=True)
IRIS, SPECIES = datasets.load_iris(return_X_y=True)
NAMES = np.array(["setosa", "versicolor", "virginica"])[SPECIES]

REGRESSORS = [Ridge, LeastSquares, Lasso, ElasticNet, NonNegativeLeastSquares]
CLASSIFIERS = [LogisticRegression, SparseLogisticRegression, LinearSVC]
LINEAR = [*REGRESSORS, *CLASSIFIERS, PoissonRegression]

QUICK = {"blocks": 2, "max_iter": 5, "tol": 0.03}  # enough for all checks of scikit-learn
CHECKED = [
    *(Ridge(blocks=2), LogisticRegression(**QUICK), PoissonRegression(**QUICK)),
    *(ElasticNet(0.1, **QUICK), NonNegativeLeastSquares(**QUICK)),
    *(SparseLogisticRegression(**QUICK), LinearSVC(0.1, **QUICK)),
]
# These models inherit their tags and data validation from the models above, so they only run CHECKS_OF_FITS.
CHECKED_AS_FITS = [
    *(LeastSquares(blocks=2), Lasso(0.1, **QUICK)),
    *(kind(0.1, n_gates=3, tol=0.03, max_iter=100) for kind in (PlainRegressor, PlainClassifier)),
]
CHECKS_OF_FITS = [
    *("check_fit2d_1feature", "check_fit2d_1sample", "check_fit1d", "check_fit_idempotent"),
    *("check_estimators_dtypes", "check_estimators_nan_inf", "check_estimators_pickle"),
    *("check_n_features_in", "check_estimators_unfitted", "check_estimator_sparse_array"),
    *("check_parameters_default_constructible", "check_sample_weight_equivalence_on_dense_data"),
    *("check_estimator_cloneable", "check_estimator_repr", "check_no_attributes_set_in_init"),
    *("check_get_params_invariance", "check_set_params", "check_dict_unchanged"),
    *("check_classifiers_train", "check_classifiers_one_label"),
    *("check_regressors_train", "check_regressor_multioutput"),
    *("check_do_not_raise_errors_in_init_or_set_params", "check_dont_overwrite_parameters"),
]
EQUAL_WEIGHTS = "check_sample_weight_equivalence_on_"  # compares coefficients to seven digits
# Checks whose shapes and formats of X exercise coded products. All other checks use products of numpy.
CHECKS_OF_PRODUCTS = [
    *("check_fit2d_1feature", "check_fit2d_1sample", "check_regressor_multioutput"),
    *("check_classifiers_train", "check_regressors_train"),
    *("check_estimator_sparse_array", "check_estimator_sparse_matrix"),
    *(f"{EQUAL_WEIGHTS}dense_data", f"{EQUAL_WEIGHTS}sparse_data"),
]


def name_of(check: Any) -> str:
    return str(getattr(check, "func", check).__name__)


def checks() -> Iterator[Any]:
    """Yield the pairs of an estimator and a check of scikit-learn that should pass.

    Checks with other array libraries are left out, because scikit-learn skips them by default. The check with
    sparse matrices instead of sparse arrays runs only on Ridge and LinearSVC, as all other models share
    Ridge's base class.
    """
    for model in [*CHECKED, *CHECKED_AS_FITS]:
        for estimator, check in estimator_checks_generator(model.set_params(executor=Straggling())):
            name = name_of(check)
            if name.startswith(EQUAL_WEIGHTS) and hasattr(model, "n_gates"):
                estimator = clone(estimator).set_params(tol=1e-13, max_iter=50)
            again = name == "check_estimator_sparse_matrix" and not isinstance(model, (Ridge, LinearSVC))
            is_asked = model in CHECKED or name in CHECKS_OF_FITS
            if is_asked and "array_api" not in name and not again:
                yield pytest.param(estimator, check, id=f"{type(model).__name__}-{name}")


@pytest.mark.parametrize(("estimator", "check"), list(checks()))
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # QUICK stops fits early
def test_estimator_checks(estimator: Any, check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if name_of(check) not in CHECKS_OF_PRODUCTS:
        monkeypatch.setattr(CodedEstimator, "_make_operator", lambda model, A: PlainOperator(A))
    check(estimator)


# One model of each kind is enough: their common base class pickles and copies executors.
SORTS = [Ridge, Lasso, LogisticRegression]


@pytest.mark.parametrize("model", SORTS)
def test_pool_is_shared_by_clones_but_not_pickled(model: Any) -> None:
    with ThreadPoolExecutor(4) as pool:
        shared = model(blocks=3, executor=pool, tol=1e-3)
        search = GridSearchCV(shared, {"fit_intercept": [True, False]}, cv=2).fit(X40, Y40)
        assert search.best_estimator_.executor is pool
        loaded = pickle.loads(pickle.dumps(search.best_estimator_))
    np.testing.assert_array_equal(loaded.predict(X40), search.predict(X40))


STAYED = (
    r"can predict, but not fit: .* a ThreadPoolExecutor, cannot be pickled\. Use n_jobs=1 .* set_params\("
)


@pytest.mark.parametrize("model", SORTS)
def test_unpickled_model_without_its_pool_refuses_to_fit(model: Any) -> None:
    # Without this error, the model would silently start processes for every product.
    with ThreadPoolExecutor(4) as pool:
        loaded = pickle.loads(pickle.dumps(model(blocks=3, executor=FaultyExecutor(pool), tol=1e-3)))
        again = pickle.loads(pickle.dumps(loaded))
        for lost in (loaded, again, clone(loaded), copy.copy(loaded)):
            assert "<ThreadPoolExecutor, left behind>" in repr(lost)
            with pytest.raises(ModelError, match=STAYED):
                lost.fit(X40, Y40)
        predictions = loaded.set_params(executor=pool).fit(X40, Y40).predict(X40)
        expected = model(blocks=3, executor=pool, tol=1e-3).fit(X40, Y40).predict(X40)
        np.testing.assert_allclose(predictions, expected)


def test_grid_search_in_processes_says_why_its_pool_is_missing() -> None:
    with ThreadPoolExecutor(4) as pool:
        search = GridSearchCV(Ridge(blocks=3, executor=pool), {"alpha": [0.1, 1.0]}, cv=2, n_jobs=2)
        with pytest.raises(ValueError, match=r"(?s)All the 4 fits failed.*ModelError: .*" + STAYED):
            search.fit(X40, Y40)
        with parallel_backend("threading"):  # threads share the pool object
            assert search.fit(X40, Y40).best_estimator_.executor is pool


@pytest.mark.parametrize(
    "executor", [None, "localhost", Path("config.yaml"), FaultyExecutor("localhost", {0: Fault("kill")})]
)
def test_named_executor_is_pickled(executor: Any) -> None:
    assert pickle.loads(pickle.dumps(Ridge(executor=executor))).executor == executor


@pytest.mark.parametrize(
    ("made_of", "travels"),
    [(None, None), ("localhost", "localhost"), ("config.yaml", "config.yaml")],
)
def test_pool_is_pickled_as_its_configuration(made_of: Any, travels: Any, tmp_path: Path) -> None:
    if made_of == "config.yaml":
        made_of = travels = str(tmp_path / made_of)
        Path(made_of).write_text("lithops: {backend: localhost, storage: localhost}")
    with Pool(made_of) as pool:
        assert pickle.loads(pickle.dumps(Ridge(executor=pool))).executor == travels
        faulty = FaultyExecutor(pool, {0: Fault("kill")})
        loaded = pickle.loads(pickle.dumps(Ridge(executor=faulty))).executor
        assert loaded == FaultyExecutor(travels, {0: Fault("kill")})
        assert clone(Ridge(executor=pool)).executor is pool


def test_searches_with_processes_and_a_pool() -> None:
    X = sparse.csr_array(np.where(X40 > 0, X40, 0.0))
    with Pool(workers=2) as pool:
        model = make_pipeline(MaxAbsScaler(), Ridge(blocks=3, executor=pool))
        search = GridSearchCV(model, {"ridge__alpha": [0.1, 1.0]}, cv=2, n_jobs=2).fit(X, Y40)
        assert search.best_estimator_[-1].executor is pool
        scores = cross_val_score(search.best_estimator_, X, Y40, cv=2)
    alpha = search.best_params_["ridge__alpha"]
    oracle = make_pipeline(MaxAbsScaler(), linear_model.Ridge(alpha))
    np.testing.assert_allclose(scores, cross_val_score(oracle, X, Y40, cv=2), rtol=1e-6)


# --- targets and labels --------------------------------------------------------------------------


@pytest.mark.parametrize("regressor", REGRESSORS)
@pytest.mark.parametrize(
    "targets", [PROGRESS, np.stack([PROGRESS, PROGRESS[::-1]], axis=1), np.arange(len(PROGRESS))]
)
def test_predictions_are_linear_for_one_target_and_for_several(regressor: Any, targets: np.ndarray) -> None:
    model = regressor(blocks=2, executor=ReplayExecutor()).fit(DIABETES, targets)
    assert model.coef_.shape == (*targets.shape[1:], DIABETES.shape[1])
    expected = DIABETES @ model.coef_.T + model.intercept_
    np.testing.assert_allclose(model.predict(DIABETES), expected, rtol=1e-12)
    np.testing.assert_allclose(model.predict(sparse.csr_matrix(DIABETES)), expected, rtol=1e-9)


@pytest.mark.parametrize("regressor", [*REGRESSORS, ConvexMLPRegressor])
def test_tag_for_several_targets_is_correct(regressor: Any) -> None:
    tags = regressor().__sklearn_tags__()
    assert tags.target_tags.multi_output and tags.input_tags.sparse
    assert tags.estimator_type == "regressor"


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_two_classes_have_one_row_of_coefficients_and_more_have_one_each(classifier: Any) -> None:
    for kept, shape in ((slice(100), (1, 4)), (slice(None), (3, 4))):
        model = classifier(0.01, blocks=2, executor=ReplayExecutor(), tol=1e-3).fit(IRIS[kept], NAMES[kept])
        assert model.coef_.shape == shape and model.intercept_.shape == shape[:1]
        assert model.classes_.tolist() == sorted(set(NAMES[kept]))
        scores = IRIS[kept] @ model.coef_.T + model.intercept_
        np.testing.assert_allclose(
            model.decision_function(IRIS[kept]), scores[:, 0] if len(scores.T) == 1 else scores
        )
        best = (scores[:, 0] > 0).astype(int) if shape[0] == 1 else scores.argmax(axis=1)
        assert (model.predict(IRIS[kept]) == model.classes_[best]).all()


def test_samples_without_weight_are_left_out_with_their_class() -> None:
    weights = (SPECIES != 2).astype(float)
    for chosen in ({}, {"class_weight": "balanced"}):
        model = LogisticRegression(blocks=2, executor=ReplayExecutor(), **chosen).fit(IRIS, NAMES, weights)
        oracle = linear_model.LogisticRegression(solver="newton-cholesky", tol=1e-10, **chosen)
        np.testing.assert_allclose(model.coef_, oracle.fit(IRIS[:100], NAMES[:100]).coef_, rtol=1e-5)


# --- invalid inputs ------------------------------------------------------------------------------


@pytest.mark.parametrize("model", LINEAR)
def test_number_of_targets_must_equal_number_of_samples(model: Any) -> None:
    # scikit-learn's checks cover other invalid inputs, such as NaN, vectors and empty arrays.
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        model(executor=ReplayExecutor()).fit(X6, Y6[:5])


NUMBER = "must be a number, 0 or more, not"


@pytest.mark.parametrize(
    ("model", "X", "y", "message"),
    [
        (
            LogisticRegression(),
            X6,
            np.ones(6),
            "y must hold at least two classes, but has only one class, 1.0",
        ),
        (LogisticRegression(), X6, [[1.0]] * 6, "only one class"),
        (SparseLogisticRegression(), X6, np.ones(6), "y must hold at least two classes"),
        (LinearSVC(), X6, np.ones(6), "y must hold at least two classes"),
        (ConvexMLPClassifier(), X6, np.ones(6), "y must hold at least two classes"),
        (LogisticRegression(), X6, Y6 + np.linspace(0, 1, 6), "continuous"),
        (LinearSVC(), X6, Y6 + np.linspace(0, 1, 6), "continuous"),
        (PoissonRegression(), X6, Y6 - 1, "y must be 0 or more, but has 3 negative counts, the lowest -1"),
        (PoissonRegression(), X6, 0 * Y6, "y must hold a positive count, but all are 0"),
        (Ridge(-1), X6, Y6, f"alpha {NUMBER} -1"),
        (Ridge("much"), X6, Y6, f"alpha {NUMBER} 'much'"),
        (Ridge(np.nan), X6, Y6, f"alpha {NUMBER} nan"),
        (PoissonRegression(-0.1), X6, Y6, f"alpha {NUMBER} -0.1"),
        (Lasso(-1), X6, Y6, f"alpha {NUMBER} -1"),
        (Lasso("much"), X6, Y6, f"alpha {NUMBER} 'much'"),
        (ElasticNet(1.0, -0.1), X6, Y6, f"l1_ratio {NUMBER} -0.1"),
        (ElasticNet(1.0, 1.1), X6, Y6, "l1_ratio must be a number from 0 to 1, not 1.1"),
        (LogisticRegression(0.0), X6, Y6, "C must be a number"),
        (SparseLogisticRegression(0.0), X6, Y6, "C must be a number"),
        (LinearSVC(C=-1), X6, Y6, "C must be a number"),
        (LinearSVC(C=np.inf), X6, Y6, "C must be finite, not inf"),
        (Ridge(solver="qr"), X6, Y6, "solver must be one of cg, lsmr, lsqr, not 'qr'"),
        (LogisticRegression(solver="sgd"), X6, Y6, "solver must be one of lbfgs, trust-krylov, trust-ncg"),
        (Ridge(max_iter=0), X6, Y6, "max_iter must be a number, 1 or more, not 0"),
        (Lasso(max_iter=0), X6, Y6, "max_iter must be a number, 1 or more, not 0"),
        (PoissonRegression(tol=-1), X6, Y6, f"tol {NUMBER} -1"),
        (NonNegativeLeastSquares(tol=-1), X6, Y6, f"tol {NUMBER} -1"),
        (Ridge(verbose="yes"), X6, Y6, f"verbose {NUMBER} 'yes'"),
        (Ridge(verbose=-1), X6, Y6, f"verbose {NUMBER} -1"),
        (LogisticRegression(verbose=None), X6, Y6, f"verbose {NUMBER} None"),
        (Ridge(tasks=3, blocks=3), X6, Y6, "tasks=3 leaves no parity"),
        (Lasso(tasks=3, blocks=3), X6, Y6, "tasks=3 leaves no parity"),
    ],
)
@pytest.mark.filterwarnings("ignore:A column-vector y")
def test_invalid_models_are_refused(model: Any, X: Any, y: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.set_params(executor=ReplayExecutor()).fit(X, y)


@pytest.mark.parametrize("model", LINEAR)
def test_invalid_weights_are_refused(model: Any) -> None:
    message = r"sample_weight must be 0 or more, but has 2 negative weights, the lowest -2\. Leave"
    with pytest.raises(ModelError, match=message):
        model(executor=ReplayExecutor()).fit(X6, Y6, [1, 1, 1, 1, -2, -1])


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_class_without_weight_does_not_count(classifier: Any) -> None:
    with pytest.raises(
        ModelError, match=r"y must hold at least two classes, but has only one class, .*setosa"
    ):
        classifier(executor=ReplayExecutor()).fit(IRIS, NAMES, (SPECIES == 0).astype(float))


def test_prediction_before_fit_and_of_other_features() -> None:
    with pytest.raises(NotFittedError):
        Ridge().predict(X6)
    model = Ridge(blocks=2, executor=ReplayExecutor()).fit(X6, Y6)
    with pytest.raises(ValueError, match="X has 2 features, but Ridge is expecting 3"):
        model.predict(X6[:, :2])


def test_too_many_dead_workers_raise_an_error() -> None:
    dead = FaultyExecutor(ReplayExecutor(), {task: Fault("kill", attempts=99) for task in range(4)})
    for model in (Ridge(), Lasso(), ConvexMLPRegressor(activation="relu")):
        with pytest.raises(NotDecodableError, match="needed results"):
            model.set_params(blocks=4, tasks=7, executor=dead).fit(X6, Y6)
