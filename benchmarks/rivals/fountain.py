"""LT codes over the reals (Luby 2002; rateless coded computing: Mallick et al., arXiv 1804.10331).

Each coded block is a sum, with random signs, of a random number of data blocks, drawn from the robust soliton
distribution.
"""

from __future__ import annotations

from itertools import product

import numpy as np

from benchmarks.rivals import Array
from benchmarks.rivals.sparse import EquationGraph, GraphDecoder, SparseCode, mean_arrivals

C = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
DELTA = (0.02, 0.1, 0.5, 0.9)
NEAR_BEST_FRACTION = 0.005


def robust_soliton(k: int, c: float, delta: float) -> Array:
    """Return the probabilities of degrees 1..k (Luby 2002, definition 11).

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


class LTCode(SparseCode):
    """An LT code of n coded blocks; no coded block is a data block.

    Parameters
    ----------
    c, delta : float
        Parameters of the robust soliton distribution.
    uses_inactivation : bool
        Whether it is decoded by inactivation, or by peeling alone.
    """

    def __init__(self, n: int, k: int, c: float, delta: float, uses_inactivation: bool = False) -> None:
        self.n, self.k = n, k
        self.name = f"LT (c {c:g}, delta {delta:g}){', inactivation' if uses_inactivation else ''}"
        rng = np.random.default_rng(0)
        degrees = rng.choice(np.arange(1, k + 1), n, p=robust_soliton(k, c, delta))
        neighbours = [rng.choice(k, degree, replace=False) for degree in degrees]
        signs = [rng.choice([-1.0, 1.0], degree) for degree in degrees]
        self.norms = np.sqrt(degrees)
        self.data_indices, self.coded_indices = np.arange(k), np.arange(k, k + n)
        members = [
            np.append(neighbour_indices, block)
            for neighbour_indices, block in zip(neighbours, self.coded_indices)
        ]
        coefficients = [np.append(block_signs, -1.0) for block_signs in signs]
        self.decoder = GraphDecoder(
            EquationGraph.from_equations(members, coefficients, k + n), k, uses_inactivation
        )


def tune_lt(
    n: int, k: int, n_trials: int, uses_inactivation: bool = False
) -> tuple[int, int, float, float, bool]:
    """Return the arguments of the LT code that needs the fewest arrivals on average.

    With inactivation, most parameters need hardly more than k arrivals. Of those within half a per cent of
    the best, the code with the fewest encoding operations is chosen.
    """
    candidates = [
        (c, delta, uses_inactivation) for c, delta in product(C, DELTA[2:3] if uses_inactivation else DELTA)
    ]
    codes = {options: LTCode(n, k, *options) for options in candidates}
    arrivals_by_candidate = {options: mean_arrivals(code, n_trials) for options, code in codes.items()}
    max_arrivals = min(arrivals_by_candidate.values()) + (
        NEAR_BEST_FRACTION * k if uses_inactivation else 0.0
    )
    return (
        n,
        k,
        *min(
            (candidate for candidate in candidates if arrivals_by_candidate[candidate] <= max_arrivals),
            key=lambda candidate: codes[candidate].encode_operations,
        ),
    )
