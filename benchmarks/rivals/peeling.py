"""Peeling on a sparse graph: whichever equation has one unknown left gives it away.

One decoder for LDPC codes (the equations bind the coded blocks) and LT codes (each equation says
which data blocks a coded block is the sum of). Which block is found from which equation depends on
bits only and is scheduled first; the blocks are touched when the schedule is replayed on them.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np

from benchmarks.rivals import Array, compiled
from polarmap.code.tiled import over_cores, tiles


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

    def dense(self) -> Array:
        """The equations as a matrix (equations, blocks)."""
        matrix = np.zeros((len(self.starts) - 1, self.blocks))
        rows = np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))
        matrix[rows, self.members] = self.coefficients
        return matrix


class Peeling:
    """The peeling decoder of a graph.

    Parameters
    ----------
    graph : Graph
    wanted : int
        Blocks 0..wanted-1 are to be found.
    """

    def __init__(self, graph: Graph, wanted: int) -> None:
        self.graph, self.wanted = graph, wanted

    @cached_property
    def _transposed(self) -> tuple[Array, Array]:
        """For each block the equations it stands in: starts, equations."""
        equations = np.repeat(np.arange(len(self.graph.starts) - 1), np.diff(self.graph.starts))
        by_block = np.argsort(self.graph.members, kind="stable")
        counts = np.bincount(self.graph.members, minlength=self.graph.blocks)
        return np.append(0, np.cumsum(counts)), equations[by_block]

    def needed(self, order: Array) -> int:
        """How many of the blocks in `order` must arrive; len(order) + 1 if all are too few."""
        _, _, used, complete = self._peel(order)
        return used if complete else len(order) + 1

    def schedule(self, arrived: Array) -> tuple[Array, Array]:
        """(block, equation) in the order in which blocks are found from equations."""
        targets, equations, _, complete = self._peel(arrived)
        assert complete, "these blocks do not peel"
        return targets, equations

    def replay(self, schedule: tuple[Array, Array], values: Array) -> None:
        """Fill in the blocks found, in place on values (blocks, b)."""

        def work(columns: slice) -> None:
            tile = np.ascontiguousarray(values[:, columns])
            _replay(*schedule, *self.graph[:3], tile)
            values[:, columns] = tile

        over_cores(work, list(tiles(values.shape[1], 4 * self.wanted, 8)))

    def operations(self, schedule: tuple[Array, Array]) -> float:
        """Additions (multiplications by coefficients of +-1 are none) of one replay."""
        return float((np.diff(self.graph.starts)[schedule[1]] - 1).sum())

    def _peel(self, order: Array) -> tuple[Array, Array, int, bool]:
        found: tuple[Array, Array, int, bool] = _peel(
            *self.graph[:2], *self._transposed, self.graph.blocks, order, self.wanted
        )
        return found


@compiled
def _peel(starts, members, block_starts, block_equations, blocks, order, wanted):  # type: ignore[no-untyped-def]
    """Blocks found, the equations that gave them, arrivals used, whether all wanted are known."""
    equations = len(starts) - 1
    unknown = starts[1:] - starts[:-1]
    rest = np.zeros(equations, np.int64)  # the exclusive or of the unknown members
    for equation in range(equations):
        for entry in range(starts[equation], starts[equation + 1]):
            rest[equation] ^= members[entry]
    known = np.zeros(blocks, np.bool_)
    targets, sources = np.empty(equations, np.int64), np.empty(equations, np.int64)
    queue = np.empty(blocks, np.int64)
    found, missing, used = 0, wanted, 0
    for block in order:
        used += 1
        if known[block]:
            continue
        known[block] = True
        queue[0] = block
        head, tail = 0, 1
        while head < tail:
            block = queue[head]
            head += 1
            missing -= block < wanted
            for entry in range(block_starts[block], block_starts[block + 1]):
                equation = block_equations[entry]
                unknown[equation] -= 1
                rest[equation] ^= block
                if unknown[equation] == 1 and not known[rest[equation]]:
                    known[rest[equation]] = True
                    targets[found], sources[found] = rest[equation], equation
                    found += 1
                    queue[tail] = rest[equation]
                    tail += 1
        if missing == 0:
            break
    return targets[:found], sources[:found], used, missing == 0


@compiled
def _replay(targets, sources, starts, members, coefficients, values):  # type: ignore[no-untyped-def]
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
