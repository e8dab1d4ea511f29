"""Coded blocks that are mixtures with noise, for workers that should not learn the data."""

from __future__ import annotations

import os

import numpy as np
import numpy.typing as npt

from polarmap.blocks.coded import CodedBlocks
from polarmap.blocks.equal import Blocks
from polarmap.codes.integer_secret_sharing import IntegerSecretSharingCode
from polarmap.codes.secret_sharing import SecretSharingCode
from polarmap.dtypes import Array, accumulator_dtype, real_dtype


class MaskedBlocks(CodedBlocks):
    """The n mixtures of `Blocks` and of noise that is drawn for them and not kept.

    They are held to the end of the map: made again, they would be others.
    """

    code: SecretSharingCode | IntegerSecretSharingCode

    def __init__(self, blocks: Blocks, code: SecretSharingCode | IntegerSecretSharingCode) -> None:
        super().__init__(blocks, code, keep=True)

    def _parity_of(self, leaf: int) -> Array:
        rows = list(self.blocks.stacked(leaf))
        if isinstance(self.code, IntegerSecretSharingCode):
            dtype = self.code.parity_dtype(rows[0].dtype)
            rows = [row.astype(dtype, copy=False) for row in rows]
            masks = uniform_noise(rows[0].size, self.code.n_noise_blocks, dtype)
        else:
            masks = noise_like(rows, self.code.n_colluders, self.code.noise_std)
        return self.code.encode_parity([*rows, *masks])


def uniform_noise(
    size: int, count: int, dtype: np.dtype[np.signedinteger | np.unsignedinteger]
) -> list[Array]:
    """Uniform 64-bit integers from the operating system's cryptographic generator."""
    return [np.frombuffer(os.urandom(8 * size), dtype) for _ in range(count)]


def noise_like(rows: list[Array], count: int, deviation: float) -> list[Array]:
    """Normal noise in the shape and dtype of `rows`, seeded by the operating system.

    Its standard deviation is `deviation` times the root mean square of the rows (of the parts of
    complex numbers), or `deviation` itself if they are all zero. The generator behind it is a good
    one (PCG64) but not made for cryptography.
    """
    stream = np.random.default_rng()
    real = real_dtype(rows[0].dtype)
    working = accumulator_dtype(real)
    parts = [row.view(real) for row in rows]
    with np.errstate(all="ignore"):  # NaN and inf show up in the results
        square = np.mean([np.mean(np.square(part, dtype=np.float64)) if part.size else 0.0 for part in parts])
    scale = deviation * (float(np.sqrt(square)) if 0 < square < np.inf else 1.0)

    def drawn() -> npt.NDArray[np.floating]:
        return (scale * stream.standard_normal(parts[0].size, working.type)).astype(real)

    return [drawn().view(rows[0].dtype) for _ in range(count)]
