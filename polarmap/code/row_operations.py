"""Sums of blocks as operations on the rows of a table, of integers modulo 2^bits of the sums.

An operation (target, source, factor) adds factor times row `source` to row `target`; with factor 0 it
fills `target` with zeros. The coefficients of an Arikan code are few and mostly 1 or -1, so that adding
takes less time than a product would, and native integers wrap as they should.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from polarmap.code import tiled
from polarmap.code.dtypes import Array, Indices, is_exact, working_dtype

Operations = npt.NDArray[np.int64]  # (count, 3)
Step = tuple[Indices, Indices, int]  # operations of one factor that do not depend on each other

PIECE_BYTES = 1 << 13  # of a row in a tile: of less, numpy takes longer to begin a sum than to add it up
WIDE = 1 << 10  # columns from which on blocks are worth it
COMPILED_FROM_BYTES = 1 << 28  # numba takes 0.6 s to load, and saves 0.3 s for each GB


def butterflies(shape: tuple[int, int], order: Indices, frozen: Indices) -> Operations:
    """Inverse(T), freeze, T, as `ArikanCode` takes them, without sums that are zero or not used.

    Rows of the table: the k data blocks, the leaves that are not sent, the parity blocks.

    >>> butterflies((2, 1), np.array([1, 0]), np.array([0])).tolist()
    [[1, 1, 0], [1, 0, 1]]
    """
    length, (data, parity) = shape[0] * shape[1], np.split(order, [len(order) - len(frozen)])
    unsent = np.arange(length - len(order))
    is_zero = np.ones(length, bool)
    is_zero[data] = False
    others = np.flatnonzero(is_zero)
    steps: list[Step] = [(others, others, 0)]
    halves = [shape[1] << level for level in range(shape[0].bit_length() - 1)]
    for sign in (-1, 1):
        for half in halves:
            upper, lower = np.arange(length).reshape(-1, 2, half).swapaxes(0, 1).reshape(2, -1)
            adds = ~is_zero[lower]
            steps.append((upper[adds], lower[adds], sign))
            is_zero[upper[adds]] = False
        if sign < 0:
            zeros = np.concatenate([frozen, unsent])
            steps.append((zeros, zeros, 0))
            is_zero[zeros] = True
    row = np.empty(length, np.int64)
    row[np.concatenate([data, unsent, parity])] = np.arange(length)
    operations = _used(steps, parity, length)
    operations[:, :2] = row[operations[:, :2]]
    return operations


def _used(steps: Sequence[Step], wanted: Indices, length: int) -> Operations:
    """The operations of `steps` that the rows `wanted` depend on."""
    is_used = np.zeros(length, bool)
    is_used[wanted] = True
    kept = []
    for target, source, factor in reversed(steps):
        used = is_used[target]
        kept.append(np.stack([target[used], source[used], np.full(used.sum(), factor)], axis=1))
        is_used[source[used]] = factor != 0
    return np.concatenate(kept[::-1])


def solution(coefficients: Array, inverse: Array) -> Operations:
    """The unknowns inverse (received - coefficients known), modulo 2^64.

    Rows of the table: the known blocks, as many received ones as there are unknowns, the unknowns.

    >>> solution(np.array([[0, 2]]), np.array([[1]], np.uint64)).tolist()
    [[2, 1, -2], [3, 3, 0], [3, 2, 1]]
    """
    count, known = coefficients.shape
    received = known + np.arange(count)
    unknown = received + count
    zeros = np.stack([unknown, unknown, np.zeros_like(unknown)], axis=1)
    syndrome = _product(-coefficients, received, np.arange(known))
    return np.concatenate([syndrome, zeros, _product(inverse.view(np.int64), unknown, received)])


def _product(matrix: Array, targets: Indices, sources: Indices) -> Operations:
    """Rows `targets` += matrix @ rows `sources`."""
    rows, columns = np.nonzero(matrix)
    return np.stack([targets[rows], sources[columns], matrix[rows, columns]], axis=1)


def run(operations: Operations, height: int, rows: tiled.Rows, out: Array) -> None:
    """Do `operations` on a table of `height` rows of which `rows` are the first and `out` the last."""
    # Integers in the signed dtype of their size, which wraps alike.
    working = np.dtype(f"i{out.itemsize}") if is_exact(out.dtype) else working_dtype(out.dtype)
    fast = tiled.loops_from(COMPILED_FROM_BYTES, rows)
    add = fast.add_rows if fast else add_rows
    step = max(tiled.TILE_BYTES // height, PIECE_BYTES) // working.itemsize // 64 * 64

    def work(columns: slice) -> None:
        table = np.empty((height, min(step, columns.stop - columns.start)), working)
        for start in range(columns.start, columns.stop, step):
            part = slice(start, min(columns.stop, start + step))
            tile = table[:, : part.stop - start]
            tiled.gather(rows, part, working, tile[: len(rows)])
            add(tile, operations)
            np.copyto(out[:, part], tile[height - len(out) :], casting="unsafe")

    tiled.over_cores(work, tiled.shares(out, step))


def add_rows(table: Array, operations: Operations) -> None:
    """Do `operations` on `table`, in place: the oracle of the compiled loops."""
    rows, spare = list(table), np.empty_like(table[0])
    factors = operations[:, 2].astype(table.dtype)  # wraps
    for target, source, factor in zip(*operations[:, :2].T.tolist(), factors.tolist()):
        if factor == 1:
            np.add(rows[target], rows[source], out=rows[target])
        elif factor == -1:
            np.subtract(rows[target], rows[source], out=rows[target])
        elif target == source:
            rows[target].fill(0)
        else:
            np.multiply(rows[source], factor, out=spare)
            np.add(rows[target], spare, out=rows[target])
