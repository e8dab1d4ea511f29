"""Classes: probabilities, objective and gap of both activations, under faults."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from plain_networks import PlainClassifier
from sklearn.linear_model import LogisticRegression
from straggling_models import options

from polarmap.convexnn import ConvexMLPClassifier
from polarmap.errors import ModelError

STREAM = np.random.default_rng(0)
X = STREAM.standard_normal((24, 3)) * [1.0, 3.0, 0.2] + [0.0, 1.0, 0.0]
NAMES = np.array(["a", "b", "c"])


def labels(classes: int) -> np.ndarray:
    return NAMES[np.digitize(X[:, 0] * X[:, 2], [0, 0.2][: classes - 1])]


def assert_consistent(model: Any, y: np.ndarray) -> None:
    """The network has the objective of the convex problem, and probabilities are those of its outputs."""
    probabilities = model.predict_proba(X)
    assert probabilities.shape == (24, len(model.classes_))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    loss = -np.mean(np.log(probabilities[np.arange(24), np.searchsorted(model.classes_, y)]))
    squares = sum(float(np.sum(one**2)) for one in (*model.coefs_, model.intercepts_[0]))
    assert loss + model.alpha / 2 * squares == pytest.approx(model.objective_, rel=1e-9)
    np.testing.assert_array_equal(model.classes_[probabilities.argmax(axis=1)], model.predict(X))


@pytest.mark.parametrize("classes", [2, 3])
def test_a_gap_below_a_millionth_with_dead_and_late_workers(classes: int) -> None:
    y = labels(classes)
    model = ConvexMLPClassifier(0.05, n_gates=4, **options()).fit(X, y)
    assert model.dual_gap_ <= 1e-6 * model.objective_
    assert {0, 1} <= set(model.report_.recovered)
    assert_consistent(model, y)


@pytest.mark.parametrize("classes", [2, 3])
def test_relu_networks(classes: int) -> None:
    y = labels(classes)
    model = PlainClassifier(0.05, activation="relu", n_gates=4, tol=1e-4).fit(X, y)
    assert 0 < model.dual_gap_ <= 1e-4 * model.objective_
    assert_consistent(model, y)
    closer = PlainClassifier(0.05, activation="relu", n_gates=4, tol=1e-5).fit(X, y)
    assert 0 <= model.objective_ - closer.objective_ + 1e-12 <= model.dual_gap_


@pytest.mark.parametrize("classes", [2, 3])
def test_one_open_gate_is_a_linear_model(classes: int) -> None:
    """Nearly without a penalty, that of scikit-learn, whose features are those beside a constant."""
    y = labels(classes)
    model = PlainClassifier(1e-4, n_gates=1, tol=1e-4).fit(X, y)
    assert model.gates_.shape == (3, 1) and not model.gates_.any()
    linear = LogisticRegression(C=np.inf, tol=1e-10, max_iter=10_000).fit(X, y)
    np.testing.assert_allclose(model.predict_proba(X), linear.predict_proba(X), atol=0.02)


def test_a_single_class_is_refused() -> None:
    with pytest.raises(ModelError, match="y holds one class only"):
        ConvexMLPClassifier().fit(X, np.zeros(24))
