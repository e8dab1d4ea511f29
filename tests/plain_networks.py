"""Convex networks that multiply with numpy: the same iterations without the cost of coded maps."""

from __future__ import annotations

from typing import Any

from benchmarks.numpy_estimators import PlainOperator
from polarmap.convexnn import ConvexMLPClassifier, ConvexMLPRegressor


class PlainRegressor(ConvexMLPRegressor):
    def _make_operator(self, A: Any) -> Any:
        return PlainOperator(A)


class PlainClassifier(ConvexMLPClassifier):
    def _make_operator(self, A: Any) -> Any:
        return PlainOperator(A)
