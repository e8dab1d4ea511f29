"""Tests of the frozen sets of polar codes. The oracle is the polarization recursion in fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from polarmap.codes import polar_construction


def polarize(depth: int, erasure: Fraction) -> list[Fraction]:
    """Return the erasure probabilities after `depth` polarization steps z -> (2 z - z^2, z^2)."""
    if depth == 0:
        return [erasure]
    return [
        *polarize(depth - 1, 2 * erasure - erasure**2),
        *polarize(depth - 1, erasure**2),
    ]


@pytest.mark.parametrize("depth", [0, 1, 4, 7])
def test_erasure_probabilities_polarize(depth: int) -> None:
    expected = [float(z) for z in polarize(depth, Fraction(1, 4))]
    actual = polar_construction.compute_input_erasure_probabilities(np.full(2**depth, 0.25))
    np.testing.assert_allclose(actual, expected, rtol=1e-9)


@pytest.mark.parametrize(("depth", "k"), [(3, 4), (5, 20), (8, 192), (8, 1), (8, 255)])
def test_frozen_inputs_are_the_worst(depth: int, k: int) -> None:
    n = 2**depth
    z = np.array([float(value) for value in polarize(depth, Fraction(n - k, n))])
    frozen = np.isin(np.arange(n), polar_construction.choose_frozen_set(n, k, (n - k) / n))
    assert frozen.sum() == n - k
    assert z[frozen].min() >= z[~frozen].max() - 1e-12


@pytest.mark.parametrize(("n", "k"), [(5, 3), (100, 64), (64, 48), (1000, 10)])
def test_frozen_inputs_are_closed_downwards(n: int, k: int) -> None:
    unsent = polar_construction.round_up_to_power_of_two(n) - n
    frozen = {*range(unsent), *polar_construction.choose_frozen_set(n, k, 0.3).tolist()}
    for index in frozen:
        bits = [bit for bit in range(index.bit_length()) if index >> bit & 1]
        assert all(index & ~(1 << bit) in frozen for bit in bits)
