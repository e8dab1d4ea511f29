"""Coded blocks that are mixtures with noise, for workers that should not learn the data."""

from __future__ import annotations

import os

import numpy as np
import numpy.typing as npt

from polarmap.blocks.coded import CodedBlocks
from polarmap.blocks.equal import DataBlocks
from polarmap.codes.integer_secret_sharing import IntegerSecretSharingCode
from polarmap.codes.secret_sharing import SecretSharingCode
from polarmap.dtypes import Array, choose_accumulator_dtype, to_real_dtype


class SecretSharingBlocks(CodedBlocks):
    """The n mixtures of `DataBlocks` and of noise that is drawn for them and not kept.

    They are held to the end of the map: made again, they would be others.
    """

    code: SecretSharingCode | IntegerSecretSharingCode

    def __init__(self, data_blocks: DataBlocks, code: SecretSharingCode | IntegerSecretSharingCode) -> None:
        super().__init__(data_blocks, code, keep_parity=True)

    def _encode_leaf(self, leaf_index: int) -> Array:
        rows = list(self.data_blocks.stack_leaf_as_rows(leaf_index))
        if isinstance(self.code, IntegerSecretSharingCode):
            dtype = self.code.parity_dtype(rows[0].dtype)
            rows = [row.astype(dtype, copy=False) for row in rows]
            noise_rows = draw_uniform_noise(rows[0].size, self.code.n_noise_blocks, dtype)
        else:
            noise_rows = draw_normal_noise(rows, self.code.n_colluders, self.code.noise_std)
        return self.code.encode_parity([*rows, *noise_rows])


def draw_uniform_noise(
    block_size: int, n_blocks: int, dtype: np.dtype[np.signedinteger | np.unsignedinteger]
) -> list[Array]:
    """Uniform 64-bit integers from the operating system's cryptographic generator."""
    return [np.frombuffer(os.urandom(8 * block_size), dtype) for _ in range(n_blocks)]


def draw_normal_noise(rows: list[Array], n_blocks: int, relative_deviation: float) -> list[Array]:
    """Normal noise in the shape and dtype of `rows`, seeded by the operating system.

    Its standard deviation is `relative_deviation` times the root mean square of the rows (of the parts of
    complex numbers), or `relative_deviation` itself if they are all zero. The generator behind it is a good
    one (PCG64) but not made for cryptography.
    """
    generator = np.random.default_rng()
    real_dtype_of_rows = to_real_dtype(rows[0].dtype)
    working_dtype_of_rows = choose_accumulator_dtype(real_dtype_of_rows)
    real_rows = [row.view(real_dtype_of_rows) for row in rows]
    with np.errstate(all="ignore"):  # NaN and inf show up in the results
        mean_square = np.mean(
            [
                np.mean(np.square(real_row, dtype=np.float64)) if real_row.size else 0.0
                for real_row in real_rows
            ]
        )
    scale = relative_deviation * (float(np.sqrt(mean_square)) if 0 < mean_square < np.inf else 1.0)

    def draw_block() -> npt.NDArray[np.floating]:
        return (scale * generator.standard_normal(real_rows[0].size, working_dtype_of_rows.type)).astype(
            real_dtype_of_rows
        )

    return [draw_block().view(rows[0].dtype) for _ in range(n_blocks)]
