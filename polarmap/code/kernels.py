"""The transforms across blocks, in numpy: the oracle of the compiled kernels.

Blocks are rows of a 2-D array; a transform works along the first axis and never looks along the
second, so any caller may cut the columns into tiles.
"""

from __future__ import annotations

import numpy as np

from polarmap.code.design import Rotations
from polarmap.code.dtypes import Array, Floats


def arikan(x: Array, *, inverse: bool = False, transposed: bool = False) -> Array:
    """x <- T x in place, T the butterfly of [[1, 1], [0, 1]]; exact (and wrapping) for integers.

    `inverse`: that of T, the same butterfly with differences. `transposed`: T', or its inverse.

    >>> sums = arikan(np.array([[1], [2], [3], [4]]))
    >>> sums.ravel().tolist(), arikan(sums, inverse=True).ravel().tolist()
    ([10, 6, 7, 4], [1, 2, 3, 4])
    """
    half, to, added = 1, int(transposed), np.subtract if inverse else np.add
    while half < len(x):
        pairs = x.reshape(-1, 2, half, x.shape[1])
        added(pairs[:, to], pairs[:, 1 - to], out=pairs[:, to])
        half *= 2
    return x


def rotate(x: Array, rotations: Floats, transposed: bool = False) -> Array:
    """x <- the orthogonal butterfly of x in place; `rotations` (stages, len(x) / 2, 2): cos, sin.

    `transposed`: its transpose, which is its inverse: the angles turned back, the last first.
    """
    stages = list(enumerate(rotations))
    for stage, rotation in reversed(stages) if transposed else stages:
        half = 1 << stage
        pairs = x.reshape(-1, 2, half, x.shape[1])
        cosine, sine = rotation.reshape(-1, half, 2, 1).swapaxes(1, 2).swapaxes(0, 1).astype(x.dtype)
        if transposed:
            sine = -sine
        upper = pairs[:, 0] * cosine + pairs[:, 1] * sine
        pairs[:, 1] *= cosine
        pairs[:, 1] -= pairs[:, 0] * sine
        pairs[:, 0] = upper
    return x


def rotation_parity(data: Array, plan: Rotations) -> Array:
    """The r parity rows of k data rows (any real floating dtype), as `Rotations` describes."""
    width = data.shape[1]
    added = np.zeros((plan.size, width), data.dtype)
    for group, rotations in enumerate(plan.inward):
        rows = data[group * plan.size : (group + 1) * plan.size]
        padded = np.zeros((plan.size, width), data.dtype)
        padded[: len(rows)] = rows
        added += rotate(padded, rotations)
    pairs = zip(plan.shuffles, plan.outward, strict=True)
    stacked = [rotate(added[shuffle], rotations) for shuffle, rotations in pairs]
    chosen = np.concatenate(stacked)[plan.rows]
    chosen *= plan.scale[:, None].astype(data.dtype)
    chosen += plan.shift[:, None].astype(data.dtype) * data.sum(axis=0)
    return chosen


def rotation_parity_transposed(parity: Array, plan: Rotations, k: int) -> Array:
    """P' of r rows, (k, width): the steps of `rotation_parity` transposed, the last first."""
    width, size = parity.shape[1], plan.size
    stacked = np.zeros((len(plan.outward) * size, width), parity.dtype)
    stacked[plan.rows] = plan.scale[:, None] * parity
    added = np.zeros((size, width), parity.dtype)
    groups = stacked.reshape(-1, size, width)
    for group, shuffle, rotations in zip(groups, plan.shuffles, plan.outward, strict=True):
        added[shuffle] += rotate(group, rotations, transposed=True)
    data = np.concatenate([rotate(added.copy(), turns, transposed=True) for turns in plan.inward])[:k]
    return np.asarray(data + plan.shift @ parity)
