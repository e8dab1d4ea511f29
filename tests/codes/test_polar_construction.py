"""Tests of the frozen sets of polar codes. The oracle is the polarization recursion in fractions."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest

from polarmap.codes import PolarCode, polar_construction
from polarmap.planning.decodability import simulate_arrivals_needed


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


def list_low_weight_sets() -> list[tuple[int, int, set[int]]]:
    """Return (n, k, frozen inputs and punctured ones) for several sizes."""
    sizes = [(5, 3), (64, 48), (100, 64), (700, 525), (1000, 10)]
    sets = [polar_construction.choose_low_weight_frozen_set(n, k, 0) for n, k in sizes]
    unsent = [polar_construction.round_up_to_power_of_two(n) - n for n, _ in sizes]
    return [
        (n, k, {*range(n_unsent), *frozen.tolist()}) for (n, k), frozen, n_unsent in zip(sizes, sets, unsent)
    ]


@pytest.mark.parametrize(("n", "k", "frozen"), list_low_weight_sets())
def test_low_weight_sets_are_closed_downwards(n: int, k: int, frozen: set[int]) -> None:
    for index in frozen:
        bits = [bit for bit in range(index.bit_length()) if index >> bit & 1]
        assert all(index & ~(1 << bit) in frozen for bit in bits)


@pytest.mark.parametrize(("n", "k", "frozen"), list_low_weight_sets())
def test_no_free_input_has_a_lower_weight_than_a_frozen_one(n: int, k: int, frozen: set[int]) -> None:
    size = polar_construction.round_up_to_power_of_two(n)
    sent = range(size - n, size)
    weights = {index: sum(position & ~index == 0 for position in sent) for index in sent}
    frozen_weights = [weights[index] for index in sent if index in frozen]
    free_weights = [weights[index] for index in sent if index not in frozen]
    assert len(frozen_weights) == n - k
    assert max(frozen_weights) <= min(free_weights)


@pytest.mark.parametrize(("n", "k"), [(5, 3), (7, 5), (12, 8), (23, 17)])
def test_undecodable_losses_equal_those_of_the_rank(n: int, k: int) -> None:
    for erasure in (None, 0.25 * (n - k) / n):
        code = PolarCode(n, k, "arikan", erasure=erasure)
        losses = [
            [lost for lost in combinations(range(n), size) if not code.is_decodable(~np.isin(range(n), lost))]
            for size in (1, 2)
        ]
        # A pair with a block that cannot be lost alone is a pair of equal checks only if both have none.
        n_blocks, n_pairs = polar_construction.count_undecodable_losses(n, code.frozen_set)
        alone = {index for (index,) in losses[0]}
        pairs = [pair for pair in losses[1] if alone.issuperset(pair) or not alone.intersection(pair)]
        assert (n_blocks, n_pairs) == (len(losses[0]), len(pairs))


@pytest.mark.parametrize(("n", "k"), [(256, 128), (256, 192), (512, 384)])
def test_low_weight_sets_need_less_than_half_of_the_results_beyond_k(n: int, k: int) -> None:
    needed = [
        simulate_arrivals_needed(n, k, "integers", erasure, 300, 0) for erasure in (None, 0.25 * (n - k) / n)
    ]
    means = [float(arrivals.counts @ arrivals.probabilities) - k for arrivals in needed]
    assert means[0] < means[1] / 2
