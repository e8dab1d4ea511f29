"""The folded butterfly compiled with numba (the `fast` extra); butterfly.folded is its oracle.

The loops are plain Python: with NUMBA_DISABLE_JIT=1 the same source runs interpreted.
"""

# mypy: disable-error-code="misc"
from __future__ import annotations

import numba
import numpy as np

from polarmap.code.design import Floats, Indices

WIDTH = 128  # columns per tile: what a transform works on then stays in the second-level cache


@numba.njit(nogil=True, cache=True, fastmath={"contract"}, boundscheck=False)
def _rotate(x: Floats, turns: Floats) -> None:
    """The orthogonal butterfly along the first axis of a (size, WIDTH) tile, two stages a pass."""
    size = x.shape[0]
    stages = turns.shape[0]
    stage = 0
    if stages % 2:
        for pair in range(size // 2):
            c, s = turns[0, pair, 0], turns[0, pair, 1]
            for w in range(WIDTH):
                a, b = x[2 * pair, w], x[2 * pair + 1, w]
                x[2 * pair, w] = a * c + b * s
                x[2 * pair + 1, w] = b * c - a * s
        stage = 1
    while stage < stages:
        half = 1 << stage
        first, second = turns[stage], turns[stage + 1]
        for base in range(0, size, 4 * half):
            for offset in range(half):
                i = base + offset
                j, k, m = i + half, i + 2 * half, i + 3 * half
                p, q = base // 2 + offset, base // 2 + half + offset
                c0, s0 = first[p, 0], first[p, 1]
                c1, s1 = first[q, 0], first[q, 1]
                c2, s2 = second[p, 0], second[p, 1]
                c3, s3 = second[q, 0], second[q, 1]
                for w in range(WIDTH):
                    a, b, c, d = x[i, w], x[j, w], x[k, w], x[m, w]
                    e = a * c0 + b * s0
                    f = b * c0 - a * s0
                    g = c * c1 + d * s1
                    h = d * c1 - c * s1
                    x[i, w] = e * c2 + g * s2
                    x[k, w] = g * c2 - e * s2
                    x[j, w] = f * c3 + h * s3
                    x[m, w] = h * c3 - f * s3
        stage += 2


@numba.njit(nogil=True, cache=True, fastmath={"contract"}, boundscheck=False)
def _load(data: Floats, first: int, left: int, right: int, tile: Floats, total: Floats) -> None:
    """tile <- columns left..right of rows first.. of `data`, then zeros; added to `total` as well."""
    for row in range(tile.shape[0]):
        target = tile[row]
        if first + row < data.shape[0]:
            # As a slice, for its indices count from zero: else no vector instructions.
            source = data[first + row, left:right]
            for w in range(source.size):
                target[w] = source[w]
                total[w] += source[w]
        else:
            target[:] = 0.0


@numba.njit(nogil=True, cache=True, fastmath={"contract"}, boundscheck=False)
def folded(
    data: Floats,
    out: Floats,
    start: int,
    stop: int,
    inward: Floats,
    outward: Floats,
    shuffles: Indices,
    rows: Indices,
    scale: Floats,
    shift: Floats,
) -> None:
    """Columns start..stop of `out` (r, width) from `data` (k, width), as butterfly.folded."""
    size = shuffles.shape[1]
    tile = np.zeros((size, WIDTH))
    added = np.zeros((size, WIDTH))
    total = np.empty(WIDTH)
    for left in range(start, stop, WIDTH):
        right = min(left + WIDTH, stop)
        total[:] = 0.0
        for group in range(inward.shape[0]):
            target = tile if group else added
            _load(data, group * size, left, right, target, total)
            _rotate(target, inward[group])
            if group:
                added += tile
        written = 0
        for group in range(outward.shape[0]):
            for row in range(size):
                tile[row] = added[shuffles[group, row]]
            _rotate(tile, outward[group])
            while written < rows.shape[0] and rows[written] < (group + 1) * size:
                source, parity = tile[rows[written] - group * size], out[written, left:right]
                a, b = scale[written], shift[written]
                for w in range(parity.size):
                    parity[w] = source[w] * a + total[w] * b
                written += 1
