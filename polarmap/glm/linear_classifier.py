"""What linear classifiers share: labels as codes, weights of classes, the class with the largest score."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import ClassifierMixin
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data

from polarmap.errors import ModelError
from polarmap.glm.coded_model import CodedModel

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]


class LinearClassifier(ClassifierMixin, CodedModel):  # type: ignore[misc]
    """A classifier by X coef_ + intercept_: one column for two classes, one a class for more."""

    def _checked_samples(self, X: Any, y: Any, sample_weight: Any) -> tuple[Any, Array, Floats]:
        """Samples of positive weight, the index of their class, their weights; sets classes_."""
        X, y = validate_data(self, X, y, accept_sparse="csr", dtype=np.float64)
        check_classification_targets(y)
        weights = self._weights(sample_weight, X)
        X, y, weights = X[weights > 0], y[weights > 0], weights[weights > 0]
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ModelError(
                f"y holds one class only, {self.classes_.tolist()[0]!r}: there is nothing to tell apart"
            )
        return X, codes, weights

    def _class_weights(self, codes: Array, weights: Floats) -> Floats:
        """A factor for the weights of each class."""
        if isinstance(self.class_weight, str) and self.class_weight == "balanced":
            totals = np.bincount(codes, weights, len(self.classes_))
            return np.asarray(weights.sum() / (len(totals) * totals))
        return np.asarray(compute_class_weight(self.class_weight, classes=self.classes_, y=self.classes_))

    def _outputs(self, codes: Array) -> Floats:
        """A column of 0 and 1 for each class; for two classes that of the second alone."""
        onehot = np.eye(len(self.classes_))[codes]
        return onehot[:, 1:] if len(self.classes_) == 2 else onehot

    def decision_function(self, X: Any) -> Floats:
        """(samples,) for two classes, (samples, classes) for more."""
        eta = self._linear(X)
        return eta[:, 0] if eta.shape[1] == 1 else eta

    def predict(self, X: Any) -> Array:
        """The class of each sample with the largest decision function."""
        eta = self.decision_function(X)
        index = (eta > 0).astype(int) if eta.ndim == 1 else eta.argmax(axis=1)
        return np.asarray(self.classes_[index])
