"""Recovery of integers modulo 2^64, where exactly the odd numbers divide, and its linear algebra.

A square integer matrix is invertible modulo 2^64 iff it is invertible modulo 2, so every rank
question here is one over GF(2), answered with rows packed into Python integers.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt

from polarmap.codes import tiled
from polarmap.codes.algebra import INTEGER_CHECKS, Matrices, Recovery, Results
from polarmap.codes.dtypes import Array, DType, Floats, Indices, Mask, Words, is_exact
from polarmap.codes.recovery import SystematicRecovery
from polarmap.errors import CodeError

NO_FLOATS = (
    "integers are masked modulo 2^64, which results of floats do not undo: let f return integers, or mask "
    "data.astype(float), of which colluders learn a little (see Masked)"
)
EXACT = 1 << 53  # up to here float64 holds every integer
_LIMB = 16  # bits; products of limbs summed over up to 2^20 terms stay exact in float64


class ModularSystem(Recovery):
    """system @ unknowns = results modulo 2^64: what both recoveries of integers have in common."""

    exact = True
    system: Array  # the coefficients of the unknowns in the results that determine them

    def _of_results(self, equations: Words) -> Words:
        """Equations on the results of `system`, rewritten as equations on all that arrived."""
        return equations

    @cached_property
    def pivots(self) -> Indices:
        """Rows of `system` that determine the unknowns; fewer than those if too few do."""
        return np.array(independent_rows(self.system), dtype=np.intp)

    @cached_property
    def deficit(self) -> int:
        """How many more results it takes at the least; 0 when the unknowns are determined."""
        unknowns = int(self.system.shape[1])
        return unknowns - len(self.pivots) if unknowns else 0

    @property
    def surplus(self) -> int:
        """Equations left over; below 0 while results are too few."""
        return int(self.system.shape[0] - self.system.shape[1])

    def integer_checks(self) -> Words:
        """Up to INTEGER_CHECKS equations modulo 2^64, (s, arrived): mixtures of rows that are no pivots."""
        others = np.setdiff1d(np.arange(len(self.system)), self.pivots)
        mixed = mixtures(len(others))
        rows = np.zeros((len(mixed), len(self.system)), np.uint64)
        rows[:, others] = mixed
        if self.system.shape[1]:
            rows[:, self.pivots] -= matmul(matmul(mixed, self.system[others]), self._inverse)
        return self._of_results(rows)

    @cached_property
    def _inverse(self) -> Words:
        return inverse(self.system[self.pivots])


class ModularRecovery(ModularSystem, SystematicRecovery):
    """For G = [I; P] of integers, T = I: as many parity rows as are missing solve for them exactly.

    What integers determine modulo 2^64 they determine over the reals too, so that results of a
    floating dtype are recovered by least squares as ever.
    """

    def integer_weights(self) -> Words:
        """Recovered = weights @ received modulo 2^64, (missing, arrived)."""
        solver = self._inverse
        known = self.code.coefficients[np.ix_(self.parity[self.pivots], self.known)]
        weights = np.zeros((len(self.missing), len(self.arrived)), np.uint64)
        weights[:, : len(self.known)] = np.uint64(0) - matmul(solver, known)
        weights[:, len(self.known) + self.pivots] = solver
        return weights

    def _of_results(self, equations: Words) -> Words:
        known = np.uint64(0) - matmul(equations, self.code.coefficients[np.ix_(self.parity, self.known)])
        return np.concatenate([known, equations], axis=1)

    def fill(self, rows: Results, out: Array) -> None:
        """Syndrome, then the inverse of the pivot rows, both modulo 2^64; floats by least squares."""
        if not is_exact(out.dtype):
            super().fill(rows, out)
            return
        parity = self.parity[self.pivots]
        coefficients = self.code.coefficients[np.ix_(parity, self.known)]
        known = [rows[int(index)] for index in self.known]
        received = [rows[int(index) + self.code.k] for index in parity]
        for columns in tiled.tiles(out.shape[1], len(self.arrived), 8):
            syndrome = tiled.gather(received, columns, np.int64).view(np.uint64)
            if known:
                syndrome -= matmul(coefficients, tiled.gather(known, columns, np.int64))
            out[:, columns] = matmul(self._inverse, syndrome).astype(out.dtype)


class LinearModularRecovery(ModularSystem):
    """For any G of integers and T: as many rows of G as there are unknowns solve for them modulo 2^64."""

    def __init__(self, code: Matrices, arrived: Mask) -> None:
        super().__init__(code, arrived)
        self.system = code.generator[self.arrived]

    @property
    def weights(self) -> Floats:
        """The weights modulo 2^64, as numbers nearest to zero."""
        return self.integer_weights().view(np.int64).astype(np.float64)

    def equations(self, most: int) -> Floats:
        """Up to `most` equations modulo 2^64, (s, arrived), as numbers nearest to zero."""
        return self.integer_checks()[:most].view(np.int64).astype(np.float64)

    def integer_weights(self) -> Words:
        """Recovered = weights @ received modulo 2^64, (wanted, arrived)."""
        weights = np.zeros((len(self.missing), len(self.arrived)), np.uint64)
        weights[:, self.pivots] = self._solver
        return weights

    def recover(self, rows: Results, dtype: DType) -> Array:
        """The wanted results (wanted, b) modulo 2^bits; CodeError for floats, which cannot be."""
        if not is_exact(dtype):
            raise CodeError(NO_FLOATS)
        received = [rows[int(self.arrived[pivot])] for pivot in self.pivots]
        out = np.empty((len(self.missing), received[0].size), dtype)
        for columns in tiled.tiles(out.shape[1], len(received), 8):
            tile = tiled.gather(received, columns, np.int64)
            out[:, columns] = matmul(self._solver, tile).astype(dtype)
        return out

    @cached_property
    def _solver(self) -> Words:
        """Wanted = solver @ results of the pivots."""
        return matmul(self.code.targets, self._inverse)


def mixtures(count: int) -> Words:
    """Sums of `count` equations, at most INTEGER_CHECKS of them, that involve each.

    >>> mixtures(2).tolist(), mixtures(100).shape
    ([[1, 0], [0, 1]], (16, 100))
    """
    if count <= INTEGER_CHECKS:
        return np.eye(count, dtype=np.uint64)
    mix = np.outer(np.arange(1, INTEGER_CHECKS + 1), np.arange(1, count + 1)).astype(np.uint64)
    mix = mix * mix * np.uint64(37) % np.uint64(509)
    mix[0] = 1
    return mix


def independent_rows(matrix: Array) -> list[int]:
    """Indices of a maximal set of rows independent modulo 2, earliest rows first.

    >>> independent_rows(np.array([[1, 0], [1, 2], [0, 3]]))
    [0, 2]
    """
    basis: dict[int, int] = {}
    chosen: list[int] = []
    for index, row in enumerate(pack(matrix)):
        if len(chosen) == matrix.shape[1]:
            break
        if left := reduced(row, basis):
            basis[left.bit_length()] = left
            chosen.append(index)
    return chosen


def reduced(row: int, basis: dict[int, int]) -> int:
    """What of a packed row is no sum of those of a basis, each under its leading bit; 0 if it is one.

    >>> reduced(0b101, {3: 0b110, 2: 0b11}), reduced(0b101, {3: 0b110})
    (0, 3)
    """
    while (lead := row.bit_length()) in basis:
        row ^= basis[lead]
    return row


def null_space(matrix: Array) -> Mask:
    """Independent vectors z (rows) with matrix @ z = 0 modulo 2, as many as there are.

    >>> null_space(np.array([[1, 1, 0], [2, 0, 1]])).astype(int).tolist()
    [[1, 1, 0]]
    """
    width = matrix.shape[1]
    basis: dict[int, int] = {}  # columns above the sums of columns that they are
    found = []
    for index, column in enumerate(pack(matrix.T)):
        left = reduced(column << width | 1 << index, basis)
        if left >> width:
            basis[left.bit_length()] = left
        else:
            found.append(left)
    return _unpack(found, width).astype(bool)


def inverse(matrix: Array) -> Words:
    """The inverse modulo 2^64 of a square matrix that is invertible modulo 2 (Hensel lifting).

    >>> inverse(np.array([[3]])) * np.uint64(3)
    array([[1]], dtype=uint64)
    """
    size = len(matrix)
    identity = np.eye(size, dtype=matrix.dtype)
    lifted = null_space(np.concatenate([matrix, identity], axis=1))[:, :size].T.astype(np.uint64)  # modulo 2
    words = matrix.astype(np.int64).view(np.uint64)
    twice = 2 * np.eye(size, dtype=np.uint64)
    bits = 1
    while bits < 64:  # X <- X (2 I - A X) doubles the number of correct bits
        bits *= 2
        mask = np.uint64((1 << bits) - 1)
        lifted = matmul(lifted, (twice - matmul(words & mask, lifted)) & mask) & mask
    return lifted


def determined(matrix: Array) -> tuple[list[int], list[int], Words]:
    """Which unknowns x of matrix @ x = s are determined modulo 2^64, though others may not be.

    Returns rows, columns and W with x[columns] = W @ s[rows].

    >>> rows, columns, W = determined(np.array([[1, 0, 0], [0, 1, 1]]))
    >>> rows, columns, W.tolist()
    ([0, 1], [0], [[1, 0]])
    """
    rows = independent_rows(matrix)
    columns = independent_rows(matrix[rows].T)
    solver = inverse(matrix[rows][:, columns])
    others = np.setdiff1d(np.arange(matrix.shape[1]), columns)
    alone = np.flatnonzero(~matmul(solver, matrix[rows][:, others]).any(axis=1))
    return rows, [columns[place] for place in alone], solver[alone]


def matmul(left: Array, right: Array) -> Words:
    """left @ right modulo 2^64, through exact float64 products of 16-bit limbs (BLAS).

    >>> matmul(np.array([[-1, 2]]), np.array([[2**63], [5]], np.uint64)) == 2**63 + 10
    array([[ True]])
    """
    left, right = _signed(left), _signed(right)
    if _largest(left) * _largest(right) * right.shape[0] < EXACT:
        return (left.astype(np.float64) @ right).astype(np.int64).view(np.uint64)
    result = np.zeros((len(left), right.shape[1]), np.uint64)
    right_limbs = _limbs(right)
    for shift_left, limb_left in _limbs(left):
        for shift_right, limb_right in right_limbs:
            if shift_left + shift_right < 64:
                product = (limb_left @ limb_right).astype(np.int64).view(np.uint64)
                result += product << np.uint64(shift_left + shift_right)
    return result


def _signed(matrix: Array) -> npt.NDArray[np.int64]:
    return matrix.view(np.int64) if matrix.dtype == np.uint64 else matrix.astype(np.int64, copy=False)


def _largest(matrix: npt.NDArray[np.int64]) -> int:
    return max(int(matrix.max()), -int(matrix.min())) if matrix.size else 0


def _limbs(matrix: npt.NDArray[np.int64]) -> list[tuple[int, npt.NDArray[np.float64]]]:
    """(shift, limb) pairs with matrix = sum of limb << shift; small entries need one limb only."""
    signed = matrix
    limbs = []
    for shift in range(0, 64, _LIMB):
        if not signed.any():
            break
        low = (signed << (64 - _LIMB)) >> (64 - _LIMB)  # the signed low limb
        limbs.append((shift, low.astype(np.float64)))
        signed = (signed - low) >> _LIMB  # wraps only where the next limb is the last
    return limbs


def pack(matrix: Array) -> list[int]:
    """Each row modulo 2 as a Python integer, column 0 in the lowest bit."""
    bits = np.packbits((matrix & 1).astype(np.uint8), axis=1, bitorder="little")
    return [int.from_bytes(row.tobytes(), "little") for row in bits]


def _unpack(rows: list[int], width: int) -> Array:
    """The reverse: numbers 0 and 1, (rows, width)."""
    size = -(-width // 8)
    packed = np.frombuffer(b"".join(row.to_bytes(size, "little") for row in rows), np.uint8)
    return np.unpackbits(packed.reshape(len(rows), size), axis=1, bitorder="little")[:, :width]
