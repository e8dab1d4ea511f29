"""A matrix beside which stands a constant column, for an intercept: none is formed."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse.linalg import LinearOperator

Floats = npt.NDArray[np.float64]


class ConstantFeature(LinearOperator):  # type: ignore[misc]
    """[A, unit 1], by products with A alone.

    Parameters
    ----------
    operator : LinearOperator (samples, features)
        A.
    unit : float
        In each row of the last column.

    Examples
    --------
    >>> from scipy.sparse.linalg import aslinearoperator
    >>> (ConstantFeature(aslinearoperator(np.eye(2)), 3.0) @ np.eye(3)).tolist()
    [[1.0, 0.0, 3.0], [0.0, 1.0, 3.0]]
    """

    def __init__(self, operator: Any, unit: float) -> None:
        super().__init__(np.float64, (operator.shape[0], operator.shape[1] + 1))
        self._operator, self._unit = operator, unit

    def _matvec(self, v: Floats) -> Floats:
        v = np.reshape(v, -1)
        return np.asarray(self._operator.matvec(v[:-1]) + self._unit * v[-1])

    def _matmat(self, V: Floats) -> Floats:
        return np.asarray(self._operator.matmat(V[:-1]) + self._unit * V[-1])

    def _rmatvec(self, u: Floats) -> Floats:
        u = np.reshape(u, -1)
        return np.append(self._operator.rmatvec(u), self._unit * u.sum())

    def _rmatmat(self, U: Floats) -> Floats:
        return np.vstack([self._operator.rmatmat(U), self._unit * U.sum(axis=0)])
