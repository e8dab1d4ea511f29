"""LDPC staircase codes over the reals: the standard for large erasure codes (RFC 5170, RFC 6816).

Every parity block is a combination of some data blocks and the previous parity block, so encoding takes as
many additions as the graph has edges. RFC 5170 puts every data block into three equations. A share of data
blocks with more equations (an irregular repeat-accumulate code) performs better if there are many blocks.
"""

from __future__ import annotations

from itertools import product

import numpy as np

from benchmarks.rivals import Array
from benchmarks.rivals.sparse import EquationGraph, GraphDecoder, SparseCode, mean_arrivals

HIGHER_FRACTIONS = (0.0, 0.1, 0.2, 0.3)  # Shares of data blocks with a higher degree.
HIGHER_DEGREES = (8, 16, 30)
# Coefficient of the previous parity block: with 1, parity would grow like a random walk.
CARRY_COEFFICIENT = 0.7


class StaircaseCode(SparseCode):
    """A code of n blocks, the first k of them the data.

    Parameters
    ----------
    higher_fraction, higher_degree : float, int
        A share of the data blocks is in `higher_degree` equations, the rest in three.
    uses_inactivation : bool
        Whether it is decoded by inactivation, or by peeling alone.
    """

    def __init__(
        self,
        n: int,
        k: int,
        higher_fraction: float = 0.0,
        higher_degree: int = 8,
        uses_inactivation: bool = False,
    ) -> None:
        self.n, self.k = n, k
        mixture_text = f" ({higher_fraction:.0%} of degree {higher_degree})" if higher_fraction else ""
        self.name = f"LDPC staircase{mixture_text}{', inactivation' if uses_inactivation else ''}"
        rng, r = np.random.default_rng(0), n - k
        degrees = np.minimum(np.where(np.arange(k) < higher_fraction * k, higher_degree, 3), r)
        data_members = _spread_over_equations(degrees, r, rng)
        signs = [rng.choice([-1.0, 1.0], len(members)) for members in data_members]
        members = [np.append(row, [k + i, k + i - 1][: i + 1]) for i, row in enumerate(data_members)]
        coefficients = [np.append(row, [-1.0, CARRY_COEFFICIENT][: i + 1]) for i, row in enumerate(signs)]
        self.decoder = GraphDecoder(
            EquationGraph.from_equations(members, coefficients, n), k, uses_inactivation
        )
        self.coded_indices, self.data_indices = np.arange(n), np.arange(k)


def _spread_over_equations(degrees: Array, n_equations: int, rng: np.random.Generator) -> list[Array]:
    """Return the data blocks of each equation; block i is in degrees[i] equations, evenly spread."""
    members: list[list[int]] = [[] for _ in range(n_equations)]
    free_slots = rng.permutation(np.arange(int(degrees.sum())) % n_equations).tolist()
    for block, degree in enumerate(degrees.tolist()):
        chosen_equations: list[int] = []
        while len(chosen_equations) < degree:
            slot = next(
                (i for i in range(len(free_slots) - 1, -1, -1) if free_slots[i] not in chosen_equations), None
            )
            if slot is None:  # Only equations that already contain the block are left.
                chosen_equations.append(
                    int(rng.choice(np.setdiff1d(np.arange(n_equations), chosen_equations)))
                )
            else:
                chosen_equations.append(free_slots.pop(slot))
        for equation in chosen_equations:
            members[equation].append(block)
    return [np.array(equation_members, dtype=np.int64) for equation_members in members]


def tune_staircase(
    n: int, k: int, n_trials: int, uses_inactivation: bool = False
) -> tuple[int, int, float, int, bool]:
    """Return the arguments of the mixture of degrees that needs the fewest arrivals on average."""
    mixtures = [(0.0, 8), *product(HIGHER_FRACTIONS[1:], HIGHER_DEGREES)]
    best_mixture = min(
        mixtures,
        key=lambda mixture: mean_arrivals(StaircaseCode(n, k, *mixture, uses_inactivation), n_trials),
    )
    return n, k, *best_mixture, uses_inactivation
