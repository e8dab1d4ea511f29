"""The rotation kernel: B of 2 x 2 rotations by pseudo-random angles.

The butterfly is folded, so that P itself is two of them with a shuffle between; almost any k blocks
determine the rest.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from polarmap.code import tiled
from polarmap.code.algebra import Recovery
from polarmap.code.design import Rotations, rotations
from polarmap.code.dtypes import Array, Floats, Indices, Mask, working_dtype
from polarmap.code.polar import PolarCode
from polarmap.code.recovery import is_formed
from polarmap.code.rotations import best_seed, normalized, rotation_coefficients, transposed_coefficients
from polarmap.code.syndrome import SyndromeRecovery

# Up to this many parity rows a BLAS product beats the compiled butterfly (benchmarks/coding.py),
# and up to this many the butterfly in numpy.
DENSE_UP_TO = 12
DENSE_UP_TO_UNCOMPILED = 512
BEST_SEED_UP_TO = 64  # blocks, of which the angles are chosen


class RotationCode(PolarCode):
    """x = [[I, 0], [P, -I]] u, whose last n - k inputs are frozen."""

    kernel = option = "rotation"
    no_integers = (
        "the rotation kernel cannot carry {dtype} blocks: use kernel='arikan' for exact integers, or convert "
        "them to a floating dtype"
    )

    @property
    def frozen(self) -> Indices:
        """Inputs of the transform that are frozen to zero, ascending; n - k of them."""
        return np.arange(self.k, self.n)

    @cached_property
    def seed(self) -> int:
        """The seed of the rotation angles in use."""
        if self._seed is not None or self.n > BEST_SEED_UP_TO:
            return self._seed or 0
        return best_seed(self.n, self.k)

    @cached_property
    def coefficients(self) -> Array:
        """P, shape (n - k, k), float64."""
        return rotation_coefficients(self.rotations, self.k)

    def columns(self, blocks: Indices) -> Array:
        """The columns of P of some data blocks, by the butterflies."""
        return rotation_coefficients(self.rotations, self.k, blocks)

    def transposed(self, combinations: Floats) -> Floats:
        """Combinations (rows) of the parity blocks as they are made of data blocks, by the butterflies."""
        return transposed_coefficients(self.rotations, self.k, combinations)

    def recovery(self, arrived: Mask, exact: bool) -> Recovery:
        """How to recover the missing data blocks when the blocks of the mask `arrived` are there."""
        if exact or self._is_formed:
            return super().recovery(arrived, exact)
        return SyndromeRecovery(self, arrived)

    def _fill_parity(self, rows: tiled.Rows, out: Array) -> None:
        fast = tiled.compiled_loops(rows, out.dtype)
        most = DENSE_UP_TO if fast else DENSE_UP_TO_UNCOMPILED
        if min(self.n - self.k, self.k) <= most and self._is_formed:
            tiled.dense(self.coefficients.astype(working_dtype(out.dtype), copy=False), rows, out)
        else:
            tiled.rotation_parity(self.rotations, rows, out, fast)

    @cached_property
    def _is_formed(self) -> bool:
        """Whether there is a P, and not only the butterflies."""
        return is_formed(self.n, self.k)

    @property
    def _block_erasure(self) -> Floats:
        return np.sort(np.broadcast_to(self.erasure, self.n))

    @cached_property
    def rotations(self) -> Rotations:
        """The butterflies that P is made of."""
        return normalized(rotations(self.n, self.k, self.seed), self.k)
