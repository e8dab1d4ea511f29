"""Recovery over the reals: weights @ G[arrived] = T[missing], by least squares."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from polarmap.codes import tiled
from polarmap.codes.algebra import Matrices, Recovery, Results
from polarmap.codes.dtypes import Array, DType, Floats, Indices, Mask, is_exact, real_dtype

# A parity system with a relative singular value below this is taken as singular: its solution
# would have no correct digit left in float32, three in float64.
SINGULAR = 1e-12
# P is not formed of so many coded blocks, products with that of fewer are quicker; nor of so many data and
# parity blocks each, as rows of P that are shorter are too unlike for norms that are right on average.
LARGE, WIDE = 2048, 256
FOLLOWED = 1e-6  # of an update: its square is rounding
AT_ONCE = 256  # missing blocks whose weights are computed together


class RealRecovery(Recovery):
    """Recovered = weights @ received over the reals; integers are rounded."""

    @property
    def system(self) -> Array:
        """The coefficients of the unknowns in the results that determine them."""
        raise NotImplementedError

    @cached_property
    def deficit(self) -> int:
        """How many more results it takes at the least; 0 once the missing ones are determined."""
        return max(-self.surplus, 0) or self._lack if len(self.missing) else 0

    @property
    def _lack(self) -> int:
        """The same of results that are enough in number."""
        return int(not np.isfinite(self._solver).all())

    def recover(self, rows: Results, dtype: DType) -> Array:
        """The missing results (len(missing), b) from the flat ones that arrived.

        `rows` maps positions to arrays (b,) and must hold every arrived position. Integers of an
        exact recovery come back exactly, modulo 2^bits; integers of another are rounded.
        """
        width = next(iter(rows.values())).size
        if dtype.kind == "c":
            real = real_dtype(dtype)
            halves = {
                index: np.ascontiguousarray(rows[index], dtype).view(real) for index in self.arrived.tolist()
            }
            return self.recover(halves, real).view(dtype)
        out = np.empty((len(self.missing), width), dtype)
        if len(self.missing) and width:
            self.fill(rows, out)
        return out

    def fill(self, rows: Results, out: Array) -> None:
        """Put the missing results into `out`, (len(missing), b) of a real dtype."""
        received = [rows[int(index)] for index in self.arrived]
        if is_exact(out.dtype):
            rounded = np.empty(out.shape)
            tiled.product(self.weights, received, rounded)
            out[:] = np.rint(rounded)
        else:
            tiled.product(self.weights, received, out)

    @cached_property
    def _solver(self) -> Floats:
        """The pseudo-inverse of `system`; all inf when it has none."""
        return left_inverse(self.system.astype(np.float64, copy=False))

    def _left_over(self, most: int) -> Floats:
        """Up to `most` orthonormal equations on the results of `system`, once it determines the unknowns."""
        if self.surplus <= 0 or not np.isfinite(self._solver).all():
            return np.empty((0, len(self.system)))
        return left_null(self.system, self._solver, most).T


class LinearRecovery(RealRecovery):
    """weights = T[missing] pinv(G[arrived]), the least-squares solution for all unknowns.

    Of all decoders without bias that one multiplies independent errors of the results least.
    """

    @cached_property
    def system(self) -> Floats:
        """G restricted to what arrived."""
        return np.asarray(self.code.generator[self.arrived])

    @cached_property
    def weights(self) -> Floats:
        """Recovered = weights @ received, (missing, arrived)."""
        return np.asarray(self.code.targets[self.missing] @ self._solver)

    @cached_property
    def amplification(self) -> float:
        """The largest 2-norm of a row of `weights`, times the gain of the code."""
        return super().amplification * self.code.gain

    @property
    def surplus(self) -> int:
        """Equations left over."""
        return int(self.system.shape[0] - self.system.shape[1])

    def equations(self, most: int) -> Floats:
        """Up to `most` orthonormal equations on the results that arrived, (s, arrived)."""
        return self._left_over(most)


class SystematicRecovery(RealRecovery):
    """For G = [I; P], T = I: data that arrived is taken as it is, what is missing solves the rest.

    parity - P[parity, known] known = P[parity, missing] missing, in the least-squares sense.

    parity : the parity blocks that arrived, as rows of P.
    """

    def __init__(self, code: Matrices, arrived: Mask) -> None:
        super().__init__(code, arrived)
        self.parity = np.flatnonzero(arrived[code.k :])

    @cached_property
    def system(self) -> Array:
        """P restricted to arrived parity (rows) and missing data (columns)."""
        return self.code.coefficients[np.ix_(self.parity, self.missing)]

    def through_known(self, combinations: Floats) -> Floats:
        """Combinations (rows) of the arrived parity blocks, as they are made of known data."""
        return np.asarray(combinations @ self.code.coefficients[np.ix_(self.parity, self.known)])

    @property
    def surplus(self) -> int:
        """Equations left over once the missing blocks are determined; negative before."""
        return len(self.parity) - len(self.missing)

    @cached_property
    def weights(self) -> Floats:
        """Recovered = weights @ received, (missing, arrived): the least-squares decoder."""
        weights = np.empty((len(self.missing), len(self.arrived)))
        known = len(self.known)
        for start in range(0, len(weights), AT_ONCE):  # they may be the most memory of a map
            part = slice(start, start + AT_ONCE)
            np.negative(self.through_known(self._solver[part]), out=weights[part, :known])
        weights[:, known:] = self._solver
        return weights

    def equations(self, most: int) -> Floats:
        """Up to `most` equations on the arrived blocks, (s, arrived): orthonormal on the parity blocks."""
        left_over = self._left_over(most)
        return np.concatenate([-self.through_known(left_over), left_over], axis=1)

    def follow(self, former: Recovery) -> None:
        """Take over the pseudo-inverse of `former`, of fewer results, without a factorization.

        Columns that are no longer missing leave what is orthogonal to their rows of it; rows are added as
        Greville (1960) has it, and a step of Newton's takes away the rounding of both, if it can.
        """
        computed = vars(former)
        computed.pop("weights", None)  # the most memory of a map, and computed again if anybody asks
        if not isinstance(former, SystematicRecovery):
            return
        if not np.isfinite(computed.get("_solver", np.inf)).all():
            return
        is_known, was_there = np.zeros(self.code.k, bool), np.zeros(self.code.n - self.code.k, bool)
        is_known[self.known] = was_there[former.parity] = True
        gone, new = is_known[former.missing], ~was_there[self.parity]
        units = np.zeros((int(new.sum()), self.code.n - self.code.k))
        units[np.arange(len(units)), self.parity[new]] = 1
        rows = self.code.transposed(units)[:, self.missing]
        self.system = np.empty((len(self.parity), len(self.missing)), former.system.dtype)
        self.system[new], self.system[~new] = rows, former.system[:, ~gone]
        span = np.linalg.qr(former._solver[gone].T)[0]
        solver = former._solver[~gone]
        solver -= solver @ span @ span.T
        made = rows @ solver
        added = np.linalg.solve(np.eye(len(made)) + made @ made.T, made @ solver.T).T
        solver -= added @ made
        found = np.empty((len(self.missing), len(self.parity)))
        found[:, new], found[:, ~new] = added, solver
        for start in range(0, len(found), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            missed = np.eye(len(found[part]), len(found), start) - found[part] @ self.system
            if not np.abs(missed).max(initial=0) <= FOLLOWED:  # nor NaN
                return
            found[part] += missed @ found
        self._solver = found


class ButterflyRecovery(SystematicRecovery):
    """The same by butterflies, which give P times anything and anything times P: P is never formed."""

    @cached_property
    def system(self) -> Array:
        """P restricted to arrived parity (rows) and missing data (columns)."""
        return self.code.columns(self.missing)[self.parity]

    def through_known(self, combinations: Floats) -> Floats:
        """Combinations (rows) of the arrived parity blocks, as they are made of known data."""
        scattered = np.zeros((len(combinations), self.code.n - self.code.k))
        scattered[:, self.parity] = combinations
        return self.code.transposed(scattered)[:, self.known]


def is_formed(n: int, k: int) -> bool:
    """Whether there is a P of such a code, and not only its butterflies.

    >>> is_formed(1024, 768), is_formed(10_000, 7_500), is_formed(10_000, 2)
    (True, False, True)
    """
    return n < LARGE or min(k, n - k) < WIDE


def left_inverse(matrix: Floats) -> Floats:
    """The pseudo-inverse of a matrix with full column rank; all inf when it has not.

    >>> left_inverse(np.array([[2.0], [0.0]])).round(3) + 0.0
    array([[0.5, 0. ]])
    """
    rows, columns = matrix.shape
    if rows == columns:  # beside busy workers QR of a thousand rows takes ten times as long
        return inverse(matrix)
    q, r = np.linalg.qr(matrix)
    diagonal = np.abs(np.diag(r))
    if rows < columns or diagonal.min(initial=np.inf) <= SINGULAR * diagonal.max(initial=0):
        return np.full((columns, rows), np.inf)
    return np.asarray(np.linalg.solve(r, q.T))


def inverse(matrix: Floats) -> Floats:
    """The inverse of a square matrix; all inf when it has none.

    >>> inverse(np.array([[2.0, 0.0], [0.0, 0.5]])).tolist(), inverse(np.ones((1, 1)) - 1)
    ([[0.5, 0.0], [0.0, 2.0]], array([[inf]]))
    """
    try:
        found = np.asarray(np.linalg.inv(matrix), np.float64)
    except np.linalg.LinAlgError:
        return np.full_like(matrix, np.inf)
    condition = np.linalg.norm(found) * np.linalg.norm(matrix)  # of a largest singular value as on average
    return found if condition * SINGULAR <= np.sqrt(len(matrix)) else np.full_like(found, np.inf)


def left_null(matrix: Floats, solver: Floats, most: int) -> Floats:
    """Orthonormal columns z with z' matrix = 0, `most` of them or all, given the pseudo-inverse.

    >>> abs(left_null(np.array([[0.6], [0.8]]), np.array([[0.6, 0.8]]), 8)).round(3).tolist()
    [[0.8], [0.6]]
    """
    rows, columns = matrix.shape
    null = np.cos(np.outer(np.arange(1, rows + 1), np.arange(1, min(most, rows - columns) + 1)) * 0.7)
    for _ in range(2):  # once leaves what rounding has hidden in what was taken away
        null -= solver.T @ (matrix.T @ null)
        null, _ = np.linalg.qr(null)
    return np.asarray(null)


def worst_amplification(coefficients: Floats, arrived: Indices) -> float:
    """The largest amplification when exactly the blocks of a row of `arrived` have, for a code [P, -I].

    In each row, which is ascending, equally many are data blocks, and as many parity blocks as are missing.
    """
    k = coefficients.shape[1]
    known, rows = np.split(arrived, [np.searchsorted(arrived[0], k)], axis=1)
    is_missing = np.ones((len(arrived), k), bool)
    np.put_along_axis(is_missing, known, False, axis=1)
    missing = np.nonzero(is_missing)[1].reshape(len(arrived), -1)
    rows = rows[:, :, np.newaxis] - k
    systems = coefficients[rows, missing[:, np.newaxis]]
    try:
        solvers = np.linalg.inv(systems)
    except np.linalg.LinAlgError:
        return np.inf
    condition = np.linalg.norm(systems, axis=(1, 2)) * np.linalg.norm(solvers, axis=(1, 2))
    if not (condition * SINGULAR <= np.sqrt(missing.shape[1])).all():
        return np.inf
    through_known = solvers @ coefficients[rows, known[:, np.newaxis]]
    weights = np.concatenate([solvers, through_known], axis=2)
    return float(np.linalg.norm(weights, axis=2).max(initial=0))


def loss_amplification(orthonormal: Floats, lost: Indices, wanted: int) -> float:
    """The amplification when the results `lost` are missing, for a G with orthonormal columns.

    With K = G_lost G_lost', the row of G_i pinv(G_arrived) has the squared norm [K / (1 - K)]_ii.
    Only the first `wanted` results are decoded.
    """
    rows = orthonormal[lost]
    values, vectors = np.linalg.eigh(rows @ rows.T)
    rows_wanted = vectors[lost < wanted]
    if not len(rows_wanted):
        return 0.0
    if values[-1] >= 1 - 1e-14:  # an amplification above 1e7 is no more than rounding here
        return np.inf
    return float(np.sqrt((rows_wanted**2 @ (values.clip(0) / (1 - values))).max()))
