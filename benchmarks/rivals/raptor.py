"""A code like Raptor codes (Shokrollahi 2006; RFC 5053), over the reals.

Hidden blocks satisfy a few sparse and dense equations. A coded block is a sum, with random signs, of a few
hidden blocks; their number has the degree distribution of RFC 5053. The first k coded blocks are the data.
Encoding solves for the hidden blocks by inactivation, as decoding does.
"""

from __future__ import annotations

from math import ceil, comb

import numpy as np

from benchmarks.rivals.sparse import EquationGraph, GraphDecoder, SparseCode

# Degrees and their cumulative probabilities in units of 2^-20 (RFC 5053, 5.4.4.2).
DEGREES = (1, 2, 3, 4, 10, 11, 40)
DEGREE_PROBABILITIES = np.diff([0, 10241, 491582, 712794, 831695, 948446, 1032189, 1048576]) / (1 << 20)
# Seeds tried to find the smallest parity blocks, as the RFC chooses a systematic index for each k.
N_SEEDS = 20


class RaptorCode(SparseCode):
    """A systematic code of n coded blocks, the first k of them the data."""

    name = "Raptor"

    def __init__(self, n: int, k: int, seed: int = 0) -> None:
        self.n, self.k, self.seed = n, k, seed
        rng = np.random.default_rng(seed)
        n_sparse, n_dense = count_precode_equations(k)
        first_dense = k + n_sparse  # The first hidden block that a dense equation defines.
        n_hidden = first_dense + n_dense
        equations: list[list[int]] = [[k + i] for i in range(n_sparse)]
        for block in range(k):
            for i in rng.choice(n_sparse, min(3, n_sparse), replace=False):
                equations[i].append(block)
        dense_equations = [[first_dense + i] for i in range(n_dense)]
        for block in range(first_dense):
            for i in rng.choice(n_dense, (n_dense + 1) // 2, replace=False):
                dense_equations[i].append(block)
        degrees = np.minimum(rng.choice(DEGREES, n, p=DEGREE_PROBABILITIES), n_hidden)
        sum_equations = [
            np.append(rng.choice(n_hidden, degree, replace=False), n_hidden + i)
            for i, degree in enumerate(degrees)
        ]
        members = [*map(np.array, equations + dense_equations), *sum_equations]
        signs = [rng.choice([-1.0, 1.0], len(equation_members)) for equation_members in members]
        self.decoder = GraphDecoder(
            EquationGraph.from_equations(members, signs, n_hidden + n), n_hidden, uses_inactivation=True
        )
        self.coded_indices = np.arange(n_hidden, n_hidden + n)
        self.data_indices = self.coded_indices[:k]

    @property
    def is_systematic(self) -> bool:
        """Whether the data determine the hidden blocks."""
        return self._encoding.is_decodable


def count_precode_equations(k: int) -> tuple[int, int]:
    """Return the numbers of sparse and dense equations of the hidden blocks (RFC 5053, 5.4.2.3).

    >>> count_precode_equations(24), count_precode_equations(768)
    ((11, 7), (53, 12))
    """
    x = next(x for x in range(1, k + 2) if x * (x - 1) >= 2 * k)
    sparse = next(p for p in range(ceil(k / 100) + x, 10 * k + 20) if is_prime(p))
    return sparse, next(h for h in range(1, k + 2) if comb(h, ceil(h / 2)) >= k + sparse)


def is_prime(p: int) -> bool:
    return p > 1 and all(p % divisor for divisor in range(2, int(p**0.5) + 1))


def tune_raptor(n: int, k: int) -> tuple[int, int, int]:
    """Return the arguments of the code whose largest parity block is the smallest."""
    noise = np.random.default_rng(0).standard_normal((k, 64))
    codes = (code for seed in range(N_SEEDS) if (code := RaptorCode(n, k, seed)).is_systematic)
    best_code = min(codes, key=lambda code: float(np.linalg.norm(code.encode(noise), axis=1).max()))
    return n, k, best_code.seed
