"""Sparse codes: peeling, and inactivation where peeling stops.

Peeling finds a block wherever one equation has a single unknown left. Where it stops, inactivation
(as decoders of Raptor codes do it, RFC 5053) sets an unknown block aside and goes on as if it were
known; a small dense system finds those set aside in the end. The equations bind the coded blocks
(LDPC, product codes) or say which hidden blocks a coded block is the sum of (LT, Raptor). What is
found from what depends on bits only and is planned first; blocks are touched when a plan is followed.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np

from benchmarks.rivals import Array, Rival, arrival_orders, compiled
from polarmap.codes.real_decoders import left_inverse
from polarmap.codes.tiling import iter_column_tiles, parallel_for

EXACT_NORMS = 1024


class Graph(NamedTuple):
    """Sparse equations: for each i, sum over its entries of coefficient * block[member] = 0.

    starts : entries of equation i are starts[i] .. starts[i + 1].
    members, coefficients : of all entries.
    blocks : how many there are.
    """

    starts: Array
    members: Array
    coefficients: Array
    blocks: int

    @classmethod
    def of(cls, equations: list[Array], coefficients: list[Array], blocks: int) -> Graph:
        starts = np.append(0, np.cumsum([len(members) for members in equations]))
        return cls(starts, np.concatenate(equations), np.concatenate(coefficients).astype(float), blocks)


class Decoder:
    """The decoder of a graph.

    wanted : blocks 0..wanted-1 are to be found, and may be set aside: all others follow from them.
    inactivates : whether results are awaited until inactivation decodes, or longer, until peeling alone does.
    """

    def __init__(self, graph: Graph, wanted: int, inactivates: bool = False) -> None:
        self.graph, self.wanted, self.inactivates = graph, wanted, inactivates

    @cached_property
    def _transposed(self) -> tuple[Array, Array]:
        """For each block the equations it stands in: starts, equations."""
        equations = np.repeat(np.arange(len(self.graph.starts) - 1), np.diff(self.graph.starts))
        by_block = np.argsort(self.graph.members, kind="stable")
        return np.append(0, np.cumsum(self._occurrences)), equations[by_block]

    @cached_property
    def _occurrences(self) -> Array:
        return np.bincount(self.graph.members, minlength=self.graph.blocks)

    def needed(self, order: Array, fewest: int) -> int:
        """How many of the blocks in `order` must arrive; len(order) + 1 if all are too few.

        fewest : that can be enough.
        """
        least, most = fewest - 1, len(order) + 1  # too few, enough
        while most - least > 1:
            middle = (least + most) // 2
            least, most = (least, middle) if self._is_enough(order[:middle]) else (middle, most)
        return most

    def _is_enough(self, arrived: Array) -> bool:
        if self.inactivates:
            return self.plan(arrived).solves
        useful = np.zeros(len(self.graph.starts) - 1, bool)  # nothing is set aside
        *_, is_complete = _set_aside(
            *self.graph[:2], *self._transposed, self._marked(arrived), useful, self.wanted, False
        )
        return bool(is_complete)

    def _marked(self, arrived: Array) -> Array:
        here = np.zeros(self.graph.blocks, bool)
        here[arrived] = True
        return here

    def plan(self, arrived: Array, given: Array | None = None, wanted: Array | None = None) -> Plan:
        """How to find the blocks `wanted` (by default those of the code) from those that arrived.

        given : the rows in which these are given, by default 0, 1, ...
        """
        graph, here = self.graph, self._marked(arrived)
        # What stands in one equation only and is missing makes that equation say nothing of others.
        lost = ~here & (self._occurrences == 1)
        lost[: self.wanted] = False
        useful = np.ones(len(graph.starts) - 1, bool)
        useful[np.repeat(np.arange(len(useful)), np.diff(graph.starts))[lost[graph.members]]] = False
        *steps, _ = _set_aside(*graph[:2], *self._transposed, here, useful, self.wanted, True)
        rows = np.arange(len(arrived)) if given is None else given
        return Plan(graph, arrived, rows, np.arange(self.wanted) if wanted is None else wanted, *steps)


class Plan:
    """How to find some blocks from others.

    solves : whether that determines them.
    operations : additions, and multiplications of the dense part, for one number of every block.
    """

    def __init__(
        self,
        graph: Graph,
        arrived: Array,
        given: Array,
        wanted: Array,
        targets: Array,
        sources: Array,
        aside: Array,
        spare: Array,
    ) -> None:
        self._graph, self._arrived, self._given = graph, arrived, given
        self._wanted, self._aside = wanted, aside
        self.solves, self.operations = len(spare) >= len(aside), 0.0
        if not self.solves:
            return
        spare = spare if len(aside) else spare[:0]
        # The equations that found nothing are left to find what was set aside; each gets a row of its own.
        self._rest = np.arange(graph.blocks, graph.blocks + len(spare))
        kept = _called_for(*graph[:2], targets, sources, spare, wanted, graph.blocks)
        first = np.append(targets[kept], self._rest), np.append(sources[kept], spare)
        symbols = np.zeros((graph.blocks + len(spare), len(aside)))
        symbols[aside] = np.eye(len(aside))
        _replay(*first, *graph[:3], symbols)
        self._solver = left_inverse(symbols[self._rest])
        self.solves = bool(np.isfinite(self._solver).all())
        changed = symbols[targets[kept]].any(axis=1)
        self._first, self._again = first, (targets[kept][changed], sources[kept][changed])
        additions = np.diff(graph.starts) - 1
        self.operations = float(
            additions[self._first[1]].sum() + additions[self._again[1]].sum() + 2 * self._solver.size
        )

    def decode(self, blocks: Array) -> Array:
        """The blocks wanted, (wanted, b)."""
        found = np.empty((len(self._wanted), blocks.shape[1]))
        rows = self._graph.blocks + len(self._rest)

        def work(columns: slice) -> None:
            tile = np.empty((rows, columns.stop - columns.start))
            tile[self._arrived] = blocks[self._given, columns]
            tile[self._aside] = 0
            _replay(*self._first, *self._graph[:3], tile)
            if len(self._aside):
                tile[self._aside] = -(self._solver @ tile[self._rest])
                _replay(*self._again, *self._graph[:3], tile)
            found[:, columns] = tile[self._wanted]

        parallel_for(work, list(iter_column_tiles(blocks.shape[1], 2 * rows, 8)))
        return found


class SparseCode(Rival):
    """A code by its graph: `coded` and `data` are which of its blocks are the coded and the data blocks."""

    decoder: Decoder
    coded: Array
    data: Array

    @cached_property
    def _encoding(self) -> Plan:
        return self.decoder.plan(self.data, wanted=self.coded)

    @cached_property
    def encode_operations(self) -> float:  # type: ignore[override]
        return self._encoding.operations

    @cached_property
    def norms(self) -> Array:  # type: ignore[override]
        """Exact, or for large k by the law of large numbers."""
        if self.k <= EXACT_NORMS:
            return np.linalg.norm(self.encode(np.eye(self.k)), axis=1)
        data = np.random.default_rng(0).choice([-1.0, 1.0], (self.k, EXACT_NORMS))
        return np.linalg.norm(self.encode(data), axis=1) / np.sqrt(EXACT_NORMS)

    def needed(self, orders: Array) -> Array:
        return np.array([self.decoder.needed(self.coded[order], self.k) for order in orders])

    def encode(self, data: Array) -> Array:
        return self._encoding.decode(data)

    def plan(self, arrived: Array) -> Plan:
        plan = self.decoder.plan(self.coded[arrived], arrived, self.data)
        assert plan.solves, f"these blocks do not determine the data of {self.name}"
        return plan


def awaited(code: SparseCode, trials: int) -> float:
    """The mean arrivals needed, never counting as 2 n, by which parameters are chosen."""
    few = max(2, trials // 10) if code.decoder.inactivates else trials
    needed = code.needed(arrival_orders(code.n, few, seed=1))  # others than those that codes are measured by
    return float(np.where(needed > code.n, 2 * code.n, needed).mean())


@compiled
def _set_aside(starts, members, block_starts, block_equations, here, useful, wanted, goes_on):  # type: ignore[no-untyped-def]
    """Blocks found, the equations that gave them, blocks set aside, equations left over, if all are known.

    Peeling alone, unless it `goes_on` where that stops, by setting blocks aside.
    """
    equations, blocks = len(starts) - 1, len(here)
    unknown = starts[1:] - starts[:-1]
    rest = np.zeros(equations, np.int64)
    waiting = np.zeros(blocks, np.int64)  # useful equations with two unknowns or more that a block is in
    for equation in range(equations):
        for entry in range(starts[equation], starts[equation + 1]):
            rest[equation] ^= members[entry]
            waiting[members[entry]] += useful[equation]
    known, is_used = here.copy(), np.zeros(equations, np.bool_)
    targets, sources = np.empty(equations, np.int64), np.empty(equations, np.int64)
    aside, queue = np.empty(wanted, np.int64), np.empty(blocks, np.int64)
    found, put, head, tail = 0, 0, 0, 0
    for block in range(blocks):
        if here[block]:
            queue[tail] = block
            tail += 1
    for equation in range(equations):
        if unknown[equation] == 1 and not known[rest[equation]]:
            known[rest[equation]] = True
            is_used[equation] = True
            targets[found], sources[found] = rest[equation], equation
            found += 1
            queue[tail] = rest[equation]
            tail += 1
    while True:
        while head < tail:
            block = queue[head]
            head += 1
            for entry in range(block_starts[block], block_starts[block + 1]):
                equation = block_equations[entry]
                unknown[equation] -= 1
                rest[equation] ^= block
                if unknown[equation] == 1:
                    last = rest[equation]
                    waiting[last] -= useful[equation]
                    if not known[last]:
                        known[last] = True
                        is_used[equation] = True
                        targets[found], sources[found] = last, equation
                        found += 1
                        queue[tail] = last
                        tail += 1
        best = -1
        for block in range(wanted):  # the one that most equations wait for
            if not known[block] and (best < 0 or waiting[block] > waiting[best]):
                best = block
        if best < 0 or not goes_on:
            break
        known[best] = True
        aside[put] = best
        put += 1
        queue[tail] = best
        tail += 1
    spare = np.flatnonzero((unknown == 0) & ~is_used)
    return targets[:found], sources[:found], aside[:put], spare, best < 0


@compiled
def _called_for(starts, members, targets, sources, spare, wanted, blocks):  # type: ignore[no-untyped-def]
    """Which steps give a block that is wanted or that a later step or a spare equation uses."""
    used, kept = np.zeros(blocks, np.bool_), np.zeros(len(targets), np.bool_)
    for block in wanted:
        used[block] = True
    for equation in spare:
        for entry in range(starts[equation], starts[equation + 1]):
            used[members[entry]] = True
    for step in range(len(targets) - 1, -1, -1):
        kept[step] = used[targets[step]]
        if kept[step]:
            for entry in range(starts[sources[step]], starts[sources[step] + 1]):
                used[members[entry]] = True
    return kept


@compiled
def _replay(targets, sources, starts, members, coefficients, values):  # type: ignore[no-untyped-def]
    """Fill in the targets, in place on values (blocks, b); one that is no member gets the equation's sum."""
    for step in range(len(targets)):
        target, equation = targets[step], sources[step]
        row = values[target]
        row[:] = 0
        scale = 1.0
        for entry in range(starts[equation], starts[equation + 1]):
            member = members[entry]
            if member == target:
                scale = -1 / coefficients[entry]
            else:
                factor = coefficients[entry]
                other = values[member]
                for column in range(len(row)):
                    row[column] += factor * other[column]
        for column in range(len(row)):
            row[column] *= scale
