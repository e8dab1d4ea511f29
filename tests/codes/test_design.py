from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from polarmap.codes import design


def polarized(depth: int, erasure: Fraction) -> list[Fraction]:
    """z -> 2 z - z^2, z^2, depth times: the recursion of polarization, in rational numbers."""
    if depth == 0:
        return [erasure]
    return [
        *polarized(depth - 1, 2 * erasure - erasure**2),
        *polarized(depth - 1, erasure**2),
    ]


@pytest.mark.parametrize("depth", [0, 1, 4, 7])
def test_erasure_probabilities_polarize(depth: int) -> None:
    expected = [float(z) for z in polarized(depth, Fraction(1, 4))]
    found = design.erasure_probabilities(np.full(2**depth, 0.25))
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize(("depth", "k"), [(3, 4), (5, 20), (8, 192), (8, 1), (8, 255)])
def test_frozen_inputs_are_the_worst(depth: int, k: int) -> None:
    n = 2**depth
    z = np.array([float(value) for value in polarized(depth, Fraction(n - k, n))])
    frozen = np.isin(np.arange(n), design.frozen_inputs(n, k, (n - k) / n))
    assert frozen.sum() == n - k
    assert z[frozen].min() >= z[~frozen].max() - 1e-12


@pytest.mark.parametrize(("n", "k"), [(5, 3), (100, 64), (64, 48), (1000, 10)])
def test_frozen_inputs_are_closed_downwards(n: int, k: int) -> None:
    unsent = design.power_of_two_above(n) - n
    frozen = {*range(unsent), *design.frozen_inputs(n, k, 0.3).tolist()}
    for index in frozen:
        bits = [bit for bit in range(index.bit_length()) if index >> bit & 1]
        assert all(index & ~(1 << bit) in frozen for bit in bits)


def test_uniform_stream_is_fixed_and_uniform() -> None:
    stream = design.UniformStream(1, 2, 3)
    numbers = stream.take(10_000)
    assert numbers[:3].tolist() == FIRST_NUMBERS
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 0.01
    assert sorted(stream.permutation(50).tolist()) == list(range(50))
    assert (design.UniformStream(1, 2, 4).take(3) != numbers[:3]).all()


def test_uniform_stream_continues_where_it_stopped() -> None:
    whole, pieces = design.UniformStream(7), design.UniformStream(7)
    assert whole.take(5).tolist() == [*pieces.take(2), *pieces.take(3)]


FIRST_NUMBERS = [0.3852895748155194, 0.8198491448220133, 0.8862316989122743]
