"""Linear algebra for the decoders of integers: modulo 2^64 and over GF(2), the integers modulo 2.

A square integer matrix is invertible modulo 2^64 exactly if it is invertible modulo 2. Ranks are therefore
computed over GF(2), with each row packed into a Python integer. Products modulo 2^64 are computed with BLAS.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from polarmap.dtypes import Array, Mask, UInt64Array

# The largest magnitude up to which float64 represents every integer exactly.
MAX_EXACT_FLOAT64 = 1 << 53
# Large integers are split into parts (limbs) of this many bits before they are multiplied as floats. Sums of
# up to 2^20 products of limbs are exact in float64.
_LIMB_BITS = 16


def find_independent_rows_gf2(matrix: Array) -> list[int]:
    """Return the indices of a maximal set of rows that are linearly independent modulo 2.

    The rows are chosen greedily from the first to the last.

    >>> find_independent_rows_gf2(np.array([[1, 0], [1, 2], [0, 3]]))
    [0, 2]
    """
    basis: dict[int, int] = {}
    independent_indices: list[int] = []
    for row_index, row in enumerate(pack_rows_gf2(matrix)):
        if len(independent_indices) == matrix.shape[1]:
            break
        if remainder := reduce_row_gf2(row, basis):
            basis[remainder.bit_length()] = remainder
            independent_indices.append(row_index)
    return independent_indices


def reduce_row_gf2(packed_row: int, basis_by_leading_bit: dict[int, int]) -> int:
    """Reduce a row of bits modulo 2 by basis rows, as in one step of Gaussian elimination.

    As long as a basis row has the same leading bit as the row, it is subtracted (XOR).

    Parameters
    ----------
    packed_row : int
        Row from `pack_rows_gf2`.
    basis_by_leading_bit : dict from int to int
        Packed basis rows by their `bit_length`.

    Returns
    -------
    int
        The reduced row; 0 if the row is a sum of basis rows.

    Examples
    --------
    >>> reduce_row_gf2(0b101, {3: 0b110, 2: 0b11}), reduce_row_gf2(0b101, {3: 0b110})
    (0, 3)
    """
    while (leading_bit := packed_row.bit_length()) in basis_by_leading_bit:
        packed_row ^= basis_by_leading_bit[leading_bit]
    return packed_row


def compute_null_space_gf2(matrix: Array) -> Mask:
    """Compute a basis of the null space of an integer matrix modulo 2.

    Returns
    -------
    boolean array (vectors, columns)
        Each row z satisfies matrix @ z = 0 modulo 2.

    Examples
    --------
    >>> compute_null_space_gf2(np.array([[1, 1, 0], [2, 0, 1]])).astype(int).tolist()
    [[1, 1, 0]]
    """
    width = matrix.shape[1]
    # Each basis element is an integer with two parts. Its high bits are a sum of some columns of the matrix,
    # and its low bits tell which columns these are. If the sum is zero, the low bits are a null vector.
    basis: dict[int, int] = {}
    null_vectors = []
    for column_index, column in enumerate(pack_rows_gf2(matrix.T)):
        remainder = reduce_row_gf2(column << width | 1 << column_index, basis)
        if remainder >> width:
            basis[remainder.bit_length()] = remainder
        else:
            null_vectors.append(remainder)
    return _unpack_rows_gf2(null_vectors, width).astype(bool)


def invert_mod64(matrix: Array) -> UInt64Array:
    """Compute the inverse of a square integer matrix modulo 2^64.

    The matrix must be invertible modulo 2. Its inverse modulo 2 is extended to 64 bits by Hensel lifting.

    >>> invert_mod64(np.array([[3]])) * np.uint64(3)
    array([[1]], dtype=uint64)
    """
    size = len(matrix)
    identity = np.eye(size, dtype=matrix.dtype)
    null_vectors = compute_null_space_gf2(np.concatenate([matrix, identity], axis=1))
    inverse = null_vectors[:, :size].T.astype(np.uint64)  # The inverse modulo 2.
    unsigned_matrix = matrix.astype(np.int64).view(np.uint64)
    twice_identity = 2 * np.eye(size, dtype=np.uint64)
    n_bits = 1
    while n_bits < 64:  # A step X <- X (2 I - A X) doubles the number of correct bits.
        n_bits *= 2
        bit_mask = np.uint64((1 << n_bits) - 1)
        correction = twice_identity - matmul_mod64(unsigned_matrix & bit_mask, inverse)
        inverse = matmul_mod64(inverse, correction & bit_mask) & bit_mask
    return inverse


def find_determined_unknowns_mod64(matrix: Array) -> tuple[list[int], list[int], UInt64Array]:
    """Solve matrix @ x = s modulo 2^64 for the unknowns that are uniquely determined.

    The solution is returned as a matrix that can be applied to any right-hand side s.

    Parameters
    ----------
    matrix : integer array (equations, unknowns)
        Coefficients of the equations.

    Returns
    -------
    rows : list of int
        Equations that the solution uses.
    columns : list of int
        Unknowns that are uniquely determined.
    W : uint64 array (columns, rows)
        Solution: x[columns] = W @ s[rows].

    Examples
    --------
    >>> rows, columns, W = find_determined_unknowns_mod64(np.array([[1, 0, 0], [0, 1, 1]]))
    >>> rows, columns, W.tolist()
    ([0, 1], [0], [[1, 0]])
    """
    pivot_rows = find_independent_rows_gf2(matrix)
    pivot_columns = find_independent_rows_gf2(matrix[pivot_rows].T)
    pivot_inverse = invert_mod64(matrix[pivot_rows][:, pivot_columns])
    other_columns = np.setdiff1d(np.arange(matrix.shape[1]), pivot_columns)
    other_weights = matmul_mod64(pivot_inverse, matrix[pivot_rows][:, other_columns])
    determined = np.flatnonzero(~other_weights.any(axis=1))
    return pivot_rows, [pivot_columns[index] for index in determined], pivot_inverse[determined]


def matmul_mod64(left: Array, right: Array) -> UInt64Array:
    """Compute the matrix product left @ right of integers modulo 2^64.

    Large numbers are split into limbs of 16 bits, which BLAS multiplies exactly in float64.

    Examples
    --------
    >>> matmul_mod64(np.array([[-1, 2]]), np.array([[2**63], [5]], np.uint64)) == 2**63 + 10
    array([[ True]])
    """
    left, right = _view_as_int64(left), _view_as_int64(right)
    if _compute_max_abs(left) * _compute_max_abs(right) * right.shape[0] < MAX_EXACT_FLOAT64:
        return (left.astype(np.float64) @ right).astype(np.int64).view(np.uint64)
    result = np.zeros((len(left), right.shape[1]), np.uint64)
    right_limbs = _split_into_16_bit_limbs(right)
    for shift_left, limb_left in _split_into_16_bit_limbs(left):
        for shift_right, limb_right in right_limbs:
            if shift_left + shift_right < 64:
                product = (limb_left @ limb_right).astype(np.int64).view(np.uint64)
                result += product << np.uint64(shift_left + shift_right)
    return result


def _view_as_int64(matrix: Array) -> npt.NDArray[np.int64]:
    return matrix.view(np.int64) if matrix.dtype == np.uint64 else matrix.astype(np.int64, copy=False)


def _compute_max_abs(matrix: npt.NDArray[np.int64]) -> int:
    return max(int(matrix.max()), -int(matrix.min())) if matrix.size else 0


def _split_into_16_bit_limbs(matrix: npt.NDArray[np.int64]) -> list[tuple[int, npt.NDArray[np.float64]]]:
    """Split each integer of a matrix into limbs of 16 bits, and return pairs (shift, limb matrix).

    The sum of all limb << shift is the matrix modulo 2^64. Leading limbs are omitted if they are zero in the
    whole matrix.
    """
    remaining = matrix
    limbs = []
    for shift in range(0, 64, _LIMB_BITS):
        if not remaining.any():
            break
        # The lowest 16 bits, as a signed number.
        low_limb = (remaining << (64 - _LIMB_BITS)) >> (64 - _LIMB_BITS)
        limbs.append((shift, low_limb.astype(np.float64)))
        # For numbers close to 2^63, the subtraction may overflow. The limbs are still correct modulo 2^64.
        remaining = (remaining - low_limb) >> _LIMB_BITS
    return limbs


def pack_rows_gf2(matrix: Array) -> list[int]:
    """Pack each row of an integer matrix, modulo 2, into the bits of a Python integer.

    Column 0 becomes the lowest bit.
    """
    packed_bits = np.packbits((matrix & 1).astype(np.uint8), axis=1, bitorder="little")
    return [int.from_bytes(row.tobytes(), "little") for row in packed_bits]


def _unpack_rows_gf2(packed_rows: list[int], n_columns: int) -> Array:
    """Unpack rows from `pack_rows_gf2` into an array (rows, n_columns) of zeros and ones."""
    n_bytes = -(-n_columns // 8)
    packed_bits = np.frombuffer(b"".join(row.to_bytes(n_bytes, "little") for row in packed_rows), np.uint8)
    packed_table = packed_bits.reshape(len(packed_rows), n_bytes)
    return np.unpackbits(packed_table, axis=1, bitorder="little")[:, :n_columns]
