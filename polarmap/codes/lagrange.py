"""LagrangeCode: blocks as values of a function at n points, for f polynomial in its block.

    G = values of basis functions of f(w(z)) at the n points,   T = the first k rows of G

w(z) passes through the k data blocks at k of the points and the parity blocks are its values at the
others (Lagrange coded computing, Yu et al. 2019, arXiv 1806.00939). f(w(z)) is a function of the same
kind but `degree` times the order: the unknowns are its coefficients in a basis that is orthonormal
on the points. With K coefficients, any K values determine them all.
"""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np

from polarmap.codes.base import ErasureDecoder
from polarmap.codes.linear_code import LinearCode
from polarmap.codes.real_decoders import PseudoInverseDecoder, compute_erasure_amplification
from polarmap.codes.splitmix import sample_subsets
from polarmap.dtypes import Floats, Indices, Mask, is_integer
from polarmap.errors import CodeError, trimmed_tracebacks
from polarmap.validation import check_positive_int, is_choice

MAX_POINTS = 2048  # the decision to decode takes n^3 steps
MAX_EXACT_AMPLIFICATION_N = 64  # coded blocks: the amplification of the decoder itself is cheap
MAX_PATTERNS = 64  # of losses looked at for an amplification, and as many again of neighbouring losses
RELIABLE_QUANTILE = (
    0.9  # of the patterns of half the spare losses must decode for a code to be worth its launch
)


class AmplificationSummary(NamedTuple):
    """By how much decoding multiplies the relative error of results, over patterns of so many losses."""

    median: float
    p90: float
    max: float


class LagrangeCode(LinearCode):
    """A code for f polynomial of some degree in its block, over real numbers.

    Parameters
    ----------
    n : int
        Coded blocks (workers), more than `recovery_threshold`, at most 2,048.
    k : int
        Data blocks.
    degree : int
        Of f, at least 1. Every polynomial of at most this degree in the entries of a block will do,
        homogeneous or not, in real and imaginary parts for complex blocks.
    points : {"auto", "circle", "chebyshev"}
        "circle": w is a trigonometric polynomial, the points are spread evenly over the circle (real
        values at the n-th roots of unity). Any degree (k - 1) + 1 results suffice for odd k, any
        degree * k results for even k. "chebyshev": w is a polynomial, the points are Chebyshev's. Any
        degree (k - 1) + 1 results suffice for every k, but the loss of neighbouring points costs the
        square of what it costs on the circle. "auto": the circle if n exceeds its number of results.

    Examples
    --------
    >>> code = LagrangeCode(8, 3, degree=2)
    >>> blocks = np.array([[1.0], [2.0], [4.0]])
    >>> coded = np.concatenate([blocks, code.encode_parity(blocks)])
    >>> squares = coded**2
    >>> recovery = code.make_decoder(np.arange(8) >= 3, modular=False)
    >>> recovery.decode(dict(enumerate(squares)), np.dtype(float)).round(9).ravel().tolist()
    [1.0, 4.0, 16.0]
    """

    integer_error_template = (
        "polynomials of {dtype} blocks cannot be coded exactly: convert the data with .astype(float) and "
        "round the results, which is exact while they stay below 2^53 * rtol"
    )

    def __init__(self, n: int, k: int, degree: int, points: str = "auto") -> None:
        with trimmed_tracebacks:
            n, k = check_positive_int("n", n), check_positive_int("k", k)
            degree = check_positive_int("degree", degree)
            if not is_choice(points, ("auto", "circle", "chebyshev")):
                raise CodeError(f"points must be 'auto', 'circle' or 'chebyshev', not {points!r}")
            if points == "auto":
                points = "circle" if n > compute_recovery_threshold(k, degree, "circle") else "chebyshev"
            self.n, self.k, self.degree, self.points = n, k, degree, points
            threshold = self.recovery_threshold
            if n > MAX_POINTS:
                raise CodeError(f"a Lagrange code has at most {MAX_POINTS} coded blocks, not n = {n}")
            if n <= threshold:
                feasible_k = compute_max_k(n - 1, degree, points)
                smaller_k_text = f", or with n = {n} use k <= {feasible_k}" if feasible_k > 0 else ""
                raise CodeError(
                    f"f of degree {degree} on k = {k} blocks needs {threshold} results and a spare one: "
                    f"with k = {k} use n > {threshold}{smaller_k_text}"
                )
        self.name = f"Lagrange, degree {self.degree} on the {self.points} points"
        self.requirement = f"a polynomial of degree {self.degree} or less in its block"

    def __repr__(self) -> str:
        return f"LagrangeCode({self.n}, {self.k}, degree={self.degree}, points={self.points!r})"

    @property
    def recovery_threshold(self) -> int:
        """The number of results, of any tasks, that determine those of the data blocks."""
        return compute_recovery_threshold(self.k, self.degree, self.points)

    @property
    def systematic_indices(self) -> Indices:
        """The coded blocks that are data blocks untouched: 0..k-1."""
        return np.arange(self.k)

    @cached_property
    def node_indices(self) -> Indices:
        """The point at which each coded block sits: the data spread evenly, then the others."""
        data_nodes = ((np.arange(self.k) + 0.5) * self.n / self.k - 0.5).round().astype(np.intp)
        return np.concatenate([data_nodes, np.setdiff1d(np.arange(self.n), data_nodes)])

    @cached_property
    def generator_matrix(self) -> Floats:
        """Results = generator @ unknowns, shape (n, recovery_threshold): orthonormal columns."""
        return np.asarray(np.linalg.qr(self._evaluate_basis(self.degree))[0])

    @property
    def target_matrix(self) -> Floats:
        """T: the values at the points of the data blocks."""
        return self.generator_matrix[: self.k]

    @cached_property
    def encoding_matrix(self) -> Floats:
        """Parity blocks = coefficients @ data blocks, shape (n - k, k); rows sum to one."""
        data_basis = self._evaluate_basis(1)
        return np.asarray(np.linalg.solve(data_basis[: self.k].T, data_basis[self.k :].T).T)

    def make_decoder(self, arrived_mask: Mask, modular: bool) -> ErasureDecoder:
        """How to recover the results of missing data blocks from those of the mask `arrived_mask`."""
        return LagrangeDecoder(self, arrived_mask)

    def summarize_amplification(self, n_erasures: int) -> AmplificationSummary:
        """What decoding does to the relative error of results when so many are lost.

        Over all patterns where they are few, else over neighbouring points, which are the worst, and
        a fixed sample; median and 90 % are of the sample.

        Examples
        --------
        >>> LagrangeCode(24, 9, 2).summarize_amplification(2)  # doctest: +ELLIPSIS
        AmplificationSummary(median=1.55..., p90=1.62..., max=3.59...)
        """
        max_erasures = self.n - self.recovery_threshold
        if not is_integer(n_erasures) or not 0 < n_erasures <= max_erasures:
            raise CodeError(f"{self!r} bears between 1 and {max_erasures} losses, not {n_erasures!r}")
        sampled_patterns = sample_subsets(self.n, n_erasures, MAX_PATTERNS)
        burst_patterns = self._list_burst_erasure_patterns(n_erasures)
        sampled, bursts = (
            [compute_erasure_amplification(self.generator_matrix, erased, self.k) for erased in patterns]
            for patterns in (sampled_patterns, burst_patterns)
        )
        median, p90 = np.quantile(sampled, [0.5, RELIABLE_QUANTILE], method="inverted_cdf")
        return AmplificationSummary(float(median), float(p90), max(sampled + bursts))

    def is_well_conditioned(self, max_amplification: float) -> bool:
        """Whether nine in ten ways to lose half of the spare results stay within `max_amplification`."""
        n_erasures = (self.n - self.recovery_threshold + 1) // 2
        return self.summarize_amplification(n_erasures).p90 <= max_amplification

    def describe_ill_conditioning(self, max_amplification: float) -> str:
        """Return why the code seldom decodes within `max_amplification`, and what to do; "" if it does."""
        if self.is_well_conditioned(max_amplification):
            return ""
        n_erasures = (self.n - self.recovery_threshold + 1) // 2
        feasible_k = compute_max_well_conditioned_k(self.n, self.degree, max_amplification)
        advice = f"blocks={feasible_k} is the most that {self.n} tasks carry" if feasible_k else "raise rtol"
        return (
            f"with {n_erasures} of {self.n} results missing, decoding f of degree {self.degree} on {self.k} "
            f"blocks would multiply errors by {self.summarize_amplification(n_erasures).p90:.2g}, "
            f"and rtol permits {max_amplification:.2g}: {advice}"
        )

    def _list_burst_erasure_patterns(self, n_erasures: int) -> list[Indices]:
        blocks_by_node = np.argsort(self.node_indices)
        n_start_nodes = self.n if self.points == "circle" else self.n - n_erasures + 1
        start_nodes = np.unique(np.linspace(0, n_start_nodes - 1, MAX_PATTERNS).astype(int))
        return [blocks_by_node[(start_node + np.arange(n_erasures)) % self.n] for start_node in start_nodes]

    def _evaluate_basis(self, degree: int) -> Floats:
        """The functions that w (degree 1) or f(w) is made of, at the points, in the order of blocks."""
        if self.points == "chebyshev":
            angles = (2 * self.node_indices + 1) * (np.pi / (2 * self.n))
            return np.asarray(np.cos(np.outer(angles, np.arange(degree * (self.k - 1) + 1))))
        return evaluate_trigonometric_basis(self._node_angles, self.k, degree, self._top_frequency_phase)

    @property
    def _node_angles(self) -> Floats:
        return np.asarray(self.node_indices * (2 * np.pi / self.n), np.float64)

    @cached_property
    def _top_frequency_phase(self) -> float:
        """The phase of the top frequency for even k, with which any degree * k results decode.

        A set of m = degree * k results does not decode if a function of the basis vanishes at all of its
        angles. A trigonometric polynomial of order m / 2 with these zeros has the top frequency
        cos(m / 2 angle - S / 2), up to a factor, where S is the sum of the angles. The basis holds
        cos(m / 2 (angle - phase)) alone. Hence a set does not decode if and only if S = m phase modulo
        2 pi. S is a multiple of 2 pi / n, and an odd multiple of pi / n is as far from all of them as can
        be. Among these, the phase is the one next to k phase = pi + the sum of the angles of the data
        blocks, because there the interpolation between the data blocks overshoots least.
        """
        if self.k % 2:
            return 0.0
        # Count k phase in units of pi / (n degree): integers decide, so that all machines agree.
        farthest_from_data = self.degree * (2 * int(self.node_indices[: self.k].sum()) + self.n)
        return (farthest_from_data | 1) * np.pi / (self.n * self.degree * self.k)


class LagrangeDecoder(PseudoInverseDecoder):
    """A recovery that tells the accuracy of decoding by what is lost: in large codes the cheaper way."""

    @cached_property
    def amplification(self) -> float:
        """The largest 2-norm of a row of `weights`."""
        if self.code.n <= MAX_EXACT_AMPLIFICATION_N or not len(self.missing_indices):
            return super().amplification
        erased_indices = np.setdiff1d(np.arange(self.code.n), self.arrived_indices)
        n_targets = len(self.missing_indices) + len(self.arrived_data_indices)
        return compute_erasure_amplification(self.code.generator_matrix, erased_indices, n_targets)

    @property
    def _system_rank_deficit(self) -> int:
        if self.code.n <= MAX_EXACT_AMPLIFICATION_N:
            return super()._system_rank_deficit
        return int(not np.isfinite(self.amplification))


def evaluate_trigonometric_basis(angles: Floats, k: int, degree: int, phase: float) -> Floats:
    """Trigonometric polynomials that products of `degree` of those for k blocks are made of.

    For odd k all of order (k - 1) / 2; for even k, of order k / 2, the top frequency has one phase only.

    >>> evaluate_trigonometric_basis(np.zeros(1), 4, 2, 0.0).shape
    (1, 8)
    """
    n_full_frequencies = degree * (k - 1) // 2 if k % 2 else degree * k // 2 - 1
    phases = np.outer(angles, np.arange(1, n_full_frequencies + 1))
    basis = [np.ones((len(angles), 1)), np.sqrt(2) * np.cos(phases), np.sqrt(2) * np.sin(phases)]
    if k % 2 == 0:
        basis.append(np.sqrt(2) * np.cos(degree * k / 2 * (angles - phase))[:, None])
    return np.concatenate(basis, axis=1)


def compute_recovery_threshold(k: int, degree: int, points: str) -> int:
    """Return how many results, of any tasks, determine those of k blocks.

    >>> [compute_recovery_threshold(k, 2, "circle") for k in (3, 4, 5)]
    [5, 8, 9]
    >>> compute_recovery_threshold(4, 2, "chebyshev")
    7
    """
    return degree * k if points == "circle" and k % 2 == 0 else degree * (k - 1) + 1


def compute_max_k(n_results: int, degree: int, points: str = "chebyshev") -> int:
    """The largest k for which so many results suffice; 0 if there is none.

    >>> compute_max_k(8, 2), compute_max_k(9, 2, "circle")
    (4, 5)
    """
    upper_bound = (n_results - 1) // degree + 1 if n_results > 0 else 0
    return max(
        k
        for k in (upper_bound, upper_bound - 1, 0)
        if k <= 0 or compute_recovery_threshold(k, degree, points) <= n_results
    )


@lru_cache(maxsize=64)
def compute_max_well_conditioned_k(n: int, degree: int, max_amplification: float) -> int:
    """The largest k that n workers carry reliably within an amplification; 0 if none."""
    for k in range(compute_max_k(n - 1, degree), 0, -1):
        if LagrangeCode(n, k, degree).is_well_conditioned(max_amplification):
            return k
    return 0
