"""Recovery by successive cancellation on the Arikan butterfly: additions and subtractions, n log n.

Bits first: which workers arrived decides what can be decoded and by which additions; the blocks
are touched only when a schedule is replayed on them (arXiv 1901.06811, section 3).
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np

from polarmap.code import tiled
from polarmap.code.algebra import Matrices, Results
from polarmap.code.dtypes import Array, Floats, Indices, Mask, Words, is_exact, working_dtype
from polarmap.code.modular import ModularRecovery
from polarmap.code.recovery import ButterflyRecovery


class SequentialRecovery(ButterflyRecovery):
    """Missing leaves of the butterflies from those that arrived, one node after another.

    order : the leaf on which each coded block sits.
    frozen : frozen and punctured inputs, (size, butterflies).
    """

    def __init__(self, code: Matrices, arrived: Mask, exact: bool, order: Indices, frozen: Mask) -> None:
        super().__init__(code, arrived)
        self.exact = exact
        self._modular = ModularRecovery(code, arrived)
        self._order, self._frozen = order, frozen

    @cached_property
    def deficit(self) -> int:
        """0 when successive cancellation gets through, else how many results are missing at the least."""
        if not len(self.missing) or gets_through(self._frozen, self._leaves):
            return 0
        return max(1, len(self.missing) - len(self.parity))

    @cached_property
    def steps(self) -> list[Step]:
        """The additions that recover the missing blocks."""
        return schedule(self._frozen, self._leaves)

    @cached_property
    def weights(self) -> Floats:
        """Recovered = weights @ received, (missing, arrived): the steps transposed, the last first."""
        weights = np.empty((len(self.missing), len(self.arrived)))
        wanted, length = self._order[self.missing], 2 * self._frozen.size

        def work(rows: slice) -> None:
            table = np.zeros((length, rows.stop - rows.start))
            table[wanted[rows], np.arange(table.shape[1])] = 1.0
            replay_transposed(self.steps, table)
            weights[rows] = table[self._order[self.arrived]].T

        tiled.over_cores(work, list(tiled.tiles(len(wanted), length, 8)))
        return weights

    def integer_weights(self) -> Words | None:
        """`weights` as integers modulo 2^64; None unless `exact`."""
        return self.weights.astype(np.int64).view(np.uint64) if self.exact else None

    def integer_checks(self, without: int | None = None) -> Words | None:
        """The equations do not depend on how blocks are recovered."""
        return self._modular.integer_checks(without) if self.exact else None

    def fill(self, rows: Results, out: Array) -> None:
        """Replay the steps on the blocks, tile by tile."""
        working = np.dtype(np.int64) if is_exact(out.dtype) else working_dtype(out.dtype)
        received = [rows[int(index)] for index in self.arrived]
        length = self._frozen.size
        leaves = self._order[self.arrived]
        for columns in tiled.tiles(out.shape[1], 2 * length, working.itemsize):
            table = np.zeros((2 * length, columns.stop - columns.start), working)
            table[leaves] = tiled.gather(received, columns, working)
            replay(self.steps, table)
            out[:, columns] = table[self._order[self.missing]].astype(out.dtype)

    @property
    def _leaves(self) -> Mask:
        known = np.zeros(self._frozen.size, bool)
        known[self._order[self.arrived]] = True
        return known.reshape(self._frozen.shape)


def gets_through(frozen: Mask, known: Mask) -> bool:
    """Whether successive cancellation determines every input from the leaves that are known.

    Of a pair (a, b), minus (a - b) takes both and plus (either, given minus) takes one. Both masks are
    (size, butterflies).

    >>> frozen = np.array([[True], [False]])
    >>> gets_through(frozen, ~frozen), gets_through(frozen, np.array([[False], [False]]))
    (True, False)
    """
    nodes, half = known.copy(), len(known) // 2
    while half:
        pairs = nodes.reshape(-1, 2, half, nodes.shape[1])
        both = pairs[:, 0] & pairs[:, 1]
        pairs[:, 1] |= pairs[:, 0]
        pairs[:, 0] = both
        half //= 2
    return bool((nodes | frozen).all())


class Progress:
    """Which inputs are determined, kept up to date in O(log N) per arrival.

    An arrival changes one node on every level: in a pair (a, b), minus (a - b) becomes known when
    the second of the two arrives, plus (either, given minus) when the first does.
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


class Step(NamedTuple):
    """rows[target] = rows[first] + sign * rows[second], or zero where sign is 0."""

    target: Indices
    first: Indices
    second: Indices
    sign: int


def schedule(frozen: Mask, known: Mask) -> list[Step]:
    """The additions that fill in every leaf of a decodable pattern, n log n block operations.

    Both masks are (size, butterflies). Results 0..N-1 hold the leaves; N..2N-1 are scratch, one region
    per level.
    """
    steps: list[Step] = []
    _fill(0, frozen.size, frozen, known, steps)
    return steps


def _fill(row: int, scratch: int, frozen: Mask, known: Mask, steps: list[Step]) -> None:
    """Append the steps that complete the node stored in rows row..row+known.size, of all butterflies."""
    if known.all():
        return
    here = row + np.arange(known.size).reshape(known.shape)
    if frozen.all() or len(known) == 1:
        assert frozen[~known].all(), "the pattern is not decodable"
        unknown = here[~known]
        steps.append(Step(unknown, unknown, unknown, 0))
        return
    half = len(known) // 2
    upper, lower = here[:half], here[half:]
    minus = scratch + here[:half] - row
    knows_upper, knows_lower = known[:half], known[half:]

    def add(where: Mask, target: Indices, first: Indices, second: Indices, sign: int) -> None:
        if where.any():
            steps.append(Step(target[where], first[where], second[where], sign))

    both = knows_upper & knows_lower
    add(both, minus, upper, lower, -1)
    _fill(scratch, scratch + minus.size, frozen[:half], both, steps)
    add(knows_upper & ~knows_lower, lower, upper, minus, -1)
    _fill(row + lower.size, scratch + minus.size, frozen[half:], knows_upper | knows_lower, steps)
    add(~knows_upper, upper, lower, minus, +1)


def replay_transposed(steps: list[Step], rows: Array) -> None:
    """The transpose of `replay`, in place: what each wanted row is made of, the last step first."""
    for target, first, second, sign in reversed(steps):
        came = rows[target]
        rows[target] = 0
        if sign:
            rows[first] += came
            rows[second] += came if sign > 0 else -came


def replay(steps: list[Step], rows: Array) -> None:
    """Run a schedule in place on `rows` (2 N, width), additions and subtractions only."""
    for target, first, second, sign in steps:
        if sign == 0:
            rows[target] = 0
        elif sign > 0:
            rows[target] = rows[first] + rows[second]
        else:
            rows[target] = rows[first] - rows[second]
