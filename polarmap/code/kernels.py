"""The transforms across blocks, in numpy: the oracle of the compiled kernels.

Blocks are rows of a 2-D array; a transform works along the first axis and never looks along the
second, so any caller may cut the columns into tiles.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from polarmap.code.design import Floats, Rotations

Array = npt.NDArray[Any]


def arikan(x: Array) -> Array:
    """x <- T x in place, T the butterfly of [[1, 1], [0, 1]]; exact (and wrapping) for integers.

    >>> arikan(np.array([[1], [2], [3], [4]])).ravel().tolist()
    [10, 6, 7, 4]
    """
    half = 1
    while half < len(x):
        pairs = x.reshape(-1, 2, half, x.shape[1])
        pairs[:, 0] += pairs[:, 1]
        half *= 2
    return x


def arikan_inverse(x: Array) -> Array:
    """x <- inverse(T) x in place: the same butterfly with differences.

    >>> arikan_inverse(np.array([[10], [6], [7], [4]])).ravel().tolist()
    [1, 2, 3, 4]
    """
    half = 1
    while half < len(x):
        pairs = x.reshape(-1, 2, half, x.shape[1])
        pairs[:, 0] -= pairs[:, 1]
        half *= 2
    return x


def rotate(x: Array, rotations: Floats) -> Array:
    """x <- the orthogonal butterfly of x in place; `rotations` (stages, len(x) / 2, 2): cos, sin."""
    for stage, rotation in enumerate(rotations):
        half = 1 << stage
        pairs = x.reshape(-1, 2, half, x.shape[1])
        cosine, sine = rotation.reshape(-1, half, 2, 1).swapaxes(1, 2).swapaxes(0, 1).astype(x.dtype)
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
