"""Which inputs are frozen, by which angles the butterfly turns, how positions are shuffled.

Everything here is a pure function of (n, k, seed), the same on every machine and numpy version.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from math import comb

import numpy as np
import numpy.typing as npt

from polarmap.dtypes import Floats, Indices

# Angles near 0 or pi/2 barely mix; this range keeps every 2x2 kernel well mixed.
ANGLE_RANGE = (0.3, 1.2)
# A butterfly shorter than this has too few angles to be generic.
MIN_TRANSFORM_SIZE = 16
STAGES_PER_MATRIX = 4  # of a butterfly, by matrices of 16 rows


def round_up_to_power_of_two(size: int) -> int:
    """The smallest power of two >= size.

    >>> [round_up_to_power_of_two(n) for n in (1, 2, 3, 1000)]
    [1, 2, 4, 1024]
    """
    return 1 << max(0, size - 1).bit_length()


def compute_transform_shape(n: int, levels: int | None = None) -> tuple[int, int]:
    """The size of a butterfly of so many levels, and how many of them n leaves take, side by side.

    Of `count` butterflies, number i % count has leaf i, so that unsent leaves, the first, are spread over
    all. By default all levels: one butterfly of the next power of two.

    >>> compute_transform_shape(1000), compute_transform_shape(1000, 5), compute_transform_shape(10_000, 10)
    ((1024, 1), (32, 32), (1024, 10))
    """
    size = round_up_to_power_of_two(n) if levels is None else 1 << levels
    return size, -(-n // size)


def compute_input_erasure_probabilities(position_erasure_probabilities: npt.ArrayLike) -> Floats:
    """Erasure probability of every input, given the erasure probability of every worker.

    Along the first axis; butterflies side by side lie along the second.

    One butterfly of z -> a + b - ab (minus, the slow virtual worker) and ab (plus, the fast one);
    Arikan (2009), eq. (35), for unequal workers.

    >>> compute_input_erasure_probabilities([0.5, 0.5]).tolist()
    [0.75, 0.25]
    """
    z = np.array(position_erasure_probabilities, dtype=np.float64)
    half = len(z) // 2
    while half:
        pairs = z.reshape(-1, 2, half, *z.shape[1:])
        first, second = pairs[:, 0].copy(), pairs[:, 1].copy()
        pairs[:, 1] = first * second
        pairs[:, 0] = first + second - pairs[:, 1]
        half //= 2
    return z


def choose_frozen_set(
    n: int, k: int, erasure_probabilities: float | Floats, levels: int | None = None
) -> Indices:
    """The n - k inputs to freeze, ascending, on a butterfly of the next power of two.

    `erasure_probabilities`: of every leaf that is sent, or of each of the n by itself. `levels`: of
    butterflies side by side (`compute_transform_shape`), in each of which an input is frozen and another is
    not.

    The first N - n positions are punctured (never sent), so the code keeps the all-ones word and
    a constant survives decoding exactly. The set is closed downwards (an input below a frozen one
    is frozen), which the two-pass systematic encoder needs.

    >>> choose_frozen_set(8, 4, 0.25).tolist()
    [0, 1, 2, 4]
    """
    transform_size, n_transforms = compute_transform_shape(n, levels)
    n_punctured = transform_size * n_transforms - n
    position_probabilities = np.ones(transform_size * n_transforms)
    position_probabilities[n_punctured:] = erasure_probabilities
    z = compute_input_erasure_probabilities(position_probabilities.reshape(transform_size, n_transforms))
    envelope = z.copy()  # z'_j = min of z_i over all i whose bits are a subset of j's
    half = transform_size // 2
    while half:
        pairs = envelope.reshape(-1, 2, half, n_transforms)
        np.minimum(pairs[:, 0], pairs[:, 1], out=pairs[:, 1])
        half //= 2
    if n_transforms > 1:
        transform_indices = np.arange(n_transforms)
        first_sent_inputs = -((transform_indices - n_punctured) // n_transforms)
        envelope[first_sent_inputs, transform_indices], envelope[-1] = 2.0, -1.0
    sent_inputs = np.arange(n_punctured, transform_size * n_transforms)
    worst_first = sent_inputs[np.argsort(-envelope.ravel()[sent_inputs], kind="stable")]
    return np.sort(worst_first[: n - k])


@dataclass(frozen=True)
class RotationButterflyNetwork:
    """Orthogonal butterflies that give r parity blocks of k data blocks, in groups of `size`.

    Group g is transformed with `input_rotations[g]`, the groups are added and shuffled with
    `permutations[h]`, transformed with `output_rotations[h]`, and rows `kept_rows` of the stacked result are
    kept. Row i is then scaled and shifted: parity_i = scale_i (row i) + shift_i (sum of all data blocks), so
    that the coefficients of every parity block have the same norm and sum to one.
    """

    size: int
    input_rotations: Floats  # (groups of data, stages, size / 2, 2): cosine and sine
    output_rotations: Floats  # (groups of parity, stages, size / 2, 2)
    permutations: Indices  # (groups of parity, size)
    kept_rows: Indices  # (r,) into the groups of parity, stacked
    scale: Floats  # (r,)
    shift: Floats  # (r,)

    @cached_property
    def input_stage_matrices(self) -> list[Floats]:
        """Those of all groups of data, of which the last ones add the groups up."""
        *matrices, last_matrix = fuse_rotation_stages(self.input_rotations)
        half, n_rows = last_matrix.shape[1:3]
        return [*matrices, last_matrix.transpose(1, 2, 0, 3).reshape(1, half, n_rows, -1)]

    @cached_property
    def output_stage_matrices(self) -> list[Floats]:
        """Those of all groups of parity."""
        return fuse_rotation_stages(self.output_rotations)


def generate_rotation_butterfly_network(n: int, k: int, seed: int) -> RotationButterflyNetwork:
    """The angles and shuffles of the (n, k) rotation code, scale and shift left at 1 and 0."""
    n_parity = n - k
    size = max(round_up_to_power_of_two(min(k, n_parity)), MIN_TRANSFORM_SIZE)
    n_stages = size.bit_length() - 1
    n_input_groups, n_output_groups = -(-k // size), -(-n_parity // size)
    random_stream = SplitMix64(seed, n, k)

    def draw_rotations(n_groups: int) -> Floats:
        low, high = ANGLE_RANGE
        angles = low + (high - low) * random_stream.random(n_groups * n_stages * size // 2)
        cosines_and_sines = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
        return cosines_and_sines.reshape(n_groups, n_stages, size // 2, 2)

    input_rotations, output_rotations = draw_rotations(n_input_groups), draw_rotations(n_output_groups)
    permutations = np.stack([random_stream.permutation(size) for _ in range(n_output_groups)])
    kept_rows = [
        group_index * size + random_stream.permutation(size)[: min(size, n_parity - group_index * size)]
        for group_index in range(n_output_groups)
    ]
    return RotationButterflyNetwork(
        size,
        input_rotations,
        output_rotations,
        permutations,
        np.concatenate(kept_rows),
        np.ones(n_parity),
        np.zeros(n_parity),
    )


def fuse_rotation_stages(rotations: Floats) -> list[Floats]:
    """Butterflies, (groups, stages, size / 2, 2) cosine and sine, as products with small matrices.

    Each does some stages at once: many more operations, which BLAS does in less time. One of shape
    (blocks, half, rows, columns) gives of each block `half` times `rows` rows for as many `columns`: of those
    `half` apart, each by a matrix of its own.
    """
    n_groups, n_stages, n_pairs, _ = rotations.shape
    matrices = []
    for levels in np.array_split(np.arange(n_stages), -(-n_stages // STAGES_PER_MATRIX)):
        radix, half = 1 << len(levels), 1 << int(levels[0])
        shape = 2 * n_groups * n_pairs // radix // half, radix, half, radix
        fused_matrices = np.broadcast_to(np.eye(radix)[:, np.newaxis], shape)
        for level in levels.tolist():
            upper, lower = fused_matrices.reshape(-1, 2, 1 << level, radix).swapaxes(0, 1)
            cosine, sine = rotations[:, level].reshape(-1, 1 << level, 2, 1).swapaxes(0, 2).swapaxes(1, 2)
            fused_matrices = np.stack([upper * cosine + lower * sine, lower * cosine - upper * sine], axis=1)
        matrices.append(np.ascontiguousarray(fused_matrices.reshape(shape).swapaxes(1, 2)))
    return matrices


class SplitMix64:
    """A splitmix64 stream of uniforms in [0, 1): unlike numpy's generators, fixed for ever."""

    def __init__(self, *seeds: int) -> None:
        self._state = np.uint64(0)
        for seed in seeds:
            self._state = self._mix_bits(np.array([self._state + np.uint64(seed + 1)], np.uint64))[0]

    @staticmethod
    def _mix_bits(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        state = state * np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return state ^ (state >> np.uint64(31))

    def random(self, size: int) -> Floats:
        """The next `size` numbers."""
        counters = self._state + np.arange(1, size + 1, dtype=np.uint64)
        self._state = counters[-1]
        return (self._mix_bits(counters) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def integers(self, size: int) -> npt.NDArray[np.int64]:
        """The same as integers below 2^53."""
        return (self.random(size) * 2.0**53).astype(np.int64)

    def permutation(self, size: int) -> Indices:
        """A shuffle of range(size)."""
        return np.argsort(self.random(size), kind="stable")

    def standard_normal(self, n_rows: int, n_columns: int) -> Floats:
        """Normal numbers, (rows, columns) (Box and Muller 1958)."""
        radius, angle = self.random(2 * n_rows * n_columns).reshape(2, n_rows, n_columns)
        return np.asarray(np.sqrt(-2 * np.log1p(-radius)) * np.cos(2 * np.pi * angle))


def sample_subsets(n: int, size: int, max_subsets: int) -> list[Indices]:
    """All sets of `size` of n positions, where they are `max_subsets` or fewer, else a fixed sample.

    >>> [one.tolist() for one in sample_subsets(3, 2, 64)], len(sample_subsets(64, 48, 10))
    ([[0, 1], [0, 2], [1, 2]], 10)
    """
    if comb(n, size) <= max_subsets:
        return [np.array(subset, np.intp) for subset in combinations(range(n), size)]
    random_stream = SplitMix64(n, size)
    return [np.sort(random_stream.permutation(n)[:size]) for _ in range(max_subsets)]
