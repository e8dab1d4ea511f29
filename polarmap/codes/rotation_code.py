"""The rotation kernel: B of 2 x 2 rotations by pseudo-random angles.

    P = diag(scale) R + shift 1'

The butterfly is folded, so that R is two of them with a shuffle between; almost any k blocks determine the
rest. Rows of P sum to one: 1 is in the code, so that constants survive decoding, and f may be affine. Of
thousands of blocks P is not formed, but its missing columns: the butterfly gives P times anything, and its
transpose anything times P, in n log n operations a column.

    syndrome = parity - P known = P[:, missing] missing
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property, lru_cache
from math import inf

import numpy as np

from polarmap.codes import kernels, tiled
from polarmap.codes.algebra import Recovery, Results
from polarmap.codes.design import Rotations, rotations, subsets
from polarmap.codes.dtypes import Array, Floats, Indices, Mask, is_exact, working_dtype
from polarmap.codes.linear import SystematicCode
from polarmap.codes.polar import PolarCode
from polarmap.codes.recovery import ButterflyRecovery, is_formed, worst_amplification

# Up to this many parity rows a BLAS product beats the compiled butterfly (benchmarks/coding.py): of rows in
# one array, and of others, which are gathered for it; and up to this many the butterfly in numpy.
DENSE_UP_TO, DENSE_UP_TO_GATHERED = 32, 12
DENSE_UP_TO_UNCOMPILED = 512
# Blocks of which the angles are chosen: seeds tried, and the most arrival patterns each is tried on.
BEST_SEED_UP_TO, SEEDS, PATTERNS = 64, 8, 64
SYNDROME_BYTES = 64 << 20  # of parity computed at a time


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
        mixed = np.empty((len(combinations), self.k))

        def work(rows: slice) -> None:
            parity = np.ascontiguousarray(combinations[rows].T)
            mixed[rows] = kernels.rotation_parity_transposed(parity, self.rotations, self.k).T

        tiled.over_cores(work, list(tiled.tiles(len(combinations), 3 * self.rotations.size, 8)))
        return mixed

    def recovery(self, arrived: Mask, exact: bool) -> Recovery:
        """How to recover the missing data blocks when the blocks of the mask `arrived` are there."""
        if exact or self._is_formed:
            return super().recovery(arrived, exact)
        return SyndromeRecovery(self, arrived)

    def _fill_parity(self, rows: tiled.Rows, out: Array) -> None:
        working, fast = working_dtype(out.dtype), tiled.compiled_loops(rows, out.dtype)
        most = DENSE_UP_TO if tiled.is_one_array(rows, working) else DENSE_UP_TO_GATHERED
        if min(self.n - self.k, self.k) <= (most if fast else DENSE_UP_TO_UNCOMPILED) and self._is_formed:
            tiled.dense(self.coefficients.astype(working, copy=False), rows, out)
        else:
            tiled.rotation_parity(self.rotations, rows, out, fast)

    @cached_property
    def _is_formed(self) -> bool:
        """Whether there is a P, and not only the butterflies."""
        return is_formed(self.n, self.k)

    def get_ready(self) -> None:
        """Choose the angles, which takes a few hundredths of a second."""
        _ = self.seed  # Reading the property makes the choice.

    @property
    def _block_erasure(self) -> Floats:
        return np.sort(np.broadcast_to(self.erasure, self.n))

    @cached_property
    def rotations(self) -> Rotations:
        """The butterflies that P is made of."""
        return normalized(rotations(self.n, self.k, self.seed), self.k)


class SyndromeRecovery(ButterflyRecovery):
    """Missing blocks from the syndrome of what arrived, by least squares."""

    code: SystematicCode

    def fill(self, rows: Results, out: Array) -> None:
        """Put the missing results into `out`: the parity of the known ones, what it lacks, the solution."""
        working = np.dtype(np.float64) if is_exact(out.dtype) else working_dtype(out.dtype)
        solver = self._solver.astype(working, copy=False)
        step = max(64, SYNDROME_BYTES // ((self.code.n - self.code.k) * working.itemsize))
        for start in range(0, out.shape[1], step):
            columns = slice(start, min(out.shape[1], start + step))
            with tiled.ignoring_inf():
                found = tiled.matmul(solver, self._syndrome(rows, columns, working))
            out[:, columns] = np.rint(found) if is_exact(out.dtype) else found

    def _syndrome(self, rows: Results, columns: slice, working: np.dtype[np.floating]) -> Array:
        """What the parity that arrived has beyond that of the known data, missing blocks taken as zero."""
        zero = np.zeros(columns.stop - columns.start, working)
        data = [zero] * self.code.k
        for index in self.known.tolist():
            data[index] = rows[index][columns].astype(working, copy=False)
        received = [rows[int(index) + self.code.k] for index in self.parity]
        syndrome = tiled.gather(received, columns, working)
        syndrome -= self.code.parity(data)[self.parity]
        return syndrome


def normalized(plan: Rotations, k: int) -> Rotations:
    """`plan` with scale and shift such that every row of P sums to one.

    The mean of each row is removed first; the rest is scaled to unit norm, so that all parity
    blocks carry the same weight. With k = 2 the rest has one direction only and its length is
    what tells the parity blocks apart: there it stays as it is. Where P is not formed, to unit norm on
    average: a group of orthogonal butterflies gives each row k / size.
    """
    if is_formed(k + len(plan.rows), k):
        scale, shift = normalization(rotation_coefficients(plan, k))
    else:
        mean = kernels.rotation_parity(np.ones((k, 1)), plan)[:, 0] / k
        scale = 1 / np.sqrt(k / plan.size - k * mean**2)
        shift = 1 / k - scale * mean
    return replace(plan, scale=scale, shift=shift)


def normalization(raw: Floats) -> tuple[Floats, Floats]:
    """The scale and the shift of each row of P, of which this is R."""
    k, mean = raw.shape[1], raw.mean(axis=1)
    scale = 1 / np.linalg.norm(raw - mean[:, None], axis=1) if k > 2 else np.ones(len(raw))
    return scale, 1 / k - scale * mean


def rotation_coefficients(plan: Rotations, k: int, data: Indices | None = None) -> Floats:
    """P, or its columns of some `data` blocks, by transforming the identity tile by tile."""
    chosen = np.arange(k) if data is None else data
    coefficients = np.empty((len(plan.rows), len(chosen)))

    def work(columns: slice) -> None:
        identity = np.zeros((k, columns.stop - columns.start))
        identity[chosen[columns], np.arange(identity.shape[1])] = 1.0
        coefficients[:, columns] = kernels.rotation_parity(identity, plan)

    tiled.over_cores(work, list(tiled.tiles(len(chosen), 3 * plan.size, 8)))
    return coefficients


@lru_cache(maxsize=256)
def best_seed(n: int, k: int) -> int:
    """The seed with the smallest worst amplification over patterns of exactly k arrivals."""
    alike: dict[int, list[Indices]] = {}  # patterns, by how many data blocks have arrived
    for arrived in subsets(n, k, PATTERNS):
        alike.setdefault(int(np.searchsorted(arrived, k)), []).append(arrived)
    patterns = [np.stack(alike[count]) for count in sorted(alike)]
    best, least = 0, inf
    for seed in range(SEEDS):
        raw = rotation_coefficients(rotations(n, k, seed), k)
        scale, shift = normalization(raw)
        coefficients, worst = scale[:, None] * raw + shift[:, None], 0.0
        for arrived in patterns:
            worst = max(worst, worst_amplification(coefficients, arrived))
            if worst >= least:  # no better than one before, whatever the other patterns give
                break
        else:
            best, least = seed, worst
    return best
