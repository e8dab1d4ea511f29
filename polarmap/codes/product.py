"""Product codes, which protect a matrix product A B: the blocks form a grid whose lines are codewords.

                     B_0      B_1      B_parity
    A_0             A_0 B_0  A_0 B_1  parity     <- each row is a codeword of the code of B
    A_parity        parity   parity   parity
                       ^ each column is a codeword of the code of A

    x = G_A X G_B',   G = kron(G_A, G_B) with its unit rows first,   T = I

X contains the data blocks on a k_A x k_B grid, G_A = [I; P_A] and G_B = [I; P_B]. The tasks compute the
products A_i B_j of coded blocks A_i and B_j. These results satisfy the parity checks C_A x = 0 in every
column of the grid, and C_B x' = 0 in every row. The decoder decodes rows and columns in turn, or solves all
checks jointly.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from polarmap.codes.base import ErasureDecoder, ReceivedBlocks
from polarmap.codes.compute import block_matmul, tiling
from polarmap.codes.linear_code import SystematicCode
from polarmap.codes.modular_decoders import ModularDecoder, ModularSystematicDecoder
from polarmap.codes.modular_linalg import matmul_mod64
from polarmap.codes.polar import PolarCode
from polarmap.codes.real_decoders import RealDecoder, SystematicDecoder
from polarmap.dtypes import (
    Array,
    DType,
    Floats,
    Indices,
    Mask,
    UInt64Array,
    choose_accumulator_dtype,
    is_integer_dtype,
)
from polarmap.errors import CodeError

BlockIndices = set[int]

# Maximum number of tasks. With more tasks, joint decoding would take too long.
MAX_TASKS = 4096
# Joint decoding solves a linear system for all missing blocks at once. It is not tried if its number of
# operations, equations * unknowns^2, exceeds this limit, which corresponds to about 0.2 s.
MAX_JOINT_FLOPS = 3e8
# Joint decoding, which is more accurate, is preferred if the number of recovered blocks times the number of
# received blocks is at most this. Otherwise, decoding one row or column at a time is faster.
MAX_JOINT_WEIGHTS = 1 << 18


class ProductCode(SystematicCode):
    """A code for matrix products A B: a grid of blocks whose rows and columns are codewords of polar codes.

    The grid has n_A x n_B blocks. The data blocks are in its first k_A rows and first k_B columns, and all
    other blocks are parity blocks. Blocks are numbered row by row, first all data blocks and then all parity
    blocks.

    Parameters
    ----------
    column_code : PolarCode
        Code of the columns of the grid. It combines the row blocks of the left matrix A.
    row_code : PolarCode
        Code of the rows of the grid. It combines the column blocks of the right matrix B.

    Raises
    ------
    CodeError
        If the grid has more than 4096 blocks, a code has the sequential decoder, or the kernels differ.

    Examples
    --------
    >>> code = ProductCode(PolarCode(3, 2), PolarCode(4, 3))
    >>> code.n, code.k
    (12, 6)
    >>> code.grid_coordinates[:7].tolist()
    [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2], [0, 3]]
    """

    requirement = "a product of two blocks"
    is_mds = False

    def __init__(self, column_code: PolarCode, row_code: PolarCode) -> None:
        self.column_code, self.row_code = column_code, row_code
        self.n, self.k = column_code.n * row_code.n, column_code.k * row_code.k
        if self.n > MAX_TASKS:
            grid_text = f"a grid of {column_code.n} x {row_code.n}"
            raise CodeError(f"{grid_text} has more than {MAX_TASKS} tasks. Use fewer workers.")
        if "sequential" in (column_code.decoder, row_code.decoder):
            raise CodeError("a product code requires decoder='optimal' in both codes, not 'sequential'")
        if column_code.kernel != row_code.kernel:
            raise CodeError(
                "both codes of a product code must have the same kernel, "
                f"not {column_code.kernel!r} and {row_code.kernel!r}"
            )
        self.kernel = column_code.kernel
        self.name = f"{self.kernel} grid {self.column_code.n} x {self.row_code.n}"
        self.supports_integers = self.column_code.supports_integers

    def __repr__(self) -> str:
        return f"ProductCode({self.column_code!r}, {self.row_code!r})"

    @cached_property
    def grid_coordinates(self) -> Indices:
        """The row and column of each block in the grid, shape (n, 2)."""
        rows, columns = np.divmod(np.arange(self.n), self.row_code.n)
        parity_mask = (rows >= self.column_code.k) | (columns >= self.row_code.k)
        order = np.argsort(parity_mask, kind="stable")
        return np.stack([rows[order], columns[order]], axis=1)

    @cached_property
    def block_grid(self) -> Indices:
        """The index of the block at each row and column of the grid, shape (n_A, n_B)."""
        block_indices = np.empty((self.column_code.n, self.row_code.n), np.intp)
        block_indices[self.grid_coordinates[:, 0], self.grid_coordinates[:, 1]] = np.arange(self.n)
        return block_indices

    @cached_property
    def encoding_matrix(self) -> Array:
        """The parity matrix P of the grid, shape (n - k, k): parity blocks = P @ data blocks."""
        rows, columns = self.grid_coordinates[self.k :].T
        product = np.einsum(
            "pa,pb->pab", self.column_code.generator_matrix[rows], self.row_code.generator_matrix[columns]
        )
        return np.asarray(product.reshape(len(rows), -1))

    @property
    def norm_inf(self) -> int:
        """An upper bound on the infinity norm of the parity matrix: the product of the two codes' norms."""
        return self.column_code.norm_inf * self.row_code.norm_inf

    def make_decoder(self, arrived_mask: Mask, modular: bool) -> ErasureDecoder:
        """Build the decoder for the arrived results, over the reals, or modulo 2^64 if `modular` is True."""
        decoder_class = ModularProductDecoder if modular else ProductDecoder
        return decoder_class(self, arrived_mask)


class GridDecoder(ErasureDecoder):
    """Base class of decoders for a grid of blocks, over the reals or modulo 2^64.

    There are two methods. Iterative decoding recovers one row or column at a time. This is possible once as
    many of its blocks are known as its code has data blocks. If no row or column has enough blocks, joint
    decoding solves the parity checks of all rows and columns at once. It is tried only if a unique solution
    is possible and the linear system is small enough.

    Attributes
    ----------
    joint : SystematicDecoder or ModularSystematicDecoder
        Decoder that solves the checks of all rows and columns at once.
    """

    code: ProductCode
    joint: SystematicDecoder | ModularSystematicDecoder

    @cached_property
    def rank_deficit(self) -> int:
        """The minimum number of additional results needed to decode, or 0 if decoding is already possible."""
        n_lacking = self.code.k - len(self.arrived_indices)
        if n_lacking > 0:
            return n_lacking
        if self._can_decode_iteratively and self.iterative_decoder.is_complete:
            return 0
        return self.joint.rank_deficit if self._is_joint_decoding_tractable else 1

    @property
    def n_redundant_checks(self) -> int:
        """The number of parity checks that can verify the results.

        It is negative if too few results have arrived to decode.
        """
        return self.joint.n_redundant_checks

    @cached_property
    def iterative_decoder(self) -> IterativeDecoder:
        """An `IterativeDecoder` that has determined which rows and columns the arrived results can decode."""
        iterative_decoder = IterativeDecoder(self.code, self.modular)
        iterative_decoder.add_arrivals(self.arrived_indices)
        return iterative_decoder

    @cached_property
    def _mask_recoverable_by_counting(self) -> Mask:
        """A mask of the blocks that have arrived or can be decoded iteratively, shape (n_A, n_B).

        This is an estimate by counting: it assumes that a row or column with k data blocks can be decoded
        from any k of its blocks.
        """
        column_code, row_code = self.code.column_code, self.code.row_code
        known_mask = np.zeros((column_code.n, row_code.n), bool)
        known_mask[tuple(self.code.grid_coordinates[self.arrived_indices].T)] = True
        previous_count = -1
        while (n_known := int(known_mask.sum())) > previous_count:
            previous_count = n_known
            known_mask[:, known_mask.sum(axis=0) >= column_code.k] = True
            known_mask[known_mask.sum(axis=1) >= row_code.k] = True
        return known_mask

    @property
    def _can_decode_iteratively(self) -> bool:
        k_rows, k_columns = self.code.column_code.k, self.code.row_code.k
        return bool(self._mask_recoverable_by_counting[:k_rows, :k_columns].all())

    @cached_property
    def _is_joint_decoding_tractable(self) -> bool:
        """True if joint decoding may have a unique solution and its linear system is small enough.

        The solution is not unique if some nonzero codeword is zero at all known blocks. The codewords that
        are zero outside a rows and b columns form a space of dimension (a - r_A)(b - r_B), where r_A and r_B
        are the numbers of parity rows and columns. Every known block in these rows and columns reduces the
        dimension by at most one.
        """
        column_code, row_code = self.code.column_code, self.code.row_code
        unknown_mask = ~self._mask_recoverable_by_counting
        n_rows, n_columns = int(unknown_mask.any(axis=1).sum()), int(unknown_mask.any(axis=0).sum())
        n_free_rows = max(0, n_rows - column_code.n + column_code.k)
        n_free_columns = max(0, n_columns - row_code.n + row_code.k)
        if n_free_rows * n_free_columns > n_rows * n_columns - int(unknown_mask.sum()):
            return False
        return len(self.joint.arrived_parity_indices) * len(self.missing_indices) ** 2 <= MAX_JOINT_FLOPS

    @cached_property
    def line_decodings(self) -> Sequence[tuple[LineDecoding, BlockIndices]] | None:
        """The rows and columns to decode one after the other, each with the blocks that are needed from it.

        The value is None if decoding rows and columns in turn cannot recover all missing blocks.
        """
        if not (self._can_decode_iteratively and self.iterative_decoder.is_complete):
            return None
        missing = set(self.missing_indices.tolist())
        return select_required_line_decodings(self.iterative_decoder.line_decodings, missing)

    def _decode_iteratively(
        self,
        line_decodings: Sequence[tuple[LineDecoding, BlockIndices]],
        received: ReceivedBlocks,
        out: Array,
    ) -> None:
        arrived_blocks = {index: received[index] for index in self.arrived_indices.tolist()}
        known_blocks = decode_lines(line_decodings, arrived_blocks, out.dtype)
        for target, block_index in zip(out, self.missing_indices.tolist()):
            target[:] = known_blocks[block_index]


class ProductDecoder(GridDecoder, RealDecoder):
    """Decodes a product code over the reals.

    All missing blocks are decoded jointly if this is cheap, and otherwise one row or column at a time.
    """

    joint: SystematicDecoder

    def __init__(self, code: ProductCode, arrived_mask: Mask) -> None:
        super().__init__(code, arrived_mask)
        self.joint = SystematicDecoder(code, arrived_mask)

    @cached_property
    def line_decodings(self) -> Sequence[tuple[LineDecoding, BlockIndices]] | None:
        """The rows and columns to decode one after the other, each with the blocks that are needed from it.

        The value is None if all blocks are decoded jointly instead.
        """
        if len(self.missing_indices) * len(self.arrived_indices) <= MAX_JOINT_WEIGHTS:
            return None
        return super().line_decodings

    @cached_property
    def weights(self) -> Floats:
        """The decoding weights, shape (missing, arrived): missing results = weights @ arrived results."""
        if self.line_decodings is None:
            return self.joint.weights
        n_arrived = len(self.arrived_indices)
        out = np.empty((len(self.missing_indices), n_arrived))
        unit_vectors = dict(zip(self.arrived_indices.tolist(), np.eye(n_arrived)))
        self._decode_iteratively(self.line_decodings, unit_vectors, out)
        return out

    def compute_parity_check_matrix(self, max_checks: int) -> Floats:
        """Compute up to `max_checks` parity checks that verify the arrived results.

        They are the rows of a matrix with one column per arrived result. Its product with correct results is
        zero.
        """
        return self.joint.compute_parity_check_matrix(max_checks)

    def decode_into(self, received: ReceivedBlocks, out: Array) -> None:
        """Decode the missing data blocks, and write them to the rows of `out`.

        Integers are decoded jointly, from all arrived results at once. Floats are also decoded jointly if
        this is cheap or necessary, and otherwise one row or column of the grid at a time.
        """
        if self.line_decodings is None or is_integer_dtype(out.dtype):
            super().decode_into(received, out)
        else:
            self._decode_iteratively(self.line_decodings, received, out)


class ModularProductDecoder(GridDecoder, ModularDecoder):
    """Decodes a product code for integers, modulo 2^64.

    One row or column is decoded at a time if possible. Otherwise, all missing blocks are decoded jointly.
    """

    joint: ModularSystematicDecoder

    def __init__(self, code: ProductCode, arrived_mask: Mask) -> None:
        super().__init__(code, arrived_mask)
        self.joint = ModularSystematicDecoder(code, arrived_mask)

    def _make_real_decoder(self) -> ErasureDecoder:
        return ProductDecoder(self.code, self.arrived_mask)

    @property
    def weights(self) -> UInt64Array:
        """The weights of joint decoding: missing results = weights @ arrived results, modulo 2^64."""
        return self.joint.weights

    @property
    def check_matrix(self) -> UInt64Array:
        """The parity-check matrix of the arrived results modulo 2^64."""
        return self.joint.check_matrix

    def decode_into(self, received: ReceivedBlocks, out: Array) -> None:
        """Decode the missing data blocks, and write them to the rows of `out`.

        If possible, one row or column of the grid is decoded at a time, and otherwise all blocks together.
        """
        if self.line_decodings is None:
            self.joint.decode_into(received, out)
        else:
            self._decode_iteratively(self.line_decodings, received, out)


# --- Iterative decoding of rows and columns -------------------------------------------------------


class LineDecoding(NamedTuple):
    """One step of iterative decoding, which recovers all blocks of a row or column.

    Attributes
    ----------
    block_indices : index array
        Indices of the blocks in the row or column.
    code : PolarCode
        Code of all rows, or of all columns.
    decoder : ErasureDecoder
        Decoder of the row or column, for its blocks that are known before this step.
    """

    block_indices: Indices
    code: PolarCode
    decoder: ErasureDecoder

    @property
    def newly_known_indices(self) -> Indices:
        """The positions in the row or column whose blocks this step recovers."""
        return np.setdiff1d(np.arange(len(self.block_indices)), self.decoder.arrived_indices)


class IterativeDecoder:
    """Finds an order in which rows and columns of a grid of blocks can be decoded one after the other.

    Parameters
    ----------
    code : ProductCode
        Code of the grid.
    modular : bool
        Decode integers modulo 2^64 instead of real numbers.

    Attributes
    ----------
    known_mask : boolean array (n_A, n_B)
        True for each cell whose block has arrived or can be decoded.
    line_decodings : list of LineDecoding
        Rows and columns in order of decoding. Each one needs only blocks that have arrived or that the
        previous ones recover.
    """

    def __init__(self, code: ProductCode, modular: bool) -> None:
        self._code, self._modular = code, modular
        self.known_mask = np.zeros((code.column_code.n, code.row_code.n), bool)
        self.line_decodings: list[LineDecoding] = []

    @property
    def is_complete(self) -> bool:
        """True if every data block has arrived or can be decoded."""
        return bool(self.known_mask[: self._code.column_code.k, : self._code.row_code.k].all())

    def add_arrivals(self, block_indices: Sequence[int] | Indices) -> None:
        """Record that blocks have arrived, and find all rows and columns that can be decoded now."""
        rows, columns = self._code.grid_coordinates[block_indices].T
        self.known_mask[rows, columns] = True
        # The columns (first set) and rows (second set) that have new known blocks. Decoding a column adds
        # known blocks to rows, and vice versa, so columns and rows are examined in turn.
        changed_lines = [set(columns.tolist()), set(rows.tolist())]
        axis = 0
        while changed_lines[0] or changed_lines[1]:
            for line_index in sorted(changed_lines[axis]):
                changed_lines[1 - axis].update(self._add_line_if_decodable(axis, line_index))
            changed_lines[axis] = set()
            axis = 1 - axis

    def _add_line_if_decodable(self, axis: int, line_index: int) -> list[int]:
        """Add a row or column to `line_decodings` if it can be decoded.

        This is column `line_index` for axis 0, and row `line_index` for axis 1. Return the positions in the
        row or column whose blocks are recovered.
        """
        known_mask = self.known_mask[:, line_index] if axis == 0 else self.known_mask[line_index]
        code = self._code.row_code if axis else self._code.column_code
        if known_mask.all() or known_mask.sum() < code.k:
            return []
        decoder = code.make_decoder(known_mask.copy(), self._modular)
        if decoder.rank_deficit:
            return []
        line_blocks = self._code.block_grid[:, line_index] if axis == 0 else self._code.block_grid[line_index]
        decoding = LineDecoding(line_blocks, code, decoder)
        self.line_decodings.append(decoding)
        known_mask[:] = True
        return [int(position) for position in decoding.newly_known_indices]


def select_required_line_decodings(
    line_decodings: Sequence[LineDecoding], missing_indices: BlockIndices
) -> list[tuple[LineDecoding, BlockIndices]]:
    """Select the rows and columns that must be decoded to recover the missing blocks.

    Rows and columns that recover no required block are omitted.

    Parameters
    ----------
    line_decodings : sequence of LineDecoding
        Rows and columns in order of decoding.
    missing_indices : set of int
        Blocks to recover.

    Returns
    -------
    list of (LineDecoding, set of int)
        Selected rows and columns in order of decoding, each with the blocks that are needed from it.
    """
    required_blocks, selected = set(missing_indices), []
    for decoding in reversed(line_decodings):
        newly_known_blocks = decoding.block_indices[decoding.newly_known_indices]
        recovered_blocks = required_blocks & set(newly_known_blocks.tolist())
        if recovered_blocks:
            selected.append((decoding, recovered_blocks))
            required_blocks |= set(decoding.block_indices[decoding.decoder.arrived_indices].tolist())
    return selected[::-1]


def decode_lines(
    line_decodings: Sequence[tuple[LineDecoding, BlockIndices]], received: ReceivedBlocks, dtype: DType
) -> dict[int, Array]:
    """Decode rows and columns of a grid in the given order, and return all blocks that are known then.

    Parameters
    ----------
    line_decodings : sequence of (LineDecoding, set of int)
        Rows and columns, each with the blocks that are needed from it, as from
        `select_required_line_decodings`.
    received : mapping from int to array (b,)
        Flat results by block index.
    dtype : dtype
        Data type of the results. The sums are computed in its accumulator dtype.

    Returns
    -------
    dict from int to array (b,)
        The received and the recovered blocks, by block index.
    """
    sum_dtype = choose_accumulator_dtype(dtype)
    known_blocks = dict(received)
    for decoding, required_blocks in line_decodings:
        decoder, block_indices = decoding.decoder, decoding.block_indices.tolist()
        line_blocks = {
            position: known_blocks[block_indices[position]] for position in decoder.arrived_indices.tolist()
        }
        line_blocks |= zip(decoder.missing_indices.tolist(), decoder.decode(line_blocks, sum_dtype))
        newly_known = decoding.newly_known_indices.tolist()
        parity_positions = [
            position
            for position in newly_known
            if position >= decoding.code.k and block_indices[position] in required_blocks
        ]
        parity_blocks = _encode_line_parity(decoding.code, parity_positions, line_blocks, sum_dtype)
        line_blocks |= zip(parity_positions, parity_blocks)
        known_blocks |= {
            block_indices[position]: line_blocks[position]
            for position in newly_known
            if position in line_blocks
        }
    return known_blocks


def _encode_line_parity(
    code: PolarCode, positions: Sequence[int], line_blocks: ReceivedBlocks, dtype: DType
) -> Array:
    """Compute the parity blocks at the given positions of a row or column from its data blocks.

    `line_blocks` maps positions in the row or column to blocks. It must contain all data blocks.
    """
    parity_matrix = code.encoding_matrix[[position - code.k for position in positions]]
    data_blocks = [line_blocks[position] for position in range(code.k)]
    out = np.empty((len(positions), data_blocks[0].size), dtype)
    if not positions:
        return out
    if not is_integer_dtype(dtype):
        block_matmul.combine_rows(parity_matrix.astype(np.float64), data_blocks, out)
        return out
    for columns in tiling.iter_column_tiles(out.shape[1], len(data_blocks) + len(out), 8):
        tile = tiling.gather_columns(data_blocks, columns, np.int64)
        out[:, columns] = matmul_mod64(parity_matrix, tile).astype(dtype)
    return out
