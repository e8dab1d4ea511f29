"""The loops over blocks compiled with numba (the `fast` extra); numpy is their oracle.

They read rows where they are, by address, so that blocks need not lie in one array; the other
loops are plain Python, and with NUMBA_DISABLE_JIT=1 the same source runs interpreted.
"""

# mypy: disable-error-code="misc, no-untyped-call, attr-defined, call-arg"
from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic

from polarmap.codes.dtypes import Floats, Indices

WIDTH = 128  # columns per tile: what a transform works on then stays in the second-level cache
WIDE = 1024  # columns per tile of a product, which works on few rows at a time


@intrinsic
def _pointer(typing_context: Any, address: Any) -> Any:
    """An integer as the address of a float64."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.float64)(types.int64), build


@numba.njit(nogil=True, cache=True)
def _piece(addresses: Indices, row: int, left: int, right: int) -> Floats:
    """Columns left..right of a row."""
    return numba.carray(_pointer(addresses[row] + 8 * left), (right - left,))


@numba.njit(nogil=True, cache=True, fastmath={"contract"}, boundscheck=False)
def _rotate(x: Floats, rotations: Floats) -> None:
    """The orthogonal butterfly along the first axis of a (size, WIDTH) tile, two stages a pass."""
    size = x.shape[0]
    stages = rotations.shape[0]
    stage = 0
    if stages % 2:
        for pair in range(size // 2):
            c, s = rotations[0, pair, 0], rotations[0, pair, 1]
            for w in range(WIDTH):
                a, b = x[2 * pair, w], x[2 * pair + 1, w]
                x[2 * pair, w] = a * c + b * s
                x[2 * pair + 1, w] = b * c - a * s
        stage = 1
    while stage < stages:
        half = 1 << stage
        first, second = rotations[stage], rotations[stage + 1]
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
def _load(rows: Indices, first: int, left: int, right: int, tile: Floats, total: Floats) -> None:
    """tile <- columns left..right of the rows from `first` on, then zeros; added to `total` as well."""
    for row in range(tile.shape[0]):
        target = tile[row]
        if first + row < rows.size:
            source = _piece(rows, first + row, left, right)
            for w in range(source.size):
                target[w] = source[w]
                total[w] += source[w]
        else:
            target[:] = 0.0


@numba.njit(nogil=True, cache=True, fastmath={"contract"}, boundscheck=False)
def rotation_parity(
    data: Indices,
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
    """Columns start..stop of `out` (r, width) from the rows at `data` (k), as kernels.rotation_parity."""
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
                # A slice: its indices count from zero, else there are no vector instructions.
                source, parity = tile[rows[written] - group * size], out[written, left:right]
                a, b = scale[written], shift[written]
                for w in range(parity.size):
                    parity[w] = source[w] * a + total[w] * b
                written += 1


@numba.njit(nogil=True, cache=True, fastmath={"contract"}, boundscheck=False)
def combined(rows: Indices, out: Floats, start: int, stop: int, weights: Floats) -> None:
    """Columns start..stop of out = weights @ rows; `weights` is padded with zeros to fours."""
    sums = np.empty((weights.shape[0], WIDE))
    last = rows.size - 1
    for left in range(start, stop, WIDE):
        right = min(left + WIDE, stop)
        sums[:] = 0.0
        for j in range(0, weights.shape[1], 4):
            x0, x1 = _piece(rows, j, left, right), _piece(rows, min(j + 1, last), left, right)
            x2, x3 = _piece(rows, min(j + 2, last), left, right), _piece(rows, min(j + 3, last), left, right)
            for i in range(0, weights.shape[0], 4):
                _add_four(sums[i : i + 4], weights[i : i + 4, j : j + 4], x0, x1, x2, x3)
        for i in range(out.shape[0]):
            target = out[i, left:right]
            for w in range(target.size):
                target[w] = sums[i, w]


@numba.njit(nogil=True, cache=True, fastmath={"contract"}, boundscheck=False)
def _add_four(sums: Floats, c: Floats, x0: Floats, x1: Floats, x2: Floats, x3: Floats) -> None:
    """sums += c @ [x0, x1, x2, x3], all in registers."""
    a0, a1, a2, a3 = c[0, 0], c[0, 1], c[0, 2], c[0, 3]
    b0, b1, b2, b3 = c[1, 0], c[1, 1], c[1, 2], c[1, 3]
    d0, d1, d2, d3 = c[2, 0], c[2, 1], c[2, 2], c[2, 3]
    e0, e1, e2, e3 = c[3, 0], c[3, 1], c[3, 2], c[3, 3]
    for w in range(x0.size):
        p, q, r, s = x0[w], x1[w], x2[w], x3[w]
        sums[0, w] += a0 * p + a1 * q + a2 * r + a3 * s
        sums[1, w] += b0 * p + b1 * q + b2 * r + b3 * s
        sums[2, w] += d0 * p + d1 * q + d2 * r + d3 * s
        sums[3, w] += e0 * p + e1 * q + e2 * r + e3 * s


@numba.njit(nogil=True, cache=True, boundscheck=False)
def add_rows(table: Any, operations: Indices) -> None:
    """Operations on the rows of `table`, as row_operations.add_rows, in pieces that stay in cache."""
    width = table.shape[1]
    for left in range(0, width, WIDE):
        right = min(left + WIDE, width)
        for index in range(operations.shape[0]):
            target = table[operations[index, 0], left:right]
            first = table[operations[index, 1], left:right]
            second = table[operations[index, 2], left:right]
            factor = operations[index, 3]
            if factor == 1:
                for w in range(target.size):
                    target[w] = first[w] + second[w]
            elif factor == -1:
                for w in range(target.size):
                    target[w] = first[w] - second[w]
            elif factor == 0:
                target[:] = first
            else:
                for w in range(target.size):
                    target[w] = first[w] + factor * second[w]
