"""Rival codes over the reals, each with its best standard parameters, for comparison only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

try:
    import numba
except ImportError:  # The loops run as Python: slow, with the same results.
    numba = None

Array = np.ndarray[Any, Any]


class DecodingPlan(Protocol):
    """A plan for decoding one arrival pattern; `operations` is the count for one number of every block."""

    operations: float

    def decode(self, blocks: Array) -> Array:
        """Return the data (k, b) from coded blocks (n, b); only blocks that have arrived are read."""
        ...


class RivalCode:
    """A code of n blocks that carry k data blocks, with the methods that are measured for every code.

    Attributes
    ----------
    norms : Array
        2-norm of the coefficients of each coded block, (n,): the scale of its rounding errors if all data
        blocks have unit size.
    encode_operations : float
        Additions and multiplications for one number of every coded block.
    """

    name: str
    n: int
    k: int
    norms: Array
    encode_operations: float

    def count_arrivals(self, orders: Array) -> Array:
        """Return how many arrivals each order (trials, n) needs to decode; n + 1 for never."""
        return np.full(len(orders), self.k)

    def encode(self, data: Array) -> Array:
        """Return the coded blocks (n, b) of k data blocks (k, b)."""
        raise NotImplementedError

    def make_plan(self, arrived_indices: Array) -> DecodingPlan:
        """Return a plan for decoding from the blocks with these indices, without using their contents."""
        raise NotImplementedError


def sample_arrival_orders(n: int, n_orders: int, seed: int = 0) -> Array:
    """Return random arrival orders (n_orders, n)."""
    return np.random.default_rng(seed).permuted(np.tile(np.arange(n), (n_orders, 1)), axis=1)


def compile_if_possible(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function with numba if it is installed."""
    return numba.njit(nogil=True, cache=True)(function) if numba is not None else function
