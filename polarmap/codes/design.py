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

from polarmap.codes.dtypes import Floats, Indices

# Angles near 0 or pi/2 barely mix; this range keeps every 2x2 kernel well mixed.
ANGLE_RANGE = (0.3, 1.2)
# A butterfly shorter than this has too few angles to be generic.
SHORTEST_BUTTERFLY = 16
STAGES_AT_ONCE = 4  # of a butterfly, by matrices of 16 rows


def power_of_two_above(size: int) -> int:
    """The smallest power of two >= size.

    >>> [power_of_two_above(n) for n in (1, 2, 3, 1000)]
    [1, 2, 4, 1024]
    """
    return 1 << max(0, size - 1).bit_length()


def butterfly_shape(n: int, levels: int | None = None) -> tuple[int, int]:
    """The size of a butterfly of so many levels, and how many of them n leaves take, side by side.

    Of `count` butterflies, number i % count has leaf i, so that unsent leaves, the first, are spread over
    all. By default all levels: one butterfly of the next power of two.

    >>> butterfly_shape(1000), butterfly_shape(1000, 5), butterfly_shape(10_000, 10)
    ((1024, 1), (32, 32), (1024, 10))
    """
    size = power_of_two_above(n) if levels is None else 1 << levels
    return size, -(-n // size)


def erasure_probabilities(leaves: npt.ArrayLike) -> Floats:
    """Erasure probability of every input, given the erasure probability of every worker.

    Along the first axis; butterflies side by side lie along the second.

    One butterfly of z -> a + b - ab (minus, the slow virtual worker) and ab (plus, the fast one);
    Arikan (2009), eq. (35), for unequal workers.

    >>> erasure_probabilities([0.5, 0.5]).tolist()
    [0.75, 0.25]
    """
    z = np.array(leaves, dtype=np.float64)
    half = len(z) // 2
    while half:
        pairs = z.reshape(-1, 2, half, *z.shape[1:])
        first, second = pairs[:, 0].copy(), pairs[:, 1].copy()
        pairs[:, 1] = first * second
        pairs[:, 0] = first + second - pairs[:, 1]
        half //= 2
    return z


def frozen_inputs(n: int, k: int, erasure: float | Floats, levels: int | None = None) -> Indices:
    """The n - k inputs to freeze, ascending, on a butterfly of the next power of two.

    `erasure`: of every leaf that is sent, or of each of the n by itself. `levels`: of butterflies side by
    side (`butterfly_shape`), in each of which an input is frozen and another is not.

    The first N - n positions are punctured (never sent), so the code keeps the all-ones word and
    a constant survives decoding exactly. The set is closed downwards (an input below a frozen one
    is frozen), which the two-pass systematic encoder needs.

    >>> frozen_inputs(8, 4, 0.25).tolist()
    [0, 1, 2, 4]
    """
    size, count = butterfly_shape(n, levels)
    unsent = size * count - n
    leaves = np.ones(size * count)
    leaves[unsent:] = erasure
    z = erasure_probabilities(leaves.reshape(size, count))
    envelope = z.copy()  # z'_j = min of z_i over all i whose bits are a subset of j's
    half = size // 2
    while half:
        pairs = envelope.reshape(-1, 2, half, count)
        np.minimum(pairs[:, 0], pairs[:, 1], out=pairs[:, 1])
        half //= 2
    if count > 1:
        across = np.arange(count)
        first_sent = -((across - unsent) // count)
        envelope[first_sent, across], envelope[-1] = 2.0, -1.0
    sent = np.arange(unsent, size * count)
    worst_first = sent[np.argsort(-envelope.ravel()[sent], kind="stable")]
    return np.sort(worst_first[: n - k])


@dataclass(frozen=True)
class Rotations:
    """Orthogonal butterflies that give r parity blocks of k data blocks, in groups of `size`.

    Group g is transformed with `inward[g]`, the groups are added and shuffled with `shuffles[h]`,
    transformed with `outward[h]`, and rows `rows` of the stacked result are kept. Row i is then
    scaled and shifted: parity_i = scale_i (row i) + shift_i (sum of all data blocks), so that the
    coefficients of every parity block have the same norm and sum to one.
    """

    size: int
    inward: Floats  # (groups of data, stages, size / 2, 2): cosine and sine
    outward: Floats  # (groups of parity, stages, size / 2, 2)
    shuffles: Indices  # (groups of parity, size)
    rows: Indices  # (r,) into the groups of parity, stacked
    scale: Floats  # (r,)
    shift: Floats  # (r,)

    @cached_property
    def inward_matrices(self) -> list[Floats]:
        """Those of all groups of data, of which the last ones add the groups up."""
        *matrices, last = turn_matrices(self.inward)
        half, rows = last.shape[1:3]
        return [*matrices, last.transpose(1, 2, 0, 3).reshape(1, half, rows, -1)]

    @cached_property
    def outward_matrices(self) -> list[Floats]:
        """Those of all groups of parity."""
        return turn_matrices(self.outward)


def rotations(n: int, k: int, seed: int) -> Rotations:
    """The angles and shuffles of the (n, k) rotation code, scale and shift left at 1 and 0."""
    parity = n - k
    size = max(power_of_two_above(min(k, parity)), SHORTEST_BUTTERFLY)
    stages = size.bit_length() - 1
    data_groups, parity_groups = -(-k // size), -(-parity // size)
    stream = UniformStream(seed, n, k)

    def angles(groups: int) -> Floats:
        low, high = ANGLE_RANGE
        angle = low + (high - low) * stream.take(groups * stages * size // 2)
        turned = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
        return turned.reshape(groups, stages, size // 2, 2)

    inward, outward = angles(data_groups), angles(parity_groups)
    shuffles = np.stack([stream.permutation(size) for _ in range(parity_groups)])
    rows = [
        group * size + stream.permutation(size)[: min(size, parity - group * size)]
        for group in range(parity_groups)
    ]
    return Rotations(size, inward, outward, shuffles, np.concatenate(rows), np.ones(parity), np.zeros(parity))


def turn_matrices(rotations: Floats) -> list[Floats]:
    """Butterflies, (groups, stages, size / 2, 2) cosine and sine, as products with small matrices.

    Each does some stages at once: many more operations, which BLAS does in less time. One of shape
    (blocks, half, rows, columns) gives of each block `half` times `rows` rows for as many `columns`: of those
    `half` apart, each by a matrix of its own.
    """
    groups, stages, pairs, _ = rotations.shape
    matrices = []
    for levels in np.array_split(np.arange(stages), -(-stages // STAGES_AT_ONCE)):
        order, half = 1 << len(levels), 1 << int(levels[0])
        shape = 2 * groups * pairs // order // half, order, half, order
        turned = np.broadcast_to(np.eye(order)[:, np.newaxis], shape)
        for level in levels.tolist():
            upper, lower = turned.reshape(-1, 2, 1 << level, order).swapaxes(0, 1)
            cosine, sine = rotations[:, level].reshape(-1, 1 << level, 2, 1).swapaxes(0, 2).swapaxes(1, 2)
            turned = np.stack([upper * cosine + lower * sine, lower * cosine - upper * sine], axis=1)
        matrices.append(np.ascontiguousarray(turned.reshape(shape).swapaxes(1, 2)))
    return matrices


class UniformStream:
    """A splitmix64 stream of uniforms in [0, 1): unlike numpy's generators, fixed for ever."""

    def __init__(self, *seeds: int) -> None:
        self._state = np.uint64(0)
        for seed in seeds:
            self._state = self._mix(np.array([self._state + np.uint64(seed + 1)], np.uint64))[0]

    @staticmethod
    def _mix(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        state = state * np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return state ^ (state >> np.uint64(31))

    def take(self, count: int) -> Floats:
        """The next `count` numbers."""
        counters = self._state + np.arange(1, count + 1, dtype=np.uint64)
        self._state = counters[-1]
        return (self._mix(counters) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def words(self, count: int) -> npt.NDArray[np.int64]:
        """The same as integers below 2^53."""
        return (self.take(count) * 2.0**53).astype(np.int64)

    def permutation(self, size: int) -> Indices:
        """A shuffle of range(size)."""
        return np.argsort(self.take(size), kind="stable")

    def normal(self, rows: int, columns: int) -> Floats:
        """Normal numbers, (rows, columns) (Box and Muller 1958)."""
        radius, angle = self.take(2 * rows * columns).reshape(2, rows, columns)
        return np.asarray(np.sqrt(-2 * np.log1p(-radius)) * np.cos(2 * np.pi * angle))


def subsets(n: int, count: int, most: int) -> list[Indices]:
    """All sets of `count` of n positions, where they are `most` or fewer, else a fixed sample.

    >>> [one.tolist() for one in subsets(3, 2, 64)], len(subsets(64, 48, 10))
    ([[0, 1], [0, 2], [1, 2]], 10)
    """
    if comb(n, count) <= most:
        return [np.array(one, np.intp) for one in combinations(range(n), count)]
    stream = UniformStream(n, count)
    return [np.sort(stream.permutation(n)[:count]) for _ in range(most)]
