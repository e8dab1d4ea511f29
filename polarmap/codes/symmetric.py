"""Product codes for Gram matrices A' A, which compute only the blocks A_i' A_j with i <= j.

    x = G_A X G_A'   with X' = X,   so the symmetric parts x_ij + x_ij' satisfy   G = [I; P],   T = I

A block below the diagonal is the transpose of a block above it, so computing half of the grid suffices. P is
the parity matrix of the full grid, with the columns of x_ab and x_ba added. Parity checks are evaluated on
the symmetric parts. A block is not determined by its symmetric part, so missing blocks are decoded on the
full grid, from the arrived blocks and their transposes.
"""

from __future__ import annotations

from functools import cached_property
from math import isqrt

import numpy as np

from polarmap.codes.base import ErasureDecoder, ReceivedBlocks, WeightMasks, compute_weight_masks
from polarmap.codes.linear_code import SystematicCode
from polarmap.codes.polar import PolarCode
from polarmap.codes.product import ProductCode
from polarmap.codes.real_decoders import SystematicDecoder
from polarmap.dtypes import Array, DType, Floats, Indices, Mask
from polarmap.errors import CodeError


class SymmetricProductCode(SystematicCode):
    """A product code for Gram matrices A' A, which computes only about half of the blocks.

    The blocks of a product form a grid, whose rows and columns are codewords of the same `line_code`. The
    grid of a Gram matrix is symmetric: block x_ji is the (conjugate) transpose of x_ij. Tasks therefore
    compute only the blocks x_ij with i <= j, which are n (n + 1) / 2 blocks of a grid of n x n, and each
    result fills two cells of the grid.

    The data blocks can be decoded if and only if they can be decoded on the full grid. This is because the
    parity checks of the full grid split into checks of the symmetric and antisymmetric parts.

    Parameters
    ----------
    line_code : PolarCode
        Code that encodes A along its columns; it must have the rotation kernel.
    n_block_rows : int, optional
        Number of rows and columns of a block. It is only needed if the entries of a block are arrays. By
        default, each block is a square matrix of numbers.

    Examples
    --------
    >>> code = SymmetricProductCode(PolarCode(4, 3))
    >>> code.n, code.k, code.grid_coordinates[:7].tolist()
    (10, 6, [[0, 0], [0, 1], [0, 2], [1, 1], [1, 2], [2, 2], [0, 3]])
    """

    requirement = "a product of one block's transpose and another"
    integer_error_template = "a triangle of {dtype} products cannot be decoded exactly. Use the full grid."
    is_mds = False

    def __init__(self, line_code: PolarCode, n_block_rows: int | None = None) -> None:
        if not line_code.supports_triangles:
            raise CodeError(f"a triangle of products needs the rotation kernel, not {line_code!r}")
        self.line_code, self.kernel, self.n_block_rows = line_code, line_code.kernel, n_block_rows
        self.full_grid = ProductCode(line_code, line_code)
        self.n, self.k = line_code.n * (line_code.n + 1) // 2, line_code.k * (line_code.k + 1) // 2
        self.name = f"{self.kernel} triangle of {self.line_code.n} x {self.line_code.n}"

    def __repr__(self) -> str:
        return f"SymmetricProductCode({self.line_code!r})"

    @property
    def norm_inf(self) -> float:
        """An upper bound on the infinity norm (largest absolute row sum) of the parity matrix."""
        return self.full_grid.norm_inf

    @cached_property
    def grid_coordinates(self) -> Indices:
        """The row and column of each block in the full grid, shape (n, 2)."""
        full_coordinates = self.full_grid.grid_coordinates
        return full_coordinates[full_coordinates[:, 0] <= full_coordinates[:, 1]]

    @cached_property
    def block_and_transpose_indices(self) -> Indices:
        """The index of each block, and of its transpose, among the blocks of the full grid, shape (n, 2)."""
        rows, columns = self.grid_coordinates.T
        return np.stack(
            [self.full_grid.block_grid[rows, columns], self.full_grid.block_grid[columns, rows]], axis=1
        )

    @cached_property
    def encoding_matrix(self) -> Floats:
        """The parity matrix P of the sums of each block and its transpose, shape (n - k, k).

        These symmetric sums satisfy: parity sums = P @ data sums.
        """
        blocks, transposes = self.block_and_transpose_indices[: self.k].T
        parity_rows = self.block_and_transpose_indices[self.k :, 0] - self.full_grid.k
        full_matrix = self.full_grid.encoding_matrix[parity_rows]
        return np.asarray(full_matrix[:, blocks] + full_matrix[:, transposes] * (blocks != transposes))

    def make_decoder(self, arrived_mask: Mask, modular: bool) -> ErasureDecoder:
        """Build the decoder for the results that have arrived.

        `modular` is ignored, because this code only supports real numbers.
        """
        return SymmetricProductDecoder(self, arrived_mask)


class SymmetricProductDecoder(ErasureDecoder):
    """A decoder for a `SymmetricProductCode`.

    It combines two decoders. A decoder of the full grid recovers missing blocks from the arrived blocks and
    their transposes. Another decoder provides parity checks, which hold for the sums of each block and its
    transpose.

    A recovered block depends on an arrived block and on its transpose with different weights. This decoder
    therefore has `weight_magnitudes`, but no `weights`.
    """

    decodes_integers_by_rounding = True

    code: SymmetricProductCode

    def __init__(self, code: SymmetricProductCode, arrived_mask: Mask) -> None:
        super().__init__(code, arrived_mask)
        grid_mask = np.zeros(code.full_grid.n, bool)
        grid_mask[code.block_and_transpose_indices[arrived_mask]] = True
        self._grid_decoder = code.full_grid.make_decoder(grid_mask, modular=False)
        self._symmetric_part_decoder = SystematicDecoder(code, arrived_mask)

    @property
    def n_redundant_checks(self) -> int:
        """The number of parity checks that can verify the results.

        It is negative if too few results have arrived to decode.
        """
        return self._symmetric_part_decoder.n_redundant_checks

    @property
    def check_matrix(self) -> Floats:
        """The parity-check matrix, with one column per arrived result.

        It applies to the sums of each result and its transpose, from `transform_for_parity_checks`.
        """
        return self._symmetric_part_decoder.check_matrix

    def _compute_weight_masks(self) -> WeightMasks:
        return compute_weight_masks(self.weight_magnitudes)

    @cached_property
    def amplification(self) -> float:
        """The largest factor by which decoding multiplies errors.

        It is the largest 2-norm of a row of `weight_magnitudes`: 0 if nothing is missing, and inf if decoding
        is impossible.
        """
        if not len(self.missing_indices):
            return 0.0
        return np.inf if self.rank_deficit else float(np.linalg.norm(self.weight_magnitudes, axis=1).max())

    @cached_property
    def rank_deficit(self) -> int:
        """The minimum number of additional results needed to decode, or 0 if decoding is already possible."""
        return -(-self._grid_decoder.rank_deficit // 2)

    @cached_property
    def weight_magnitudes(self) -> Floats:
        """The factors by which errors of arrived blocks affect missing blocks, shape (missing, arrived).

        Each entry combines the weight of the arrived block and the weight of its transpose, as the square
        root of the sum of their squares.
        """
        squared_weights = self._grid_decoder.weight_magnitudes[self._positions_among_missing_grid_blocks] ** 2
        squared = np.zeros((len(squared_weights), self.code.full_grid.n))
        squared[:, self._grid_decoder.arrived_indices] = squared_weights
        blocks, transposes = self.code.block_and_transpose_indices[self.arrived_indices].T
        return np.asarray(np.sqrt(squared[:, blocks] + squared[:, transposes] * (blocks != transposes)))

    @property
    def _positions_among_missing_grid_blocks(self) -> Indices:
        """The row of each missing block in the output of the decoder of the full grid.

        This is its position in `missing_indices` of that decoder.
        """
        grid_indices = self.code.block_and_transpose_indices[self.missing_indices, 0]
        return np.asarray(np.searchsorted(self._grid_decoder.missing_indices, grid_indices))

    def decode(self, received: ReceivedBlocks, dtype: DType) -> Array:
        """Decode the missing data blocks from the received blocks, and return one block per row.

        All blocks are square matrices that are flattened to one dimension.
        """
        grid_blocks = {}
        for index in self.arrived_indices.tolist():
            block = received[index]
            position, transpose_position = self.code.block_and_transpose_indices[index].tolist()
            grid_blocks[transpose_position] = conjugate_transpose_flat_block(block, self.code.n_block_rows)
            grid_blocks[position] = block
        return self._grid_decoder.decode(grid_blocks, dtype)[self._positions_among_missing_grid_blocks]

    def transform_for_parity_checks(self, received: ReceivedBlocks) -> ReceivedBlocks:
        """Return the sum of each received block and its conjugate transpose, by block index.

        The parity checks of this code hold for these sums, and not for the blocks themselves.
        """
        return {
            block_index: block + conjugate_transpose_flat_block(block, self.code.n_block_rows)
            for block_index, block in received.items()
        }


def conjugate_transpose_flat_block(block: Array, n_block_rows: int | None = None) -> Array:
    """Return the conjugate transpose of a square matrix that is flattened to one dimension.

    The result is flattened, too.

    Parameters
    ----------
    block : array (b,)
        Flat block of n_block_rows x n_block_rows entries, which may be arrays of equal size.
    n_block_rows : int, optional
        Number of rows. By default, the entries are numbers, and the square root of b is used.

    Examples
    --------
    >>> conjugate_transpose_flat_block(np.array([1, 2j, 3, 4]))
    array([1.-0.j, 3.-0.j, 0.-2.j, 4.-0.j])
    """
    n_block_rows = n_block_rows or isqrt(block.size)
    square = block.reshape(n_block_rows, n_block_rows, -1)
    return np.ascontiguousarray(square.swapaxes(0, 1).conj()).reshape(-1)
