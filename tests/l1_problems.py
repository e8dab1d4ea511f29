"""Least-squares problems with an L1 penalty, of any shape and scale, and their optimality conditions."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st


class L1Problem(NamedTuple):
    """Minimize |b - A x|^2 / 2 + strength |x|_1.

    Attributes
    ----------
    share : float
        Strength relative to the smallest strength at which x is 0.
    """

    A: np.ndarray
    b: np.ndarray
    strength: float
    share: float

    def check(self, x: np.ndarray, atol: float) -> None:
        """Check that A'(b - A x) is strength * sign(x) where x is not 0, and no larger elsewhere."""
        slope = self.A.T @ (self.b - self.A @ x) / self.strength
        assert np.abs(slope).max() <= 1 + atol
        np.testing.assert_allclose(slope[x != 0], np.sign(x[x != 0]), atol=atol)
        assert self.share < 1 or not x.any()


def _problem(rows: int, columns: int, seed: int, unit: float, share: float) -> L1Problem:
    stream = np.random.default_rng(seed)
    A, b = unit * stream.standard_normal((rows, columns)), stream.standard_normal(rows)
    return L1Problem(A, b, share * np.abs(A.T @ b).max(), share)


l1_problems = st.builds(
    _problem,
    rows=st.integers(1, 20),
    columns=st.integers(1, 20),
    seed=st.integers(0, 99),
    unit=st.sampled_from([1e-6, 1.0, 1e6]),
    share=st.floats(0.05, 1.2),
)
