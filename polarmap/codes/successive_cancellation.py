"""Decode the Arikan kernel by successive cancellation and inactivation decoding, in n log n operations.

    erasure pattern -> CancellationProgram (row additions) -> CancellationSolver -> decoders of integers
    and of floats

The erasure pattern (the set of results that arrived) alone decides which row additions decode. They are
therefore listed first, as a program, and applied to the blocks later (arXiv 1901.06811, section 3). The
parity matrix P is never formed. If cancellation needs an input that is still unknown, the optimal decoder
inactivates the input: it continues with a placeholder and solves for all placeholders at the end
(inactivation decoding, Coskun, Neu and Pfister 2020).

The program expresses every codeword position as x = S r + V z, where r are the arrived results and z the
inactivated inputs. Every codeword satisfies the parity checks C x = 0. Rows of C V z = -C S r that are
independent modulo 2 give z, and the remaining rows are redundant parity checks. C is a butterfly. The adjoint
(transposed) program gives the coefficients of a block or of a check.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np

from polarmap.codes.base import (
    MAX_MODULAR_CHECKS,
    CodeMatrices,
    ErasureDecoder,
    ReceivedBlocks,
    WeightMasks,
    as_single_block,
)
from polarmap.codes.compute import transforms
from polarmap.codes.compute.row_program import (
    RowOperationBatch,
    RowOperationProgram,
    execute_adjoint_operation_batches,
    execute_operation_batches,
)
from polarmap.codes.modular_decoders import ModularDecoder
from polarmap.codes.modular_linalg import (
    compute_null_space_gf2,
    find_independent_rows_gf2,
    invert_mod64,
    pack_rows_gf2,
    reduce_row_gf2,
)
from polarmap.codes.real_decoders import ImplicitSystematicDecoder
from polarmap.codes.splitmix import SplitMix64
from polarmap.dtypes import Array, Floats, Indices, Mask, UInt64Array

# Results are verified with up to MAX_MODULAR_CHECKS linearly independent parity checks. To find them, draw
# this many random combinations of all checks, which almost always contain enough independent ones.
N_RANDOM_CHECKS = 2 * MAX_MODULAR_CHECKS
# Row operations are applied to this many columns of a table at a time. With fewer columns, the overhead of
# starting each operation, which is repeated for every batch of columns, would dominate.
COLUMNS_PER_PASS = 128


class CancellationTracker:
    """Tracks whether successive cancellation can decode the results that have arrived so far.

    The tracker records which values in the stages of the butterfly can be determined. Each arrival takes
    O(log N) steps, because it determines one value per stage. A pair (a, b) of values has two branches in the
    next stage. The minus branch a - b is known once both a and b are known. The plus branch b is known once
    one of them is known, because a - b has been determined before.

    Parameters
    ----------
    zero_input_mask : boolean array (size, butterflies)
        True for each input that is zero, because it is frozen or punctured.
    """

    def __init__(self, zero_input_mask: Mask) -> None:
        self._zero_input_mask = zero_input_mask
        n_levels = len(zero_input_mask).bit_length() - 1
        self._known_mask = np.zeros((n_levels, *zero_input_mask.shape), dtype=bool)
        self._n_undetermined = int(zero_input_mask.size - zero_input_mask.sum())

    def add_known_position(self, position: int) -> bool:
        """Record that a codeword position is known. Return whether all nonzero inputs are determined now."""
        node, transform_index = divmod(position, self._zero_input_mask.shape[1])
        half = len(self._zero_input_mask) // 2
        for known_nodes in self._known_mask[..., transform_index]:
            known_nodes[node] = True
            node = node & ~half if known_nodes[node ^ half] else node | half
            half //= 2
        self._n_undetermined -= not self._zero_input_mask[node, transform_index]
        return self._n_undetermined == 0


class CancellationProgram:
    """A list of row additions that computes the missing positions of a codeword (successive cancellation).

    The list depends only on which positions were received, not on their values. It takes O(N log N)
    operations on blocks. If the inputs of a subtree of the butterfly are all zero (rate-0 node) or all free
    (rate-1 node), the subtree is completed in one step.

    The additions work on the rows of a table:

    * Rows 0..N-1 are the codeword positions.
    * Rows N..2N-1 are scratch space, with one region per stage.
    * Row 2N is zero.
    * The remaining rows are the inactivated inputs, i.e. inputs that cancellation needs but cannot determine.

    Parameters
    ----------
    zero_input_mask : boolean array (size, butterflies)
        True for each input that is zero, because it is frozen or punctured.
    known_mask : boolean array (size, butterflies)
        True for each codeword position that was received.

    Attributes
    ----------
    operation_batches : list of RowOperationBatch
        Row additions, in order of execution.
    n_inactivated : int
        Number of inactivated inputs; 0 if successive cancellation alone succeeds.
    zero_row : int
        Index of the row of zeros, 2N.

    Examples
    --------
    >>> frozen = np.array([[True], [False]])
    >>> [CancellationProgram(frozen, known).n_inactivated for known in (~frozen, np.zeros((2, 1), bool))]
    [0, 1]
    """

    def __init__(self, zero_input_mask: Mask, known_mask: Mask) -> None:
        self.operation_batches: list[RowOperationBatch] = []
        self.n_inactivated = 0
        self.zero_row = 2 * zero_input_mask.size
        self._append_node_operations(0, zero_input_mask.size, zero_input_mask, known_mask)

    def _append_node_operations(
        self, first_row: int, first_scratch_row: int, zero_input_mask: Mask, known_mask: Mask
    ) -> None:
        """Append the row operations that compute all unknown rows of one node (subtree of the butterflies).

        The node occupies as many rows from `first_row` on as `known_mask` has entries. Scratch rows from
        `first_scratch_row` on may be overwritten.
        """
        if known_mask.all():
            return
        node_rows = first_row + np.arange(known_mask.size).reshape(known_mask.shape)
        if len(known_mask) == 1 or zero_input_mask.all() or not zero_input_mask.any():
            self._append_rate_0_or_1_node_operations(
                node_rows[~known_mask & zero_input_mask], node_rows[~known_mask & ~zero_input_mask]
            )
            return
        half = len(known_mask) // 2
        upper, lower = node_rows[:half], node_rows[half:]
        minus_rows = first_scratch_row + node_rows[:half] - first_row
        upper_known, lower_known = known_mask[:half], known_mask[half:]

        def append_batch(
            mask: Mask, target_rows: Indices, source_rows: Indices, addend_rows: Indices, factor: int
        ) -> None:
            if mask.any():
                self.operation_batches.append(
                    RowOperationBatch(target_rows[mask], source_rows[mask], addend_rows[mask], factor)
                )

        both_known = upper_known & lower_known
        append_batch(both_known, minus_rows, upper, lower, -1)
        self._append_node_operations(
            first_scratch_row, first_scratch_row + minus_rows.size, zero_input_mask[:half], both_known
        )
        append_batch(upper_known & ~lower_known, lower, upper, minus_rows, -1)
        self._append_node_operations(
            first_row + lower.size,
            first_scratch_row + minus_rows.size,
            zero_input_mask[half:],
            upper_known | lower_known,
        )
        append_batch(~upper_known, upper, lower, minus_rows, +1)

    def _append_rate_0_or_1_node_operations(self, frozen_rows: Indices, free_rows: Indices) -> None:
        """Append the operations that set `frozen_rows` to zero and `free_rows` to new unknowns.

        The unknowns are called inactivated inputs and are solved for at the end. The rows belong to a rate-0
        node (all inputs frozen) or a rate-1 node (all inputs free). The inputs and the rows of a rate-1 node
        determine each other, so its rows can be used as unknowns instead of its inputs.
        """
        inactivated_rows = self.zero_row + 1 + self.n_inactivated + np.arange(len(free_rows))
        for target_rows, source_rows in (
            (frozen_rows, np.full(len(frozen_rows), self.zero_row)),
            (free_rows, inactivated_rows),
        ):
            if len(target_rows):
                self.operation_batches.append(RowOperationBatch(target_rows, source_rows, source_rows, 0))
        self.n_inactivated += len(free_rows)


class CancellationSolver:
    """Decodes a given set of missing blocks of an Arikan code by inactivation decoding.

    If successive cancellation needs an input that is not known yet, the input is inactivated: it is treated
    as an unknown and solved for at the end. The solver computes the missing blocks, the decoding weights and
    the redundant parity checks, for any numeric type.

    Parameters
    ----------
    positions : index array (n,)
        Codeword position of each coded block.
    zero_input_mask : boolean array (size, butterflies)
        True for each input that is zero, because it is frozen or punctured.
    arrived_indices, missing_indices : index arrays
        Indices of the coded blocks that have arrived, and of the data blocks to recover.
    """

    def __init__(
        self, positions: Indices, zero_input_mask: Mask, arrived_indices: Indices, missing_indices: Indices
    ) -> None:
        self._positions, self._zero_input_mask = positions, zero_input_mask
        self._arrived_indices, self._missing_indices = arrived_indices, missing_indices
        self._received_positions = positions[arrived_indices]
        self._zero_input_indices = np.flatnonzero(zero_input_mask)

    @property
    def n_inactivated(self) -> int:
        """The number of inactivated inputs, i.e. inputs that are treated as unknowns.

        It is 0 if successive cancellation alone succeeds.
        """
        return self._cancellation_program.n_inactivated

    @property
    def n_undetermined_inputs(self) -> int:
        """The number of additional equations needed to determine all inactivated inputs (unknowns).

        The value is 0 if the parity checks determine all of them modulo 2^64.
        """
        return self.n_inactivated - len(self._pivot_check_indices)

    def compute_missing_blocks(self, received: ReceivedBlocks, out: Array) -> None:
        """Decode the missing blocks from the received blocks and write them to `out`, one per row."""
        blocks = [received[block_index] for block_index in self._arrived_indices.tolist()]
        self._row_program.compute_output_rows(blocks, out)

    def compute_check_matrix(self, random_stream: SplitMix64) -> UInt64Array:
        """Compute a parity-check matrix that verifies the arrived results, one check per row.

        It has one column per arrived result and at most MAX_MODULAR_CHECKS rows.

        Parameters
        ----------
        random_stream : SplitMix64
            Source of the random combinations of parity checks.
        """
        check_coefficients = np.zeros((self._zero_input_mask.size, N_RANDOM_CHECKS), np.int64)
        uniforms = random_stream.random(len(self._zero_input_indices) * N_RANDOM_CHECKS)
        check_coefficients[self._zero_input_indices] = uniforms.reshape(-1, N_RANDOM_CHECKS) < 0.5
        combinations = self._apply_arikan_transform(check_coefficients, inverse=True, transpose=True)
        checks = np.ascontiguousarray(self._apply_adjoint_operations(self.operation_batches, combinations).T)
        return checks[find_independent_rows_gf2(checks)[:MAX_MODULAR_CHECKS]].view(np.uint64)

    def compute_weight_masks(self, random_stream: SplitMix64) -> WeightMasks:
        """Compute masks that tell which arrived results each missing result is decoded from.

        The decoding weights are not computed, because this would take longer. Instead, random numbers are
        decoded in place of results, to see which of them are used.

        Parameters
        ----------
        random_stream : SplitMix64
            Source of the random numbers. They almost never cancel each other by chance.
        """
        missing_positions = self._positions[self._missing_indices]
        n_missing, n_words = len(missing_positions), -(-len(missing_positions) // 64)
        batches = self._row_program.batches_needed_for_output
        combinations = np.zeros((self._zero_input_mask.size, 1), np.int64)
        combinations[missing_positions, 0] = random_stream.integers(n_missing)
        used_mask = self._apply_adjoint_operations(batches, combinations)[:, 0] != 0
        random_inputs = random_stream.integers(len(self._arrived_indices))
        random_outputs = np.empty((n_missing, 1), np.int64)
        self._row_program.compute_output_rows(random_inputs[:, np.newaxis], random_outputs)
        combined_mask = ~np.isin(random_outputs[:, 0], random_inputs)
        bit_table = np.zeros((self._zero_input_mask.size, 8 * n_words), np.uint8)
        bit_table[missing_positions] = np.packbits(np.eye(n_missing, 64 * n_words, dtype=bool), axis=1)
        parity_bits = self._apply_adjoint_operations(batches, bit_table.view(np.uint64)).view(np.uint8)
        weight_parities = np.unpackbits(parity_bits, axis=1, count=n_missing)
        return WeightMasks(used_mask, combined_mask, (as_single_block(weight_parities.T.astype(bool)),))

    @cached_property
    def _row_program(self) -> RowOperationProgram:
        return RowOperationProgram(
            self.operation_batches,
            self._n_rows,
            self._received_positions,
            self._positions[self._missing_indices],
        )

    def compute_decoding_weights(self, dtype: type[np.number]) -> Array:
        """Compute the decoding weights in `dtype`, with one row per missing block."""
        weights = np.empty((len(self._missing_indices), len(self._arrived_indices)), dtype)
        for start in range(0, len(weights), COLUMNS_PER_PASS):
            rows = slice(start, start + COLUMNS_PER_PASS)
            missing_positions = self._positions[self._missing_indices[rows]]
            combinations = np.zeros((self._zero_input_mask.size, len(missing_positions)), dtype)
            combinations[missing_positions, np.arange(len(missing_positions))] = 1
            batches = self._row_program.batches_needed_for_output
            weights[rows] = self._apply_adjoint_operations(batches, combinations).T
        return weights

    def _apply_adjoint_operations(
        self, batches: list[RowOperationBatch], combination_columns: Array
    ) -> Array:
        """Convert coefficients of codeword positions to coefficients of arrived results.

        Each column of `combination_columns` contains the coefficients of one linear combination of all
        codeword positions. The result expresses the same combination by the arrived results. Unsigned
        integers are treated as bit sets: each bit is a combination with coefficients modulo 2.
        """
        table = np.zeros((self._n_rows, combination_columns.shape[1]), combination_columns.dtype)
        table[: len(combination_columns)] = combination_columns
        execute_adjoint_operation_batches(batches, table)
        return table[self._received_positions]

    @cached_property
    def operation_batches(self) -> list[RowOperationBatch]:
        """The row operations that compute the missing positions of the codeword.

        If there are inactivated inputs (unknowns), the operations run in two passes. The first pass sets the
        unknowns to zero and computes the parity checks C x, from which the unknowns are computed. The second
        pass inserts their values.
        """
        program = self._cancellation_program
        batches, n_inactivated = program.operation_batches, program.n_inactivated
        if not n_inactivated:
            return batches
        inactivated_rows = program.zero_row + 1 + np.arange(n_inactivated)
        zero_rows = np.full(n_inactivated, program.zero_row)
        n_positions = self._zero_input_mask.size
        scratch_rows = n_positions + np.arange(n_positions)
        result = [
            RowOperationBatch(inactivated_rows, zero_rows, zero_rows, 0),
            *batches,
            RowOperationBatch(scratch_rows, np.arange(n_positions), scratch_rows, 0),
        ]
        stacked_rows, half = scratch_rows.reshape(len(self._zero_input_mask), -1), 1
        while half < len(stacked_rows):
            row_pairs = stacked_rows.reshape(-1, 2, half * stacked_rows.shape[1])
            upper, lower = row_pairs.swapaxes(0, 1).reshape(2, -1)
            result.append(RowOperationBatch(upper, upper, lower, -1))
            half *= 2
        pivot_inputs = self._zero_input_indices[self._pivot_check_indices]
        pivot_checks = self._compute_checks_on_inactivated_inputs(np.int64, pivot_inputs)
        solution_weights = -invert_mod64(pivot_checks).view(np.int64)
        syndrome_rows = scratch_rows[pivot_inputs]
        # Multiply by `solution_weights`, one cyclic diagonal of the matrix at a time. The operations of one
        # diagonal read and write different rows, so they can run in one batch.
        for diagonal in range(n_inactivated):
            columns = (np.arange(n_inactivated) + diagonal) % n_inactivated
            factors = solution_weights[np.arange(n_inactivated), columns]
            result.append(
                RowOperationBatch(inactivated_rows, inactivated_rows, syndrome_rows[columns], factors)
            )
        return result + batches

    def find_codewords_supported_on_erasures(self) -> Mask:
        """Return a basis of the codewords modulo 2 that are zero on all arrived blocks, one per row.

        These codewords describe what is still ambiguous: adding one of them to the true codeword changes no
        arrived block, so the two cannot be distinguished yet.
        """
        null_vectors = compute_null_space_gf2(self._inactivated_input_checks_gf2)
        leaves = self._propagate_inactivated_inputs(null_vectors.T.astype(np.int8))
        return np.asarray(leaves[self._positions].T & 1, bool)

    @cached_property
    def _pivot_check_indices(self) -> list[int]:
        """The indices of the parity checks that are solved for the inactivated inputs (unknowns).

        They are a maximal set of linearly independent checks.
        """
        return find_independent_rows_gf2(self._inactivated_input_checks_gf2)

    @cached_property
    def _inactivated_input_checks_gf2(self) -> Array:
        """The coefficient of each inactivated input (column) in each parity check (row), modulo 2."""
        return self._compute_checks_on_inactivated_inputs(np.int8, self._zero_input_indices) & 1

    def _compute_checks_on_inactivated_inputs(
        self, dtype: type[np.signedinteger], input_indices: Indices
    ) -> Array:
        """Compute the coefficient of each inactivated input (column) in each parity check (row).

        Each check belongs to one of the zero inputs `input_indices`. Integers wrap around on overflow, as in
        `dtype`.
        """
        unit_vectors = np.eye(self._cancellation_program.n_inactivated, dtype=dtype)
        checks = np.empty((len(input_indices), len(unit_vectors)), dtype)
        for start in range(0, len(unit_vectors), COLUMNS_PER_PASS):
            columns = slice(start, start + COLUMNS_PER_PASS)
            leaves = self._propagate_inactivated_inputs(unit_vectors[:, columns])
            checks[:, columns] = self._apply_arikan_transform(leaves, inverse=True)[input_indices]
        return checks

    def _propagate_inactivated_inputs(self, input_values: Array) -> Array:
        """Compute codewords from values of the inactivated inputs, with all arrived results set to zero.

        Each column of `input_values` gives one codeword, which is a column of the returned table.
        """
        table = np.zeros((self._n_rows, input_values.shape[1]), input_values.dtype)
        table[self._cancellation_program.zero_row + 1 :] = input_values
        execute_operation_batches(self._cancellation_program.operation_batches, table)
        return table[: self._zero_input_mask.size]

    def _apply_arikan_transform(self, table: Array, **options: bool) -> Array:
        """Apply the Arikan transform (butterflies) to each column of `table`, in place, and return it."""
        transforms.apply_arikan_transform(table.reshape(len(self._zero_input_mask), -1), **options)
        return table

    @cached_property
    def _cancellation_program(self) -> CancellationProgram:
        known_mask = np.zeros(self._zero_input_mask.shape, bool)
        known_mask.flat[self._received_positions] = True
        return CancellationProgram(self._zero_input_mask, known_mask)

    @property
    def _n_rows(self) -> int:
        return self._cancellation_program.zero_row + 1 + self._cancellation_program.n_inactivated


class InactivationDecoder(ModularDecoder):
    """The optimal decoder for codes with the Arikan kernel.

    Integers are decoded by inactivation decoding, which is exact modulo 2^64, and floats by least squares.

    Parameters
    ----------
    code : CodeMatrices
        Code with the Arikan kernel.
    arrived_mask : boolean array (n,)
        True for each result that has arrived.
    positions : index array (n,)
        Codeword position of each coded block.
    zero_input_mask : boolean array (size, butterflies)
        True for each input that is zero, because it is frozen or punctured.

    Attributes
    ----------
    solver : CancellationSolver
        Solver of the erasure pattern.
    """

    def __init__(
        self, code: CodeMatrices, arrived_mask: Mask, positions: Indices, zero_input_mask: Mask
    ) -> None:
        super().__init__(code, arrived_mask)
        self._leaves = positions, zero_input_mask
        self.solver = CancellationSolver(*self._leaves, self.arrived_indices, self.missing_indices)

    def _make_real_decoder(self) -> ErasureDecoder:
        return ImplicitSystematicDecoder(self.code, self.arrived_mask)

    @property
    def n_redundant_checks(self) -> int:
        """The number of parity checks that can verify the results.

        It is negative if too few results have arrived to decode.
        """
        return len(self.arrived_indices) - self.code.k

    @cached_property
    def rank_deficit(self) -> int:
        """The minimum number of additional results needed to decode, or 0 if decoding is already possible."""
        if not len(self.missing_indices):
            return 0
        return max(-self.n_redundant_checks, 0) or self._n_undetermined

    @property
    def _n_undetermined(self) -> int:
        return self.solver.n_undetermined_inputs

    @property
    def weights(self) -> UInt64Array:
        """The decoding weights: missing results = weights @ arrived results, modulo 2^64."""
        return self.solver.compute_decoding_weights(np.int64).view(np.uint64)

    @cached_property
    def check_matrix(self) -> UInt64Array:
        """A matrix of parity checks that verify the results, with one column per arrived result.

        Its product with correct results is zero modulo 2^64. It has at most MAX_MODULAR_CHECKS rows.
        """
        return self.solver.compute_check_matrix(SplitMix64(self.code.n, self.code.k))

    def _compute_weight_masks(self) -> WeightMasks:
        return self.solver.compute_weight_masks(SplitMix64(self.code.k, self.code.n))

    def decode_into(self, received: ReceivedBlocks, out: Array) -> None:
        """Decode the missing results from the received results and write them to `out`, one per row."""
        self.solver.compute_missing_blocks(received, out)


class SuccessiveCancellationDecoder(ImplicitSystematicDecoder):
    """A decoder of floats that uses successive cancellation only (`decoder="sequential"`).

    Successive cancellation determines the inputs of the butterfly one after the other. Unlike
    `InactivationDecoder`, this decoder fails if an input cannot be determined when it is needed. The
    parameters are the same.

    Attributes
    ----------
    solver : CancellationSolver
        Solver of the erasure pattern.
    """

    def __init__(
        self, code: CodeMatrices, arrived_mask: Mask, positions: Indices, zero_input_mask: Mask
    ) -> None:
        super().__init__(code, arrived_mask)
        self.solver = CancellationSolver(
            positions, zero_input_mask, self.arrived_indices, self.missing_indices
        )

    @property
    def _system_rank_deficit(self) -> int:
        return int(self.solver.n_inactivated > 0)

    @cached_property
    def weights(self) -> Floats:
        """The decoding weights, shape (missing, arrived): missing results = weights @ arrived results."""
        return self.solver.compute_decoding_weights(np.float64)

    def decode_into(self, received: ReceivedBlocks, out: Array) -> None:
        """Decode the missing results from the received results and write them to `out`, one per row."""
        self.solver.compute_missing_blocks(received, out)


class ModularCancellationDecoder(InactivationDecoder):
    """A decoder of integers that uses successive cancellation only (`decoder="sequential"`).

    Successive cancellation determines the inputs of the butterfly one after the other. Unlike
    `InactivationDecoder`, this decoder fails if an input cannot be determined when it is needed. Floats are
    decoded by a `SuccessiveCancellationDecoder`.
    """

    @property
    def _n_undetermined(self) -> int:
        return int(self.solver.n_inactivated > 0)

    def _make_real_decoder(self) -> ErasureDecoder:
        return SuccessiveCancellationDecoder(self.code, self.arrived_mask, *self._leaves)


class ModularDecodabilityTracker:
    """Tracks whether all n blocks of a code can be decoded modulo 2^64 from the results so far.

    The tracker is fast, because most arrivals only update a rank. After k arrivals, a decoder computes a
    basis of the codewords that are zero on all arrived blocks. As long as there is such a codeword, decoding
    is ambiguous. Each later arrival that excludes some of them increases the rank. All blocks are decodable
    once the rank equals the size of the basis.

    Parameters
    ----------
    n, k : int
        Number of coded blocks and of data blocks.
    make_decoder : callable
        Called once, with the boolean mask (n,) of the first k arrivals. Returns their `InactivationDecoder`.
    """

    def __init__(self, n: int, k: int, make_decoder: Callable[[Mask], InactivationDecoder]) -> None:
        self._arrived_mask, self._n_until_threshold, self._make_decoder = np.zeros(n, bool), k, make_decoder
        # A basis modulo 2 of some columns of `_unresolved_codewords`: those of the blocks that arrived after
        # the first k blocks. The keys are the leading bits of the basis vectors.
        self._arrived_basis: dict[int, int] = {}
        self._unresolved_codewords: Mask

    def add(self, block_index: int) -> bool:
        """Record the arrival of a block and return whether all blocks can now be decoded."""
        self._arrived_mask[block_index] = True
        self._n_until_threshold -= 1
        if self._n_until_threshold > 0:
            return False
        if self._n_until_threshold == 0:
            decoder = self._make_decoder(self._arrived_mask)
            self._unresolved_codewords = decoder.solver.find_codewords_supported_on_erasures()
        else:
            column = pack_rows_gf2(self._unresolved_codewords[:, [block_index]].T)[0]
            if remainder := reduce_row_gf2(column, self._arrived_basis):
                self._arrived_basis[remainder.bit_length()] = remainder
        return len(self._arrived_basis) == len(self._unresolved_codewords)
