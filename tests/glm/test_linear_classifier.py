"""Labels, weights of classes and predictions, which all linear classifiers share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn import linear_model
from sklearn.datasets import load_iris

from polarmap import ReplayExecutor
from polarmap.convex import LinearSVC, SparseLogisticRegression
from polarmap.errors import ModelError
from polarmap.glm import LogisticRegression

X, Y = load_iris(return_X_y=True)
NAMES = np.array(["setosa", "versicolor", "virginica"])[Y]
CLASSIFIERS = [LogisticRegression, SparseLogisticRegression, LinearSVC]


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_two_classes_have_one_column_and_more_have_each_one(classifier: Any) -> None:
    for kept, shape in ((slice(100), (1, 4)), (slice(None), (3, 4))):
        model = classifier(0.01, blocks=2, executor=ReplayExecutor(), tol=1e-3).fit(X[kept], NAMES[kept])
        assert model.coef_.shape == shape and model.intercept_.shape == shape[:1]
        assert model.classes_.tolist() == sorted(set(NAMES[kept]))
        scores = X[kept] @ model.coef_.T + model.intercept_
        np.testing.assert_allclose(
            model.decision_function(X[kept]), scores[:, 0] if len(scores.T) == 1 else scores
        )
        best = (scores[:, 0] > 0).astype(int) if shape[0] == 1 else scores.argmax(axis=1)
        assert (model.predict(X[kept]) == model.classes_[best]).all()


def test_samples_without_weight_are_left_out_with_their_class() -> None:
    weights = (Y != 2).astype(float)
    for chosen in ({}, {"class_weight": "balanced"}):
        model = LogisticRegression(blocks=2, executor=ReplayExecutor(), **chosen).fit(X, NAMES, weights)
        oracle = linear_model.LogisticRegression(solver="newton-cholesky", tol=1e-10, **chosen)
        np.testing.assert_allclose(model.coef_, oracle.fit(X[:100], NAMES[:100]).coef_, rtol=1e-5)


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_one_class_alone_is_refused(classifier: Any) -> None:
    model = classifier(executor=ReplayExecutor())
    with pytest.raises(
        ModelError, match=r"y holds one class only, .*setosa.*: there is nothing to tell apart"
    ):
        model.fit(X, NAMES, (Y == 0).astype(float))
