"""Sparse codes, decoded by peeling, and by inactivation once peeling stops.

Peeling recovers a block whenever an equation has a single unknown left. When it stops, inactivation (as in
decoders of Raptor codes, RFC 5053) marks an unknown block as inactive and continues as if it were known; a
small dense system yields the inactive blocks at the end. The equations either relate the coded blocks (LDPC,
product codes) or define each coded block as a sum of hidden blocks (LT, Raptor). A plan depends only on which
blocks have arrived, and is made first. Following it processes the blocks.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np

from benchmarks.rivals import Array, RivalCode, compile_if_possible, sample_arrival_orders
from polarmap.codes.compute.tiling import iter_column_tiles, parallel_for
from polarmap.codes.real_decoders import compute_left_inverse

MAX_EXACT_NORMS = 1024


class EquationGraph(NamedTuple):
    """Sparse equations: for each i, sum over its entries of coefficient * block[member] = 0.

    Attributes
    ----------
    starts : Array
        Entries of equation i are starts[i] .. starts[i + 1].
    members, coefficients : Array
        Block and coefficient of each entry, for all equations.
    n_blocks : int
        Number of blocks.
    """

    starts: Array
    members: Array
    coefficients: Array
    n_blocks: int

    @classmethod
    def from_equations(
        cls, equations: list[Array], coefficients: list[Array], n_blocks: int
    ) -> EquationGraph:
        starts = np.append(0, np.cumsum([len(members) for members in equations]))
        return cls(starts, np.concatenate(equations), np.concatenate(coefficients).astype(float), n_blocks)


class GraphDecoder:
    """A decoder for a graph of equations.

    Parameters
    ----------
    n_wanted : int
        Blocks 0 .. n_wanted - 1 must be recovered and may become inactive; all others follow from them.
    uses_inactivation : bool
        Whether the decoder uses inactivation, or waits for more results until peeling suffices.
    """

    def __init__(self, graph: EquationGraph, n_wanted: int, uses_inactivation: bool = False) -> None:
        self.graph, self.n_wanted, self.uses_inactivation = graph, n_wanted, uses_inactivation

    @cached_property
    def _equations_by_block(self) -> tuple[Array, Array]:
        """The equations of each block, as starts and a flat array of equations."""
        equations = np.repeat(np.arange(len(self.graph.starts) - 1), np.diff(self.graph.starts))
        by_block = np.argsort(self.graph.members, kind="stable")
        return np.append(0, np.cumsum(self._occurrences)), equations[by_block]

    @cached_property
    def _occurrences(self) -> Array:
        return np.bincount(self.graph.members, minlength=self.graph.n_blocks)

    def count_arrivals(self, arrival_order: Array, min_arrivals: int) -> int:
        """Return how many blocks in `arrival_order` must arrive; len(arrival_order) + 1 if all are too few.

        Parameters
        ----------
        min_arrivals : int
            The smallest number that could suffice.
        """
        undecodable, decodable = min_arrivals - 1, len(arrival_order) + 1  # too few, and enough
        while decodable - undecodable > 1:
            middle = (undecodable + decodable) // 2
            undecodable, decodable = (
                (undecodable, middle) if self._is_decodable(arrival_order[:middle]) else (middle, decodable)
            )
        return decodable

    def _is_decodable(self, arrived_blocks: Array) -> bool:
        if self.uses_inactivation:
            return self.make_plan(arrived_blocks).is_decodable
        useful_mask = np.zeros(len(self.graph.starts) - 1, bool)  # No block becomes inactive.
        *_, is_complete = _peel_and_inactivate(
            *self.graph[:2],
            *self._equations_by_block,
            self._make_arrived_mask(arrived_blocks),
            useful_mask,
            self.n_wanted,
            False,
        )
        return bool(is_complete)

    def _make_arrived_mask(self, arrived_blocks: Array) -> Array:
        arrived_mask = np.zeros(self.graph.n_blocks, bool)
        arrived_mask[arrived_blocks] = True
        return arrived_mask

    def make_plan(
        self, arrived_blocks: Array, input_rows: Array | None = None, wanted_blocks: Array | None = None
    ) -> GraphPlan:
        """Return a plan for recovering `wanted_blocks` from the arrived blocks.

        Parameters
        ----------
        input_rows : Array | None
            Rows in which the arrived blocks are given, by default 0, 1, ...
        wanted_blocks : Array | None
            By default the wanted blocks of the decoder.
        """
        graph, arrived_mask = self.graph, self._make_arrived_mask(arrived_blocks)
        # An equation cannot help to find other blocks if it has a missing block that is in no other equation.
        unrecoverable_mask = ~arrived_mask & (self._occurrences == 1)
        unrecoverable_mask[: self.n_wanted] = False
        useful_mask = np.ones(len(graph.starts) - 1, bool)
        useful_mask[
            np.repeat(np.arange(len(useful_mask)), np.diff(graph.starts))[unrecoverable_mask[graph.members]]
        ] = False
        *steps, _ = _peel_and_inactivate(
            *graph[:2], *self._equations_by_block, arrived_mask, useful_mask, self.n_wanted, True
        )
        rows = np.arange(len(arrived_blocks)) if input_rows is None else input_rows
        return GraphPlan(
            graph,
            arrived_blocks,
            rows,
            np.arange(self.n_wanted) if wanted_blocks is None else wanted_blocks,
            *steps,
        )


class GraphPlan:
    """A plan for recovering some blocks from others.

    Attributes
    ----------
    is_decodable
        Whether the arrived blocks determine the wanted ones.
    operations
        Additions, and multiplications of the dense part, for one number of every block.
    """

    def __init__(
        self,
        graph: EquationGraph,
        arrived_blocks: Array,
        input_rows: Array,
        wanted_blocks: Array,
        targets: Array,
        sources: Array,
        inactivated: Array,
        unused_equations: Array,
    ) -> None:
        self._graph, self._arrived_blocks, self._input_rows = graph, arrived_blocks, input_rows
        self._wanted_blocks, self._inactivated = wanted_blocks, inactivated
        self.is_decodable, self.operations = len(unused_equations) >= len(inactivated), 0.0
        if not self.is_decodable:
            return
        unused_equations = unused_equations if len(inactivated) else unused_equations[:0]
        # Unused equations determine the inactive blocks. Each gets an extra row for its sum.
        self._unused_rows = np.arange(graph.n_blocks, graph.n_blocks + len(unused_equations))
        needed_mask = _find_needed_steps(
            *graph[:2], targets, sources, unused_equations, wanted_blocks, graph.n_blocks
        )
        first_steps = (
            np.append(targets[needed_mask], self._unused_rows),
            np.append(sources[needed_mask], unused_equations),
        )
        symbols = np.zeros((graph.n_blocks + len(unused_equations), len(inactivated)))
        symbols[inactivated] = np.eye(len(inactivated))
        _execute_steps(*first_steps, *graph[:3], symbols)
        self._pseudo_inverse = compute_left_inverse(symbols[self._unused_rows])
        self.is_decodable = bool(np.isfinite(self._pseudo_inverse).all())
        changed_mask = symbols[targets[needed_mask]].any(axis=1)
        self._first_steps, self._second_steps = (
            first_steps,
            (targets[needed_mask][changed_mask], sources[needed_mask][changed_mask]),
        )
        n_additions = np.diff(graph.starts) - 1
        self.operations = float(
            n_additions[self._first_steps[1]].sum()
            + n_additions[self._second_steps[1]].sum()
            + 2 * self._pseudo_inverse.size
        )

    def decode(self, blocks: Array) -> Array:
        """Return the wanted blocks, (wanted, b)."""
        decoded = np.empty((len(self._wanted_blocks), blocks.shape[1]))
        n_rows = self._graph.n_blocks + len(self._unused_rows)

        def decode_columns(columns: slice) -> None:
            tile = np.empty((n_rows, columns.stop - columns.start))
            tile[self._arrived_blocks] = blocks[self._input_rows, columns]
            tile[self._inactivated] = 0
            _execute_steps(*self._first_steps, *self._graph[:3], tile)
            if len(self._inactivated):
                tile[self._inactivated] = -(self._pseudo_inverse @ tile[self._unused_rows])
                _execute_steps(*self._second_steps, *self._graph[:3], tile)
            decoded[:, columns] = tile[self._wanted_blocks]

        parallel_for(decode_columns, list(iter_column_tiles(blocks.shape[1], 2 * n_rows, 8)))
        return decoded


class SparseCode(RivalCode):
    """A code defined by a graph; `coded_indices` and `data_indices` select its coded and data blocks."""

    decoder: GraphDecoder
    coded_indices: Array
    data_indices: Array

    @cached_property
    def _encoding(self) -> GraphPlan:
        return self.decoder.make_plan(self.data_indices, wanted_blocks=self.coded_indices)

    @cached_property
    def encode_operations(self) -> float:  # type: ignore[override]
        return self._encoding.operations

    @cached_property
    def norms(self) -> Array:  # type: ignore[override]
        """The norms: exact, or for large k an estimate by random signs."""
        if self.k <= MAX_EXACT_NORMS:
            return np.linalg.norm(self.encode(np.eye(self.k)), axis=1)
        data = np.random.default_rng(0).choice([-1.0, 1.0], (self.k, MAX_EXACT_NORMS))
        return np.linalg.norm(self.encode(data), axis=1) / np.sqrt(MAX_EXACT_NORMS)

    def count_arrivals(self, orders: Array) -> Array:
        return np.array([self.decoder.count_arrivals(self.coded_indices[order], self.k) for order in orders])

    def encode(self, data: Array) -> Array:
        return self._encoding.decode(data)

    def make_plan(self, arrived_indices: Array) -> GraphPlan:
        plan = self.decoder.make_plan(self.coded_indices[arrived_indices], arrived_indices, self.data_indices)
        assert plan.is_decodable, f"these blocks do not determine the data of {self.name}"
        return plan


def mean_arrivals(code: SparseCode, n_trials: int) -> float:
    """Return the mean number of arrivals needed, for choosing parameters; never decoding counts as 2 n."""
    n_orders = max(2, n_trials // 10) if code.decoder.uses_inactivation else n_trials
    # The seed differs from that of the orders by which codes are measured.
    n_arrivals = code.count_arrivals(sample_arrival_orders(code.n, n_orders, seed=1))
    return float(np.where(n_arrivals > code.n, 2 * code.n, n_arrivals).mean())


@compile_if_possible
def _peel_and_inactivate(
    starts, members, block_starts, block_equations, arrived_mask, useful_mask, n_wanted, with_inactivation
):  # type: ignore[no-untyped-def]
    """Return targets and equations of all steps, inactive blocks, unused equations, and whether all is known.

    Blocks are made inactive only if `with_inactivation`.
    """
    equations, blocks = len(starts) - 1, len(arrived_mask)
    n_unknown = starts[1:] - starts[:-1]
    unknown_xor = np.zeros(equations, np.int64)
    # The number of useful equations of each block with at least two unknowns.
    n_waiting_equations = np.zeros(blocks, np.int64)
    for equation in range(equations):
        for entry in range(starts[equation], starts[equation + 1]):
            unknown_xor[equation] ^= members[entry]
            n_waiting_equations[members[entry]] += useful_mask[equation]
    known_mask, used_mask = arrived_mask.copy(), np.zeros(equations, np.bool_)
    targets, sources = np.empty(equations, np.int64), np.empty(equations, np.int64)
    inactivated, queue = np.empty(n_wanted, np.int64), np.empty(blocks, np.int64)
    n_found, n_inactivated, head, tail = 0, 0, 0, 0
    for block in range(blocks):
        if arrived_mask[block]:
            queue[tail] = block
            tail += 1
    for equation in range(equations):
        if n_unknown[equation] == 1 and not known_mask[unknown_xor[equation]]:
            known_mask[unknown_xor[equation]] = True
            used_mask[equation] = True
            targets[n_found], sources[n_found] = unknown_xor[equation], equation
            n_found += 1
            queue[tail] = unknown_xor[equation]
            tail += 1
    while True:
        while head < tail:
            block = queue[head]
            head += 1
            for entry in range(block_starts[block], block_starts[block + 1]):
                equation = block_equations[entry]
                n_unknown[equation] -= 1
                unknown_xor[equation] ^= block
                if n_unknown[equation] == 1:
                    last_unknown = unknown_xor[equation]
                    n_waiting_equations[last_unknown] -= useful_mask[equation]
                    if not known_mask[last_unknown]:
                        known_mask[last_unknown] = True
                        used_mask[equation] = True
                        targets[n_found], sources[n_found] = last_unknown, equation
                        n_found += 1
                        queue[tail] = last_unknown
                        tail += 1
        best_block = -1
        for block in range(n_wanted):  # Choose the unknown block of the most waiting equations.
            if not known_mask[block] and (
                best_block < 0 or n_waiting_equations[block] > n_waiting_equations[best_block]
            ):
                best_block = block
        if best_block < 0 or not with_inactivation:
            break
        known_mask[best_block] = True
        inactivated[n_inactivated] = best_block
        n_inactivated += 1
        queue[tail] = best_block
        tail += 1
    unused_equations = np.flatnonzero((n_unknown == 0) & ~used_mask)
    return targets[:n_found], sources[:n_found], inactivated[:n_inactivated], unused_equations, best_block < 0


@compile_if_possible
def _find_needed_steps(starts, members, targets, sources, unused_equations, wanted_blocks, n_blocks):  # type: ignore[no-untyped-def]
    """Return a mask of the steps whose block is wanted or used by a later step or an unused equation."""
    used_mask, needed_mask = np.zeros(n_blocks, np.bool_), np.zeros(len(targets), np.bool_)
    for block in wanted_blocks:
        used_mask[block] = True
    for equation in unused_equations:
        for entry in range(starts[equation], starts[equation + 1]):
            used_mask[members[entry]] = True
    for step in range(len(targets) - 1, -1, -1):
        needed_mask[step] = used_mask[targets[step]]
        if needed_mask[step]:
            for entry in range(starts[sources[step]], starts[sources[step] + 1]):
                used_mask[members[entry]] = True
    return needed_mask


@compile_if_possible
def _execute_steps(targets, sources, starts, members, coefficients, values):  # type: ignore[no-untyped-def]
    """Compute the target of each step in place on values (blocks, b).

    A target that is no member of its equation receives the sum of the equation.
    """
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
