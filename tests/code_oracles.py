"""Slow reference implementations of fast algorithms, written from the definitions without shared code."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from polarmap.codes.polar import PolarCode

Array = npt.NDArray[Any]


def power_of_two(n: int) -> int:
    length = 1
    while length < n:
        length *= 2
    return length


def patterns(n: int) -> Iterator[Array]:
    """Yield all 2^n arrival patterns."""
    for bits in product((False, True), repeat=n):
        yield np.array(bits)


def real_rank_decodable(check: Array, arrived: Array) -> bool:
    """Return whether C x = 0 determines the lost coordinates over the reals."""
    lost = check[:, ~arrived].astype(float)
    return lost.shape[1] == 0 or np.linalg.matrix_rank(lost, tol=1e-8) == lost.shape[1]


def least_squares(check: Array, arrived: Array, coded: Array) -> Array:
    """Return the data rows, by solving C[:, lost] x_lost = -C[:, arrived] x_arrived."""
    whole = coded.astype(float)
    right = -check[:, arrived] @ whole[arrived]
    whole[~arrived] = np.linalg.lstsq(check[:, ~arrived].astype(float), right, rcond=None)[0]
    return whole[: check.shape[1] - check.shape[0]]


def gf2_decodable(check: Array, arrived: Array) -> bool:
    """Return whether C x = 0 determines the lost coordinates modulo 2, by elimination on a 0/1 array."""
    rows = check[:, ~arrived] % 2 != 0
    for step in range(rows.shape[1]):
        pivots = step + np.flatnonzero(rows[step:, step])
        if not len(pivots):
            return False
        rows[[step, pivots[0]]] = rows[[pivots[0], step]]
        for below in range(step + 1, len(rows)):
            if rows[below, step]:
                rows[below] ^= rows[step]
    return True


def polar_check(code: PolarCode) -> Array:
    """Return the frozen rows of the inverse of the Kronecker power of [[1, 1], [0, 1]], at the sent leaves.

    A code with fewer levels than all has that many factors, times the identity.
    """
    inverse = np.eye(math.ceil(code.n / 2**code.levels), dtype=int)
    for _ in range(code.levels):
        inverse = np.kron(np.array([[1, -1], [0, 1]]), inverse)
    return inverse[np.ix_(code.frozen_set, code.codeword_positions)]


def genie_determined(known: list[bool]) -> list[bool]:
    """Return which inputs a genie-aided sequential decoder determines: the paper's recursion on bits."""
    if len(known) == 1:
        return list(known)
    half = len(known) // 2
    pairs = list(zip(known[:half], known[half:], strict=True))
    minus = [a and b for a, b in pairs]
    plus = [a or b for a, b in pairs]
    return genie_determined(minus) + genie_determined(plus)


def sequential_decodable(code: PolarCode, arrived: Array) -> bool:
    """Return whether the genie determines every input that carries data, butterfly by butterfly."""
    count = math.ceil(code.n / 2**code.levels)
    length = count * 2**code.levels
    known = [False] * length
    for index in np.flatnonzero(arrived):
        known[code.codeword_positions[index]] = True
    determined = [False] * length
    for butterfly in range(count):
        determined[butterfly::count] = genie_determined(known[butterfly::count])
    must = set(range(length - code.n, length)) - {int(i) for i in code.frozen_set}
    return all(determined[i] for i in must)


def dense_butterfly(turns: Array) -> Array:
    """Return the matrix of an orthogonal butterfly, built from one 2 x 2 rotation at a time."""
    stages, size = len(turns), 2 * turns.shape[1]
    matrix = np.eye(size)
    for stage in range(stages):
        step, pair = np.eye(size), 0
        for low in range(size):
            high = low | 1 << stage
            if high != low:  # Node `pair` of the stage couples rows `low` and `high`.
                cosine, sine = turns[stage, pair]
                step[low, low] = step[high, high] = cosine
                step[low, high], step[high, low] = sine, -sine
                pair += 1
        matrix = step @ matrix
    return matrix
