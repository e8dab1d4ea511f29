"""Rotation codes whose parity rows sum to one, with the angles that lose fewest digits.

P = diag(scale) R + shift 1' for the rows R of orthogonal butterflies: 1 is in the code, so that
constants survive decoding, and f may be affine.
"""

from __future__ import annotations

from functools import lru_cache
from math import inf

import numpy as np

from polarmap.code import kernels, tiled
from polarmap.code.design import Rotations, rotations, subsets
from polarmap.code.dtypes import Floats, Indices
from polarmap.code.recovery import is_formed, worst_amplification

# Seeds tried for codes of up to 64 blocks, and the most arrival patterns each is tried on.
SEEDS, PATTERNS = 8, 64


def normalized(plan: Rotations, k: int) -> Rotations:
    """`plan` with scale and shift such that every row of P sums to one.

    The mean of each row is removed first; the rest is scaled to unit norm, so that all parity
    blocks carry the same weight. With k = 2 the rest has one direction only and its length is
    what tells the parity blocks apart: there it stays as it is. Where P is not formed, to unit norm on
    average: a group of orthogonal butterflies gives each row k / size.
    """
    if not is_formed(k + len(plan.rows), k):
        mean = kernels.rotation_parity(np.ones((k, 1)), plan)[:, 0] / k
        scale = 1 / np.sqrt(k / plan.size - k * mean**2)
    else:
        raw = rotation_coefficients(plan, k)
        mean = raw.mean(axis=1)
        scale = 1 / np.linalg.norm(raw - mean[:, None], axis=1) if k > 2 else np.ones(len(raw))
    return plan._replace(scale=scale, shift=1 / k - scale * mean)


def rotation_coefficients(plan: Rotations, k: int, data: Indices | None = None) -> Floats:
    """P, or its columns of some `data` blocks, by transforming the identity tile by tile."""
    chosen = np.arange(k) if data is None else data
    coefficients = np.empty((len(plan.rows), len(chosen)))

    def work(columns: slice) -> None:
        identity = np.zeros((k, columns.stop - columns.start))
        identity[chosen[columns], np.arange(identity.shape[1])] = 1.0
        coefficients[:, columns] = kernels.rotation_parity(identity, plan)

    tiled.over_cores(work, list(tiled.tiles(len(chosen), 3 * plan.size, 8)))
    return coefficients


def transposed_coefficients(plan: Rotations, k: int, combinations: Floats) -> Floats:
    """combinations @ P, (rows, k), of which P is never formed."""
    mixed = np.empty((len(combinations), k))

    def work(rows: slice) -> None:
        parity = np.ascontiguousarray(combinations[rows].T)
        mixed[rows] = kernels.rotation_parity_transposed(parity, plan, k).T

    tiled.over_cores(work, list(tiled.tiles(len(combinations), 3 * plan.size, 8)))
    return mixed


@lru_cache(maxsize=256)
def best_seed(n: int, k: int) -> int:
    """The seed with the smallest worst amplification over patterns of exactly k arrivals."""
    patterns = subsets(n, k, PATTERNS)
    best, least = 0, inf
    for seed in range(SEEDS):
        coefficients = rotation_coefficients(normalized(rotations(n, k, seed), k), k)
        worst = 0.0
        for arrived in patterns:
            worst = max(worst, worst_amplification(coefficients, arrived))
            if worst >= least:  # no better than one before, whatever the other patterns give
                break
        else:
            best, least = seed, worst
    return best
