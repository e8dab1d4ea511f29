"""Pseudo-random numbers that are the same on every machine and with every NumPy version.

The codes draw their random angles, frozen sets and erasure patterns from here. A code is therefore determined
by its parameters alone, and stored blocks can be decoded anywhere.
"""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np
import numpy.typing as npt

from polarmap.dtypes import Floats, Indices


class SplitMix64:
    """A SplitMix64 pseudo-random number generator.

    Unlike the generators of NumPy, it returns the same numbers with every version of NumPy.

    Parameters
    ----------
    *seeds : int
        Non-negative integers that together determine the sequence of random numbers.
    """

    def __init__(self, *seeds: int) -> None:
        self._state = np.uint64(0)
        for seed in seeds:
            self._state = self._mix_bits(np.array([self._state + np.uint64(seed + 1)], np.uint64))[0]

    @staticmethod
    def _mix_bits(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        state = state * np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return state ^ (state >> np.uint64(31))

    def random(self, size: int) -> Floats:
        """Return `size` random numbers that are uniformly distributed in [0, 1)."""
        counters = self._state + np.arange(1, size + 1, dtype=np.uint64)
        self._state = counters[-1]
        return (self._mix_bits(counters) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def integers(self, size: int) -> npt.NDArray[np.int64]:
        """Return `size` random integers that are uniformly distributed between 0 and 2^53 - 1."""
        return (self.random(size) * 2.0**53).astype(np.int64)

    def permutation(self, size: int) -> Indices:
        """Return a random permutation of range(size)."""
        return np.argsort(self.random(size), kind="stable")

    def standard_normal(self, n_rows: int, n_columns: int) -> Floats:
        """Return an array (n_rows, n_columns) of standard normal numbers, drawn by the Box-Muller method."""
        radius, angle = self.random(2 * n_rows * n_columns).reshape(2, n_rows, n_columns)
        return np.asarray(np.sqrt(-2 * np.log1p(-radius)) * np.cos(2 * np.pi * angle))


def sample_subsets(n: int, size: int, max_subsets: int) -> list[Indices]:
    """List all subsets of {0, ..., n - 1} of the given size, or a fixed random sample if there are many.

    Parameters
    ----------
    n, size : int
        Number of indices to choose from, and number of elements per subset.
    max_subsets : int
        Largest number of subsets to return.

    Returns
    -------
    list of index arrays (size,), each ascending

    Examples
    --------
    >>> [one.tolist() for one in sample_subsets(3, 2, 64)], len(sample_subsets(64, 48, 10))
    ([[0, 1], [0, 2], [1, 2]], 10)
    """
    if comb(n, size) <= max_subsets:
        return [np.array(subset, np.intp) for subset in combinations(range(n), size)]
    random_stream = SplitMix64(n, size)
    return [np.sort(random_stream.permutation(n)[:size]) for _ in range(max_subsets)]
