"""Successive cancellation on the Arikan butterfly, all of it by steps, n log n: P is never formed.

Bits first: which workers arrived decides what can be decoded and by which additions; the blocks are touched
only when the steps are replayed on them (arXiv 1901.06811, section 3). Where cancellation gets stuck an
optimal decoder goes on: an input that it would have to know is a variable, to be solved for in the end
(inactivation decoding, Coskun, Neu and Pfister 2020).

The steps give every leaf, x = S r + V z, of the results r that arrived and of the variables z. As many
equations C V z = -C S r as are independent modulo 2 give z; what is left of C x = 0 checks the results. C is
a butterfly. What a block or an equation is made of the steps transposed say.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np

from polarmap.codes import kernels
from polarmap.codes.algebra import INTEGER_CHECKS, Composition, Matrices, Results
from polarmap.codes.design import UniformStream
from polarmap.codes.dtypes import Array, DType, Floats, Indices, Mask, Words, is_exact
from polarmap.codes.modular import independent_rows, inverse, null_space, pack, reduced
from polarmap.codes.recovery import ButterflyRecovery
from polarmap.codes.row_operations import RowProgram, Step, replay, replay_transposed

# Mixtures of all equations, of which the first that are independent are kept: of so many more than those
# hardly ever too few are.
DRAWN = 2 * INTEGER_CHECKS
AT_ONCE = 128  # columns of a table: the steps are many, and their overhead would come again with others


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


class InactivationRecovery(ButterflyRecovery):
    """Integers modulo 2^64 by cancellation with variables; floats by least squares.

    order : the leaf on which each coded block sits.
    frozen : frozen and punctured inputs, (size, butterflies).
    """

    exact = True

    def __init__(self, code: Matrices, arrived: Mask, order: Indices, frozen: Mask) -> None:
        super().__init__(code, arrived)
        self._order, self._frozen = order, frozen
        self._leaves, self._frozen_inputs = order[self.arrived], np.flatnonzero(frozen)

    @property
    def _lack(self) -> int:
        return self._schedule.variables - len(self._pivots)

    def integer_weights(self) -> Words | None:
        """Recovered = weights @ received modulo 2^64, (missing, arrived); None unless `exact`."""
        return self._weights_in(np.int64).view(np.uint64) if self.exact else None

    def integer_checks(self) -> Words | None:
        """Up to INTEGER_CHECKS equations modulo 2^64, (s, arrived); None unless `exact`."""
        return self._integer_checks if self.exact else None

    @cached_property
    def _integer_checks(self) -> Words:
        """Of C x, for x as it is recovered."""
        mixed = np.zeros((self._frozen.size, DRAWN), np.int64)
        drawn = UniformStream(self.code.n, self.code.k).take(len(self._frozen_inputs) * DRAWN)
        mixed[self._frozen_inputs] = drawn.reshape(-1, DRAWN) < 0.5
        leaves = self._butterfly(mixed, inverse=True, transposed=True)
        made = np.ascontiguousarray(self._made_of(self.steps, leaves).T)
        return made[independent_rows(made)[:INTEGER_CHECKS]].view(np.uint64)

    def _composition(self, dtype: DType) -> Composition:
        """The same without the weights: numbers drawn at random tell what these would."""
        if not (self.exact and is_exact(dtype) and len(self.missing)):
            return super()._composition(dtype)
        stream = UniformStream(self.code.k, self.code.n)
        count, words = len(self.missing), -(-len(self.missing) // 64)
        leaves = np.zeros((self._frozen.size, 1), np.int64)
        leaves[self._order[self.missing], 0] = stream.words(count)
        used = self._made_of(self._program.steps, leaves)[:, 0] != 0
        drawn, made = stream.words(len(self.arrived)), np.empty((count, 1), np.int64)
        self._program.run(drawn[:, np.newaxis], made)
        bits = np.zeros((self._frozen.size, 8 * words), np.uint8)
        bits[self._order[self.missing]] = np.packbits(np.eye(count, 64 * words, dtype=bool), axis=1)
        shown = np.unpackbits(
            self._made_of(self._program.steps, bits.view(np.uint64)).view(np.uint8), axis=1, count=count
        )
        return Composition(used, ~np.isin(made[:, 0], drawn), shown.T.astype(bool))

    def fill(self, rows: Results, out: Array) -> None:
        """Replay the steps on the blocks; floats by least squares."""
        if not is_exact(out.dtype):
            super().fill(rows, out)
            return
        self._program.run([rows[index] for index in self.arrived.tolist()], out)

    @cached_property
    def _program(self) -> RowProgram:
        return RowProgram(self.steps, self._height, self._leaves, self._order[self.missing])

    def _weights_in(self, dtype: type[np.number]) -> Array:
        """What each missing block is made of, (missing, arrived)."""
        weights = np.empty((len(self.missing), len(self.arrived)), dtype)
        for start in range(0, len(weights), AT_ONCE):
            wanted = self._order[self.missing[start : start + AT_ONCE]]
            leaves = np.zeros((self._frozen.size, len(wanted)), dtype)
            leaves[wanted, np.arange(len(wanted))] = 1
            weights[start : start + AT_ONCE] = self._made_of(self._program.steps, leaves).T
        return weights

    def _made_of(self, steps: list[Step], leaves: Array) -> Array:
        """What combinations (columns) of all leaves are made of: of each result that arrived, how much.

        Of `replay_transposed`'s bits, whether it is odd.
        """
        table = np.zeros((self._height, leaves.shape[1]), leaves.dtype)
        table[: len(leaves)] = leaves
        replay_transposed(steps, table)
        return table[self._leaves]

    @cached_property
    def steps(self) -> list[Step]:
        """All leaves from those that arrived: with variables at zero, then with those that solve C x = 0."""
        steps, variables = self._schedule.steps, self._schedule.variables
        if not variables:
            return steps
        free, size = self._schedule.zero + 1 + np.arange(variables), self._frozen.size
        zero = np.full(variables, self._schedule.zero)
        scratch = size + np.arange(size)
        found = [Step(free, zero, zero, 0), *steps, Step(scratch, np.arange(size), scratch, 0)]
        pairs, half = scratch.reshape(len(self._frozen), -1), 1
        while half < len(pairs):
            upper, lower = pairs.reshape(-1, 2, half * pairs.shape[1]).swapaxes(0, 1).reshape(2, -1)
            found.append(Step(upper, upper, lower, -1))
            half *= 2
        pivots = self._frozen_inputs[self._pivots]
        solver, received = -inverse(self._equations(np.int64, pivots)).view(np.int64), scratch[pivots]
        for shift in range(variables):  # a diagonal at a time, of which no two read one row
            across = (np.arange(variables) + shift) % variables
            found.append(Step(free, free, received[across], solver[np.arange(variables), across]))
        return found + steps

    def undetermined(self) -> Mask:
        """Independent codewords modulo 2 that vanish on all that arrived, (deficit, n)."""
        vanishing = null_space(self._parities)
        return np.asarray(self._of_variables(vanishing.T.astype(np.int8))[self._order].T & 1, bool)

    @cached_property
    def _pivots(self) -> list[int]:
        """Which of the equations determine the variables."""
        return independent_rows(self._parities)

    @cached_property
    def _parities(self) -> Array:
        """C V modulo 2, (frozen inputs, variables)."""
        return self._equations(np.int8, self._frozen_inputs) & 1

    def _equations(self, dtype: type[np.signedinteger], rows: Indices) -> Array:
        """Rows of C V modulo 2^bits of `dtype`, (rows, variables)."""
        units = np.eye(self._schedule.variables, dtype=dtype)
        found = np.empty((len(rows), len(units)), dtype)
        for start in range(0, len(units), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            found[:, part] = self._butterfly(self._of_variables(units[:, part]), inverse=True)[rows]
        return found

    def _of_variables(self, values: Array) -> Array:
        """All leaves for such values (columns) of the variables, where all results are zero."""
        table = np.zeros((self._height, values.shape[1]), values.dtype)
        table[self._schedule.zero + 1 :] = values
        replay(self._schedule.steps, table)
        return table[: self._frozen.size]

    def _butterfly(self, leaves: Array, **how: bool) -> Array:
        """The butterflies, as kernels.arikan, of columns of leaves, in place."""
        kernels.arikan(leaves.reshape(len(self._frozen), -1), **how)
        return leaves

    @cached_property
    def _schedule(self) -> Schedule:
        known = np.zeros(self._frozen.shape, bool)
        known.flat[self._leaves] = True
        return Schedule(self._frozen, known)

    @property
    def _height(self) -> int:
        return self._schedule.zero + 1 + self._schedule.variables


class RankProgress:
    """Whether arrivals determine all n blocks modulo 2^64, looked at once: from the k-th on it is kept up.

    recovery : what it is of a mask of arrivals.
    """

    def __init__(self, n: int, k: int, recovery: Callable[[Mask], InactivationRecovery]) -> None:
        self._arrived, self._left, self._recovery = np.zeros(n, bool), k, recovery
        self._basis: dict[int, int] = {}  # of the columns of what was undetermined then
        self._undetermined: Mask

    def arrive(self, index: int) -> bool:
        """Note that a block has arrived; True when it and those before determine the others."""
        self._arrived[index] = True
        self._left -= 1
        if self._left > 0:
            return False
        if self._left == 0:
            self._undetermined = self._recovery(self._arrived).undetermined()
        elif left := reduced(pack(self._undetermined[:, [index]].T)[0], self._basis):
            self._basis[left.bit_length()] = left
        return len(self._basis) == len(self._undetermined)


class SequentialRecovery(InactivationRecovery):
    """The same as far as cancellation gets through without variables, of floats too."""

    def __init__(self, code: Matrices, arrived: Mask, order: Indices, frozen: Mask, exact: bool) -> None:
        super().__init__(code, arrived, order, frozen)
        self.exact = exact

    @property
    def _lack(self) -> int:
        return int(self._schedule.variables > 0)

    @cached_property
    def weights(self) -> Floats:
        """Recovered = weights @ received, (missing, arrived)."""
        return self._weights_in(np.float64)

    def fill(self, rows: Results, out: Array) -> None:
        """Replay the steps on the blocks."""
        self._program.run([rows[index] for index in self.arrived.tolist()], out)
