"""Estimators that multiply with numpy: the same iterations without the cost of coded maps."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse.linalg import LinearOperator


class PlainOperator(LinearOperator):  # type: ignore[misc]
    """A linear operator with the interface of CodedOperator that estimators use; counts its `n_products`."""

    report = None

    def __init__(self, A: Any) -> None:
        super().__init__(np.float64, A.shape)
        self._A, self.n_products = A, 0

    def __enter__(self) -> PlainOperator:
        return self

    def __exit__(self, *error: object) -> None:
        """Do nothing: no resource is held."""

    def _matmat(self, V: np.ndarray) -> Any:
        self.n_products += 1
        return self._A @ V

    def _rmatmat(self, U: np.ndarray) -> Any:
        self.n_products += 1
        return self._A.T @ U

    def gram(self, weights: np.ndarray) -> Any:
        self.n_products += 1
        weight_columns = weights.reshape(len(weights), -1).T
        grams = [self._A.T @ (column[:, np.newaxis] * self._A) for column in weight_columns]
        return np.stack(grams, axis=-1).reshape(*grams[0].shape, *weights.shape[1:])


def with_numpy_products(estimator: Any) -> Any:
    """Return an estimator with the same parameters; after a fit it has the attribute `operator`."""

    class NumpyEstimator(type(estimator)):  # type: ignore[misc]
        def _make_operator(self, A: Any) -> PlainOperator:
            self.operator = PlainOperator(A)
            return self.operator

    return NumpyEstimator(**estimator.get_params())
