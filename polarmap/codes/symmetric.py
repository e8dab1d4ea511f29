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
    """A product code for Gram matrices, which computes only the blocks x_ij with i <= j of the grid.

    The grid of a `line_code` with n blocks is symmetric and has n (n + 1) / 2 such blocks. Both rows and
    columns of the grid are encoded with the same code. Block x_ji is the (conjugate) transpose of x_ij, so
    each arrival fills two cells of the full grid. The data blocks can be decoded if and only if they can be
    decoded on the full grid, because the checks of the full grid split into checks of the symmetric and
    antisymmetric parts.

    Parameters
    ----------
    line_code : PolarCode
        Code that encodes A along its columns; it must have the rotation kernel.
    n_block_rows : int, optional
        Number of rows and columns of a block, which is only needed if the entries of a block are arrays. By
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
        """The coordinates (row and column) of every block on the full grid, shape (n, 2)."""
        full_coordinates = self.full_grid.grid_coordinates
        return full_coordinates[full_coordinates[:, 0] <= full_coordinates[:, 1]]

    @cached_property
    def block_and_transpose_indices(self) -> Indices:
        """The indices of each block and of its transpose in the full grid, shape (n, 2)."""
        rows, columns = self.grid_coordinates.T
        return np.stack(
            [self.full_grid.block_grid[rows, columns], self.full_grid.block_grid[columns, rows]], axis=1
        )

    @cached_property
    def encoding_matrix(self) -> Floats:
        """The parity matrix P of the symmetric parts x_ij + x_ji, shape (n - k, k)."""
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

    Missing blocks are recovered by a decoder of the full grid from the arrived blocks and their transposes. A
    second decoder provides parity checks for the symmetric parts x + x'. A recovered block depends on an
    arrived block and on its transpose with different weights. The decoder therefore has `weight_magnitudes`,
    but no `weights`.
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
        """The number of parity checks available to verify the results; negative if too few have arrived."""
        return self._symmetric_part_decoder.n_redundant_checks

    @property
    def check_matrix(self) -> Floats:
        """The parity-check matrix, to multiply with the blocks from `transform_for_parity_checks`."""
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
        """The change of each missing block (row) for an error of 1 in each arrived block (column).

        Each entry is the 2-norm of two weights: that of the arrived block, and that of its transpose.
        """
        squared_weights = self._grid_decoder.weight_magnitudes[self._positions_among_missing_grid_blocks] ** 2
        squared = np.zeros((len(squared_weights), self.code.full_grid.n))
        squared[:, self._grid_decoder.arrived_indices] = squared_weights
        blocks, transposes = self.code.block_and_transpose_indices[self.arrived_indices].T
        return np.asarray(np.sqrt(squared[:, blocks] + squared[:, transposes] * (blocks != transposes)))

    @property
    def _positions_among_missing_grid_blocks(self) -> Indices:
        """The position of each missing block in `missing_indices` of the decoder of the full grid."""
        grid_indices = self.code.block_and_transpose_indices[self.missing_indices, 0]
        return np.asarray(np.searchsorted(self._grid_decoder.missing_indices, grid_indices))

    def decode(self, received: ReceivedBlocks, dtype: DType) -> Array:
        """Decode the missing data blocks from the arrived blocks. All blocks are square and flattened."""
        grid_blocks = {}
        for index in self.arrived_indices.tolist():
            block = received[index]
            position, transpose_position = self.code.block_and_transpose_indices[index].tolist()
            grid_blocks[transpose_position] = conjugate_transpose_flat_block(block, self.code.n_block_rows)
            grid_blocks[position] = block
        return self._grid_decoder.decode(grid_blocks, dtype)[self._positions_among_missing_grid_blocks]

    def transform_for_parity_checks(self, received: ReceivedBlocks) -> ReceivedBlocks:
        """Return the sum of each arrived block and its conjugate transpose, keyed by block index."""
        return {
            block_index: block + conjugate_transpose_flat_block(block, self.code.n_block_rows)
            for block_index, block in received.items()
        }


def conjugate_transpose_flat_block(block: Array, n_block_rows: int | None = None) -> Array:
    """Return the conjugate transpose of a square block. Both blocks are flattened to one dimension.

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
