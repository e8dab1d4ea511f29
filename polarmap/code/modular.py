"""Linear algebra over the integers modulo 2^64, where exactly the odd numbers divide.

A square integer matrix is invertible modulo 2^64 iff it is invertible modulo 2, so every rank
question here is one over GF(2), answered with rows packed into Python integers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Words = npt.NDArray[np.uint64]

EXACT = 1 << 53  # up to here float64 holds every integer
_LIMB = 16  # bits; products of limbs summed over up to 2^20 terms stay exact in float64


def independent_rows(matrix: Array) -> list[int]:
    """Indices of a maximal set of rows independent modulo 2, earliest rows first.

    >>> independent_rows(np.array([[1, 0], [1, 2], [0, 3]]))
    [0, 2]
    """
    basis: dict[int, int] = {}  # leading bit -> row
    chosen = []
    for index, row in enumerate(_pack(matrix)):
        while row:
            lead = row.bit_length()
            if lead not in basis:
                basis[lead] = row
                chosen.append(index)
                break
            row ^= basis[lead]
        if len(chosen) == matrix.shape[1]:
            break
    return chosen


def inverse(matrix: Array) -> Words:
    """The inverse modulo 2^64 of a square matrix that is invertible modulo 2 (Hensel lifting).

    >>> inverse(np.array([[3]])) * np.uint64(3)
    array([[1]], dtype=uint64)
    """
    size = len(matrix)
    lifted = _inverse_gf2(matrix)
    words = matrix.astype(np.int64).view(np.uint64)
    twice = 2 * np.eye(size, dtype=np.uint64)
    bits = 1
    while bits < 64:  # X <- X (2 I - A X) doubles the number of correct bits
        bits *= 2
        mask = np.uint64((1 << bits) - 1)
        lifted = matmul(lifted, (twice - matmul(words & mask, lifted)) & mask) & mask
    return lifted


def determined(matrix: Array) -> tuple[list[int], list[int], Words]:
    """Which unknowns x of matrix @ x = s are determined modulo 2^64, though others may not be.

    Returns rows, columns and W with x[columns] = W @ s[rows].

    >>> rows, columns, W = determined(np.array([[1, 0, 0], [0, 1, 1]]))
    >>> rows, columns, W.tolist()
    ([0, 1], [0], [[1, 0]])
    """
    rows = independent_rows(matrix)
    columns = independent_rows(matrix[rows].T)
    solver = inverse(matrix[rows][:, columns])
    others = np.setdiff1d(np.arange(matrix.shape[1]), columns)
    alone = np.flatnonzero(~matmul(solver, matrix[rows][:, others]).any(axis=1))
    return rows, [columns[place] for place in alone], solver[alone]


def matmul(left: Array, right: Array) -> Words:
    """left @ right modulo 2^64, through exact float64 products of 16-bit limbs (BLAS).

    >>> matmul(np.array([[-1, 2]]), np.array([[2**63], [5]], np.uint64)) == 2**63 + 10
    array([[ True]])
    """
    left, right = _signed(left), _signed(right)
    if _largest(left) * _largest(right) * right.shape[0] < EXACT:
        return (left.astype(np.float64) @ right).astype(np.int64).view(np.uint64)
    result = np.zeros((len(left), right.shape[1]), np.uint64)
    right_limbs = _limbs(right)
    for shift_left, limb_left in _limbs(left):
        for shift_right, limb_right in right_limbs:
            if shift_left + shift_right < 64:
                product = (limb_left @ limb_right).astype(np.int64).view(np.uint64)
                result += product << np.uint64(shift_left + shift_right)
    return result


def _signed(matrix: Array) -> npt.NDArray[np.int64]:
    return matrix.view(np.int64) if matrix.dtype == np.uint64 else matrix.astype(np.int64, copy=False)


def _largest(matrix: npt.NDArray[np.int64]) -> int:
    return max(int(matrix.max()), -int(matrix.min())) if matrix.size else 0


def _limbs(matrix: npt.NDArray[np.int64]) -> list[tuple[int, npt.NDArray[np.float64]]]:
    """(shift, limb) pairs with matrix = sum of limb << shift; small entries need one limb only."""
    signed = matrix
    limbs = []
    for shift in range(0, 64, _LIMB):
        if not signed.any():
            break
        low = (signed << (64 - _LIMB)) >> (64 - _LIMB)  # the signed low limb
        limbs.append((shift, low.astype(np.float64)))
        signed = (signed - low) >> _LIMB  # wraps only where the next limb is the last
    return limbs


def _inverse_gf2(matrix: Array) -> Words:
    """The inverse modulo 2, by Gauss-Jordan on packed rows [A | I]."""
    size = len(matrix)
    rows = [row | 1 << (size + index) for index, row in enumerate(_pack(matrix))]
    for column in range(size):
        bit = 1 << column
        pivot = next(index for index in range(column, size) if rows[index] & bit)
        rows[column], rows[pivot] = rows[pivot], rows[column]
        lead = rows[column]
        rows = [row ^ lead if row & bit and index != column else row for index, row in enumerate(rows)]
    width = -(-size // 8)
    packed = b"".join((row >> size).to_bytes(width, "little") for row in rows)
    bits = np.unpackbits(np.frombuffer(packed, np.uint8).reshape(size, width), axis=1, bitorder="little")
    return bits[:, :size].astype(np.uint64)


def _pack(matrix: Array) -> list[int]:
    """Each row modulo 2 as a Python integer, column 0 in the lowest bit."""
    bits = np.packbits((matrix & 1).astype(np.uint8), axis=1, bitorder="little")
    return [int.from_bytes(row.tobytes(), "little") for row in bits]
