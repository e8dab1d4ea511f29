"""The transforms across blocks, in numpy: the oracle of the compiled kernels.

Blocks are rows of a 2-D array; a transform works along the first axis and never looks along the
second, so any caller may cut the columns into tiles.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from polarmap.codes.design import Rotations
from polarmap.codes.dtypes import Array, Floats

FORMED_UP_TO = 64  # rows of a butterfly whose matrix is formed


def arikan(x: Array, *, inverse: bool = False, transposed: bool = False) -> Array:
    """x <- T x in place, T the butterfly of [[1, 1], [0, 1]]; exact (and wrapping) for integers.

    `inverse`: that of T, the same butterfly with differences. `transposed`: T', or its inverse.

    >>> sums = arikan(np.array([[1], [2], [3], [4]]))
    >>> sums.ravel().tolist(), arikan(sums, inverse=True).ravel().tolist()
    ([10, 6, 7, 4], [1, 2, 3, 4])
    """
    half, to, added = 1, int(transposed), np.subtract if inverse else np.add
    while half < len(x):
        pairs = x.reshape(len(x) // (2 * half), 2, half, x.shape[1])
        added(pairs[:, to], pairs[:, 1 - to], out=pairs[:, to])
        half *= 2
    return x


def arikan_sums(inputs: Floats, columns: Floats) -> Floats:
    """Sums of absolute coefficients of T diag(inputs) inverse(T), row by row, of some columns.

    By halves it is [[M(d0), M(d1 - d0)], [0, M(d1)]], diagonal where d is all the same; of polarized inputs
    most halves are like others.

    >>> arikan_sums(np.array([[0.0], [1], [1], [2]]), np.ones((4, 1))).ravel().tolist()
    [2.0, 2.0, 2.0, 2.0]
    """
    size = min(len(inputs), FORMED_UP_TO)
    forth, back = arikan(np.eye(size)), arikan(np.eye(size), inverse=True)
    found: dict[bytes, Floats] = {}

    def sums(given: Floats, among: Floats) -> Floats:
        if (given == given[0]).all():
            return np.abs(given) * among
        key = given.tobytes() + among.tobytes()
        if key not in found and len(given) == size:
            found[key] = np.abs((forth * given) @ back) @ among
        elif key not in found:
            (minus, plus), (left, right) = np.split(given, 2), np.split(among, 2)
            found[key] = np.concatenate([sums(minus, left) + sums(plus - minus, right), sums(plus, right)])
        return found[key]

    return np.stack([sums(*pair) for pair in zip(inputs.T, columns.T, strict=True)], axis=1)


def butterfly(x: Array, matrices: Sequence[Floats]) -> Array:
    """Products with the small matrices of `design.turn_matrices` across x, one after another: a new array."""
    for one in matrices:
        blocks, half, rows, columns = one.shape
        made = np.empty((blocks, rows, half, x.shape[1]), x.dtype)
        given = x.reshape(blocks, columns, half, x.shape[1]).swapaxes(1, 2)
        np.matmul(one.astype(x.dtype, copy=False), given, out=made.swapaxes(1, 2))
        x = made.reshape(blocks * rows * half, x.shape[1])
    return x


def rotation_parity(data: Array, plan: Rotations) -> Array:
    """The r parity rows of k data rows (any real floating dtype), as `Rotations` describes."""
    padded = np.zeros((len(plan.inward) * plan.size, data.shape[1]), data.dtype)
    padded[: len(data)] = data
    added = butterfly(padded, plan.inward_matrices)
    parity = butterfly(added[plan.shuffles.reshape(-1)], plan.outward_matrices)[plan.rows]
    parity *= plan.scale[:, None].astype(data.dtype)
    parity += plan.shift[:, None].astype(data.dtype) * data.sum(axis=0)
    return parity


def rotation_parity_transposed(parity: Array, plan: Rotations, k: int) -> Array:
    """P' of r rows, (k, width): the steps of `rotation_parity` transposed, the last first."""
    width = parity.shape[1]
    stacked = np.zeros((plan.shuffles.size, width), parity.dtype)
    stacked[plan.rows] = plan.scale[:, None] * parity
    groups = butterfly(stacked, _transposed(plan.outward_matrices)).reshape(-1, plan.size, width)
    added = np.zeros((plan.size, width), parity.dtype)
    for group, shuffle in zip(groups, plan.shuffles, strict=True):
        added[shuffle] += group
    data = butterfly(added, _transposed(plan.inward_matrices))[:k]
    return np.asarray(data + plan.shift @ parity)


def _transposed(matrices: Sequence[Floats]) -> list[Floats]:
    return [one.swapaxes(2, 3) for one in reversed(matrices)]
