"""The output of verbose=; the oracles are objectives and gradients after the same number of iterations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from plain_networks import PlainRegressor
from progress_lines import parsed_lines
from sklearn import datasets
from sklearn.exceptions import ConvergenceWarning
from straggling_models import options, standardized

from benchmarks.numpy_estimators import with_numpy_products
from polarmap.convex import ElasticNet, SparseLogisticRegression
from polarmap.glm import LeastSquares, LogisticRegression, PoissonRegression, Ridge
from polarmap.models.solvers import proximal_newton

MODELS = [
    *(Ridge(2.0, solver=solver) for solver in ("lsqr", "cg")),
    *(LogisticRegression(solver=solver) for solver in ("lbfgs", "trust-ncg")),
    PoissonRegression(0.1),
    ElasticNet(0.1, tol=1e-9),
]


def data_of(model: Any) -> tuple[np.ndarray, np.ndarray]:
    X, y = standardized(datasets.load_breast_cancer)
    if isinstance(model, (ElasticNet, Ridge)):  # with few columns, a single Newton step would finish the fit
        return X, X[:, :6] @ np.arange(6) + y
    return X[:, :6], y


def objective(model: Any, X: np.ndarray, y: np.ndarray) -> float:
    """Return the objective by its documented formula (a mean for logistic models)."""
    eta = X @ np.ravel(model.coef_) + model.intercept_
    square = float(np.sum(model.coef_**2))
    if isinstance(model, Ridge):
        return float(np.sum((y - eta) ** 2) + model.alpha * square)
    if isinstance(model, ElasticNet):
        penalty = model.l1_ratio * np.abs(model.coef_).sum() + (1 - model.l1_ratio) * square / 2
        return float(np.mean((y - eta) ** 2) / 2 + model.alpha * penalty)
    if isinstance(model, PoissonRegression):
        return float(np.mean(np.exp(eta) - y * eta) + model.alpha * square / 2)
    return float(np.mean(np.log1p(np.exp(eta)) - y * eta) + square / 2 / model.C / len(y))


@pytest.mark.parametrize("model", MODELS, ids=lambda model: repr(model).split("(")[0])
@pytest.mark.parametrize("largest_gram", [1000, 0], ids=["newton", "gradients alone"])
@pytest.mark.filterwarnings("ignore", category=ConvergenceWarning)  # the test limits the iterations
def test_each_iteration_prints_one_line(
    model: Any, largest_gram: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proximal_newton, "MAX_GRAM_SIZE", largest_gram)
    X, y = data_of(model)
    model = with_numpy_products(model).set_params(verbose=1).fit(X, y)
    lines = parsed_lines(capsys.readouterr().out)
    assert [line["iteration"] for line in lines] == list(range(1, model.n_iter_ + 1))
    assert lines[-1]["gradient"] < 1e-4 * lines[0]["gradient"]
    if not isinstance(model, Ridge):
        assert model.objective_ == pytest.approx(objective(model, X, y), rel=1e-9)
    model.set_params(verbose=0)
    for steps in (1, 2, 3, model.n_iter_):
        model.set_params(max_iter=steps).fit(X, y)
        assert lines[steps - 1]["objective"] == pytest.approx(objective(model, X, y), rel=2e-6)
    assert capsys.readouterr().out == ""


def test_higher_verbosity_prints_products(capsys: pytest.CaptureFixture[str]) -> None:
    X, y = data_of(LeastSquares())
    LeastSquares(**options(verbose=2)).fit(X, np.column_stack([y, -y]))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("[LeastSquares, target 1 of 2] iteration 1: ")
    assert lines[-1].startswith("[LeastSquares, target 2 of 2] ")
    assert lines[1].endswith(" s, 2 products, 2 of 4 blocks decoded")


def test_verbose_true_is_a_number(capsys: pytest.CaptureFixture[str]) -> None:
    Ridge(**options(verbose=True)).fit(*data_of(Ridge()))
    assert capsys.readouterr().out.startswith("[Ridge] iteration 1: objective ")


@pytest.mark.parametrize(
    "model",
    [
        *(Ridge(0.0, solver=solver) for solver in ("lsqr", "lsmr", "cg")),
        *(LogisticRegression(100.0, solver=solver) for solver in ("lbfgs", "trust-ncg")),
        *(ElasticNet(1e-3), SparseLogisticRegression(100.0)),
        *(PlainRegressor(0.01, n_gates=4, activation=activation) for activation in ("gated_relu", "relu")),
    ],
    ids=lambda model: repr(model).split("(")[0],
)
def test_warning_of_an_early_stop_points_to_the_caller_of_fit(model: Any) -> None:
    with pytest.warns(ConvergenceWarning, match="max_iter=2") as caught:
        model.set_params(max_iter=2, **options()).fit(*data_of(model))
    assert caught[0].filename == __file__
    assert model.n_iter_ == 2
