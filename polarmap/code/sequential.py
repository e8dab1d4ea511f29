"""The sequential (successive cancellation) decoder of the Arikan butterfly, for erasures.

Bits first: which workers arrived decides what can be decoded and by which additions; the blocks
are touched only when a schedule is replayed on them (arXiv 1901.06811, section 3).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from polarmap.code.design import Indices

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]


class Progress:
    """Which inputs are determined, kept up to date in O(log N) per arrival.

    An arrival changes one node on every level: in a pair (a, b), minus (a - b) becomes known when
    the second of the two arrives, plus (either, given minus) when the first does.
    """

    def __init__(self, frozen: Mask) -> None:
        self._frozen = frozen
        levels = len(frozen).bit_length() - 1
        self._known = np.zeros((levels, len(frozen)), dtype=bool)
        self._waiting = int(len(frozen) - frozen.sum())

    def arrive(self, leaf: int) -> bool:
        """Note that `leaf` is known; True when every unfrozen input is."""
        half = len(self._frozen) // 2
        for known in self._known:
            known[leaf] = True
            leaf = leaf & ~half if known[leaf ^ half] else leaf | half
            half //= 2
        self._waiting -= not self._frozen[leaf]
        return self._waiting == 0


class Step(NamedTuple):
    """rows[target] = rows[first] + sign * rows[second], or zero where sign is 0."""

    target: Indices
    first: Indices
    second: Indices
    sign: int


def schedule(frozen: Mask, known: Mask) -> list[Step]:
    """The additions that fill in every leaf of a decodable pattern, n log n block operations.

    Rows 0..N-1 hold the leaves; N..2N-1 are scratch, one region per level.
    """
    steps: list[Step] = []
    _fill(0, len(frozen), frozen, known, steps)
    return steps


def _fill(row: int, scratch: int, frozen: Mask, known: Mask, steps: list[Step]) -> None:
    """Append the steps that complete the node stored in rows row..row+len(known)."""
    size = len(known)
    if known.all():
        return
    here = row + np.arange(size)
    if frozen.all():
        unknown = here[~known]
        steps.append(Step(unknown, unknown, unknown, 0))
        return
    assert size > 1, "the pattern is not decodable"
    half = size // 2
    upper, lower, minus = here[:half], here[half:], scratch + np.arange(half)
    knows_upper, knows_lower = known[:half], known[half:]

    def add(where: Mask, target: Indices, first: Indices, second: Indices, sign: int) -> None:
        if where.any():
            steps.append(Step(target[where], first[where], second[where], sign))

    both = knows_upper & knows_lower
    add(both, minus, upper, lower, -1)
    _fill(scratch, scratch + half, frozen[:half], both, steps)
    add(knows_upper & ~knows_lower, lower, upper, minus, -1)
    _fill(row + half, scratch + half, frozen[half:], knows_upper | knows_lower, steps)
    add(~knows_upper, upper, lower, minus, +1)


def replay(steps: list[Step], rows: Array) -> None:
    """Run a schedule in place on `rows` (2 N, width), additions and subtractions only."""
    for target, first, second, sign in steps:
        if sign == 0:
            rows[target] = 0
        elif sign > 0:
            rows[target] = rows[first] + rows[second]
        else:
            rows[target] = rows[first] - rows[second]
