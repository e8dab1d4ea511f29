"""Compute the butterfly network of the rotation code, and its stages as small matrices.

The network is a pure function of (n, k, seed), the same on every machine and numpy version.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from polarmap.codes.polar_construction import round_up_to_power_of_two
from polarmap.codes.splitmix import SplitMix64
from polarmap.dtypes import Floats, Indices

# Angles near 0 or pi/2 barely mix; this range keeps every 2x2 kernel well mixed.
ANGLE_RANGE = (0.3, 1.2)
# A butterfly shorter than this has too few angles to be generic.
MIN_TRANSFORM_SIZE = 16
STAGES_PER_MATRIX = 4  # of a butterfly, by matrices of 16 rows


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
    scale, shift = np.ones(n_parity), np.zeros(n_parity)
    return RotationButterflyNetwork(
        size, input_rotations, output_rotations, permutations, np.concatenate(kept_rows), scale, shift
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
