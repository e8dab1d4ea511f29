"""The Arikan kernel [[1, 1], [0, 1]], whose parity matrix P consists of small integers (arXiv 1901.06811).

`PolarCode` uses this kernel for integer data, because it decodes integers exactly. n - k inputs of the
butterfly are frozen (set to zero). By default, these are the inputs of lowest weight, as in a Reed-Muller
code. For the sequential decoder, which only this kernel has, they are chosen by channel polarization.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from polarmap.codes import modular_linalg
from polarmap.codes.base import ErasureDecoder, ReceivedBlocks
from polarmap.codes.compute import block_matmul, row_program, tiling, transforms
from polarmap.codes.compute.row_program import RowOperationBatch, RowOperationProgram
from polarmap.codes.modular_decoders import ModularSystematicDecoder
from polarmap.codes.polar import PolarCode
from polarmap.codes.polar_construction import (
    choose_frozen_set,
    choose_low_weight_frozen_set,
    compute_transform_shape,
    count_undecodable_losses,
)
from polarmap.codes.real_decoders import has_dense_parity_matrix
from polarmap.codes.splitmix import SplitMix64
from polarmap.dtypes import (
    Array,
    DType,
    Floats,
    Indices,
    Mask,
    choose_accumulator_dtype,
    choose_parity_dtype,
    is_integer,
    is_integer_dtype,
)
from polarmap.errors import CodeError

# The decoders of polarmap.codes.successive_cancellation are imported where they are needed, because most maps
# do not need them.
if TYPE_CHECKING:
    from polarmap.codes.successive_cancellation import CancellationSolver, InactivationDecoder

# For up to this many parity rows, a float64 BLAS product encodes 32-bit integers faster than row additions,
# which need 64-bit sums (measured with benchmarks/coding.py).
MAX_BLAS_INTEGER_ROWS = 16
# The cost of decoding by row additions, relative to one multiply-add of a matrix product modulo 2^64. The
# additions cost ADDITION_COST per entry of each coded block and per butterfly stage. Preparing them costs
# PROGRAM_COST per coded block. Both were measured with benchmarks/coding.py.
ADDITION_COST, PROGRAM_COST = 0.7, 4000
# Codes with up to this many coded blocks freeze the inputs of lowest weight by default, and order parity
# blocks by the number of data blocks that they combine. In larger codes, the frozen set is chosen by channel
# polarization, because successive cancellation decodes them faster with such a set.
MAX_LOW_WEIGHT_N = 4096
# For codes with up to this many coded blocks, two frozen sets are compared: the inputs of lowest weight, and
# the set chosen by channel polarization. The code uses the set with which fewer losses of two blocks cannot
# be decoded. This is the second set for only a few codes, all with up to 27 blocks.
MAX_COMPARED_N = 64


class ArikanCode(PolarCode):
    """A polar code with the Arikan kernel [[1, 1], [0, 1]], which decodes integers exactly.

    The coded blocks are x = B v, where v consists of the input blocks. Some of the inputs, the frozen set,
    are always zero. The matrix B consists of one or more butterflies, which add pairs of blocks in `levels`
    stages, as in a fast Fourier transform. The parameters are the same as for `PolarCode`.
    """

    kernel = option_name = "arikan"
    supports_integers = has_uneven_parity = True
    is_mds = False
    _supported_decoders = "optimal", "sequential"

    @property
    def transform_shape(self) -> tuple[int, int]:
        """The size of each butterfly of the encoder (2^levels rows) and the number of butterflies."""
        return compute_transform_shape(self.n, self.levels)

    @property
    def mother_code_length(self) -> int:
        """The mother code length N, which is the total number of rows of all butterflies.

        N is usually larger than the number n of coded blocks. The first N - n codeword positions are then
        punctured, that is, not sent to workers.
        """
        size, n_transforms = self.transform_shape
        return size * n_transforms

    @cached_property
    def frozen_set(self) -> Indices:
        """The indices of the n - k butterfly inputs that are frozen (always zero), in ascending order."""
        sizes = self.n, self.k
        if not self._has_low_weight_design:
            return choose_frozen_set(*sizes, self._position_erasure_probabilities, self.levels)
        frozen_set = choose_low_weight_frozen_set(*sizes, self.seed, self.levels)
        if self.n <= MAX_COMPARED_N and self.levels_option is None:
            polarized_set = choose_frozen_set(*sizes, self._position_erasure_probabilities)
            return min(frozen_set, polarized_set, key=partial(count_undecodable_losses, self.n))
        return frozen_set

    @property
    def _has_low_weight_design(self) -> bool:
        """True if the inputs of lowest weight are frozen, which is the default for the optimal decoder."""
        is_default = self.erasure_option is None and self.decoder == "optimal"
        return is_default and self.n <= MAX_LOW_WEIGHT_N

    @property
    def zero_input_mask(self) -> Mask:
        """A boolean mask of the butterfly inputs that are zero, because they are frozen or punctured.

        Its shape is (rows of a butterfly, number of butterflies), as in `transform_shape`.
        """
        mask = np.zeros(self.transform_shape, bool)
        mask.flat[self.frozen_set] = True
        mask.flat[: self.mother_code_length - self.n] = True
        return mask

    @cached_property
    def codeword_positions(self) -> Indices:
        """The codeword position of each coded block, i.e. the row of the butterfly output that contains it.

        The k data blocks come first, then the n - k parity blocks. By default, the parity blocks that combine
        the most data blocks precede the other ones. If only a few data blocks are missing, the first few
        parity blocks then usually suffice to decode them.
        """
        parity_mask = np.zeros(self.mother_code_length, bool)
        parity_mask[self.frozen_set] = True
        sent_positions = np.arange(self.mother_code_length - self.n, self.mother_code_length)
        data_positions, parity_positions = sent_positions[~parity_mask[sent_positions]], self.frozen_set
        if self._has_low_weight_design:
            counts = self._count_data_blocks_gf2(data_positions, parity_positions)
            ties = SplitMix64(self.n, self.k).random(len(counts))
            parity_positions = parity_positions[np.lexsort((ties, -counts))]
        return np.concatenate([data_positions, parity_positions])

    def _count_data_blocks_gf2(self, data_positions: Indices, parity_positions: Indices) -> Indices:
        """Return how many data blocks each parity block combines with an odd coefficient.

        To find the coefficients modulo 2, all k unit vectors are encoded at once, with one bit per vector.
        """
        bits = np.packbits(np.eye(self.k, 64 * -(-self.k // 64), dtype=bool), axis=1)
        table = np.zeros((self.mother_code_length, bits.shape[1]), np.uint8)
        table[data_positions] = bits
        words = table.view(np.uint64).reshape(self.transform_shape[0], -1)
        transforms.apply_arikan_transform(words, gf2=True)
        table[self.zero_input_mask.reshape(-1)] = 0
        transforms.apply_arikan_transform(words, gf2=True)
        return np.asarray(np.unpackbits(table[parity_positions], axis=1).sum(axis=1, dtype=np.intp))

    @cached_property
    def encoding_matrix(self) -> Array:
        """The parity matrix P of small integers, shape (n - k, k): parity blocks = P @ data blocks."""
        if self.n - self.k < self.k:
            parity_rows = self.left_multiply_encoding_matrix(np.eye(self.n - self.k))
            # The conversion is exact, because the float64 entries are sums of few integers and thus integers.
            return parity_rows.astype(np.int64, order="C")
        return self.compute_encoding_matrix_columns(np.arange(self.k))

    def compute_encoding_matrix_columns(self, block_indices: Indices) -> Array:
        """Compute the columns of the parity matrix for the data blocks `block_indices` only."""
        unit_vectors = np.zeros((self.k, len(block_indices)), np.int64)
        unit_vectors[block_indices, np.arange(len(block_indices))] = 1
        columns = np.empty((self.n - self.k, len(block_indices)), np.int64)
        self._encode_by_transform(unit_vectors, columns)
        return columns

    def left_multiply_encoding_matrix(self, weights: Floats) -> Floats:
        """Compute weights @ P, where P is the parity matrix, without forming P."""
        table = np.zeros((self.mother_code_length, len(weights)))
        table[self.codeword_positions[self.k :]] = weights.T
        stacked_table = table.reshape(self.transform_shape[0], -1)
        transforms.apply_arikan_transform(stacked_table, transpose=True)
        table[self.zero_input_mask.reshape(-1)] = 0
        transforms.apply_arikan_transform(stacked_table, inverse=True, transpose=True)
        return table[self.codeword_positions[: self.k]].T

    def parity_dtype(self, dtype: npt.DTypeLike) -> DType:
        """Return the dtype of the parity blocks for data of `dtype`.

        Small integers may need a wider dtype, because a parity block is a sum of data blocks.
        """
        data_dtype = super().parity_dtype(dtype)
        is_widest = not is_integer_dtype(data_dtype) or data_dtype.itemsize == 8
        return data_dtype if is_widest else choose_parity_dtype(data_dtype, self.norm_inf)

    @cached_property
    def norm_inf(self) -> int:
        """The infinity norm of the parity matrix, which is its largest absolute row sum."""
        data_indicator = np.zeros(self.mother_code_length)
        data_indicator[self.codeword_positions[: self.k]] = 1
        column_weights = data_indicator.reshape(self.transform_shape)
        diagonal = np.where(self.zero_input_mask, 0.0, 1.0)
        row_sums = transforms.compute_arikan_abs_row_sums(diagonal, column_weights)
        return int(row_sums.reshape(-1)[self.codeword_positions[self.k :]].max())

    def make_decoder(self, arrived_mask: Mask, modular: bool) -> ErasureDecoder:
        """Build the decoder for the results that have arrived.

        If `modular` is True, it decodes integers modulo 2^64 instead of real numbers.
        """
        if self.decoder == "sequential":
            from polarmap.codes.successive_cancellation import (
                ModularCancellationDecoder,
                SuccessiveCancellationDecoder,
            )

            decoder_class = ModularCancellationDecoder if modular else SuccessiveCancellationDecoder
            return decoder_class(self, arrived_mask, self.codeword_positions, self.zero_input_mask)
        if not modular:
            return super().make_decoder(arrived_mask, modular)
        if has_dense_parity_matrix(self.n, self.k):
            return ModularArikanDecoder(self, arrived_mask)
        return self._make_inactivation_decoder(arrived_mask)

    def _make_inactivation_decoder(self, arrived_mask: Mask) -> InactivationDecoder:
        from polarmap.codes.successive_cancellation import InactivationDecoder

        return InactivationDecoder(self, arrived_mask, self.codeword_positions, self.zero_input_mask)

    def make_decodability_tracker(self, modular: bool) -> Callable[[int], bool] | None:
        """Return a function that records an arrival and returns whether all blocks can now be decoded.

        The function takes the index of the arrived block. With the optimal decoder, None is returned for
        floats and for small codes. The caller then computes a matrix rank to determine decodability.
        """
        if self.decoder == "sequential":
            from polarmap.codes.successive_cancellation import CancellationTracker

            tracker, positions = CancellationTracker(self.zero_input_mask), self.codeword_positions
            return lambda block_index: tracker.add_known_position(int(positions[block_index]))
        if not modular or has_dense_parity_matrix(self.n, self.k):
            return None
        from polarmap.codes.successive_cancellation import ModularDecodabilityTracker

        return ModularDecodabilityTracker(self.n, self.k, self._make_inactivation_decoder).add

    def _encode_parity_into(self, blocks: tiling.FlatBlocks, out: Array) -> None:
        if self._is_blas_faster(blocks[0].dtype):
            block_matmul.dense_matmul(self.encoding_matrix.astype(np.float64), blocks, out)
        elif out.shape[1] < row_program.MIN_WIDE_COLUMNS:
            self._encode_by_transform(blocks, out)
        else:
            self._encoding_program.compute_output_rows(blocks, out)

    def _encode_by_transform(self, blocks: tiling.FlatBlocks, out: Array) -> None:
        """Compute the parity blocks of data blocks by butterflies and write them to `out`.

        This is the systematic encoder of Arikan (2011): apply the inverse butterflies, set the frozen inputs
        to zero, and apply the butterflies. The sums are computed in the accumulator dtype of `out`.
        """
        sum_dtype = choose_accumulator_dtype(out.dtype)
        data_positions, parity_positions = np.split(self.codeword_positions, [self.k])
        tiles = tiling.iter_column_tiles(out.shape[1], self.mother_code_length, sum_dtype.itemsize)

        def encode_tile(columns: slice) -> None:
            table = np.zeros((self.mother_code_length, columns.stop - columns.start), sum_dtype)
            table[data_positions] = tiling.gather_columns(blocks, columns, sum_dtype)
            stacked_table = table.reshape(self.transform_shape[0], -1)
            transforms.apply_arikan_transform(stacked_table, inverse=True)
            table[self.frozen_set] = 0
            table[: self.mother_code_length - self.n] = 0
            transforms.apply_arikan_transform(stacked_table)
            out[:, columns] = table[parity_positions]

        tiling.parallel_for(encode_tile, list(tiles))

    @cached_property
    def _encoding_program(self) -> RowOperationProgram:
        """The program of row additions that computes the parity blocks.

        The program is cached, because building it takes a third of the time of encoding short blocks with it.
        """
        data_positions, parity_positions = np.split(self.codeword_positions, [self.k])
        return RowOperationProgram(
            build_encoding_operations(self.zero_input_mask, data_positions),
            self.mother_code_length + 1,
            data_positions,
            parity_positions,
        )

    def _is_blas_faster(self, dtype: DType) -> bool:
        """Return whether to encode data of `dtype` by a matrix product instead of row additions.

        This is the case if a float64 product with BLAS is exact for these integers and faster.
        """
        if not is_integer_dtype(dtype) or dtype.itemsize != 4:
            return False
        if min(self.k, self.n - self.k) > MAX_BLAS_INTEGER_ROWS:
            return False
        return self.norm_inf << 32 < modular_linalg.MAX_EXACT_FLOAT64

    @cached_property
    def _position_erasure_probabilities(self) -> float | Floats:
        """The probability for each codeword position that its result is missing.

        The shape is (n,). If all probabilities are equal, a single float is returned.
        """
        if isinstance(self.erasure, float):
            return self.erasure
        worst_first = np.sort(self.erasure)[::-1]
        if self.decoder == "sequential":
            return worst_first
        return worst_first[SplitMix64(self.n, self.k).permutation(self.n)]

    @property
    def _block_erasure_probabilities(self) -> Floats:
        position_erasure = np.broadcast_to(self._position_erasure_probabilities, self.n)
        return np.asarray(position_erasure[self.codeword_positions - (self.mother_code_length - self.n)])

    def _check_levels(self, levels: object) -> int:
        max_levels = super()._check_levels(None)
        if levels is None:
            return max_levels
        if not is_integer(levels) or not 1 <= levels <= max_levels:  # type: ignore[operator]
            raise CodeError(
                f"levels must be an integer from 1 to {max_levels} for n = {self.n}, not {levels!r}"
            )
        n_levels: int = int(levels)  # type: ignore[call-overload]
        max_transforms = min(self.k, self.n - self.k)
        feasible_levels = next(
            candidate_levels
            for candidate_levels in range(n_levels, max_levels + 1)
            if compute_transform_shape(self.n, candidate_levels)[1] <= max_transforms
        )
        if feasible_levels > n_levels:
            size, n_transforms = compute_transform_shape(self.n, n_levels)
            raise CodeError(
                f"levels={n_levels} makes {n_transforms} butterflies of {size} blocks. Each needs at least "
                f"one data block and one parity block, but there are only {self.k} data blocks and "
                f"{self.n - self.k} parity blocks. Use levels={feasible_levels} or more."
            )
        return n_levels


class ModularArikanDecoder(ModularSystematicDecoder):
    """Decodes integers modulo 2^64 for small codes with the Arikan kernel.

    The decoding weights and the parity checks are computed from the parity matrix P. A missing block is a
    weighted sum of the arrived blocks. If the blocks are long and many are missing, a sequence of row
    additions (inactivation decoding) computes the same sums faster.
    """

    code: ArikanCode

    @cached_property
    def _solver(self) -> CancellationSolver:
        from polarmap.codes.successive_cancellation import CancellationSolver

        positions, zero_input_mask = self.code.codeword_positions, self.code.zero_input_mask
        return CancellationSolver(positions, zero_input_mask, self.arrived_indices, self.missing_indices)

    def decode_into(self, received: ReceivedBlocks, out: Array) -> None:
        """Decode the missing data blocks and write them to `out`.

        The faster of two methods is used: a product with the decoding weights, or row additions.
        """
        n_products = len(self.missing_indices) * len(self.arrived_indices)
        n_additions = ADDITION_COST * self.code.n * self.code.levels
        if out.shape[1] * (n_products - n_additions) < PROGRAM_COST * self.code.n:
            super().decode_into(received, out)
        else:
            self._solver.compute_missing_blocks(received, out)


def build_encoding_operations(zero_input_mask: Mask, data_positions: Indices) -> list[RowOperationBatch]:
    """Return the row additions that compute the parity blocks of the Arikan kernel.

    The additions work on a table with one row per codeword position. They apply the inverse butterflies to
    the data blocks, set the frozen inputs to zero, and apply the butterflies (Arikan 2011). Additions of rows
    that are known to be zero are skipped.

    Parameters
    ----------
    zero_input_mask : boolean array (size, butterflies)
        True for each input that is zero, because it is frozen or punctured.
    data_positions : index array (k,)
        Codeword positions of the data blocks.

    Returns
    -------
    list of RowOperationBatch
        Operations on a table of N + 1 rows: the N codeword positions, and a row of zeros.

    Examples
    --------
    >>> [step.factor for step in build_encoding_operations(np.array([[True], [False]]), np.array([1]))]
    [-1, -1, 1, 0]
    """
    size, length = len(zero_input_mask), zero_input_mask.size
    zero_mask = np.ones(length, bool)
    zero_mask[data_positions] = False
    batches = []
    half_sizes = [zero_input_mask.shape[1] << level for level in range(size.bit_length() - 1)]
    for sign in (-1, 1):
        for half in half_sizes:
            upper, lower = np.arange(length).reshape(-1, 2, half).swapaxes(0, 1).reshape(2, -1)
            addend_mask = ~zero_mask[lower]
            upper, lower = upper[addend_mask], lower[addend_mask]
            unset, zero_rows = zero_mask[upper], np.full(len(upper), length)
            sources = lower if sign > 0 else zero_rows  # A copy is faster than an addition to zero.
            batches.append(RowOperationBatch(upper[~unset], upper[~unset], lower[~unset], sign))
            batches.append(RowOperationBatch(upper[unset], sources[unset], lower[unset], min(sign, 0)))
            zero_mask[upper] = False
        if sign < 0:
            zero_mask |= zero_input_mask.reshape(-1)
    return batches
