"""GradientCode: the sum of n values from any n - s of n workers that each combine s + 1 of them.

    G = B, s + 1 entries of a row not zero,   T = 1', the sum of the unknown values

Gradient coding of Tandon, Lei, Dimakis and Karampatziakis (2017), arXiv 1612.03301: worker i returns
the combination B_i u of its s + 1 values, and the all-ones vector is a combination of any n - s rows.
What is sent is not coded at all: f is anything, and the values of f are combined where they are made.
"""

from __future__ import annotations

from functools import cached_property, lru_cache

import numpy as np

from polarmap.codes import tiled
from polarmap.codes.algebra import Recovery, Results
from polarmap.codes.design import UniformStream, subsets
from polarmap.codes.dtypes import Array, Floats, Indices, Mask, is_exact, is_integer
from polarmap.codes.linear import LinearCode
from polarmap.codes.recovery import RealRecovery
from polarmap.errors import CodeError

SEEDS, PATTERNS = 16, 64  # tried for a cyclic group, and the most patterns of losses each is tried on
SPANNED = 1e-8  # the largest entry by which a combination of arrived rows may miss the all-ones vector
INDEPENDENT = 1e-10  # singular values below this share of the largest are rounding


class GradientCode(LinearCode):
    """A code for the sum of n values of any function at all.

    Workers form groups. One of s + 1 workers is fractional repetition: each returns the plain sum of
    its group, and one of them is enough. What does not divide by s + 1 makes some groups larger; these
    are cyclic, and all but s workers of each are enough, sometimes fewer.

    Parameters
    ----------
    n : int
        Workers, and values that are summed.
    tolerate : int
        s, the workers that may be missing, 0 <= s < n.

    Examples
    --------
    >>> GradientCode(6, 2).sizes, GradientCode(8, 2).sizes
    ((3, 3), (5, 3))
    >>> GradientCode(4, 1).generator.tolist()[:2]
    [[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]]
    """

    assumption = "deterministic"
    is_mds = False
    wanted = 1  # the sum

    def __init__(self, n: int, tolerate: int) -> None:
        for name, value, least in (("n", n, 1), ("tolerate", tolerate, 0)):
            if not is_integer(value) or value < least:
                raise CodeError(f"{name} must be an integer of at least {least}, not {value!r}")
        if tolerate >= n:
            raise CodeError(f"{n} workers cannot tolerate that {tolerate} are missing: at most {n - 1}")
        self.n = self.k = int(n)
        self.tolerate = int(tolerate)
        self.sizes = group_sizes(self.n, self.tolerate)
        kinds = dict.fromkeys("repetition" if m == self.tolerate + 1 else "cyclic" for m in self.sizes)
        self.name = f"gradient code, {' and '.join(kinds)}, tolerates {self.tolerate}"

    def __repr__(self) -> str:
        return f"GradientCode({self.n}, {self.tolerate})"

    @property
    def is_repetition(self) -> bool:
        """Whether all coefficients are one, so that integers stay integers."""
        return max(self.sizes) == self.tolerate + 1

    @property
    def recovery_threshold(self) -> int:
        """The fewest results that can determine the sum: every value is in one of them."""
        return sum(-(-size // (self.tolerate + 1)) for size in self.sizes)

    @property
    def targets(self) -> Floats:
        """T = 1', shape (1, n)."""
        return np.ones((1, self.n))

    @property
    def coefficients(self) -> Floats:
        """E = I: data is sent as it is."""
        return np.eye(self.n)

    @property
    def norm_inf(self) -> float:
        """The largest sum of absolute coefficients of a worker."""
        return float(np.abs(self.generator).sum(axis=1).max())

    @cached_property
    def generator(self) -> Floats:
        """B, shape (n, n): worker i returns the combination B_i of all values, s + 1 of them not zero."""
        matrix = np.zeros((self.n, self.n))
        for first, size in self.groups:
            matrix[first : first + size, first : first + size] = group_matrix(size, self.tolerate)
        return matrix

    def parity(self, rows: tiled.Rows, out: Array | None = None) -> Array:
        """No block is a mixture: workers get their values' arguments and mix what f makes of them."""
        raise CodeError(f"{self!r} mixes results, not blocks")

    def recovery(self, arrived: Mask, exact: bool) -> Recovery:
        """How to combine the results of the workers of the mask `arrived` into the sum."""
        return GradientRecovery(self, arrived)

    @property
    def groups(self) -> list[tuple[int, int]]:
        """First worker and size of each group."""
        firsts = np.cumsum((0, *self.sizes[:-1])).tolist()
        return list(zip(firsts, self.sizes, strict=True))


class GradientRecovery(RealRecovery):
    """The combination of arrived results that is the sum; `deficit` is 1 while there is none."""

    code: GradientCode
    rounds = False  # integers come from repetition and are added up as such

    @cached_property
    def deficit(self) -> int:
        """At least so many arrivals are needed still."""
        few = self.code.recovery_threshold - len(self.arrived)
        return few if few > 0 else int(not np.isfinite(self.weights).all())

    @cached_property
    def weights(self) -> Floats:
        """The sum = weights @ received, (1, arrived); inf if it is not determined."""
        weights = np.zeros((1, len(self.arrived)))
        if not self._is_covered():
            return np.full_like(weights, np.inf)
        for first, size in self.code.groups:
            rows = np.flatnonzero((self.arrived >= first) & (self.arrived < first + size))
            solved = _group_weights(size, self.code.tolerate, self.arrived[rows] - first)
            if solved is None:
                return np.full_like(weights, np.inf)
            weights[0, rows] = solved
        return weights

    def _is_covered(self) -> bool:
        """Whether enough of every group arrived for each of its values to be in one of them."""
        sizes = np.array(self.code.sizes)
        group = np.searchsorted(np.cumsum(sizes), self.arrived, side="right")
        counts = np.bincount(group, minlength=len(sizes))
        return bool((counts * (self.code.tolerate + 1) >= sizes).all())

    @cached_property
    def _null(self) -> Floats:
        rows = self.code.generator[self.arrived]
        vectors, values, _ = np.linalg.svd(rows)
        return np.asarray(vectors[:, int((values > INDEPENDENT * values[0]).sum()) :])

    @property
    def surplus(self) -> int:
        """Equations that the results must satisfy among themselves."""
        return int(self._null.shape[1])

    def equations(self, most: int) -> Floats:
        """Up to `most` of these equations, orthonormal."""
        return self._null[:, :most].T

    def fill(self, rows: Results, out: Array) -> None:
        """Put the sum into `out`, (1, b)."""
        if not is_exact(out.dtype):
            super().fill(rows, out)
            return
        out[:] = 0  # integers come from repetition: weights are 0 and 1
        for index in self.arrived[self.weights[0] != 0]:
            out[0] += rows[int(index)].astype(out.dtype, copy=False)


def group_sizes(n: int, tolerate: int) -> tuple[int, ...]:
    """Sizes of groups, each at least s + 1: what is left over is spread in pairs, then singly.

    Larger by an even number, a cyclic group has the better conditioned matrix.

    >>> group_sizes(23, 5)
    (8, 8, 7)
    """
    size = tolerate + 1
    groups, left = divmod(n, size)
    sizes = [size] * groups
    for turn in range(left // 2):
        sizes[turn % groups] += 2
    if left % 2:
        sizes[(left // 2) % groups] += 1
    return tuple(sizes)


@lru_cache(maxsize=256)
def group_matrix(size: int, tolerate: int) -> Floats:
    """B of one group, (size, size): all ones, or cyclic with s + 1 coefficients of mean square 1.

    Results of a cyclic one lie in the null space of an H (s, size) with H 1 = 0: the highest s
    frequencies where they are real (cyclic MDS codes of Raviv et al. 2018, arXiv 1707.03858), else
    the best of some pseudo-random ones.
    """
    if size == tolerate + 1:
        return np.ones((size, size))
    if (size - tolerate) % 2:
        return _cyclic(_highest_frequencies(size, tolerate))
    lost = subsets(size, tolerate, PATTERNS)

    def worst(matrix: Floats) -> float:
        found = [_ones_from(np.delete(matrix, one, axis=0)) for one in lost]
        return max(np.inf if weights is None else float(np.linalg.norm(weights)) for weights in found)

    return min((_cyclic(_random_checks(size, tolerate, seed)) for seed in range(SEEDS)), key=worst)


def _highest_frequencies(size: int, count: int) -> Floats:
    phases = np.outer(np.arange((size - count + 1) // 2, size // 2 + 1), np.arange(size)) * (2 * np.pi / size)
    waves = np.concatenate([np.cos(phases), np.sin(phases)])
    return np.asarray(waves[np.linalg.norm(waves, axis=1) > 1e-6])  # the sine of the highest of all is zero


def _random_checks(size: int, count: int, seed: int) -> Floats:
    normal = UniformStream(size, count, seed).normal(count, size)
    return np.asarray(normal - normal.mean(axis=1, keepdims=True))


def _cyclic(checks: Floats) -> Floats:
    """Row i lives on columns i..i+s and is orthogonal to all `checks` (s, size)."""
    count, size = checks.shape
    matrix = np.zeros((size, size))
    for row in range(size):
        columns = (row + np.arange(count + 1)) % size
        null = np.linalg.svd(checks[:, columns])[2][-1]
        matrix[row, columns] = null * (np.copysign(1, null.sum()) * np.sqrt(count + 1))
    return matrix


def _group_weights(size: int, tolerate: int, arrived: Indices) -> Floats | None:
    """How to combine what arrived of one group into its sum; None if that is not determined."""
    if size > tolerate + 1:
        return _ones_from(group_matrix(size, tolerate)[arrived])
    return np.eye(1, len(arrived))[0] if len(arrived) else None  # the first is as good as any


def _ones_from(rows: Floats) -> Floats | None:
    """The shortest combination of `rows` that is the all-ones vector, if there is one."""
    if not len(rows):
        return None
    ones = np.ones(rows.shape[1])
    weights = np.asarray(np.linalg.lstsq(rows.T, ones, rcond=INDEPENDENT)[0], np.float64)
    return weights if np.abs(weights @ rows - ones).max() <= SPANNED else None
