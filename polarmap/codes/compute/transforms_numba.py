"""Loops over blocks that are compiled with Numba (the `fast` extra), with the same results as NumPy.

`block_matmul` and `row_program` load this module for large blocks. Some loops read rows by their memory
addresses, so that the blocks need not be copied into one array. With NUMBA_DISABLE_JIT=1, the same source is
interpreted by Python.
"""

# mypy: disable-error-code="misc, no-untyped-call, attr-defined, call-arg"
from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic

from polarmap.dtypes import Floats, Indices

# A butterfly is applied to this many columns at a time. For a butterfly of 256 rows, the two temporary arrays
# (tiles) that it needs take 1 MiB.
TILE_COLUMNS = 256
# A matrix product is computed for this many columns at a time. It reads only four rows of them at once, so it
# can use more columns than a butterfly.
PRODUCT_TILE_COLUMNS = 1024


@intrinsic
def _float64_pointer(typing_context: Any, address: Any) -> Any:
    """Convert an integer address to a float64 pointer."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.float64)(types.int64), build


@numba.njit(nogil=True, cache=True)
def _row_view(addresses: Indices, row: int, start: int, stop: int) -> Floats:
    """Return a view of the columns start..stop-1 of the row at memory address `addresses[row]`."""
    return numba.carray(_float64_pointer(addresses[row] + 8 * start), (stop - start,))


@numba.njit(nogil=True, cache=True, fastmath={"contract"}, boundscheck=False)
def _apply_rotations(x: Floats, rotations: Floats) -> None:
    """Apply a rotation butterfly to the rows of a tile in place, shape (size, TILE_COLUMNS).

    Each pass applies two stages, which halves the number of memory accesses.
    """
    size = x.shape[0]
    stages = rotations.shape[0]
    stage = 0
    if stages % 2:
        for pair in range(size // 2):
            c, s = rotations[0, pair, 0], rotations[0, pair, 1]
            for w in range(TILE_COLUMNS):
                a, b = x[2 * pair, w], x[2 * pair + 1, w]
                x[2 * pair, w] = a * c + b * s
                x[2 * pair + 1, w] = b * c - a * s
        stage = 1
    while stage < stages:
        half = 1 << stage
        first_stage, second_stage = rotations[stage], rotations[stage + 1]
        for base in range(0, size, 4 * half):
            for offset in range(half):
                i = base + offset
                j, k, m = i + half, i + 2 * half, i + 3 * half
                p, q = base // 2 + offset, base // 2 + half + offset
                c0, s0 = first_stage[p, 0], first_stage[p, 1]
                c1, s1 = first_stage[q, 0], first_stage[q, 1]
                c2, s2 = second_stage[p, 0], second_stage[p, 1]
                c3, s3 = second_stage[q, 0], second_stage[q, 1]
                for w in range(TILE_COLUMNS):
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
def _load_tile(
    row_addresses: Indices, first_row: int, start: int, stop: int, tile: Floats, column_sums: Floats
) -> None:
    """Copy the columns start..stop-1 of the rows starting at `first_row` into `tile`, and sum them.

    The sums are added to `column_sums`. If fewer rows are left than the tile has, its remaining rows are set
    to zero.
    """
    for row in range(tile.shape[0]):
        target = tile[row]
        if first_row + row < row_addresses.size:
            source = _row_view(row_addresses, first_row + row, start, stop)
            for w in range(source.size):
                target[w] = source[w]
                column_sums[w] += source[w]
        else:
            target[:] = 0.0


@numba.njit(nogil=True, cache=True, fastmath={"contract"}, boundscheck=False)
def encode_rotation_parity(
    row_addresses: Indices,
    out: Floats,
    start: int,
    stop: int,
    input_rotations: Floats,
    output_rotations: Floats,
    permutations: Indices,
    kept_rows: Indices,
    scale: Floats,
    shift: Floats,
) -> None:
    """Compute the columns start..stop-1 of the parity blocks, as `transforms.encode_rotation_parity` does.

    Parameters
    ----------
    row_addresses : int64 array (k,)
        Memory addresses of contiguous float64 data blocks.
    out : float64 array (parity blocks, b)
        Array to write the parity to.
    start, stop : int
        Range of columns.
    input_rotations, output_rotations, permutations, kept_rows, scale, shift : array
        Fields of `RotationButterflyNetwork`.
    """
    size = permutations.shape[1]
    tile = np.zeros((size, TILE_COLUMNS))
    group_sum = np.zeros((size, TILE_COLUMNS))
    column_sums = np.empty(TILE_COLUMNS)
    for tile_start in range(start, stop, TILE_COLUMNS):
        tile_stop = min(tile_start + TILE_COLUMNS, stop)
        column_sums[:] = 0.0
        for group in range(input_rotations.shape[0]):
            target = tile if group else group_sum
            _load_tile(row_addresses, group * size, tile_start, tile_stop, target, column_sums)
            _apply_rotations(target, input_rotations[group])
            if group:
                group_sum += tile
        n_written = 0
        for group in range(output_rotations.shape[0]):
            for row in range(size):
                tile[row] = group_sum[permutations[group, row]]
            _apply_rotations(tile, output_rotations[group])
            while n_written < kept_rows.shape[0] and kept_rows[n_written] < (group + 1) * size:
                # The loop below writes to a slice of `out`, because the compiler only vectorizes loops whose
                # index starts at zero.
                source = tile[kept_rows[n_written] - group * size]
                parity = out[n_written, tile_start:tile_stop]
                a, b = scale[n_written], shift[n_written]
                for w in range(parity.size):
                    parity[w] = source[w] * a + column_sums[w] * b
                n_written += 1


@numba.njit(nogil=True, cache=True, fastmath={"contract"}, boundscheck=False)
def combine_rows(row_addresses: Indices, out: Floats, start: int, stop: int, weights: Floats) -> None:
    """Compute the columns start..stop-1 of weights @ rows and write them to `out`.

    Both dimensions of `weights` must be padded with zeros to multiples of four.
    """
    sums = np.empty((weights.shape[0], PRODUCT_TILE_COLUMNS))
    last_row = row_addresses.size - 1
    for tile_start in range(start, stop, PRODUCT_TILE_COLUMNS):
        tile_stop = min(tile_start + PRODUCT_TILE_COLUMNS, stop)
        sums[:] = 0.0
        for j in range(0, weights.shape[1], 4):
            x0 = _row_view(row_addresses, j, tile_start, tile_stop)
            x1 = _row_view(row_addresses, min(j + 1, last_row), tile_start, tile_stop)
            x2 = _row_view(row_addresses, min(j + 2, last_row), tile_start, tile_stop)
            x3 = _row_view(row_addresses, min(j + 3, last_row), tile_start, tile_stop)
            for i in range(0, weights.shape[0], 4):
                _accumulate_four_rows(sums[i : i + 4], weights[i : i + 4, j : j + 4], x0, x1, x2, x3)
        for i in range(out.shape[0]):
            target = out[i, tile_start:tile_stop]
            for w in range(target.size):
                target[w] = sums[i, w]


@numba.njit(nogil=True, cache=True, fastmath={"contract"}, boundscheck=False)
def _accumulate_four_rows(
    sums: Floats, coefficients: Floats, x0: Floats, x1: Floats, x2: Floats, x3: Floats
) -> None:
    """Add coefficients @ [x0, x1, x2, x3] to `sums`, keeping all coefficients in registers."""
    a0, a1, a2, a3 = coefficients[0, 0], coefficients[0, 1], coefficients[0, 2], coefficients[0, 3]
    b0, b1, b2, b3 = coefficients[1, 0], coefficients[1, 1], coefficients[1, 2], coefficients[1, 3]
    d0, d1, d2, d3 = coefficients[2, 0], coefficients[2, 1], coefficients[2, 2], coefficients[2, 3]
    e0, e1, e2, e3 = coefficients[3, 0], coefficients[3, 1], coefficients[3, 2], coefficients[3, 3]
    for w in range(x0.size):
        p, q, r, s = x0[w], x1[w], x2[w], x3[w]
        sums[0, w] += a0 * p + a1 * q + a2 * r + a3 * s
        sums[1, w] += b0 * p + b1 * q + b2 * r + b3 * s
        sums[2, w] += d0 * p + d1 * q + d2 * r + d3 * s
        sums[3, w] += e0 * p + e1 * q + e2 * r + e3 * s


@numba.njit(nogil=True, cache=True, boundscheck=False)
def execute_row_operations(table: Any, operations: Indices) -> None:
    """Execute row operations on `table` in place, as `row_program.execute_row_operations` does."""
    width = table.shape[1]
    for tile_start in range(0, width, PRODUCT_TILE_COLUMNS):
        tile_stop = min(tile_start + PRODUCT_TILE_COLUMNS, width)
        for operation_index in range(operations.shape[0]):
            target = table[operations[operation_index, 0], tile_start:tile_stop]
            source = table[operations[operation_index, 1], tile_start:tile_stop]
            addend = table[operations[operation_index, 2], tile_start:tile_stop]
            factor = operations[operation_index, 3]
            if factor == 1:
                for w in range(target.size):
                    target[w] = source[w] + addend[w]
            elif factor == -1:
                for w in range(target.size):
                    target[w] = source[w] - addend[w]
            elif factor == 0:
                target[:] = source
            else:
                for w in range(target.size):
                    target[w] = source[w] + factor * addend[w]
