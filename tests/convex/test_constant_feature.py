"""Products beside a constant column against those of the whole matrix."""

from __future__ import annotations

import numpy as np
from scipy.sparse.linalg import aslinearoperator

from polarmap.convex.constant_feature import ConstantFeature


def test_products_are_those_of_the_whole_matrix() -> None:
    stream = np.random.default_rng(0)
    A = stream.standard_normal((5, 3))
    whole, operator = np.column_stack([A, np.full(5, 0.7)]), ConstantFeature(aslinearoperator(A), 0.7)
    assert operator.shape == (5, 4)
    for shape in ((4,), (4, 2)):
        V, U = stream.standard_normal(shape), stream.standard_normal((5, *shape[1:]))
        np.testing.assert_allclose(operator @ V, whole @ V)
        np.testing.assert_allclose(operator.T @ U, whole.T @ U)
