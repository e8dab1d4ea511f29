"""The loss of a ReLU network at points that are first moved into its cones."""

from __future__ import annotations

import numpy as np
import pytest

from polarmap.models.cones import ConeConstrainedLoss
from polarmap.models.losses import GaussianFamily, ProfiledLoss

STREAM = np.random.default_rng(0)
SAMPLES, GATES = 6, 3
A = STREAM.standard_normal((SAMPLES, 2))
INTERIOR = STREAM.standard_normal((2, GATES))
HEIGHTS = A @ INTERIOR
OPEN = HEIGHTS >= 0
Y, SHARES = STREAM.standard_normal((SAMPLES, 1)), np.full(SAMPLES, 1 / SAMPLES)
SIDES = np.hstack([2.0 * OPEN - 1.0] * 2)
SIGNS = np.hstack([1.0 * OPEN, -1.0 * OPEN])


def test_points_are_moved_into_the_cones() -> None:
    profiled_loss = ProfiledLoss(GaussianFamily(), Y, SHARES, True)
    loss = ConeConstrainedLoss(profiled_loss, OPEN, np.abs(HEIGHTS), INTERIOR)
    W = STREAM.standard_normal((2, 2 * GATES))
    W[:, 1] = 0
    moved, E = loss.make_feasible(W, A @ W)
    assert (SIDES * E).min() >= -1e-12
    np.testing.assert_allclose(E, A @ moved, atol=1e-12)
    assert not moved[:, 1].any()
    again, _ = loss.make_feasible(moved, np.where(SIDES * E < 0, 0, E))
    np.testing.assert_array_equal(again, moved)
    outputs = (SIGNS * E).sum(axis=1, keepdims=True)
    relu = np.maximum(A @ moved, 0) @ np.repeat([1.0, -1.0], GATES)
    np.testing.assert_allclose(outputs[:, 0], relu, atol=1e-12)
    assert loss.value(E) == pytest.approx(float(np.var(outputs - Y)) / 2)
