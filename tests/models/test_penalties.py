"""Penalties, their proximal operators and conjugates; the oracle is a search over points and grids."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyproximal
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import minimize_scalar

from polarmap.convex import AffineSet, ElasticNetPenalty, LinearBoxPenalty
from polarmap.errors import ModelError
from polarmap.models.penalties import GroupLassoPenalty

NUMBERS = st.floats(-100, 100)
VECTORS = arrays(float, 6, elements=NUMBERS)
STREAM = np.random.default_rng(0)
C = STREAM.standard_normal((2, 6))


@given(x=NUMBERS, tau=st.floats(0.01, 10), l1=st.floats(0, 5), l2=st.floats(0, 5))
def test_the_prox_of_an_elastic_net_is_the_minimum(x: float, tau: float, l1: float, l2: float) -> None:
    penalty = ElasticNetPenalty(l1, l2)

    def value(p: float) -> float:
        return tau * penalty(np.array([p])) + (p - x) ** 2 / 2

    minimum = float(penalty.prox(np.array([x]), tau)[0])
    assert value(minimum) <= minimize_scalar(value, (-101, 101)).fun + 1e-9 * (1 + x * x)


@given(v=VECTORS, l1=arrays(float, 6, elements=st.floats(0.1, 5)), l2=st.sampled_from([0.0, 0.5]))
def test_the_conjugate_of_an_elastic_net(v: np.ndarray, l1: np.ndarray, l2: float) -> None:
    penalty = ElasticNetPenalty(l1, l2)
    scale = penalty.dual_scale(v)
    bound = 1.0 if l2 else min(1.0, float(np.min(l1 / np.maximum(np.abs(v), 1e-300))))
    assert scale == pytest.approx(bound)
    scaled = scale * v
    best = np.sign(v) * np.maximum(np.abs(v) - l1, 0) / l2 if l2 else np.zeros(6)
    assert penalty.conjugate(scaled) == pytest.approx(scaled @ best - penalty(best), abs=1e-9)
    for x in (*STREAM.standard_normal((5, 6)), best + 0.1, best - 0.1):
        assert scaled @ x - penalty(x) <= penalty.conjugate(scaled) + 1e-9


@given(v=VECTORS, slope=VECTORS)
def test_the_conjugate_of_a_box_is_at_a_corner(v: np.ndarray, slope: np.ndarray) -> None:
    lower, upper = np.arange(-3.0, 3.0), np.arange(-3.0, 3.0) + 2
    penalty = LinearBoxPenalty(lower, upper, slope)
    corners = np.array(np.meshgrid(*zip(lower, upper))).reshape(6, -1).T
    assert penalty.conjugate(v) == pytest.approx(max(v @ x - penalty(x) for x in corners))
    p = penalty.prox(v, 0.5)
    assert (p >= lower).all() and (p <= upper).all()
    for x in corners:  # p is the projection if this inner product is not positive for any corner
        assert (v - 0.5 * slope - p) @ (x - p) <= 1e-9


@given(x=VECTORS)
def test_projections_on_equations_are_least_squares(x: np.ndarray) -> None:
    d = np.array([1.0, -2.0])
    projection = AffineSet(C, d).prox(x, 1.0)
    np.testing.assert_allclose(projection, x + np.linalg.pinv(C) @ (d - C @ x), atol=1e-10)
    assert AffineSet(C, d)(projection) and not AffineSet(C, d)(projection + 1)


def test_group_norms_with_equal_scales_are_those_of_pyproximal() -> None:
    x = np.random.default_rng(0).standard_normal(15)
    penalty, oracle = GroupLassoPenalty(0.7, np.ones(3), 5), pyproximal.L21(3, 0.7)
    assert penalty(x) == pytest.approx(oracle(x))
    np.testing.assert_allclose(penalty.prox(x, 1.3), oracle.prox(x, 1.3), atol=1e-14)


@settings(max_examples=60)
@given(
    rows=st.integers(1, 6),
    columns=st.integers(1, 4),
    seed=st.integers(0, 99),
    spread=st.sampled_from([0.0, 1.0, 6.0]),
    tau=st.sampled_from([1e-6, 0.1, 10.0]),
)
def test_the_prox_of_group_norms_satisfies_its_condition(
    rows: int, columns: int, seed: int, spread: float, tau: float
) -> None:
    # x - p must be tau times a subgradient: tau scale^2 p / |scale p|, or in the dual ball if p is 0.
    stream = np.random.default_rng(seed)
    scale = 10.0 ** stream.uniform(-spread / 2, spread / 2, rows)
    x = stream.standard_normal((rows, columns))
    p = GroupLassoPenalty(0.8, scale, columns).prox(x.reshape(-1), tau).reshape(x.shape)
    for before, after in zip(x.T, p.T, strict=True):
        if after.any():
            pull = 0.8 * tau * scale**2 * after / np.linalg.norm(scale * after)
            np.testing.assert_allclose(after + pull, before, rtol=1e-9, atol=1e-12)
        else:
            assert np.linalg.norm(before / scale) <= 0.8 * tau * (1 + 1e-12)


def test_conjugate_of_group_norms_is_0_in_the_dual_ball() -> None:
    stream, scale = np.random.default_rng(0), np.array([0.5, 1.0, 3.0])
    penalty, v = GroupLassoPenalty(0.6, scale, 2), stream.standard_normal(6) * 5
    scaled = v * penalty.dual_scale(v)
    values = [x @ scaled - penalty(x) for x in stream.standard_normal((2000, 6))]
    assert max(values) <= penalty.conjugate(scaled) == 0.0
    assert penalty.dual_scale(np.zeros(6)) == 1.0
    longest = max(np.linalg.norm(scaled.reshape(3, 2) / scale[:, None], axis=0))
    assert longest == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ElasticNetPenalty(-1.0), "l1 and l2 must be 0 or more"),
        (lambda: ElasticNetPenalty(np.nan), "l1 and l2 must be 0 or more"),
        (lambda: LinearBoxPenalty(np.ones(2), np.zeros(2), np.zeros(2)), "lower must not exceed upper"),
        (
            lambda: LinearBoxPenalty(np.zeros(2), np.full(2, np.inf), np.zeros(2)),
            "use pyproximal.Box",
        ),
        (lambda: AffineSet(C, [1.0]), r"not of shapes \(2, 6\) and \(1,\)"),
        (
            lambda: AffineSet([C[0], 2 * C[0]], [1.0, 2.0]),
            r"have rank 1\. Leave out equations .* \(1 in all\)",
        ),
        (
            lambda: AffineSet(np.eye(3)[:, :2], np.ones(3)),
            "the 3 rows of C must be linearly independent, but have rank 2",
        ),
        (lambda: GroupLassoPenalty(-1.0, np.ones(2), 2), "strength must be 0 or more"),
        (lambda: GroupLassoPenalty(np.nan, np.ones(2), 2), "strength must be 0 or more"),
        (lambda: GroupLassoPenalty(1.0, np.zeros(2), 2), "and every row_scale positive"),
    ],
)
def test_invalid_penalties_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        make()
