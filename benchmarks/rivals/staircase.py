"""LDPC staircase codes over the reals: the standard for large erasure codes (RFC 5170, RFC 6816).

Every parity block is a combination of some data blocks and of the parity block before it, so
encoding takes as many additions as the graph has edges. RFC 5170 gives all data blocks three
equations; a share of data blocks with more (an irregular repeat-accumulate code) does better when
there are many.
"""

from __future__ import annotations

from functools import cached_property
from itertools import product

import numpy as np

from benchmarks.rivals import Array
from benchmarks.rivals.peeling import Graph, Peeling

SHARES = (0.0, 0.1, 0.2, 0.3)  # of data blocks of higher degree
HIGHER = (8, 16, 30)
CARRIED = 0.7  # of one parity block into the next: with 1 they grow as a random walk does
EXACT_NORMS = 1024


class Staircase:
    """n blocks, the first k of them the data.

    Parameters
    ----------
    n, k : int
    share, higher : float, int
        A share of the data blocks stands in `higher` equations, the others in three.
    """

    def __init__(self, n: int, k: int, share: float = 0.0, higher: int = 8, seed: int = 0) -> None:
        self.n, self.k = n, k
        self.name = f"LDPC staircase ({share:.0%} of degree {higher})" if share else "LDPC staircase"
        rng, r = np.random.default_rng(seed), n - k
        degrees = np.minimum(np.where(np.arange(k) < share * k, higher, 3), r)
        self._data = _spread(degrees, r, rng)
        self._signs = [rng.choice([-1.0, 1.0], len(members)) for members in self._data]
        self.encode_operations = float(sum(map(len, self._data)) + r - 1)

    @cached_property
    def decoder(self) -> Peeling:
        members, coefficients = [], []
        for i, (data, signs) in enumerate(zip(self._data, self._signs)):
            own = [self.k + i] if i == 0 else [self.k + i, self.k + i - 1]
            members.append(np.append(data, own))
            coefficients.append(np.append(signs, [-1.0] if i == 0 else [-1.0, CARRIED]))
        return Peeling(Graph.of(members, coefficients, self.n), self.k)

    @property
    def parity_check(self) -> Array:
        """The equations, (n - k, n)."""
        return self.decoder.graph.dense()

    @cached_property
    def norms(self) -> Array:
        """Exact, or for large k by the law of large numbers, from that many random data."""
        if self.k <= EXACT_NORMS:
            return np.linalg.norm(self.encode(np.eye(self.k)), axis=1)
        data = np.random.default_rng(0).choice([-1.0, 1.0], (self.k, EXACT_NORMS))
        return np.linalg.norm(self.encode(data), axis=1) / np.sqrt(EXACT_NORMS)

    def needed(self, orders: Array) -> Array:
        return np.array([self.decoder.needed(order) for order in orders])

    def encode(self, data: Array) -> Array:
        values = np.empty((self.n, data.shape[1]))
        values[: self.k] = data
        parity = np.arange(self.k, self.n), np.arange(self.n - self.k)
        self.decoder.replay(parity, values)
        return values

    def plan(self, arrived: Array) -> Peeled:
        return Peeled(self, arrived)


class Peeled:
    """The schedule of one pattern."""

    def __init__(self, code: Staircase, arrived: Array) -> None:
        self._code, self._arrived = code, arrived
        self._schedule = code.decoder.schedule(arrived)
        self.operations = code.decoder.operations(self._schedule)

    def recover(self, blocks: Array) -> Array:
        values = np.empty((self._code.n, blocks.shape[1]))
        values[self._arrived] = blocks[self._arrived]
        self._code.decoder.replay(self._schedule, values)
        return values[: self._code.k]


def _spread(degrees: Array, equations: int, rng: np.random.Generator) -> list[Array]:
    """The data blocks of each equation: blocks in `degrees` distinct ones, evenly over them."""
    members: list[list[int]] = [[] for _ in range(equations)]
    free = _shuffled_evenly(int(degrees.sum()), equations, rng)
    for block, degree in enumerate(degrees.tolist()):
        taken: list[int] = []
        while len(taken) < degree:
            place = next((i for i in range(len(free) - 1, -1, -1) if free[i] not in taken), None)
            if place is None:  # only its own equations are left over
                taken.append(int(rng.choice(np.setdiff1d(np.arange(equations), taken))))
            else:
                taken.append(free.pop(place))
        for equation in taken:
            members[equation].append(block)
    return [np.array(one, dtype=np.int64) for one in members]


def _shuffled_evenly(edges: int, equations: int, rng: np.random.Generator) -> list[int]:
    places: list[int] = rng.permutation(np.arange(edges) % equations).tolist()
    return places


def tuned(n: int, k: int, trials: int) -> Staircase:
    """The mixture of degrees that needs the fewest arrivals in the mean, never counting as 2 n."""
    rng = np.random.default_rng(1)
    orders = rng.permuted(np.tile(np.arange(n), (trials, 1)), axis=1)

    def waits(parameters: tuple[float, int]) -> float:
        needed = Staircase(n, k, *parameters).needed(orders)
        return float(np.where(needed > n, 2 * n, needed).mean())

    mixtures = [(0.0, 8), *((share, higher) for share, higher in product(SHARES[1:], HIGHER))]
    return Staircase(n, k, *min(mixtures, key=waits))
