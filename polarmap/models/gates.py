"""Which samples each gate lets pass: patterns of random half-spaces, and the operator that they make of A."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from polarmap.dtypes import Floats
from polarmap.models.features import MatrixOperator, moments

ROUNDS = 20  # of sampling, while patterns are wanted and new ones turn up
LEAST_DRAWS = 16  # of a round: that no gate lets a sample pass is less likely than 1e-90


class Gates(NamedTuple):
    """Half-spaces x @ directions + offsets >= 0, no two of which hold the same samples."""

    directions: Floats  # (features, gates)
    offsets: Floats  # (gates,), 0 without an intercept
    patterns: npt.NDArray[np.bool_]  # (samples, gates): which samples each gate lets pass
    margins: Floats  # |x @ directions + offsets|


def sample_gates(X: Any, shares: Floats, count: int, fit_intercept: bool, random: Any) -> Gates:
    """Up to `count` gates with normal directions and offsets for standardized features, by shares of samples.

    With an intercept, the first lets every sample pass. None lets no sample pass.
    """
    mean, square = moments(X, shares, True)
    scale = np.where(square > 0, np.sqrt(square), 1.0)
    features = X.shape[1]
    directions, offsets = np.zeros((features, 0)), np.zeros(0)
    if fit_intercept:
        directions, offsets = np.zeros((features, 1)), np.ones(1)
    draws = max(count, LEAST_DRAWS)
    for _ in range(ROUNDS):
        before = len(offsets)
        drawn = random.standard_normal((features + fit_intercept, draws))
        slopes = drawn[:features] / scale[:, np.newaxis]
        shifts = drawn[features] - mean @ slopes if fit_intercept else np.zeros(draws)
        directions, offsets = np.hstack([directions, slopes]), np.append(offsets, shifts)
        heights = np.asarray(X @ directions) + offsets
        kept = _distinct(heights >= 0)[:count]
        directions, offsets, heights = directions[:, kept], offsets[kept], heights[:, kept]
        if len(kept) == count or 0 < len(kept) == before:
            break
    return Gates(directions, offsets, heights >= 0, np.abs(heights))


def _distinct(patterns: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
    """Indices of the first column of each pattern that lets a sample pass, in order."""
    packed = np.packbits(patterns, axis=0)
    _, first = np.unique(packed, axis=1, return_index=True)
    return np.asarray(np.sort(first[patterns[:, first].any(axis=0)]))


class GatedOperator(MatrixOperator):
    """[D_1 A, ..., D_P A] with D_i = diag(pattern i), by products with A alone: one of P times the columns.

    Columns are ordered by those of A first, by gates second.
    """

    def __init__(self, operator: Any, patterns: npt.ArrayLike) -> None:
        self._operator, self._patterns = operator, np.asarray(patterns, dtype=np.float64)
        samples, features = operator.shape
        super().__init__(np.float64, (samples, features * self._patterns.shape[1]))

    def _matmat(self, V: Floats) -> Floats:
        samples, features = self._operator.shape
        passed = self._operator.matmat(np.reshape(V, (features, -1)))
        passed = np.reshape(passed, (samples, self._patterns.shape[1], -1))
        return np.asarray(np.einsum("sg,sgo->so", self._patterns, passed))

    def _rmatmat(self, U: Floats) -> Floats:
        held = self._patterns[:, :, np.newaxis] * U[:, np.newaxis, :]
        product = self._operator.rmatmat(held.reshape(len(U), -1))
        return np.reshape(product, (-1, U.shape[1]))
