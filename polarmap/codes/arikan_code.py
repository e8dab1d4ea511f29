"""The Arikan kernel (arXiv 1901.06811): B of [[1, 1], [0, 1]], F by channel polarization.

P consists of small integers, so that integers are decoded exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np
import numpy.typing as npt

from polarmap.codes import kernels, modular, row_operations, tiled
from polarmap.codes.algebra import Recovery
from polarmap.codes.cancellation import InactivationRecovery, Progress, RankProgress, SequentialRecovery
from polarmap.codes.design import UniformStream, butterfly_shape, frozen_inputs
from polarmap.codes.dtypes import (
    Array,
    DType,
    Floats,
    Indices,
    Mask,
    is_exact,
    is_integer,
    parity_dtype,
    working_dtype,
)
from polarmap.codes.polar import PolarCode
from polarmap.codes.row_operations import RowProgram, Step
from polarmap.errors import CodeError

# Of 32-bit integers, whose sums need 64 bits, a BLAS product beats additions up to this many parity rows
# (benchmarks/coding.py).
DENSE_EXACT_UP_TO = 16


class ArikanCode(PolarCode):
    """x = B v, whose inputs v are zero on the frozen set: positions on butterflies of 2^levels leaves."""

    kernel = option = "arikan"
    carries_integers, is_mds = True, False
    _decoders = "optimal", "sequential"

    @property
    def butterflies(self) -> tuple[int, int]:
        """The size of a butterfly, 2^levels, and how many lie side by side; one of all levels."""
        return butterfly_shape(self.n, self.levels)

    @property
    def length(self) -> int:
        """Leaves of all butterflies, of which the first length - n are not sent."""
        size, count = self.butterflies
        return size * count

    @cached_property
    def frozen(self) -> Indices:
        """Inputs of the butterflies, of `length` in all, that are frozen: n - k of them, ascending."""
        return frozen_inputs(self.n, self.k, self._leaf_erasure, self.levels)

    @property
    def frozen_mask(self) -> Mask:
        """Which inputs of the butterflies are frozen or punctured, (size, butterflies)."""
        mask = np.zeros(self.butterflies, bool)
        mask.flat[self.frozen] = True
        mask.flat[: self.length - self.n] = True
        return mask

    @cached_property
    def order(self) -> Indices:
        """The leaf of the butterflies on which each coded block sits, data blocks first."""
        is_parity = np.zeros(self.length, bool)
        is_parity[self.frozen] = True
        sent = np.arange(self.length - self.n, self.length)
        return np.concatenate([sent[~is_parity[sent]], self.frozen])

    @cached_property
    def coefficients(self) -> Array:
        """P, shape (n - k, k): small numbers, int64; row by row where it has fewer rows than columns."""
        if self.n - self.k < self.k:
            return self.transposed(np.eye(self.n - self.k)).astype(np.int64, order="C")  # exact: sums of few
        return self.columns(np.arange(self.k))

    def columns(self, blocks: Indices) -> Array:
        """The columns of P of some data blocks, by the butterflies."""
        units = np.zeros((self.k, len(blocks)), np.int64)
        units[blocks, np.arange(len(blocks))] = 1
        columns = np.empty((self.n - self.k, len(blocks)), np.int64)
        self._transform(units, columns)
        return columns

    def transposed(self, combinations: Floats) -> Floats:
        """Combinations (rows) of the parity blocks as they are made of data blocks, by the butterflies."""
        leaves = np.zeros((self.length, len(combinations)))
        leaves[self.order[self.k :]] = combinations.T
        side_by_side = leaves.reshape(self.butterflies[0], -1)
        kernels.arikan(side_by_side, transposed=True)
        leaves[self.frozen_mask.reshape(-1)] = 0
        kernels.arikan(side_by_side, inverse=True, transposed=True)
        return leaves[self.order[: self.k]].T

    def parity_dtype(self, dtype: npt.DTypeLike) -> DType:
        """The dtype of the parity blocks of data of `dtype`: wider, for integers."""
        checked = super().parity_dtype(dtype)
        is_widest = not is_exact(checked) or checked.itemsize == 8
        return checked if is_widest else parity_dtype(checked, self.norm_inf)

    @cached_property
    def norm_inf(self) -> int:
        """The largest sum of absolute coefficients of a parity block."""
        is_data = np.zeros(self.length)
        is_data[self.order[: self.k]] = 1
        columns = is_data.reshape(self.butterflies)
        sums = kernels.arikan_sums(np.where(self.frozen_mask, 0.0, 1.0), columns)
        return int(sums.reshape(-1)[self.order[self.k :]].max())

    def recovery(self, arrived: Mask, exact: bool) -> Recovery:
        """How to recover the missing data blocks when the blocks of the mask `arrived` are there."""
        if self.decoder == "sequential":
            return SequentialRecovery(self, arrived, self.order, self.frozen_mask, exact)
        return self._inactivation(arrived) if exact else super().recovery(arrived, exact)

    def _inactivation(self, arrived: Mask) -> InactivationRecovery:
        return InactivationRecovery(self, arrived, self.order, self.frozen_mask)

    def progress(self, exact: bool) -> Callable[[int], bool] | None:
        """What is told of every arrival, and says when they determine all blocks; None of floats by rank."""
        if self.decoder == "sequential":
            progress, order = Progress(self.frozen_mask), self.order
            return lambda index: progress.arrive(int(order[index]))
        return RankProgress(self.n, self.k, self._inactivation).arrive if exact else None

    def _fill_parity(self, rows: tiled.Rows, out: Array) -> None:
        if self._is_dense_exact(rows[0].dtype):
            tiled.dense(self.coefficients.astype(np.float64), rows, out)
        elif out.shape[1] < row_operations.WIDE:
            self._transform(rows, out)
        else:
            self._additions.run(rows, out)

    def _transform(self, rows: tiled.Rows, out: Array) -> None:
        """out = P rows by inverse(T), freeze, T (Arikan 2011, systematic), in the working dtype."""
        working, (data, parity) = working_dtype(out.dtype), np.split(self.order, [self.k])

        def work(columns: slice) -> None:
            leaves = np.zeros((self.length, columns.stop - columns.start), working)
            leaves[data] = tiled.gather(rows, columns, working)
            side_by_side = leaves.reshape(self.butterflies[0], -1)
            kernels.arikan(side_by_side, inverse=True)
            leaves[self.frozen] = 0
            leaves[: self.length - self.n] = 0
            kernels.arikan(side_by_side)
            out[:, columns] = leaves[parity]

        tiled.over_cores(work, list(tiled.tiles(out.shape[1], self.length, working.itemsize)))

    @cached_property
    def _additions(self) -> RowProgram:
        """The additions of rows that make the parity; listing them takes a third of a narrow encode."""
        data, parity = np.split(self.order, [self.k])
        return RowProgram(encoding_steps(self.frozen_mask, data), self.length + 1, data, parity)

    def _is_dense_exact(self, dtype: DType) -> bool:
        """Whether a BLAS product is quicker than sums of 64-bit integers, and float64 holds its sums."""
        if not is_exact(dtype) or dtype.itemsize != 4 or min(self.k, self.n - self.k) > DENSE_EXACT_UP_TO:
            return False
        return self.norm_inf << 32 < modular.EXACT

    @cached_property
    def _leaf_erasure(self) -> float | Floats:
        """The erasure probability of the leaves that are sent, of which N / 2 are paired with the others."""
        if isinstance(self.erasure, float):
            return self.erasure
        worst_first = np.sort(self.erasure)[::-1]
        if self.decoder == "sequential":
            return worst_first
        return worst_first[UniformStream(self.n, self.k).permutation(self.n)]

    @property
    def _block_erasure(self) -> Floats:
        leaves = np.broadcast_to(self._leaf_erasure, self.n)
        return np.asarray(leaves[self.order - (self.length - self.n)])

    def _checked_levels(self, levels: object) -> int:
        most = super()._checked_levels(None)
        if levels is None:
            return most
        if not is_integer(levels) or not 1 <= levels <= most:  # type: ignore[operator]
            raise CodeError(f"levels must be an integer from 1 to {most} for n = {self.n}, not {levels!r}")
        found: int = int(levels)  # type: ignore[call-overload]
        least = min(self.k, self.n - self.k)
        fits = next(some for some in range(found, most + 1) if butterfly_shape(self.n, some)[1] <= least)
        if fits > found:
            size, count = butterfly_shape(self.n, found)
            raise CodeError(
                f"levels={found} makes {count} butterflies of {size} blocks, each with a data block and a "
                f"parity block of its own, and there are {self.k} and {self.n - self.k}: use levels={fits} "
                "or more"
            )
        return found


def encoding_steps(frozen: Mask, data: Indices) -> list[Step]:
    """Inverse(T), freeze, T, on the leaves, of which `data` are given: row N is zero.

    Sums of nothing but zeros are left out.

    >>> [step.factor for step in encoding_steps(np.array([[True], [False]]), np.array([1]))]
    [-1, -1, 1, 0]
    """
    size, length = len(frozen), frozen.size
    is_zero = np.ones(length, bool)
    is_zero[data] = False
    steps = []
    halves = [frozen.shape[1] << level for level in range(size.bit_length() - 1)]
    for sign in (-1, 1):
        for half in halves:
            upper, lower = np.arange(length).reshape(-1, 2, half).swapaxes(0, 1).reshape(2, -1)
            adds = ~is_zero[lower]
            upper, lower = upper[adds], lower[adds]
            new, zero = is_zero[upper], np.full(len(upper), length)
            first = lower if sign > 0 else zero  # a copy is quicker than a sum with zero
            steps.append(Step(upper[~new], upper[~new], lower[~new], sign))
            steps.append(Step(upper[new], first[new], lower[new], min(sign, 0)))
            is_zero[upper] = False
        if sign < 0:
            is_zero |= frozen.reshape(-1)
    return steps
