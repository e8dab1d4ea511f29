"""Decode over the reals: weights @ G[arrived] = T[missing], by least squares."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from polarmap.codes.base import MAX_CHECKS, CodeMatrices, ErasureDecoder, ReceivedBlocks
from polarmap.codes.compute import block_matmul
from polarmap.dtypes import Array, DType, Floats, Indices, Mask, is_integer_dtype, to_real_dtype

# A parity system with a relative singular value below this is taken as singular: its solution
# would have no correct digit left in float32, three in float64.
RANK_TOL = 1e-12
# P is not formed of so many coded blocks, products with that of fewer are quicker; nor of so many data and
# parity blocks each, as rows of P that are shorter are too unlike for norms that are right on average.
MAX_DENSE_N, MAX_DENSE_SIDE = 2048, 256
UPDATE_TOL = 1e-6  # of an update: its square is rounding
WEIGHT_BATCH = 256  # missing blocks whose weights are computed together


class RealDecoder(ErasureDecoder):
    """A decoder over the reals: recovered = weights @ received, where integers are rounded."""

    rounds_integers = True
    _computed_pseudo_inverse: Floats | None = None

    @property
    def system_matrix(self) -> Array:
        """The coefficients of the unknowns in the results that determine them."""
        raise NotImplementedError

    @cached_property
    def rank_deficit(self) -> int:
        """The least number of further results that are needed; 0 once the missing ones are determined."""
        if not len(self.missing_indices):
            return 0
        return max(-self.n_redundant_checks, 0) or self._system_rank_deficit

    @property
    def _system_rank_deficit(self) -> int:
        """`rank_deficit` if enough results have arrived in number."""
        return int(not np.isfinite(self._pseudo_inverse).all())

    @property
    def weights(self) -> Floats:
        """Recovered = weights @ received, (missing, arrived)."""
        raise NotImplementedError

    @property
    def weight_magnitudes(self) -> Floats:
        """The absolute values of `weights`."""
        return np.abs(self.weights)

    @property
    def max_weight_magnitudes(self) -> Floats:
        """The largest absolute weight of each arrived result, without a copy of the weights."""
        weights = self.weights
        return np.asarray(np.maximum(weights.max(axis=0, initial=0), -weights.min(axis=0, initial=0)))

    @cached_property
    def amplification(self) -> float:
        """The largest 2-norm of a row of `weights`; 0 if none is missing, inf if undetermined."""
        if not len(self.missing_indices):
            return 0.0
        if self.rank_deficit:
            return np.inf
        norms = np.sqrt(np.einsum("ij,ij->i", self.weights, self.weights))
        return float(norms.max()) if np.isfinite(norms).all() else np.inf

    @cached_property
    def check_matrix(self) -> Floats:
        """The equations that are evaluated to verify results."""
        return self.compute_parity_check_matrix(MAX_CHECKS)

    def compute_parity_check_matrix(self, max_checks: int) -> Floats:
        """Return up to `max_checks` equations on the arrived results, (s, arrived)."""
        raise NotImplementedError

    def decode(self, received: ReceivedBlocks, dtype: DType) -> Array:
        """Return the missing results (missing, b) from the flat ones that arrived."""
        width = next(iter(received.values())).size
        if dtype.kind == "c":
            real_dtype = to_real_dtype(dtype)
            real_blocks = {
                index: np.ascontiguousarray(received[index], dtype).view(real_dtype)
                for index in self.arrived_indices.tolist()
            }
            return self.decode(real_blocks, real_dtype).view(dtype)
        out = np.empty((len(self.missing_indices), width), dtype)
        if len(self.missing_indices) and width:
            self.decode_into(received, out)
        return out

    def decode_into(self, received: ReceivedBlocks, out: Array) -> None:
        """Write the missing results to `out`, (missing, b) of a real dtype."""
        arrived_blocks = [received[int(block_index)] for block_index in self.arrived_indices]
        if is_integer_dtype(out.dtype):
            real_result = np.empty(out.shape)
            block_matmul.combine_rows(self.weights, arrived_blocks, real_result)
            out[:] = np.rint(real_result)
        else:
            block_matmul.combine_rows(self.weights, arrived_blocks, out)

    @property
    def _pseudo_inverse(self) -> Floats:
        """The pseudo-inverse of `system_matrix`; all inf when it has none."""
        if self._computed_pseudo_inverse is None:
            system_matrix = self.system_matrix.astype(np.float64, copy=False)
            self._computed_pseudo_inverse = compute_left_inverse(system_matrix)
        return self._computed_pseudo_inverse

    def _drop_weights(self) -> None:
        """Free the memory of `weights`, if they are cached; they are computed again when asked for."""
        vars(self).pop("weights", None)

    def _compute_null_space_checks(self, max_checks: int) -> Floats:
        """Return up to `max_checks` orthonormal equations on the results of `system_matrix`.

        There are none before it determines the unknowns.
        """
        if self.n_redundant_checks <= 0 or not np.isfinite(self._pseudo_inverse).all():
            return np.empty((0, len(self.system_matrix)))
        return compute_left_null_space(self.system_matrix, self._pseudo_inverse, max_checks).T


class PseudoInverseDecoder(RealDecoder):
    """A decoder with weights = T[missing] pinv(G[arrived]), the least-squares solution for all unknowns.

    No other unbiased decoder multiplies independent errors of the results less.
    """

    @cached_property
    def system_matrix(self) -> Floats:
        """G restricted to what arrived."""
        return np.asarray(self.code.generator_matrix[self.arrived_indices])

    @cached_property
    def weights(self) -> Floats:
        """Recovered = weights @ received, (missing, arrived)."""
        return np.asarray(self.code.target_matrix[self.missing_indices] @ self._pseudo_inverse)

    @cached_property
    def amplification(self) -> float:
        """The largest 2-norm of a row of `weights`, times the gain of the code."""
        return super().amplification * self.code.rms_gain

    @property
    def n_redundant_checks(self) -> int:
        """The number of equations left over."""
        return int(self.system_matrix.shape[0] - self.system_matrix.shape[1])

    def compute_parity_check_matrix(self, max_checks: int) -> Floats:
        """Return up to `max_checks` orthonormal equations on the results that arrived, (s, arrived)."""
        return self._compute_null_space_checks(max_checks)


class SystematicDecoder(RealDecoder):
    """A decoder for G = [I; P], T = I, which solves the arrived parity for the missing data.

        parity - P[parity, known] known = P[parity, missing] missing   (least squares)

    Attributes
    ----------
    arrived_parity_indices : index array
        The parity blocks that have arrived, as rows of P.
    """

    def __init__(self, code: CodeMatrices, arrived_mask: Mask) -> None:
        super().__init__(code, arrived_mask)
        self.arrived_parity_indices = np.flatnonzero(arrived_mask[code.k :])

    @cached_property
    def system_matrix(self) -> Array:
        """P restricted to arrived parity (rows) and missing data (columns)."""
        return self.code.encoding_matrix[np.ix_(self.arrived_parity_indices, self.missing_indices)]

    def multiply_by_arrived_data_columns(self, weights: Floats) -> Floats:
        """Return combinations (rows) of the arrived parity blocks as combinations of the arrived data."""
        arrived = np.ix_(self.arrived_parity_indices, self.arrived_data_indices)
        return np.asarray(weights @ self.code.encoding_matrix[arrived])

    @property
    def n_redundant_checks(self) -> int:
        """The number of equations left over once the missing blocks are determined; negative before."""
        return len(self.arrived_parity_indices) - len(self.missing_indices)

    @cached_property
    def weights(self) -> Floats:
        """Recovered = weights @ received, (missing, arrived), by least squares."""
        weights = np.empty((len(self.missing_indices), len(self.arrived_indices)))
        n_arrived_data = len(self.arrived_data_indices)
        for start in range(0, len(weights), WEIGHT_BATCH):  # they may be the most memory of a map
            batch = slice(start, start + WEIGHT_BATCH)
            data_weights = self.multiply_by_arrived_data_columns(self._pseudo_inverse[batch])
            np.negative(data_weights, out=weights[batch, :n_arrived_data])
        weights[:, n_arrived_data:] = self._pseudo_inverse
        return weights

    def compute_parity_check_matrix(self, max_checks: int) -> Floats:
        """Return up to `max_checks` equations on the arrived blocks, (s, arrived).

        Their coefficients of the parity blocks are orthonormal.
        """
        parity_checks = self._compute_null_space_checks(max_checks)
        data_checks = -self.multiply_by_arrived_data_columns(parity_checks)
        return np.concatenate([data_checks, parity_checks], axis=1)

    def reuse_computations_of(self, previous: ErasureDecoder) -> None:
        """Update the pseudo-inverse of `previous`, which has fewer results, without a factorization.

        Columns that are no longer missing are projected out, and rows are added by Greville's (1960) formula.
        A step of Newton's iteration then removes the rounding errors of both. The update is given up if they
        are too large.
        """
        if not isinstance(previous, SystematicDecoder):
            return
        previous._drop_weights()  # They may be the most memory of a map.
        previous_inverse = previous._computed_pseudo_inverse
        if previous_inverse is None or not np.isfinite(previous_inverse).all():
            return
        n_parity, parity_indices = self.code.n - self.code.k, self.arrived_parity_indices
        known_mask, previous_parity_mask = np.zeros(self.code.k, bool), np.zeros(n_parity, bool)
        known_mask[self.arrived_data_indices] = previous_parity_mask[previous.arrived_parity_indices] = True
        recovered_mask = known_mask[previous.missing_indices]
        new_parity_mask = ~previous_parity_mask[parity_indices]
        unit_vectors = np.zeros((int(new_parity_mask.sum()), n_parity))
        unit_vectors[np.arange(len(unit_vectors)), parity_indices[new_parity_mask]] = 1
        new_rows = self.code.left_multiply_encoding_matrix(unit_vectors)[:, self.missing_indices]
        system_shape = len(parity_indices), len(self.missing_indices)
        self.system_matrix = np.empty(system_shape, previous.system_matrix.dtype)
        self.system_matrix[new_parity_mask] = new_rows
        self.system_matrix[~new_parity_mask] = previous.system_matrix[:, ~recovered_mask]
        orthonormal_basis = np.linalg.qr(previous_inverse[recovered_mask].T)[0]
        pseudo_inverse = previous_inverse[~recovered_mask]
        pseudo_inverse -= pseudo_inverse @ orthonormal_basis @ orthonormal_basis.T
        row_products = new_rows @ pseudo_inverse
        gram_matrix = np.eye(len(row_products)) + row_products @ row_products.T
        new_columns = np.linalg.solve(gram_matrix, row_products @ pseudo_inverse.T).T
        pseudo_inverse -= new_columns @ row_products
        updated = np.empty(system_shape[::-1])
        updated[:, new_parity_mask] = new_columns
        updated[:, ~new_parity_mask] = pseudo_inverse
        for start in range(0, len(updated), WEIGHT_BATCH):
            batch = slice(start, start + WEIGHT_BATCH)
            identity = np.eye(len(updated[batch]), len(updated), start)
            residual_matrix = identity - updated[batch] @ self.system_matrix
            if not np.abs(residual_matrix).max(initial=0) <= UPDATE_TOL:  # nor NaN
                return
            updated[batch] += residual_matrix @ updated
        self._computed_pseudo_inverse = updated


class ImplicitSystematicDecoder(SystematicDecoder):
    """A `SystematicDecoder` that multiplies by P with butterflies, so that P is never formed."""

    @cached_property
    def system_matrix(self) -> Array:
        """P restricted to arrived parity (rows) and missing data (columns)."""
        return self.code.compute_encoding_matrix_columns(self.missing_indices)[self.arrived_parity_indices]

    def multiply_by_arrived_data_columns(self, weights: Floats) -> Floats:
        """Combinations (rows) of the arrived parity blocks, as they are made of known data."""
        parity_weights = np.zeros((len(weights), self.code.n - self.code.k))
        parity_weights[:, self.arrived_parity_indices] = weights
        return self.code.left_multiply_encoding_matrix(parity_weights)[:, self.arrived_data_indices]


def has_dense_parity_matrix(n: int, k: int) -> bool:
    """Whether there is a P of such a code, and not only its butterflies.

    >>> [has_dense_parity_matrix(n, k) for n, k in ((1024, 768), (10_000, 7_500), (10_000, 2))]
    [True, False, True]
    """
    return n < MAX_DENSE_N or min(k, n - k) < MAX_DENSE_SIDE


def compute_left_inverse(matrix: Floats) -> Floats:
    """The pseudo-inverse of a matrix with full column rank; all inf when it has not.

    >>> compute_left_inverse(np.array([[2.0], [0.0]])).round(3) + 0.0
    array([[0.5, 0. ]])
    """
    n_rows, n_columns = matrix.shape
    if n_rows == n_columns:  # beside busy workers QR of a thousand rows takes ten times as long
        return compute_inverse_or_inf(matrix)
    orthonormal_factor, triangular_factor = np.linalg.qr(matrix)
    diagonal = np.abs(np.diag(triangular_factor))
    if n_rows < n_columns or diagonal.min(initial=np.inf) <= RANK_TOL * diagonal.max(initial=0):
        return np.full((n_columns, n_rows), np.inf)
    return np.asarray(np.linalg.solve(triangular_factor, orthonormal_factor.T))


def compute_inverse_or_inf(matrix: Floats) -> Floats:
    """The inverse of a square matrix; all inf when it has none.

    >>> compute_inverse_or_inf(np.diag([2.0, 0.5])).tolist(), compute_inverse_or_inf(np.zeros((1, 1)))
    ([[0.5, 0.0], [0.0, 2.0]], array([[inf]]))
    """
    try:
        inverse = np.asarray(np.linalg.inv(matrix), np.float64)
    except np.linalg.LinAlgError:
        return np.full_like(matrix, np.inf)
    condition = np.linalg.norm(inverse) * np.linalg.norm(matrix)  # of a largest singular value as on average
    return inverse if condition * RANK_TOL <= np.sqrt(len(matrix)) else np.full_like(inverse, np.inf)


def compute_left_null_space(matrix: Floats, pseudo_inverse: Floats, max_vectors: int) -> Floats:
    """Orthonormal columns z with z' matrix = 0, `max_vectors` of them or all, given the pseudo-inverse.

    >>> abs(compute_left_null_space(np.array([[0.6], [0.8]]), np.array([[0.6, 0.8]]), 8)).round(3).tolist()
    [[0.8], [0.6]]
    """
    n_rows, n_columns = matrix.shape
    n_vectors = min(max_vectors, n_rows - n_columns)
    null_vectors = np.cos(np.outer(np.arange(1, n_rows + 1), np.arange(1, n_vectors + 1)) * 0.7)
    for _ in range(2):  # once leaves what rounding has hidden in what was taken away
        null_vectors -= pseudo_inverse.T @ (matrix.T @ null_vectors)
        null_vectors, _ = np.linalg.qr(null_vectors)
    return np.asarray(null_vectors)


def compute_max_amplification(parity_matrix: Floats, arrived_patterns: Indices) -> float:
    """The largest amplification when exactly the blocks of a row of `arrived_patterns` have, for a code [P,
    -I].

    In each row, which is ascending, equally many are data blocks, and as many parity blocks as are missing.
    """
    k = parity_matrix.shape[1]
    n_data = np.searchsorted(arrived_patterns[0], k)
    data_indices, parity_indices = np.split(arrived_patterns, [n_data], axis=1)
    missing_mask = np.ones((len(arrived_patterns), k), bool)
    np.put_along_axis(missing_mask, data_indices, False, axis=1)
    missing_indices = np.nonzero(missing_mask)[1].reshape(len(arrived_patterns), -1)
    parity_indices = parity_indices[:, :, np.newaxis] - k
    systems = parity_matrix[parity_indices, missing_indices[:, np.newaxis]]
    try:
        inverses = np.linalg.inv(systems)
    except np.linalg.LinAlgError:
        return np.inf
    condition = np.linalg.norm(systems, axis=(1, 2)) * np.linalg.norm(inverses, axis=(1, 2))
    if not (condition * RANK_TOL <= np.sqrt(missing_indices.shape[1])).all():
        return np.inf
    data_weights = inverses @ parity_matrix[parity_indices, data_indices[:, np.newaxis]]
    weights = np.concatenate([inverses, data_weights], axis=2)
    return float(np.linalg.norm(weights, axis=2).max(initial=0))


def compute_erasure_amplification(generator_matrix: Floats, erased_indices: Indices, n_targets: int) -> float:
    """The amplification when the results `erased_indices` are missing, for a G with orthonormal columns.

    With K = G_lost G_lost', the row of G_i pinv(G_arrived) has the squared norm [K / (1 - K)]_ii.
    Only the first `n_targets` results are decoded.
    """
    erased_rows = generator_matrix[erased_indices]
    eigenvalues, eigenvectors = np.linalg.eigh(erased_rows @ erased_rows.T)
    target_vectors = eigenvectors[erased_indices < n_targets]
    if not len(target_vectors):
        return 0.0
    if eigenvalues[-1] >= 1 - 1e-14:  # an amplification above 1e7 is no more than rounding here
        return np.inf
    return float(np.sqrt((target_vectors**2 @ (eigenvalues.clip(0) / (1 - eigenvalues))).max()))
