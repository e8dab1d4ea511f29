"""Decode floating-point results by least squares: weights @ G[arrived] = T[missing].

    G = [I; P], k = 2, n = 3, result 0 missing:   result 0 = (result 2 - P[0, 1] result 1) / P[0, 0]

`PseudoInverseDecoder` works for any code and solves for all unknowns. `SystematicDecoder` works for
systematic codes and solves for the missing data blocks only. `ImplicitSystematicDecoder` does the same
without forming the parity matrix P. The functions below the classes compute inverses and amplifications, that
is, the factors by which decoding multiplies errors.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from polarmap.codes.base import (
    MAX_CHECKS,
    ErasureDecoder,
    ReceivedBlocks,
    SystematicEquations,
)
from polarmap.codes.compute import block_matmul
from polarmap.dtypes import Array, DType, Floats, Indices, is_integer_dtype, to_real_dtype

# A linear system is treated as singular if the ratio of its smallest to its largest singular value is below
# this. Its solution would have no correct digits in float32 and only three in float64.
RANK_TOL = 1e-12
# A parity matrix is computed explicitly if the code has fewer than MAX_DENSE_N coded blocks. Products with
# the matrix are then faster than a butterfly network, i.e. a fast transform that is equivalent to it. A
# matrix with fewer than MAX_DENSE_SIDE rows or columns is also computed, because the norms of its rows vary
# too much to be normalized by their average.
MAX_DENSE_N, MAX_DENSE_SIDE = 2048, 256
# When more results arrive, the pseudo-inverse is updated, and a Newton step corrects its errors if the
# residual is at most UPDATE_TOL. The step squares the residual, so only rounding errors remain.
UPDATE_TOL = 1e-6
WEIGHT_BATCH = 256  # Number of missing blocks whose weights are computed at a time, to limit memory.


class RealDecoder(ErasureDecoder):
    """Base class of decoders that compute missing results in floating-point arithmetic.

    Missing results are linear combinations of received results: recovered = weights @ received. Results may
    be real or complex. Integer results are decoded in float64 and rounded to integers at the end.
    """

    decodes_integers_by_rounding = True
    _computed_pseudo_inverse: Floats | None = None

    @property
    def system_matrix(self) -> Array:
        """The matrix of the linear system that the decoder solves, shape (equations, unknowns)."""
        raise NotImplementedError

    @cached_property
    def rank_deficit(self) -> int:
        """The minimum number of additional results needed to decode, or 0 if decoding is already possible."""
        if not len(self.missing_indices):
            return 0
        return max(-self.n_redundant_checks, 0) or self._system_rank_deficit

    @property
    def _system_rank_deficit(self) -> int:
        """The rank deficit of a linear system that has enough equations.

        The value is 1 if the system is singular, so that decoding needs more results, and otherwise 0.
        """
        return int(not np.isfinite(self._pseudo_inverse).all())

    @property
    def weights(self) -> Floats:
        """The decoding weights, shape (missing, arrived): missing results = weights @ arrived results."""
        raise NotImplementedError

    @property
    def weight_magnitudes(self) -> Floats:
        """The absolute values of the decoding weights, shape (missing, arrived).

        Entry (i, j) is the absolute change of missing result i if arrived result j has an error of 1.
        """
        return np.abs(self.weights)

    @property
    def max_weight_magnitudes(self) -> Floats:
        """The maximum of each column of `weight_magnitudes`, shape (arrived,).

        Entry j is the largest change of any missing result if arrived result j has an error of 1.
        """
        # Avoid np.abs: it would copy the weights, which may already take most of a map's memory.
        weights = self.weights
        return np.asarray(np.maximum(weights.max(axis=0, initial=0), -weights.min(axis=0, initial=0)))

    @cached_property
    def amplification(self) -> float:
        """The largest factor by which decoding multiplies errors.

        It is the largest 2-norm of a row of `weights`: 0 if nothing is missing, and inf if decoding is
        impossible.
        """
        if not len(self.missing_indices):
            return 0.0
        if self.rank_deficit:
            return np.inf
        norms = np.sqrt(np.einsum("ij,ij->i", self.weights, self.weights))
        return float(norms.max()) if np.isfinite(norms).all() else np.inf

    @cached_property
    def check_matrix(self) -> Floats:
        """A matrix of parity checks that verify the results, with one column per arrived result.

        Its product with correct results is zero. It has at most MAX_CHECKS rows.
        """
        return self.compute_parity_check_matrix(MAX_CHECKS)

    def compute_parity_check_matrix(self, max_checks: int) -> Floats:
        """Compute up to `max_checks` parity checks that verify the arrived results.

        They are the rows of a matrix with one column per arrived result. Its product with correct results is
        zero.
        """
        raise NotImplementedError

    def decode(self, received: ReceivedBlocks, dtype: DType) -> Array:
        """Decode the missing results, one per row, from the results that have arrived."""
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
        """Decode the missing results from the received results and write them to `out`, one per row."""
        arrived_blocks = [received[int(block_index)] for block_index in self.arrived_indices]
        if is_integer_dtype(out.dtype):
            real_result = np.empty(out.shape)
            block_matmul.combine_rows(self.weights, arrived_blocks, real_result)
            out[:] = np.rint(real_result)
        else:
            block_matmul.combine_rows(self.weights, arrived_blocks, out)

    @property
    def _pseudo_inverse(self) -> Floats:
        """The pseudo-inverse of `system_matrix`, with all entries inf if the system cannot be solved."""
        if self._computed_pseudo_inverse is None:
            system_matrix = self.system_matrix.astype(np.float64, copy=False)
            self._computed_pseudo_inverse = compute_left_inverse(system_matrix)
        return self._computed_pseudo_inverse

    def _free_cached_weights(self) -> None:
        """Delete the cached `weights` to free memory. They are recomputed when they are needed again."""
        vars(self).pop("weights", None)

    def _compute_null_space_checks(self, max_checks: int) -> Floats:
        """Compute up to `max_checks` combinations of the equations in which all unknowns cancel.

        Such a combination is a parity check: it must hold for correct results, whatever the unknowns are.

        Returns
        -------
        array (checks, equations)
            Orthonormal rows of coefficients. There are none if the system cannot be solved.
        """
        if self.n_redundant_checks <= 0 or not np.isfinite(self._pseudo_inverse).all():
            return np.empty((0, len(self.system_matrix)))
        return compute_left_null_space(self.system_matrix, self._pseudo_inverse, max_checks).T


class PseudoInverseDecoder(RealDecoder):
    """A least-squares decoder for any code, which solves for all unknowns of the code.

    The decoding weights are T[missing] pinv(G[arrived]), where G is the generator matrix of the code, and T
    its target matrix. Among all unbiased linear decoders, the least-squares decoder amplifies independent
    errors the least.
    """

    @cached_property
    def system_matrix(self) -> Floats:
        """The rows of the generator matrix G that belong to the arrived results."""
        return np.asarray(self.code.generator_matrix[self.arrived_indices])

    @cached_property
    def weights(self) -> Floats:
        """The decoding weights, shape (missing, arrived): missing results = weights @ arrived results."""
        return np.asarray(self.code.target_matrix[self.missing_indices] @ self._pseudo_inverse)

    @cached_property
    def amplification(self) -> float:
        """The largest factor by which decoding multiplies errors.

        It is the largest 2-norm of a row of `weights`, times the `rms_gain` of the code. This gain is
        the factor by which coded blocks, and therefore their rounding errors, may be larger than data blocks.
        """
        return super().amplification * self.code.rms_gain

    @property
    def n_redundant_checks(self) -> int:
        """The number of parity checks that can verify the results.

        It is negative if too few results have arrived to decode.
        """
        return int(self.system_matrix.shape[0] - self.system_matrix.shape[1])

    def compute_parity_check_matrix(self, max_checks: int) -> Floats:
        """Compute up to `max_checks` parity checks that verify the arrived results.

        They are the rows of a matrix with one column per arrived result. Its product with correct results is
        zero.
        """
        return self._compute_null_space_checks(max_checks)


class SystematicDecoder(SystematicEquations, RealDecoder):
    """A least-squares decoder for systematic codes, whose coded blocks include the data blocks.

    It solves for the missing data blocks only. The equations are given by the rows of the parity matrix P
    that belong to arrived parity blocks:

        P[arrived, missing] missing blocks = arrived parity blocks - P[arrived, known] known blocks
    """

    def multiply_by_arrived_data_columns(self, weights: Floats) -> Floats:
        """Compute weights @ P[arrived parity, arrived data], where P is the parity matrix.

        The result is the part of each combination of parity blocks that is due to arrived data blocks.

        Parameters
        ----------
        weights : array (combinations, arrived parity)
            One linear combination of arrived parity blocks per row.

        Returns
        -------
        array (combinations, arrived data)
        """
        arrived = np.ix_(self.arrived_parity_indices, self.arrived_data_indices)
        return np.asarray(weights @ self.code.encoding_matrix[arrived])

    @property
    def n_redundant_checks(self) -> int:
        """The number of parity checks that can verify the results.

        It is negative if too few results have arrived to decode.
        """
        return len(self.arrived_parity_indices) - len(self.missing_indices)

    @cached_property
    def weights(self) -> Floats:
        """The decoding weights, shape (missing, arrived): missing results = weights @ arrived results."""
        weights = np.empty((len(self.missing_indices), len(self.arrived_indices)))
        n_arrived_data = len(self.arrived_data_indices)
        for start in range(0, len(weights), WEIGHT_BATCH):
            batch = slice(start, start + WEIGHT_BATCH)
            data_weights = self.multiply_by_arrived_data_columns(self._pseudo_inverse[batch])
            np.negative(data_weights, out=weights[batch, :n_arrived_data])
        weights[:, n_arrived_data:] = self._pseudo_inverse
        return weights

    def compute_parity_check_matrix(self, max_checks: int) -> Floats:
        """Compute up to `max_checks` parity checks that verify the arrived results.

        They are the rows of a matrix with one column per arrived result. The columns of parity blocks form a
        matrix with orthonormal rows.
        """
        parity_checks = self._compute_null_space_checks(max_checks)
        data_checks = -self.multiply_by_arrived_data_columns(parity_checks)
        return np.concatenate([data_checks, parity_checks], axis=1)

    def reuse_computations_of(self, previous: ErasureDecoder) -> None:
        """Update the pseudo-inverse of a previous decoder, for which fewer results had arrived.

        This is faster than computing the pseudo-inverse from scratch. Each new data block deletes a column of
        the linear system: the remaining rows of the pseudo-inverse are projected orthogonally to the deleted
        rows. Each new parity block adds a row to the system, by Greville's formula (1960).

        One Newton-Schulz step X <- X + (I - X A) X then removes the rounding errors. If the residual I - X A
        has an entry above UPDATE_TOL, the update is discarded, and the pseudo-inverse is computed from
        scratch when needed.

        Parameters
        ----------
        previous : ErasureDecoder
            Decoder of the same code for a subset of the arrivals. Its cached weights are freed.
        """
        if not isinstance(previous, SystematicDecoder):
            return
        previous._free_cached_weights()  # The weights of large codes may take most of a map's memory.
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
            # `not ... <=` is used instead of `>`, so that NaN also counts as too large.
            if not np.abs(residual_matrix).max(initial=0) <= UPDATE_TOL:
                return
            updated[batch] += residual_matrix @ updated
        self._computed_pseudo_inverse = updated


class ImplicitSystematicDecoder(SystematicDecoder):
    """A `SystematicDecoder` for large codes, which does not compute the parity matrix P as a whole.

    Products with P are computed by the fast transform (butterfly network) of the code, in O(n log n).
    """

    @cached_property
    def system_matrix(self) -> Array:
        """The part of the parity matrix that relates arrived parity blocks to missing data blocks.

        It has one row per arrived parity block and one column per missing data block.
        """
        return self.code.compute_encoding_matrix_columns(self.missing_indices)[self.arrived_parity_indices]

    def multiply_by_arrived_data_columns(self, weights: Floats) -> Floats:
        """Compute weights @ P[arrived parity, arrived data] without computing the parity matrix P."""
        parity_weights = np.zeros((len(weights), self.code.n - self.code.k))
        parity_weights[:, self.arrived_parity_indices] = weights
        return self.code.left_multiply_encoding_matrix(parity_weights)[:, self.arrived_data_indices]


def has_dense_parity_matrix(n: int, k: int) -> bool:
    """Return whether a code should compute its parity matrix explicitly.

    Large codes use a fast transform (butterfly network) instead, which takes O(n log n) operations.

    Parameters
    ----------
    n, k : int
        Number of coded blocks and of data blocks.

    Examples
    --------
    >>> [has_dense_parity_matrix(n, k) for n, k in ((1024, 768), (10_000, 7_500), (10_000, 2))]
    [True, False, True]
    """
    return n < MAX_DENSE_N or min(k, n - k) < MAX_DENSE_SIDE


def compute_left_inverse(matrix: Floats) -> Floats:
    """Compute the pseudo-inverse of a matrix with linearly independent columns.

    The result has the shape (columns, rows). All its entries are inf if the columns are linearly dependent.

    Examples
    --------
    >>> compute_left_inverse(np.array([[2.0], [0.0]])).round(3) + 0.0
    array([[0.5, 0. ]])
    """
    n_rows, n_columns = matrix.shape
    # For a square matrix, compute the inverse. A QR decomposition of a thousand rows takes ten times as long
    # while workers keep all cores busy.
    if n_rows == n_columns:
        return compute_inverse_or_inf(matrix)
    orthonormal_factor, triangular_factor = np.linalg.qr(matrix)
    diagonal = np.abs(np.diag(triangular_factor))
    if n_rows < n_columns or diagonal.min(initial=np.inf) <= RANK_TOL * diagonal.max(initial=0):
        return np.full((n_columns, n_rows), np.inf)
    return np.asarray(np.linalg.solve(triangular_factor, orthonormal_factor.T))


def compute_inverse_or_inf(matrix: Floats) -> Floats:
    """Compute the inverse of a square matrix.

    All entries are inf if the matrix is singular, up to a relative tolerance of RANK_TOL.

    Examples
    --------
    >>> compute_inverse_or_inf(np.diag([2.0, 0.5])).tolist(), compute_inverse_or_inf(np.zeros((1, 1)))
    ([[0.5, 0.0], [0.0, 2.0]], array([[inf]]))
    """
    try:
        inverse = np.asarray(np.linalg.inv(matrix), np.float64)
    except np.linalg.LinAlgError:
        return np.full_like(matrix, np.inf)
    # Estimate the condition number from Frobenius norms: norm(matrix) / sqrt(n) is the root mean square of
    # the singular values, and norm(inverse) is at least the reciprocal of the smallest singular value.
    condition = np.linalg.norm(inverse) * np.linalg.norm(matrix)
    return inverse if condition * RANK_TOL <= np.sqrt(len(matrix)) else np.full_like(inverse, np.inf)


def compute_left_null_space(matrix: Floats, pseudo_inverse: Floats, max_vectors: int) -> Floats:
    """Compute orthonormal vectors z with z' matrix = 0, i.e. vectors of the left null space of a matrix.

    Parameters
    ----------
    matrix : array (rows, columns)
        A matrix of full column rank.
    pseudo_inverse : array (columns, rows)
        Pseudo-inverse of `matrix`.
    max_vectors : int
        Maximum number of basis vectors to compute, out of rows - columns.

    Returns
    -------
    array (rows, vectors)
        One vector per column.

    Examples
    --------
    >>> abs(compute_left_null_space(np.array([[0.6], [0.8]]), np.array([[0.6, 0.8]]), 8)).round(3).tolist()
    [[0.8], [0.6]]
    """
    n_rows, n_columns = matrix.shape
    n_vectors = min(max_vectors, n_rows - n_columns)
    null_vectors = np.cos(np.outer(np.arange(1, n_rows + 1), np.arange(1, n_vectors + 1)) * 0.7)
    for _ in range(2):  # The second pass removes the rounding errors of the first.
        null_vectors -= pseudo_inverse.T @ (matrix.T @ null_vectors)
        null_vectors, _ = np.linalg.qr(null_vectors)
    return np.asarray(null_vectors)


def compute_max_amplification(parity_matrix: Floats, arrived_patterns: Indices) -> float:
    """Compute the largest factor by which decoding multiplies errors, for several sets of k arrived results.

    Parameters
    ----------
    parity_matrix : array (n - k, k)
        Parity matrix P of a systematic code.
    arrived_patterns : index array (patterns, k)
        Indices of the arrived blocks in each pattern, in ascending order. All patterns must have the same
        number of data blocks.

    Returns
    -------
    float
        inf if a pattern cannot be decoded.
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
    """Compute the largest factor by which decoding multiplies errors, for one set of missing results.

    The generator matrix G of the code must have orthonormal columns. With K = G_erased G_erased', the squared
    norm of row i of the weights G_erased pinv(G_arrived) is [K / (1 - K)]_ii. This formula is faster than
    computing the weights.

    Parameters
    ----------
    generator_matrix : array (n, unknowns)
        G, with orthonormal columns.
    erased_indices : index array
        Indices of the results that have not arrived.
    n_targets : int
        Number of targets, which are the first results.

    Returns
    -------
    float
        0 if no target is erased, inf if the targets cannot be decoded.
    """
    erased_rows = generator_matrix[erased_indices]
    eigenvalues, eigenvectors = np.linalg.eigh(erased_rows @ erased_rows.T)
    target_vectors = eigenvectors[erased_indices < n_targets]
    if not len(target_vectors):
        return 0.0
    if eigenvalues[-1] >= 1 - 1e-14:  # The formula is too inaccurate for an amplification above 1e7.
        return np.inf
    return float(np.sqrt((target_vectors**2 @ (eigenvalues.clip(0) / (1 - eigenvalues))).max()))
