"""Generate the butterfly network of the rotation kernel, and fuse its stages into small matrices.

    data groups -> input butterflies -> sum over groups -> permutation -> output butterflies -> parity rows

`rotation_code` generates the network, and `compute.transforms` applies it to blocks. The network depends only
on (n, k, seed). It is the same on every machine and with every NumPy version.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from polarmap.codes.polar_construction import round_up_to_power_of_two
from polarmap.codes.splitmix import SplitMix64
from polarmap.dtypes import Floats, Indices

# Range of the rotation angles in radians. With angles near 0 or pi / 2, each output of a rotation would
# depend on only one of its two inputs.
ANGLE_RANGE = (0.3, 1.2)
# Minimum number of rows of a butterfly. A smaller butterfly would consist of too few rotations for its matrix
# to behave like a random one.
MIN_TRANSFORM_SIZE = 16
# Maximum number of butterfly stages that are computed by one matrix product. The matrix has up to 2^4 rows.
STAGES_PER_MATRIX = 4


@dataclass(frozen=True)
class RotationButterflyNetwork:
    """A network of rotation butterflies that maps k data blocks to r parity blocks.

    A butterfly is a fast orthogonal transform: in log2(size) stages, it rotates pairs of rows by given
    angles. The network has four steps:

    * The data blocks form groups of `size`. Each group passes through its own input butterfly.
    * The outputs of all groups are added.
    * For each group of parity blocks, the sum is permuted and passes through an output butterfly.
    * The rows `kept_rows` of all outputs, y, are scaled and shifted. The result is the parity blocks:

        parity_i = scale_i y_i + shift_i (sum of all data blocks)

    With suitable scale and shift, the coefficients of every parity block have the same norm and sum to one.

    Attributes
    ----------
    size : int
        Number of rows of a butterfly, a power of two.
    input_rotations : array (data groups, stages, size / 2, 2)
        Cosine and sine of each rotation.
    output_rotations : array (parity groups, stages, size / 2, 2)
        Cosine and sine of each rotation.
    permutations : index array (parity groups, size)
        Permutation of the rows for each parity group.
    kept_rows : index array (r,)
        Rows of the stacked outputs that become parity blocks, in ascending order by group.
    scale, shift : array (r,)
        Scale and shift of each parity block.
    """

    size: int
    input_rotations: Floats
    output_rotations: Floats
    permutations: Indices
    kept_rows: Indices
    scale: Floats
    shift: Floats

    @cached_property
    def input_stage_matrices(self) -> list[Floats]:
        """The input butterflies as a list of small dense matrices, each combining several stages.

        The last matrix also sums the groups of data blocks.
        """
        *matrices, last_matrix = fuse_rotation_stages(self.input_rotations)
        half, n_rows = last_matrix.shape[1:3]
        return [*matrices, last_matrix.transpose(1, 2, 0, 3).reshape(1, half, n_rows, -1)]

    @cached_property
    def output_stage_matrices(self) -> list[Floats]:
        """The output butterflies as a list of small dense matrices, each combining several stages."""
        return fuse_rotation_stages(self.output_rotations)


def generate_rotation_butterfly_network(n: int, k: int, seed: int) -> RotationButterflyNetwork:
    """Generate the pseudo-random butterfly network of a rotation code, with scale 1 and shift 0.

    Parameters
    ----------
    n, k : int
        Number of coded blocks and of data blocks.
    seed : int
        Seed of the angles, the permutations and the kept rows.
    """
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
    """Combine the stages of butterflies into small dense matrices, each applying several stages.

    Multiplying by such a matrix takes more operations than applying the stages one by one, but BLAS performs
    them faster.

    Parameters
    ----------
    rotations : array (groups, stages, size / 2, 2)
        Cosine and sine of each rotation.

    Returns
    -------
    list of arrays (blocks, half, rows, columns)
        Matrices to apply in order with `compute.transforms.apply_butterfly_stages`. Matrix [b, h] acts on the
        rows h, h + half, h + 2 half, ... of block b.
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
