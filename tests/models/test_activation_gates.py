"""Sampled gates, which are distinct and reproducible half-spaces."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from polarmap.models.activation_gates import sample_gates


@settings(max_examples=40)
@given(
    samples=st.integers(1, 12),
    features=st.integers(1, 4),
    count=st.integers(1, 30),
    seed=st.integers(0, 99),
    fit_intercept=st.booleans(),
)
def test_patterns_are_distinct_half_spaces(
    samples: int, features: int, count: int, seed: int, fit_intercept: bool
) -> None:
    X = np.random.default_rng(seed).standard_normal((samples, features)) * 100 + 7
    gates = sample_gates(X, np.full(samples, 1 / samples), count, fit_intercept, np.random.RandomState(seed))
    heights = X @ gates.directions + gates.offsets
    np.testing.assert_array_equal(gates.patterns, heights >= 0)
    np.testing.assert_allclose(gates.margins, np.abs(heights), rtol=1e-9, atol=1e-9)
    patterns = {tuple(column) for column in gates.patterns.T}
    assert 1 <= len(patterns) == gates.patterns.shape[1] <= count
    assert gates.patterns.any(axis=0).all()
    assert gates.patterns[:, 0].all() if fit_intercept else not gates.offsets.any()


def test_all_patterns_of_points_on_a_line_are_found() -> None:
    X, shares = np.arange(6.0)[:, None], np.full(6, 1 / 6)
    assert sample_gates(X, shares, 200, True, np.random.RandomState(0)).patterns.shape == (6, 11)


@pytest.mark.parametrize("fit_intercept", [True, False])
def test_sparse_and_dense_data_have_the_same_gates(fit_intercept: bool) -> None:
    X = np.random.default_rng(0).standard_normal((20, 5)) * (np.arange(100).reshape(20, 5) % 3 > 0)
    shares = np.full(20, 0.05)
    dense = sample_gates(X, shares, 8, fit_intercept, np.random.RandomState(0))
    sparse = sample_gates(csr_array(X), shares, 8, fit_intercept, np.random.RandomState(0))
    np.testing.assert_array_equal(dense.patterns, sparse.patterns)
    np.testing.assert_allclose(dense.directions, sparse.directions)


def test_constant_feature_gets_no_slope_from_rounding() -> None:
    X = np.random.default_rng(0).standard_normal((30, 3))
    X = np.column_stack([X, np.full(30, 0.1), np.ones(30)])
    gates = sample_gates(X, np.full(30, 1 / 30), 20, True, np.random.RandomState(0))
    assert np.abs(gates.directions).max() < 10
