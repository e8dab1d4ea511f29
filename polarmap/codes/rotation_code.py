"""The rotation kernel, the default of `PolarCode` for floats: 2 x 2 rotations by pseudo-random angles.

    P = diag(scale) R + shift 1'

R consists of selected rows of two butterflies with a permutation between them (`rotation_network`). Almost
any k results can be decoded. The rows of P sum to one, so constants are codewords and f may be affine. For
thousands of blocks, P is not formed: the butterflies and their transposes multiply by P in n log n operations
per column. The decoder solves for the missing blocks:

    P[:, missing] missing = syndrome = parity - P[:, known] known
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property, lru_cache
from math import inf

import numpy as np

from polarmap.codes.base import ErasureDecoder, ReceivedBlocks
from polarmap.codes.compute import block_matmul, tiling, transforms
from polarmap.codes.linear_code import SystematicCode
from polarmap.codes.polar import PolarCode
from polarmap.codes.real_decoders import (
    ImplicitSystematicDecoder,
    compute_max_amplification,
    has_dense_parity_matrix,
)
from polarmap.codes.rotation_network import RotationButterflyNetwork, generate_rotation_butterfly_network
from polarmap.codes.splitmix import sample_subsets
from polarmap.dtypes import Array, Floats, Indices, Mask, choose_accumulator_dtype, is_integer_dtype

# If there are at most this many parity blocks or data blocks, parity is computed by a matrix product (BLAS),
# which is then faster than the compiled butterfly transform (measured with benchmarks/coding.py). The second
# limit applies to data blocks that must first be copied into one array.
MAX_DENSE_ROWS, MAX_DENSE_ROWS_GATHERED = 32, 12
# This limit is used instead if the butterfly transform is not compiled, but computed with NumPy.
MAX_DENSE_ROWS_UNCOMPILED = 512
# A code of up to MAX_SEED_SEARCH_N blocks uses the best of N_SEEDS seeds. They are compared on up to
# MAX_PATTERNS erasure patterns, i.e. sets of missing results.
MAX_SEED_SEARCH_N, N_SEEDS, MAX_PATTERNS = 64, 8, 64
# The decoder computes the parity of the arrived data blocks in batches of columns of at most this many bytes.
SYNDROME_BYTES = 64 << 20


class RotationCode(PolarCode):
    """A polar code with the rotation kernel, the default code for floats.

    The kernel is a 2 x 2 rotation. A network of such rotations by pseudo-random angles computes the parity
    blocks from the data blocks. The parameters are the same as for `PolarCode`. As a polar code, the codeword
    is x = [[I, 0], [P, -I]] u with the parity matrix P, and the last n - k inputs u are frozen to zero.
    """

    kernel = option_name = "rotation"
    supports_triangles = True
    integer_error_template = (
        "the rotation kernel does not support {dtype} blocks. Use kernel='arikan' for exact integers, or "
        "convert the data to a floating dtype."
    )

    @property
    def frozen_set(self) -> Indices:
        """The indices of the n - k inputs that are always zero (frozen): k, ..., n - 1."""
        return np.arange(self.k, self.n)

    @cached_property
    def seed(self) -> int:
        """The seed of the pseudo-random rotation angles.

        By default, the best of several seeds is used for up to 64 coded blocks, and 0 for larger codes.
        """
        if self._seed is not None or self.n > MAX_SEED_SEARCH_N:
            return self._seed or 0
        return select_rotation_seed(self.n, self.k)

    @cached_property
    def encoding_matrix(self) -> Array:
        """The parity matrix P, shape (n - k, k), as float64: parity blocks = P @ data blocks."""
        return compute_rotation_parity_matrix(self.butterfly_network, self.k)

    def compute_encoding_matrix_columns(self, block_indices: Indices) -> Array:
        """Compute the columns of the parity matrix for the data blocks `block_indices` only."""
        return compute_rotation_parity_matrix(self.butterfly_network, self.k, block_indices)

    def left_multiply_encoding_matrix(self, weights: Floats) -> Floats:
        """Compute weights @ P for the parity matrix P.

        P is not computed. Instead, the transpose of the butterfly network is applied to the weights.
        """
        products = np.empty((len(weights), self.k))

        def multiply_rows(row_slice: slice) -> None:
            parity_weights = np.ascontiguousarray(weights[row_slice].T)
            products[row_slice] = transforms.apply_rotation_parity_adjoint(
                parity_weights, self.butterfly_network, self.k
            ).T

        tiles = tiling.iter_column_tiles(len(weights), 3 * self.butterfly_network.size, 8)
        tiling.parallel_for(multiply_rows, list(tiles))
        return products

    def make_decoder(self, arrived_mask: Mask, modular: bool) -> ErasureDecoder:
        """Build the decoder for the results that have arrived.

        The decoder of a large code never computes the parity matrix, but applies the butterfly network.
        """
        if modular or self._has_dense_parity_matrix:
            return super().make_decoder(arrived_mask, modular)
        return SyndromeDecoder(self, arrived_mask)

    def _encode_parity_into(self, blocks: tiling.FlatBlocks, out: Array) -> None:
        sum_dtype = choose_accumulator_dtype(out.dtype)
        compiled = block_matmul.load_compiled_transforms(blocks, out.dtype)
        is_contiguous = tiling.is_contiguous_array(blocks, sum_dtype)
        max_dense_rows = MAX_DENSE_ROWS if is_contiguous else MAX_DENSE_ROWS_GATHERED
        if not compiled:
            max_dense_rows = MAX_DENSE_ROWS_UNCOMPILED
        if min(self.n - self.k, self.k) <= max_dense_rows and self._has_dense_parity_matrix:
            block_matmul.dense_matmul(self.encoding_matrix.astype(sum_dtype, copy=False), blocks, out)
        else:
            block_matmul.encode_rotation_parity_tiled(self.butterfly_network, blocks, out, compiled)

    @cached_property
    def _has_dense_parity_matrix(self) -> bool:
        """True if the code is small enough to compute its parity matrix explicitly."""
        return has_dense_parity_matrix(self.n, self.k)

    def precompute_encoding(self) -> None:
        """Choose the seed of the rotation angles and cache it.

        Comparing several seeds takes a few hundredths of a second.
        """
        _ = self.seed  # Reading the property chooses the seed and caches it.

    @cached_property
    def butterfly_network(self) -> RotationButterflyNetwork:
        """The network of butterflies that computes parity blocks from data blocks."""
        network = generate_rotation_butterfly_network(self.n, self.k, self.seed)
        return normalize_parity_row_sums(network, self.k)


class SyndromeDecoder(ImplicitSystematicDecoder):
    """A least-squares decoder for large rotation codes.

    The decoder encodes the data blocks that have arrived, with zeros for missing ones, and subtracts the
    resulting parity from the arrived parity blocks. The difference, called syndrome, only depends on the
    missing data blocks. A pseudo-inverse maps it to these blocks. This requires neither the parity matrix nor
    the matrix of decoding weights, which would both be large.
    """

    code: SystematicCode

    def decode_into(self, received: ReceivedBlocks, out: Array) -> None:
        """Decode the missing data blocks from the received results and write them to `out`, one per row."""
        is_integer = is_integer_dtype(out.dtype)
        sum_dtype = np.dtype(np.float64) if is_integer else choose_accumulator_dtype(out.dtype)
        pseudo_inverse = self._pseudo_inverse.astype(sum_dtype, copy=False)
        batch_width = max(64, SYNDROME_BYTES // ((self.code.n - self.code.k) * sum_dtype.itemsize))
        for start in range(0, out.shape[1], batch_width):
            columns = slice(start, min(out.shape[1], start + batch_width))
            with tiling.ignore_nonfinite_warnings():
                syndrome = self._compute_syndrome(received, columns, sum_dtype)
                decoded = block_matmul.matmul(pseudo_inverse, syndrome)
            out[:, columns] = np.rint(decoded) if is_integer else decoded

    def _compute_syndrome(
        self, received: ReceivedBlocks, columns: slice, sum_dtype: np.dtype[np.floating]
    ) -> Array:
        """Compute the arrived parity blocks minus the parity of the arrived data blocks (the syndrome).

        Missing data blocks count as zero. Only the given columns (entries of each block) are computed.
        """
        zero_block = np.zeros(columns.stop - columns.start, sum_dtype)
        data_blocks = [zero_block] * self.code.k
        for block_index in self.arrived_data_indices.tolist():
            data_blocks[block_index] = received[block_index][columns].astype(sum_dtype, copy=False)
        k, parity_indices = self.code.k, self.arrived_parity_indices
        parity_blocks = [received[k + parity_index] for parity_index in parity_indices.tolist()]
        syndrome = tiling.gather_columns(parity_blocks, columns, sum_dtype)
        syndrome -= self.code.encode_parity(data_blocks)[parity_indices]
        return syndrome


def normalize_parity_row_sums(network: RotationButterflyNetwork, k: int) -> RotationButterflyNetwork:
    """Return a copy of `network` with scale and shift such that each row of the parity matrix sums to one.

    The mean of each row is subtracted, the row is scaled to norm 1, and 1 / k is added. All rows of the
    parity matrix then have the same norm. There are two exceptions:

    * For k = 2, rows are not scaled. Without their mean, they are parallel and differ only in their norms.
    * For large codes, the parity matrix is not computed, so the norms of its rows are unknown. The mean
      squared norm of a row of the orthogonal butterflies, k / size, is used instead. The norm of a scaled row
      is then 1 only on average.
    """
    if has_dense_parity_matrix(k + len(network.kept_rows), k):
        scale, shift = compute_row_normalization(compute_rotation_parity_matrix(network, k))
    else:
        mean = transforms.encode_rotation_parity(np.ones((k, 1)), network)[:, 0] / k
        scale = 1 / np.sqrt(k / network.size - k * mean**2)
        shift = 1 / k - scale * mean
    return replace(network, scale=scale, shift=shift)


def compute_row_normalization(unscaled_matrix: Floats) -> tuple[Floats, Floats]:
    """Compute a scale and a shift for each row of a matrix, with which the row sums to one.

    A scaled and shifted row, scale * row + shift, has mean 1 / k, and its deviation from the mean has norm 1.
    For k = 2, rows are shifted only.

    Parameters
    ----------
    unscaled_matrix : array (r, k)
        Matrix of a butterfly network without scale and shift.

    Returns
    -------
    scale, shift : arrays (r,)
    """
    k, mean = unscaled_matrix.shape[1], unscaled_matrix.mean(axis=1)
    scale = np.ones(len(unscaled_matrix))
    if k > 2:
        scale /= np.linalg.norm(unscaled_matrix - mean[:, None], axis=1)
    return scale, 1 / k - scale * mean


def compute_rotation_parity_matrix(
    network: RotationButterflyNetwork, k: int, block_indices: Indices | None = None
) -> Floats:
    """Compute the parity matrix P, or some of its columns.

    The columns are computed by applying the butterflies to unit vectors.

    Parameters
    ----------
    network : RotationButterflyNetwork
        Butterflies with scale and shift.
    k : int
        Number of data blocks.
    block_indices : index array, optional
        Columns to compute. By default, all k columns.

    Returns
    -------
    array (parity blocks, columns)
    """
    column_indices = np.arange(k) if block_indices is None else block_indices
    parity_matrix = np.empty((len(network.kept_rows), len(column_indices)))

    def transform_columns(columns: slice) -> None:
        identity = np.zeros((k, columns.stop - columns.start))
        identity[column_indices[columns], np.arange(identity.shape[1])] = 1.0
        parity_matrix[:, columns] = transforms.encode_rotation_parity(identity, network)

    tiles = tiling.iter_column_tiles(len(column_indices), 3 * network.size, 8)
    tiling.parallel_for(transform_columns, list(tiles))
    return parity_matrix


@lru_cache(maxsize=256)
def select_rotation_seed(n: int, k: int) -> int:
    """Return the seed of the rotation angles for which decoding multiplies errors the least.

    N_SEEDS seeds are compared by the largest factor for a sample of sets of k arrived results.
    """
    patterns_by_n_data: dict[int, list[Indices]] = {}  # Patterns by number of data blocks.
    for arrived_indices in sample_subsets(n, k, MAX_PATTERNS):
        patterns_by_n_data.setdefault(int(np.searchsorted(arrived_indices, k)), []).append(arrived_indices)
    patterns = [np.stack(patterns_by_n_data[n_data]) for n_data in sorted(patterns_by_n_data)]
    best_seed, min_amplification = 0, inf
    for seed in range(N_SEEDS):
        unscaled_matrix = compute_rotation_parity_matrix(generate_rotation_butterfly_network(n, k, seed), k)
        scale, shift = compute_row_normalization(unscaled_matrix)
        parity_matrix, max_amplification = scale[:, None] * unscaled_matrix + shift[:, None], 0.0
        for arrived_indices in patterns:
            amplification = compute_max_amplification(parity_matrix, arrived_indices)
            max_amplification = max(max_amplification, amplification)
            if max_amplification >= min_amplification:
                # The best seed so far is at least as good as this one, so skip the remaining patterns.
                break
        else:
            best_seed, min_amplification = seed, max_amplification
    return best_seed
