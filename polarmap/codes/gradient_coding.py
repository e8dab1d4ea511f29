"""GradientCode: the sum of n values from any n - s of n workers that each combine s + 1 of them.

    G = B, s + 1 entries of a row not zero,   T = 1', the sum of the unknown values

Gradient coding of Tandon, Lei, Dimakis and Karampatziakis (2017), arXiv 1612.03301: worker i returns
the combination B_i u of its s + 1 values, and the all-ones vector is a combination of any n - s rows.
What is sent is not coded at all: f is anything, and the values of f are combined where they are made.
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

N_SEEDS, MAX_PATTERNS = 16, 64  # tried for a cyclic group, and the most patterns of losses each is tried on
SPAN_TOL = 1e-8  # the largest entry by which a combination of arrived rows may miss the all-ones vector
RANK_TOL = 1e-10  # singular values below this share of the largest are rounding


class GradientCode(LinearCode):
    """A code for the sum of n values of any function at all.

    Workers form groups. One of s + 1 workers is fractional repetition: each returns the plain sum of
    its group, and one of them is enough. What does not divide by s + 1 makes some groups larger; these
    are cyclic, and all but s workers of each are enough, sometimes fewer.

    Parameters
    ----------
    n : int
        Workers, and values that are summed.
    max_stragglers : int
        s, the workers that may be missing, 0 <= s < n.

    Examples
    --------
    >>> GradientCode(6, 2).group_sizes, GradientCode(8, 2).group_sizes
    ((3, 3), (5, 3))
    >>> GradientCode(4, 1).generator_matrix.tolist()[:2]
    [[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]]
    """

    requirement = "deterministic"
    is_mds = False
    n_targets = 1  # the sum

    def __init__(self, n: int, max_stragglers: int) -> None:
        for name, value, min_value in (("n", n, 1), ("tolerate", max_stragglers, 0)):
            if not is_integer(value) or value < min_value:
                raise CodeError(f"{name} must be an integer of at least {min_value}, not {value!r}")
        if max_stragglers >= n:
            raise CodeError(f"{n} workers cannot tolerate that {max_stragglers} are missing: at most {n - 1}")
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
        """Whether all coefficients are one, so that integers stay integers."""
        return max(self.group_sizes) == self.max_stragglers + 1

    @property
    def recovery_threshold(self) -> int:
        """The fewest results that can determine the sum: every value is in one of them."""
        return sum(-(-size // (self.max_stragglers + 1)) for size in self.group_sizes)

    @property
    def target_matrix(self) -> Floats:
        """T = 1', shape (1, n)."""
        return np.ones((1, self.n))

    @property
    def encoding_matrix(self) -> Floats:
        """E = I: data is sent as it is."""
        return np.eye(self.n)

    @property
    def norm_inf(self) -> float:
        """The largest sum of absolute coefficients of a worker."""
        return float(np.abs(self.generator_matrix).sum(axis=1).max())

    @cached_property
    def generator_matrix(self) -> Floats:
        """B, shape (n, n): worker i returns the combination B_i of all values, s + 1 of them not zero."""
        matrix = np.zeros((self.n, self.n))
        for first_worker, size in self.group_starts_and_sizes:
            group = slice(first_worker, first_worker + size)
            matrix[group, group] = make_group_generator_matrix(size, self.max_stragglers)
        return matrix

    def encode_parity(self, blocks: tiling.FlatBlocks, out: Array | None = None) -> Array:
        """No block is a mixture: workers get their values' arguments and mix what f makes of them."""
        raise CodeError(f"{self!r} mixes results, not blocks")

    def make_decoder(self, arrived_mask: Mask, modular: bool) -> ErasureDecoder:
        """How to combine the results of the workers of the mask `arrived_mask` into the sum."""
        return GradientDecoder(self, arrived_mask)

    @property
    def group_starts_and_sizes(self) -> list[tuple[int, int]]:
        """First worker and size of each group."""
        first_workers = np.cumsum((0, *self.group_sizes[:-1])).tolist()
        return list(zip(first_workers, self.group_sizes, strict=True))


class GradientDecoder(RealDecoder):
    """Finds the combination of arrived results that is the sum; `rank_deficit` is 1 while there is none."""

    code: GradientCode
    rounds_integers = False  # integers come from repetition and are added up as such

    @cached_property
    def rank_deficit(self) -> int:
        """At least so many arrivals are needed still."""
        n_lacking = self.code.recovery_threshold - len(self.arrived_indices)
        return n_lacking if n_lacking > 0 else int(not np.isfinite(self.weights).all())

    @cached_property
    def weights(self) -> Floats:
        """The sum = weights @ received, (1, arrived); inf if it is not determined."""
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
        """Whether enough of every group arrived for each of its values to be in one of them."""
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
        """Equations that the results must satisfy among themselves."""
        return int(self._left_null_space.shape[1])

    def compute_parity_check_matrix(self, max_checks: int) -> Floats:
        """Up to `max_checks` of these equations, orthonormal."""
        return self._left_null_space[:, :max_checks].T

    def decode_into(self, received: ReceivedBlocks, out: Array) -> None:
        """Put the sum into `out`, (1, b)."""
        if not is_integer_dtype(out.dtype):
            super().decode_into(received, out)
            return
        out[:] = 0  # integers come from repetition: weights are 0 and 1
        for worker_index in self.arrived_indices[self.weights[0] != 0]:
            out[0] += received[int(worker_index)].astype(out.dtype, copy=False)


def choose_group_sizes(n: int, max_stragglers: int) -> tuple[int, ...]:
    """Sizes of groups, each at least s + 1: what is left over is spread in pairs, then singly.

    Larger by an even number, a cyclic group has the better conditioned matrix.

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
    """B of one group, (size, size): all ones, or cyclic with s + 1 coefficients of mean square 1.

    Results of a cyclic one lie in the null space of an H (s, size) with H 1 = 0: the highest s
    frequencies where they are real (cyclic MDS codes of Raviv et al. 2018, arXiv 1707.03858), else
    the best of some pseudo-random ones.
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
    return np.asarray(waves[np.linalg.norm(waves, axis=1) > 1e-6])  # the sine of the highest of all is zero


def _make_random_check_matrix(size: int, n_checks: int, seed: int) -> Floats:
    normal = SplitMix64(size, n_checks, seed).standard_normal(n_checks, size)
    return np.asarray(normal - normal.mean(axis=1, keepdims=True))


def _make_cyclic_generator_matrix(check_matrix: Floats) -> Floats:
    """Row i lives on columns i..i+s and is orthogonal to all `check_matrix` (s, size)."""
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
    """How to combine what arrived of one group into its sum; None if that is not determined."""
    if group_size > max_stragglers + 1:
        generator_matrix = make_group_generator_matrix(group_size, max_stragglers)
        return _solve_for_sum_weights(generator_matrix[arrived_indices])
    return np.eye(1, len(arrived_indices))[0] if len(arrived_indices) else None  # the first is as good as any


def _solve_for_sum_weights(arrived_rows: Floats) -> Floats | None:
    """The shortest combination of `arrived_rows` that is the all-ones vector, if there is one."""
    if not len(arrived_rows):
        return None
    all_one_vector = np.ones(arrived_rows.shape[1])
    weights = np.asarray(np.linalg.lstsq(arrived_rows.T, all_one_vector, rcond=RANK_TOL)[0], np.float64)
    return weights if np.abs(weights @ arrived_rows - all_one_vector).max() <= SPAN_TOL else None
