"""Tests of random numbers: fixed values, uniformity, and one sequence for any sizes of the draws."""

from __future__ import annotations

from math import comb

import pytest

from polarmap.codes import splitmix


def test_uniform_stream_is_fixed_and_uniform() -> None:
    stream = splitmix.SplitMix64(1, 2, 3)
    numbers = stream.random(10_000)
    assert numbers[:3].tolist() == FIRST_NUMBERS
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 0.01
    assert sorted(stream.permutation(50).tolist()) == list(range(50))
    assert (splitmix.SplitMix64(1, 2, 4).random(3) != numbers[:3]).all()


def test_uniform_stream_continues_where_it_stopped() -> None:
    whole, pieces = splitmix.SplitMix64(7), splitmix.SplitMix64(7)
    assert whole.random(5).tolist() == [*pieces.random(2), *pieces.random(3)]


FIRST_NUMBERS = [0.3852895748155194, 0.8198491448220133, 0.8862316989122743]


@pytest.mark.parametrize(("n", "size", "max_subsets"), [(5, 2, 10), (5, 2, 9), (64, 48, 10), (3, 3, 1)])
def test_subsets_are_all_or_a_fixed_sample(n: int, size: int, max_subsets: int) -> None:
    subsets = [subset.tolist() for subset in splitmix.sample_subsets(n, size, max_subsets)]
    assert len(subsets) == min(comb(n, size), max_subsets)
    assert all(subset == sorted(set(subset)) and len(subset) == size for subset in subsets)
    assert all(0 <= position < n for subset in subsets for position in subset)
    assert subsets == [subset.tolist() for subset in splitmix.sample_subsets(n, size, max_subsets)]
    if comb(n, size) <= max_subsets:
        assert len(set(map(tuple, subsets))) == len(subsets)
