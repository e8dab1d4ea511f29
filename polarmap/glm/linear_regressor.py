"""What linear models of one target or several share: checked samples, predictions, what sklearn is told."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import RegressorMixin
from sklearn.utils.validation import validate_data

from polarmap.glm.coded_model import CodedModel

Floats = npt.NDArray[np.float64]


class LinearRegressor(RegressorMixin, CodedModel):  # type: ignore[misc]
    """A model whose predictions are X coef_ + intercept_."""

    def _validated(self, X: Any, y: Any) -> tuple[Any, Floats]:
        """X, sparse if it was, and y (samples,) or (samples, targets), of floats."""
        X, y = validate_data(
            self, X, y, accept_sparse="csr", dtype=np.float64, multi_output=True, y_numeric=True
        )
        return X, y.astype(np.float64)

    def predict(self, X: Any) -> Floats:
        """X coef_ + intercept_."""
        return self._linear(X)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
