"""Rival codes over the reals, each with its best standard parameters; references, not for use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

try:
    import numba
except ImportError:  # the loops run as Python: slow, and the same
    numba = None

Array = np.ndarray[Any, Any]


class DecodingPlan(Protocol):
    """How to decode one pattern of arrivals; `operations` for one number of every block."""

    operations: float

    def decode(self, blocks: Array) -> Array:
        """The data (k, b) from coded blocks (n, b), of which only those that arrived are read."""
        ...


class RivalCode:
    """A code of n blocks that carry k, so that all can be measured side by side.

    norms : 2-norm of the coefficients of each coded block, (n,): the size of its rounding errors
        when all data blocks are of size one.
    encode_operations : additions and multiplications for one number of every coded block.
    """

    name: str
    n: int
    k: int
    norms: Array
    encode_operations: float

    def count_arrivals(self, orders: Array) -> Array:
        """How many arrivals each order (trials, n) takes until the data are known; n + 1 for never."""
        return np.full(len(orders), self.k)

    def encode(self, data: Array) -> Array:
        """The coded blocks (n, b) of k data blocks (k, b)."""
        raise NotImplementedError

    def make_plan(self, arrived_indices: Array) -> DecodingPlan:
        """How to decode from the blocks with these indices: bits only."""
        raise NotImplementedError


def sample_arrival_orders(n: int, n_orders: int, seed: int = 0) -> Array:
    """Random orders (count, n)."""
    return np.random.default_rng(seed).permuted(np.tile(np.arange(n), (n_orders, 1)), axis=1)


def compile_if_possible(function: Callable[..., Any]) -> Callable[..., Any]:
    """Plain loops, compiled where numba is there."""
    return numba.njit(nogil=True, cache=True)(function) if numba is not None else function
