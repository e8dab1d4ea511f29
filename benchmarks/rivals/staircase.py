"""LDPC staircase codes over the reals: the standard for large erasure codes (RFC 5170, RFC 6816).

Every parity block is a combination of some data blocks and of the parity block before it, so
encoding takes as many additions as the graph has edges. RFC 5170 gives all data blocks three
equations; a share of data blocks with more (an irregular repeat-accumulate code) does better when
there are many.
"""

from __future__ import annotations

from itertools import product

import numpy as np

from benchmarks.rivals import Array
from benchmarks.rivals.sparse import Decoder, Graph, SparseCode, awaited

SHARES = (0.0, 0.1, 0.2, 0.3)  # of data blocks of higher degree
HIGHER = (8, 16, 30)
CARRIED = 0.7  # of one parity block into the next: with 1 they grow as a random walk does


class Staircase(SparseCode):
    """n blocks, the first k of them the data.

    share, higher : a share of the data blocks stands in `higher` equations, the others in three.
    inactivates : decoded by inactivation, not by peeling alone.
    """

    def __init__(
        self,
        n: int,
        k: int,
        share: float = 0.0,
        higher: int = 8,
        inactivates: bool = False,
    ) -> None:
        self.n, self.k = n, k
        mixture = f" ({share:.0%} of degree {higher})" if share else ""
        self.name = f"LDPC staircase{mixture}{', inactivation' if inactivates else ''}"
        rng, r = np.random.default_rng(0), n - k
        degrees = np.minimum(np.where(np.arange(k) < share * k, higher, 3), r)
        data = _spread(degrees, r, rng)
        signs = [rng.choice([-1.0, 1.0], len(members)) for members in data]
        members = [np.append(some, [k + i, k + i - 1][: i + 1]) for i, some in enumerate(data)]
        coefficients = [np.append(some, [-1.0, CARRIED][: i + 1]) for i, some in enumerate(signs)]
        self.decoder = Decoder(Graph.of(members, coefficients, n), k, inactivates)
        self.coded, self.data = np.arange(n), np.arange(k)


def _spread(degrees: Array, equations: int, rng: np.random.Generator) -> list[Array]:
    """The data blocks of each equation: blocks in `degrees` distinct ones, evenly over them."""
    members: list[list[int]] = [[] for _ in range(equations)]
    free = rng.permutation(np.arange(int(degrees.sum())) % equations).tolist()
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


def tuned(n: int, k: int, trials: int, inactivates: bool = False) -> tuple[int, int, float, int, bool]:
    """Arguments of the mixture of degrees that needs the fewest arrivals in the mean."""
    mixtures = [(0.0, 8), *product(SHARES[1:], HIGHER)]
    best = min(mixtures, key=lambda mixture: awaited(Staircase(n, k, *mixture, inactivates), trials))
    return n, k, *best, inactivates
