"""Projections on sets, checked with the optimality condition of the nearest point, and invalid sets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from polarmap.convex import l1_ball, simplex
from polarmap.errors import ModelError


@given(x=arrays(float, 6, elements=st.floats(-100, 100)))
def test_projections_on_simplex_and_ball_are_exact(x: np.ndarray) -> None:
    vertices = np.eye(6) * 2.0
    p = simplex(6, 2.0).prox(x, 1.0)
    assert p.min() >= 0 and p.sum() == pytest.approx(2, rel=1e-12)
    assert max((x - p) @ (vertex - p) for vertex in vertices) <= 1e-10 * (1 + np.abs(x).max())
    p = l1_ball(6, 2.0).prox(x, 1.0)
    assert np.abs(p).sum() <= 2 * (1 + 1e-12)
    assert max((x - p) @ (vertex - p) for vertex in (*vertices, *-vertices)) <= 1e-10 * (1 + np.abs(x).max())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: simplex(0), "size must be a whole number, 1 or more, not 0"),
        (lambda: simplex(2, -1.0), "total must be a positive number, not -1.0"),
        (lambda: l1_ball(2, np.inf), "radius must be a positive number, not inf"),
    ],
)
def test_invalid_sets_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        make()
