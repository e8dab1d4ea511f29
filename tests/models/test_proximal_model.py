"""How many products fits take, and that those by gradients, for X that is sparse or wide, find the same."""

from __future__ import annotations

from typing import Any

import pytest
from plain_networks import PlainOperator
from scipy.sparse import csr_array
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer
from straggling_models import standardized

from polarmap import ReplayExecutor
from polarmap.convex import ElasticNet, Lasso, LinearSVC, NonNegativeLeastSquares, SparseLogisticRegression
from polarmap.glm import LogisticRegression, Ridge
from polarmap.models import proximal_newton, svm

CANCER, LABELS = standardized(load_breast_cancer)
LABELS = 1 - LABELS  # most features grow with these
MODELS = [
    (Lasso(0.01), 30),
    (ElasticNet(0.01), 30),
    (NonNegativeLeastSquares(), 30),
    (SparseLogisticRegression(), 60),
    (LinearSVC(), 100),
]


@pytest.mark.parametrize(
    ("model", "most"),
    [*MODELS, (LogisticRegression(), 30), *((Ridge(solver=solver), 20) for solver in ("lsqr", "lsmr", "cg"))],
    ids=lambda one: type(one).__name__,
)
def test_fits_take_few_products(model: Any, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[PlainOperator] = []
    monkeypatch.setattr(type(model), "_operator", lambda self, A: made.append(PlainOperator(A)) or made[-1])
    clone(model).fit(CANCER, LABELS)
    assert made[0].products <= most


@pytest.mark.parametrize("model", [model for model, _ in MODELS], ids=lambda one: type(one).__name__)
def test_first_order_methods_find_the_same(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = CANCER[::4, ::5], LABELS[::4]
    model = clone(model).set_params(blocks=2, executor=ReplayExecutor(), tol=1e-7)
    objective, steps = model.fit(X, y).objective_, model.n_iter_
    assert model.fit(csr_array(X), y).objective_ == pytest.approx(objective, rel=1e-6)
    for module in (proximal_newton, svm):
        monkeypatch.setattr(module, "LARGEST_GRAM", 3)
    assert model.fit(X, y).objective_ == pytest.approx(objective, rel=1e-6)
    assert model.n_iter_ > steps
