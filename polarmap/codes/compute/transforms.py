"""Butterfly transforms across blocks in NumPy, with the same results as the compiled loops.

    [[1, 1], [0, 1]] on blocks a, b:   (a, b) -> (a + b, b), at distances 1, 2, 4, ...

The blocks are the rows of a 2-D array. A transform combines rows and treats every column independently, so
callers may cut the columns into tiles. `transforms_numba` contains the compiled loops.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from polarmap.codes.rotation_network import RotationButterflyNetwork
from polarmap.dtypes import Array, Floats

# A transform of at most this many rows is computed as a single matrix product, which is faster than several
# butterfly steps.
DENSE_BASE_SIZE = 64


def apply_arikan_transform(
    x: Array, *, inverse: bool = False, transpose: bool = False, gf2: bool = False
) -> Array:
    """Apply the butterfly T of the kernel [[1, 1], [0, 1]] to the rows of x, in place.

    Integer arithmetic is exact and wraps around on overflow.

    Parameters
    ----------
    x : array (N, b)
        Rows to transform; N is a power of two.
    inverse : bool
        Apply the inverse of T, which subtracts instead of adding.
    transpose : bool
        Apply the transpose of T, or of its inverse.
    gf2 : bool
        Add modulo 2. The unsigned integers in x are then sets of bits, and T is its own inverse.

    Returns
    -------
    array
        x itself.

    Examples
    --------
    >>> sums = apply_arikan_transform(np.array([[1], [2], [3], [4]]))
    >>> sums.ravel().tolist(), apply_arikan_transform(sums, inverse=True).ravel().tolist()
    ([10, 6, 7, 4], [1, 2, 3, 4])
    """
    half, target_index = 1, int(transpose)
    combine: np.ufunc = np.bitwise_xor if gf2 else np.subtract if inverse else np.add
    while half < len(x):
        pairs = x.reshape(len(x) // (2 * half), 2, half, x.shape[1])
        combine(pairs[:, target_index], pairs[:, 1 - target_index], out=pairs[:, target_index])
        half *= 2
    return x


def compute_arikan_abs_row_sums(diagonal: Floats, column_weights: Floats) -> Floats:
    """Compute the weighted sum of absolute values in each row of the matrix M = T diag(d) inverse(T).

    T is the butterfly of `apply_arikan_transform`, and each column of M has a weight in the sums. M is never
    formed. If d0 and d1 are the halves of d, then M(d) = [[M(d0), M(d1 - d0)], [0, M(d1)]]. The recursion
    ends when all entries of d are equal, because M is then diagonal. For the diagonals of polar codes, most
    halves occur many times, so their sums are cached.

    Parameters
    ----------
    diagonal : array (size, butterflies)
        The diagonal d of each butterfly.
    column_weights : array (size, butterflies)
        Weight of each column of M; 0 excludes a column.

    Returns
    -------
    array (size, butterflies)

    Examples
    --------
    >>> compute_arikan_abs_row_sums(np.array([[0.0], [1], [1], [2]]), np.ones((4, 1))).ravel().tolist()
    [2.0, 2.0, 2.0, 2.0]
    """
    size = min(len(diagonal), DENSE_BASE_SIZE)
    transform = apply_arikan_transform(np.eye(size))
    inverse_transform = apply_arikan_transform(np.eye(size), inverse=True)
    cache: dict[bytes, Floats] = {}

    def compute_sums(diagonal_part: Floats, weights_part: Floats) -> Floats:
        if (diagonal_part == diagonal_part[0]).all():
            return np.abs(diagonal_part) * weights_part
        key = diagonal_part.tobytes() + weights_part.tobytes()
        if key not in cache and len(diagonal_part) == size:
            cache[key] = np.abs((transform * diagonal_part) @ inverse_transform) @ weights_part
        elif key not in cache:
            minus, plus = np.split(diagonal_part, 2)
            left_weights, right_weights = np.split(weights_part, 2)
            upper_sums = compute_sums(minus, left_weights) + compute_sums(plus - minus, right_weights)
            cache[key] = np.concatenate([upper_sums, compute_sums(plus, right_weights)])
        return cache[key]

    return np.stack([compute_sums(*pair) for pair in zip(diagonal.T, column_weights.T, strict=True)], axis=1)


def apply_butterfly_stages(x: Array, stage_matrices: Sequence[Floats]) -> Array:
    """Apply a butterfly to the rows of x. Each of the small matrices combines several of its stages.

    Parameters
    ----------
    x : array (rows, b)
        Rows to transform, of a real floating dtype.
    stage_matrices : sequence of arrays (blocks, half, rows, columns)
        Matrices from `rotation_network.fuse_rotation_stages`, in order of application.

    Returns
    -------
    array (rows, b)
        A new array, unless `stage_matrices` is empty.
    """
    for matrix in stage_matrices:
        n_blocks, half, n_rows, n_columns = matrix.shape
        products = np.empty((n_blocks, n_rows, half, x.shape[1]), x.dtype)
        operand = x.reshape(n_blocks, n_columns, half, x.shape[1]).swapaxes(1, 2)
        np.matmul(matrix.astype(x.dtype, copy=False), operand, out=products.swapaxes(1, 2))
        x = products.reshape(n_blocks * n_rows * half, x.shape[1])
    return x


def encode_rotation_parity(data: Array, network: RotationButterflyNetwork) -> Array:
    """Compute the parity blocks P @ data, where P is the parity matrix of the rotation kernel.

    Parameters
    ----------
    data : array (k, b)
        Data blocks of any real floating dtype.
    network : RotationButterflyNetwork
        Butterflies, scale and shift.

    Returns
    -------
    array (parity blocks, b)
    """
    padded = np.zeros((len(network.input_rotations) * network.size, data.shape[1]), data.dtype)
    padded[: len(data)] = data
    group_sum = apply_butterfly_stages(padded, network.input_stage_matrices)
    shuffled = group_sum[network.permutations.reshape(-1)]
    parity = apply_butterfly_stages(shuffled, network.output_stage_matrices)[network.kept_rows]
    parity *= network.scale[:, None].astype(data.dtype)
    parity += network.shift[:, None].astype(data.dtype) * data.sum(axis=0)
    return parity


def apply_rotation_parity_adjoint(parity: Array, network: RotationButterflyNetwork, k: int) -> Array:
    """Compute P' @ parity, shape (k, b), where P' is the transposed parity matrix of the rotation kernel.

    The transposed stages of `encode_rotation_parity` are applied in reverse order.

    Parameters
    ----------
    parity : array (parity blocks, b)
        Rows to multiply by P'.
    network : RotationButterflyNetwork
        Butterflies, scale and shift.
    k : int
        Number of data blocks.
    """
    width = parity.shape[1]
    stacked = np.zeros((network.permutations.size, width), parity.dtype)
    stacked[network.kept_rows] = network.scale[:, None] * parity
    groups = apply_butterfly_stages(stacked, _transpose_stages(network.output_stage_matrices))
    group_sum = np.zeros((network.size, width), parity.dtype)
    grouped_rows = groups.reshape(-1, network.size, width)
    for group, permutation in zip(grouped_rows, network.permutations, strict=True):
        group_sum[permutation] += group
    data = apply_butterfly_stages(group_sum, _transpose_stages(network.input_stage_matrices))[:k]
    return np.asarray(data + network.shift @ parity)


def _transpose_stages(matrices: Sequence[Floats]) -> list[Floats]:
    return [matrix.swapaxes(2, 3) for matrix in reversed(matrices)]
