"""Successive cancellation on the Arikan butterfly: additions and subtractions, n log n.

Bits first: which workers arrived decides what can be decoded and by which additions; the blocks
are touched only when the steps are replayed on them (arXiv 1901.06811, section 3). Where cancellation gets
stuck an optimal decoder goes on: an input that it would have to know is a variable, to be solved for in the
end (inactivation decoding, Coskun, Neu and Pfister 2020).
"""

from __future__ import annotations

import numpy as np

from polarmap.codes.dtypes import Indices, Mask
from polarmap.codes.row_operations import Step


class Progress:
    """Which inputs are determined, kept up to date in O(log N) per arrival.

    An arrival changes one node on every level: in a pair (a, b), minus (a - b) becomes known when
    the second of the two arrives, plus (either, given minus) when the first does. All masks are
    (size, butterflies).
    """

    def __init__(self, frozen: Mask) -> None:
        self._frozen = frozen
        levels = len(frozen).bit_length() - 1
        self._known = np.zeros((levels, *frozen.shape), dtype=bool)
        self._waiting = int(frozen.size - frozen.sum())

    def arrive(self, leaf: int) -> bool:
        """Note that `leaf` is known; True when every unfrozen input is."""
        node, butterfly = divmod(leaf, self._frozen.shape[1])
        half = len(self._frozen) // 2
        for known in self._known[..., butterfly]:
            known[node] = True
            node = node & ~half if known[node ^ half] else node | half
            half //= 2
        self._waiting -= not self._frozen[node, butterfly]
        return self._waiting == 0


class Schedule:
    """The additions that fill in every leaf, n log n block operations.

    Rows 0..N-1 hold the leaves, N..2N-1 are scratch, one region per
    level; row 2N is zero, and those after it are the variables.

    steps : the additions, in order.
    variables : how many inputs are neither known nor frozen; none where cancellation gets through.

    >>> frozen = np.array([[True], [False]])
    >>> Schedule(frozen, ~frozen).variables, Schedule(frozen, np.zeros((2, 1), bool)).variables
    (0, 1)
    """

    def __init__(self, frozen: Mask, known: Mask) -> None:
        self.steps: list[Step] = []
        self.variables = 0
        self.zero = 2 * frozen.size
        self._fill(0, frozen.size, frozen, known)

    def _fill(self, row: int, scratch: int, frozen: Mask, known: Mask) -> None:
        """Append the steps that complete the node stored in rows row..row+known.size, of all butterflies."""
        if known.all():
            return
        here = row + np.arange(known.size).reshape(known.shape)
        if len(known) == 1 or frozen.all() or not frozen.any():
            self._assume(here[~known & frozen], here[~known & ~frozen])
            return
        half = len(known) // 2
        upper, lower = here[:half], here[half:]
        minus = scratch + here[:half] - row
        knows_upper, knows_lower = known[:half], known[half:]

        def add(where: Mask, target: Indices, first: Indices, second: Indices, sign: int) -> None:
            if where.any():
                self.steps.append(Step(target[where], first[where], second[where], sign))

        both = knows_upper & knows_lower
        add(both, minus, upper, lower, -1)
        self._fill(scratch, scratch + minus.size, frozen[:half], both)
        add(knows_upper & ~knows_lower, lower, upper, minus, -1)
        self._fill(row + lower.size, scratch + minus.size, frozen[half:], knows_upper | knows_lower)
        add(~knows_upper, upper, lower, minus, +1)

    def _assume(self, zeros: Indices, free: Indices) -> None:
        """Rows of nodes with all inputs frozen become zero, with none variables: as good as their inputs."""
        variables = self.zero + 1 + self.variables + np.arange(len(free))
        for target, first in ((zeros, np.full(len(zeros), self.zero)), (free, variables)):
            if len(target):
                self.steps.append(Step(target, first, first, 0))
        self.variables += len(free)
