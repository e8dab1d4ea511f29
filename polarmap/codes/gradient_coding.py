"""Gradient coding: compute the sum of n values of f from any n - s of n workers, for arbitrary f.

    n = 4, s = 1:   workers 0 and 1 return f(0) + f(1),   workers 2 and 3 return f(2) + f(3)

    G = B with s + 1 nonzero entries per row,   T = 1' (all ones)

The data has n parts. Worker i evaluates f on s + 1 of them and returns the combination B_i u of the values u.
The all-ones vector is a combination of any n - s rows of B, so any n - s results give the sum (Tandon, Lei,
Dimakis and Karampatziakis 2017, arXiv 1612.03301). The data is not encoded: workers combine values of f, so f
need not be linear.
"""

from __future__ import annotations

from functools import cached_property, lru_cache

import numpy as np

from polarmap.codes.base import ErasureDecoder, ReceivedBlocks
from polarmap.codes.compute import tiling
from polarmap.codes.linear_code import LinearCode
from polarmap.codes.real_decoders import RealDecoder
from polarmap.codes.splitmix import SplitMix64, sample_subsets
from polarmap.dtypes import Array, Floats, Indices, Mask, is_integer, is_integer_dtype
from polarmap.errors import CodeError

# The generator matrix of some groups is the best of N_SEEDS random matrices. They are compared on up to
# MAX_PATTERNS erasure patterns, i.e. sets of missing results.
N_SEEDS, MAX_PATTERNS = 16, 64
# The weights of the results must satisfy weights @ rows = (1, ..., 1) up to this absolute error.
SPAN_TOL = 1e-8
RANK_TOL = 1e-10  # Singular values below this fraction of the largest are treated as zero.


class GradientCode(LinearCode):
    """A code for the sum of n values of an arbitrary function, computed although some workers are late.

    The workers are divided into groups. In a group of s + 1 workers, each worker returns the plain sum of the
    group's values, so one result is enough. This is called fractional repetition. If n is not divisible by
    s + 1, some groups are larger. A larger group uses a cyclic code: each worker returns a weighted sum of
    s + 1 values, and at least s results of the group may be missing.

    Parameters
    ----------
    n : int
        Number of workers, and of values to sum.
    max_stragglers : int
        Maximum number s of missing results, 0 <= s < n.

    Examples
    --------
    >>> GradientCode(6, 2).group_sizes, GradientCode(8, 2).group_sizes
    ((3, 3), (5, 3))
    >>> GradientCode(4, 1).generator_matrix.tolist()[:2]
    [[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]]
    """

    requirement = "deterministic"
    is_mds = False
    n_targets = 1  # The decoder returns a single result, the sum.

    def __init__(self, n: int, max_stragglers: int) -> None:
        for name, value, min_value in (("n", n, 1), ("tolerate", max_stragglers, 0)):
            if not is_integer(value) or value < min_value:
                raise CodeError(f"{name} must be an integer >= {min_value}, not {value!r}")
        if max_stragglers >= n:
            raise CodeError(f"tolerate must be at most {n - 1} for {n} workers, not {max_stragglers}")
        self.n = self.k = int(n)
        self.max_stragglers = int(max_stragglers)
        self.group_sizes = choose_group_sizes(self.n, self.max_stragglers)
        group_kinds = dict.fromkeys(
            "repetition" if size == self.max_stragglers + 1 else "cyclic" for size in self.group_sizes
        )
        self.name = f"gradient code, {' and '.join(group_kinds)}, tolerates {self.max_stragglers}"

    def __repr__(self) -> str:
        return f"GradientCode({self.n}, {self.max_stragglers})"

    @property
    def is_fractional_repetition(self) -> bool:
        """True if all groups use fractional repetition, where each worker returns the sum of its group.

        All coefficients are then 1, so that sums of integers are exact.
        """
        return max(self.group_sizes) == self.max_stragglers + 1

    @property
    def recovery_threshold(self) -> int:
        """The smallest number of results that can be enough to compute the sum.

        Each result contains s + 1 values, so fewer results cannot contain all n values.
        """
        return sum(-(-size // (self.max_stragglers + 1)) for size in self.group_sizes)

    @property
    def target_matrix(self) -> Floats:
        """The target matrix T, a single row of n ones: the caller wants the sum of all values."""
        return np.ones((1, self.n))

    @property
    def encoding_matrix(self) -> Floats:
        """The encoding matrix E, which is the identity: the workers receive data that is not encoded."""
        return np.eye(self.n)

    @property
    def norm_inf(self) -> float:
        """The infinity norm of the generator matrix, which is its largest absolute row sum."""
        return float(np.abs(self.generator_matrix).sum(axis=1).max())

    @cached_property
    def generator_matrix(self) -> Floats:
        """The generator matrix B, shape (n, n), with s + 1 nonzero coefficients in each row."""
        matrix = np.zeros((self.n, self.n))
        for first_worker, size in self.group_starts_and_sizes:
            group = slice(first_worker, first_worker + size)
            matrix[group, group] = make_group_generator_matrix(size, self.max_stragglers)
        return matrix

    def encode_parity(self, blocks: tiling.FlatBlocks, out: Array | None = None) -> Array:
        """Raise CodeError: this code has no parity blocks, because workers combine results instead."""
        raise CodeError(f"{self!r} has no parity blocks, because it combines results")

    def make_decoder(self, arrived_mask: Mask, modular: bool) -> ErasureDecoder:
        """Build the decoder that computes the sum from the arrived results. `modular` is ignored."""
        return GradientDecoder(self, arrived_mask)

    @property
    def group_starts_and_sizes(self) -> list[tuple[int, int]]:
        """Each group as a pair (index of its first worker, number of workers)."""
        first_workers = np.cumsum((0, *self.group_sizes[:-1])).tolist()
        return list(zip(first_workers, self.group_sizes, strict=True))


class GradientDecoder(RealDecoder):
    """Computes the sum of all n values from the results of a `GradientCode` that have arrived.

    The sum is a weighted sum of the arrived results.
    """

    code: GradientCode
    # Integers are not decoded as floats and rounded: they are only supported by fractional repetition, where
    # the sum of the groups is exact.
    decodes_integers_by_rounding = False

    @cached_property
    def rank_deficit(self) -> int:
        """The minimum number of additional results needed to decode, or 0 if decoding is already possible."""
        n_lacking = self.code.recovery_threshold - len(self.arrived_indices)
        return n_lacking if n_lacking > 0 else int(not np.isfinite(self.weights).all())

    @cached_property
    def weights(self) -> Floats:
        """The weight of each arrived result in the sum, shape (1, arrived).

        All weights are inf if too few results have arrived.
        """
        weights = np.zeros((1, len(self.arrived_indices)))
        if not self._is_every_value_covered():
            return np.full_like(weights, np.inf)
        for first_worker, size in self.code.group_starts_and_sizes:
            members = self.arrived_indices - first_worker
            in_group = (members >= 0) & (members < size)
            group_weights = _compute_group_sum_weights(size, self.code.max_stragglers, members[in_group])
            if group_weights is None:
                return np.full_like(weights, np.inf)
            weights[0, in_group] = group_weights
        return weights

    def _is_every_value_covered(self) -> bool:
        """Return whether each group has enough arrived results to contain all values of the group.

        Each result contains at most s + 1 values. This necessary condition is faster than computing weights.
        """
        sizes = np.array(self.code.group_sizes)
        group_indices = np.searchsorted(np.cumsum(sizes), self.arrived_indices, side="right")
        n_arrived_by_group = np.bincount(group_indices, minlength=len(sizes))
        return bool((n_arrived_by_group * (self.code.max_stragglers + 1) >= sizes).all())

    @cached_property
    def _left_null_space(self) -> Floats:
        arrived_generator = self.code.generator_matrix[self.arrived_indices]
        left_vectors, singular_values, _ = np.linalg.svd(arrived_generator)
        return np.asarray(left_vectors[:, int((singular_values > RANK_TOL * singular_values[0]).sum()) :])

    @property
    def n_redundant_checks(self) -> int:
        """The number of linear equations (parity checks) that correct results must satisfy.

        They can be used to detect wrong results.
        """
        return int(self._left_null_space.shape[1])

    def compute_parity_check_matrix(self, max_checks: int) -> Floats:
        """Return up to `max_checks` parity checks as a matrix with one column per arrived result.

        The product of the matrix and correct results is zero.
        """
        return self._left_null_space[:, :max_checks].T

    def decode_into(self, received: ReceivedBlocks, out: Array) -> None:
        """Compute the sum and write it to the only row of `out`."""
        if not is_integer_dtype(out.dtype):
            super().decode_into(received, out)
            return
        out[:] = 0  # Integers use fractional repetition, so a weight is 0 or 1: add the results of weight 1.
        for worker_index in self.arrived_indices[self.weights[0] != 0]:
            out[0] += received[int(worker_index)].astype(out.dtype, copy=False)


def choose_group_sizes(n: int, max_stragglers: int) -> tuple[int, ...]:
    """Divide n workers into groups of at least `max_stragglers` + 1 workers and return the group sizes.

    If n is not divisible by the minimum size, the remaining workers are added to groups in pairs. Pairs are
    used because the matrix of an enlarged group is better conditioned if its number of added workers is even.

    >>> choose_group_sizes(23, 5)
    (8, 8, 7)
    """
    size = max_stragglers + 1
    n_groups, n_extra = divmod(n, size)
    sizes = [size] * n_groups
    for pair_index in range(n_extra // 2):
        sizes[pair_index % n_groups] += 2
    if n_extra % 2:
        sizes[(n_extra // 2) % n_groups] += 1
    return tuple(sizes)


@lru_cache(maxsize=256)
def make_group_generator_matrix(group_size: int, max_stragglers: int) -> Floats:
    """Build the generator matrix of one group, a square matrix of the size of the group.

    Row i contains the coefficients with which worker i combines the values of the group. Let s be
    `max_stragglers`. A group of s + 1 workers has a matrix of ones. A larger group has a cyclic matrix with
    s + 1 coefficients in each row, whose mean square is 1.

    The rows of a cyclic matrix are orthogonal to a parity-check matrix H (s, size) whose rows sum to zero. If
    the s highest frequencies of the discrete Fourier transform form a real matrix, H consists of them (cyclic
    MDS codes, Raviv et al. 2018, arXiv 1707.03858). Otherwise, H is the best of N_SEEDS pseudo-random
    matrices.
    """
    if group_size == max_stragglers + 1:
        return np.ones((group_size, group_size))
    if (group_size - max_stragglers) % 2:
        return _make_cyclic_generator_matrix(_make_highest_frequency_check_matrix(group_size, max_stragglers))
    erasure_patterns = sample_subsets(group_size, max_stragglers, MAX_PATTERNS)

    def compute_max_weight_norm(matrix: Floats) -> float:
        remainders = (np.delete(matrix, erased, axis=0) for erased in erasure_patterns)
        pattern_weights = map(_solve_for_sum_weights, remainders)
        return max(
            np.inf if weights is None else float(np.linalg.norm(weights)) for weights in pattern_weights
        )

    check_matrices = (_make_random_check_matrix(group_size, max_stragglers, seed) for seed in range(N_SEEDS))
    return min(map(_make_cyclic_generator_matrix, check_matrices), key=compute_max_weight_norm)


def _make_highest_frequency_check_matrix(size: int, n_checks: int) -> Floats:
    frequencies = np.arange((size - n_checks + 1) // 2, size // 2 + 1)
    phases = np.outer(frequencies, np.arange(size)) * (2 * np.pi / size)
    waves = np.concatenate([np.cos(phases), np.sin(phases)])
    # For an even size, the sine wave of the highest (Nyquist) frequency is zero everywhere. Leave it out.
    return np.asarray(waves[np.linalg.norm(waves, axis=1) > 1e-6])


def _make_random_check_matrix(size: int, n_checks: int, seed: int) -> Floats:
    normal = SplitMix64(size, n_checks, seed).standard_normal(n_checks, size)
    return np.asarray(normal - normal.mean(axis=1, keepdims=True))


def _make_cyclic_generator_matrix(check_matrix: Floats) -> Floats:
    """Build the square generator matrix of a cyclic code from its parity-check matrix.

    `check_matrix` has the shape (s, size). Row i of the result is orthogonal to all rows of `check_matrix`.
    It is nonzero only in the s + 1 columns i, i + 1, ..., i + s, which wrap around at the last column.
    """
    n_checks, size = check_matrix.shape
    matrix = np.zeros((size, size))
    for row in range(size):
        columns = (row + np.arange(n_checks + 1)) % size
        null_vector = np.linalg.svd(check_matrix[:, columns])[2][-1]
        matrix[row, columns] = null_vector * (np.copysign(1, null_vector.sum()) * np.sqrt(n_checks + 1))
    return matrix


def _compute_group_sum_weights(
    group_size: int, max_stragglers: int, arrived_indices: Indices
) -> Floats | None:
    """Compute the weight of each arrived result of a group in the sum of the group's values.

    `arrived_indices` are relative to the group. Return None if the results do not determine the sum.
    """
    if group_size > max_stragglers + 1:
        generator_matrix = make_group_generator_matrix(group_size, max_stragglers)
        return _solve_for_sum_weights(generator_matrix[arrived_indices])
    # All workers of this group return the same sum, so the first arrived result gets weight 1.
    return np.eye(1, len(arrived_indices))[0] if len(arrived_indices) else None


def _solve_for_sum_weights(arrived_rows: Floats) -> Floats | None:
    """Solve weights @ arrived_rows = (1, ..., 1) for the weights with the smallest norm.

    These weights turn the arrived results into the sum of all values. Return None if there is no solution.
    """
    if not len(arrived_rows):
        return None
    all_one_vector = np.ones(arrived_rows.shape[1])
    weights = np.asarray(np.linalg.lstsq(arrived_rows.T, all_one_vector, rcond=RANK_TOL)[0], np.float64)
    return weights if np.abs(weights @ arrived_rows - all_one_vector).max() <= SPAN_TOL else None
