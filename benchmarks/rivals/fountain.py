"""LT codes over the reals (Luby 2002; rateless coded computing: Mallick et al., arXiv 1804.10331).

Each coded block is a sum, with random signs, of randomly many data blocks: as many as the robust
soliton distribution says.
"""

from __future__ import annotations

from functools import cached_property
from itertools import product

import numpy as np

from benchmarks.rivals import Array
from benchmarks.rivals.peeling import Graph, Peeling

C = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
DELTA = (0.02, 0.1, 0.5, 0.9)


def robust_soliton(k: int, c: float, delta: float) -> Array:
    """P(degree d), d = 1..k (Luby 2002, definition 11).

    >>> robust_soliton(4, 0.1, 0.5).sum().round(12)
    np.float64(1.0)
    """
    d = np.arange(1, k + 1)
    ideal = np.where(d == 1, 1 / k, 1 / np.maximum(d * (d - 1), 1))
    ripple = c * np.log(k / delta) * np.sqrt(k)
    spike = int(np.clip(round(k / ripple), 1, k))
    extra = np.where(d < spike, ripple / (d * k), 0.0)
    extra[spike - 1] = max(0.0, ripple * np.log(ripple / delta) / k)
    return (ideal + extra) / (ideal + extra).sum()


class LT:
    """n coded blocks, none of which is a data block.

    Parameters
    ----------
    n, k : int
    c, delta : float
        Of the robust soliton distribution.
    """

    def __init__(self, n: int, k: int, c: float, delta: float, seed: int = 0) -> None:
        self.n, self.k, self.c, self.delta = n, k, c, delta
        self.name = f"LT (c {c:g}, delta {delta:g})"
        rng = np.random.default_rng(seed)
        degrees = rng.choice(np.arange(1, k + 1), n, p=robust_soliton(k, c, delta))
        self.neighbours = [rng.choice(k, degree, replace=False) for degree in degrees]
        self.signs = [rng.choice([-1.0, 1.0], degree) for degree in degrees]
        self.norms = np.sqrt(degrees)
        self.encode_operations = float(degrees.sum())

    @cached_property
    def decoder(self) -> Peeling:
        """Over k data blocks and, behind them, n coded blocks."""
        members = [np.append(near, self.k + i) for i, near in enumerate(self.neighbours)]
        coefficients = [np.append(signs, -1.0) for signs in self.signs]
        return Peeling(Graph.of(members, coefficients, self.k + self.n), self.k)

    @property
    def matrix(self) -> Array:
        """The coded blocks in terms of the data, (n, k)."""
        return self.decoder.graph.dense()[:, : self.k]

    def needed(self, orders: Array) -> Array:
        return np.array([self.decoder.needed(self.k + order) for order in orders])

    def encode(self, data: Array) -> Array:
        values = np.empty((self.k + self.n, data.shape[1]))
        values[: self.k] = data
        everything = np.arange(self.k + self.n)[self.k :], np.arange(self.n)
        self.decoder.replay(everything, values)
        return values[self.k :]

    def plan(self, arrived: Array) -> Peeled:
        return Peeled(self, arrived)


class Peeled:
    """The schedule of one pattern."""

    def __init__(self, code: LT, arrived: Array) -> None:
        self._code, self._arrived = code, arrived
        self._schedule = code.decoder.schedule(code.k + arrived)
        self.operations = code.decoder.operations(self._schedule)

    def recover(self, blocks: Array) -> Array:
        code = self._code
        values = np.empty((code.k + code.n, blocks.shape[1]))
        values[code.k + self._arrived] = blocks[self._arrived]
        code.decoder.replay(self._schedule, values)
        return values[: code.k]


def tuned(n: int, k: int, trials: int) -> LT:
    """The parameters that need the fewest arrivals in the mean, never counting as 2 n."""
    rng = np.random.default_rng(1)
    orders = rng.permuted(np.tile(np.arange(n), (trials, 1)), axis=1)

    def waits(parameters: tuple[float, float]) -> float:
        needed = LT(n, k, *parameters).needed(orders)
        return float(np.where(needed > n, 2 * n, needed).mean())

    return LT(n, k, *min(product(C, DELTA), key=waits))
