"""The penalty against pyproximal, a general minimizer and the definition of a conjugate."""

from __future__ import annotations

import numpy as np
import pyproximal
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polarmap.convexnn.group_norms import GroupNorms
from polarmap.errors import ModelError


def test_with_equal_scales_it_is_that_of_pyproximal() -> None:
    x = np.random.default_rng(0).standard_normal(15)
    ours, theirs = GroupNorms(0.7, np.ones(3), 5), pyproximal.L21(3, 0.7)
    assert ours(x) == pytest.approx(theirs(x))
    np.testing.assert_allclose(ours.prox(x, 1.3), theirs.prox(x, 1.3), atol=1e-14)


@settings(max_examples=60)
@given(
    rows=st.integers(1, 6),
    columns=st.integers(1, 4),
    seed=st.integers(0, 99),
    spread=st.sampled_from([0.0, 1.0, 6.0]),
    tau=st.sampled_from([1e-6, 0.1, 10.0]),
)
def test_the_prox_satisfies_its_condition(
    rows: int, columns: int, seed: int, spread: float, tau: float
) -> None:
    """x - p is tau times a subgradient: tau scale^2 p / |scale p|, or within the dual ball where p is 0."""
    stream = np.random.default_rng(seed)
    scale = 10.0 ** stream.uniform(-spread / 2, spread / 2, rows)
    x = stream.standard_normal((rows, columns))
    p = GroupNorms(0.8, scale, columns).prox(x.reshape(-1), tau).reshape(x.shape)
    for before, after in zip(x.T, p.T, strict=True):
        if after.any():
            pull = 0.8 * tau * scale**2 * after / np.linalg.norm(scale * after)
            np.testing.assert_allclose(after + pull, before, rtol=1e-9, atol=1e-12)
        else:
            assert np.linalg.norm(before / scale) <= 0.8 * tau * (1 + 1e-12)


def test_the_conjugate_is_0_in_the_dual_ball() -> None:
    stream, scale = np.random.default_rng(0), np.array([0.5, 1.0, 3.0])
    penalty, v = GroupNorms(0.6, scale, 2), stream.standard_normal(6) * 5
    scaled = v * penalty.dual_scale(v)
    values = [x @ scaled - penalty(x) for x in stream.standard_normal((2000, 6))]
    assert max(values) <= penalty.conjugate(scaled) == 0.0
    assert penalty.dual_scale(np.zeros(6)) == 1.0
    longest = max(np.linalg.norm(scaled.reshape(3, 2) / scale[:, None], axis=0))
    assert longest == pytest.approx(0.6)


def test_penalties_that_cannot_be() -> None:
    for strength, scale in ((-1.0, np.ones(2)), (1.0, np.zeros(2)), (np.nan, np.ones(2))):
        with pytest.raises(ModelError, match="strength must be 0 or more"):
            GroupNorms(strength, scale, 2)
