"""Lagrange codes, for functions f that are polynomials in the entries of their block.

    w(z_0) = u_0,  w(z_1) = u_1,  parity block = w(z_2),  result j = f(w(z_j))

    G = values of the basis functions of f(w(z)) at the n points,   T = the first k rows of G

The polynomial w(z) passes through the k data blocks at k of the n points. The parity blocks are its values at
the remaining points (Lagrange coded computing, Yu et al. 2019, arXiv 1806.00939). The results are values of
f(w(z)), a polynomial of `degree` times the order of w(z). The unknowns are its K coefficients, in a basis
that is orthonormal on the points. Any K results determine them.
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

# Maximum number of coded blocks. Checking whether n results can be decoded takes O(n^3) operations.
MAX_POINTS = 2048
# For up to this many coded blocks, the amplification of errors is computed from the decoding weights. For
# more blocks, a formula without the weights is faster.
MAX_EXACT_AMPLIFICATION_N = 64
# To estimate how much decoding amplifies errors, try this many random sets of missing results, and equally
# many sets of results that are missing at neighbouring interpolation points (bursts).
MAX_PATTERNS = 64
# A code counts as reliable if this fraction of erasure patterns (sets of missing results) can be decoded
# accurately. The patterns have half as many missing results as there are redundant results.
RELIABLE_QUANTILE = 0.9


class AmplificationSummary(NamedTuple):
    """Statistics of the amplification, which is the factor by which decoding multiplies errors.

    The amplification depends on which results are missing. The statistics are taken over many sets of missing
    results of the same size.

    Attributes
    ----------
    median, p90, max : float
        Median, 90 % quantile and maximum.
    """

    median: float
    p90: float
    max: float


class LagrangeCode(LinearCode):
    """A code for maps of a function f that is a polynomial in the entries of its block, over the reals.

    The coded blocks are values of a polynomial w that passes through the data blocks. The results are then
    values of another polynomial, f(w). Any sufficiently large set of results determines this polynomial, and
    therefore also its values at the data blocks.

    Parameters
    ----------
    n : int
        Number of coded blocks (workers), more than `recovery_threshold` and at most 2,048.
    k : int
        Number of data blocks.
    degree : int
        Largest degree of f, at least 1. f may be any polynomial of at most this degree in the entries of a
        block, homogeneous or not. For complex blocks, these are the real and imaginary parts.
    points : {"auto", "circle", "chebyshev"}
        With "circle", w is a trigonometric polynomial, and the points are evenly spaced on the circle. Any
        degree * (k - 1) + 1 results suffice for odd k, and any degree * k results for even k. With
        "chebyshev", w is a polynomial, and the points are Chebyshev points. Any degree * (k - 1) + 1 results
        suffice for every k, but if neighbouring results are missing, the amplification of errors is the
        square of that on the circle. "auto" (default) uses "circle" if n is larger than its recovery
        threshold, and otherwise "chebyshev".

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
        "a polynomial code cannot decode {dtype} results exactly. Convert the data with .astype(float) and "
        "round the results, which is exact while they stay below 2^53 * rtol."
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
                raise CodeError(f"n must be at most {MAX_POINTS} for a Lagrange code, not {n}")
            if n <= threshold:
                feasible_k = compute_max_k(n - 1, degree, points)
                smaller_k_text = f", or with n = {n} use k <= {feasible_k}" if feasible_k > 0 else ""
                raise CodeError(
                    f"f of degree {degree} on k = {k} blocks needs {threshold} results and at least one more "
                    f"task, not n = {n}: with k = {k} use n > {threshold}{smaller_k_text}"
                )
        self.name = f"Lagrange, degree {self.degree} on the {self.points} points"
        self.requirement = f"a polynomial of degree {self.degree} or less in its block"

    def __repr__(self) -> str:
        return f"LagrangeCode({self.n}, {self.k}, degree={self.degree}, points={self.points!r})"

    @property
    def recovery_threshold(self) -> int:
        """The number of results from which decoding is always possible, no matter which tasks return them."""
        return compute_recovery_threshold(self.k, self.degree, self.points)

    @property
    def systematic_indices(self) -> Indices:
        """The indices of the coded blocks that are unchanged data blocks: 0..k-1."""
        return np.arange(self.k)

    @cached_property
    def node_indices(self) -> Indices:
        """The index of the interpolation point of each coded block, shape (n,).

        The points of the data blocks are spread evenly among all points.
        """
        data_nodes = ((np.arange(self.k) + 0.5) * self.n / self.k - 0.5).round().astype(np.intp)
        return np.concatenate([data_nodes, np.setdiff1d(np.arange(self.n), data_nodes)])

    @cached_property
    def generator_matrix(self) -> Floats:
        """The generator matrix G, shape (n, recovery_threshold).

        Each column contains the values of a basis function of f(w) at the n interpolation points. The columns
        are orthonormal.
        """
        return np.asarray(np.linalg.qr(self._evaluate_basis(self.degree))[0])

    @property
    def target_matrix(self) -> Floats:
        """The target matrix T, shape (k, recovery_threshold).

        The wanted results are those of the data blocks, so T consists of their rows of the generator matrix.
        """
        return self.generator_matrix[: self.k]

    @cached_property
    def encoding_matrix(self) -> Floats:
        """The parity matrix P, shape (n - k, k): parity blocks = P @ data blocks. Its rows sum to one."""
        data_basis = self._evaluate_basis(1)
        return np.asarray(np.linalg.solve(data_basis[: self.k].T, data_basis[self.k :].T).T)

    def make_decoder(self, arrived_mask: Mask, modular: bool) -> ErasureDecoder:
        """Build the decoder for the results that have arrived.

        `modular` is ignored, because this code only supports real numbers.
        """
        return LagrangeDecoder(self, arrived_mask)

    def summarize_amplification(self, n_erasures: int) -> AmplificationSummary:
        """Summarize how much decoding amplifies errors if `n_erasures` results are missing.

        The median and the 90 % quantile are taken over all sets of missing results, or over a fixed random
        sample if there are many. The maximum also includes the worst sets, which belong to neighbouring
        interpolation points.

        Parameters
        ----------
        n_erasures : int
            Number of missing results, from 1 to n - recovery_threshold.

        Returns
        -------
        AmplificationSummary

        Examples
        --------
        >>> LagrangeCode(24, 9, 2).summarize_amplification(2)  # doctest: +ELLIPSIS
        AmplificationSummary(median=1.55..., p90=1.62..., max=3.59...)
        """
        max_erasures = self.n - self.recovery_threshold
        if not is_integer(n_erasures) or not 0 < n_erasures <= max_erasures:
            raise CodeError(
                f"n_erasures must be an integer from 1 to {max_erasures} for {self!r}, not {n_erasures!r}"
            )
        sampled_patterns = sample_subsets(self.n, n_erasures, MAX_PATTERNS)
        burst_patterns = self._list_burst_erasure_patterns(n_erasures)
        sampled, bursts = (
            [compute_erasure_amplification(self.generator_matrix, erased, self.k) for erased in patterns]
            for patterns in (sampled_patterns, burst_patterns)
        )
        median, p90 = np.quantile(sampled, [0.5, RELIABLE_QUANTILE], method="inverted_cdf")
        return AmplificationSummary(float(median), float(p90), max(sampled + bursts))

    def is_well_conditioned(self, max_amplification: float) -> bool:
        """Return whether decoding is accurate in most cases.

        The criterion considers sets with half as many missing results as there are redundant results.
        Decoding must be accurate for 90 % of these sets.

        Parameters
        ----------
        max_amplification : float
            Decoding is accurate if it multiplies errors by at most this factor.
        """
        n_erasures = (self.n - self.recovery_threshold + 1) // 2
        return self.summarize_amplification(n_erasures).p90 <= max_amplification

    def describe_ill_conditioning(self, max_amplification: float) -> str:
        """Return a text that explains why decoding may be too inaccurate, or "" if it is accurate enough."""
        if self.is_well_conditioned(max_amplification):
            return ""
        n_erasures = (self.n - self.recovery_threshold + 1) // 2
        feasible_k = compute_max_well_conditioned_k(self.n, self.degree, max_amplification)
        advice = f"use at most blocks={feasible_k} with {self.n} tasks" if feasible_k else "raise rtol"
        return (
            f"with {n_erasures} of {self.n} results missing, decoding f of degree {self.degree} on {self.k} "
            f"blocks would multiply errors by {self.summarize_amplification(n_erasures).p90:.2g}, "
            f"but rtol permits only {max_amplification:.2g}: {advice}"
        )

    def _list_burst_erasure_patterns(self, n_erasures: int) -> list[Indices]:
        blocks_by_node = np.argsort(self.node_indices)
        n_start_nodes = self.n if self.points == "circle" else self.n - n_erasures + 1
        start_nodes = np.unique(np.linspace(0, n_start_nodes - 1, MAX_PATTERNS).astype(int))
        return [blocks_by_node[(start_node + np.arange(n_erasures)) % self.n] for start_node in start_nodes]

    def _evaluate_basis(self, degree: int) -> Floats:
        """Evaluate a basis of polynomials at the interpolation points of all coded blocks.

        The result has one row per coded block and one column per basis function. Pass degree 1 for a basis of
        the polynomials w through the data blocks, or the degree of f for a basis of the polynomials f(w).
        """
        if self.points == "chebyshev":
            angles = (2 * self.node_indices + 1) * (np.pi / (2 * self.n))
            return np.asarray(np.cos(np.outer(angles, np.arange(degree * (self.k - 1) + 1))))
        return evaluate_trigonometric_basis(self._node_angles, self.k, degree, self._top_frequency_phase)

    @property
    def _node_angles(self) -> Floats:
        return np.asarray(self.node_indices * (2 * np.pi / self.n), np.float64)

    @cached_property
    def _top_frequency_phase(self) -> float:
        """The phase of the wave with the highest frequency in radians; 0 for odd k, which needs none.

        For even k, the basis contains only one wave of the highest frequency. Its phase is chosen such that
        any degree * k results can be decoded.

        A set of m = degree * k results cannot be decoded if a nonzero function of the basis vanishes at all
        of its angles. A trigonometric polynomial of order m / 2 with these zeros has the highest frequency
        cos(m / 2 angle - S / 2), up to a factor, where S is the sum of the angles. The basis only contains
        cos(m / 2 (angle - phase)). A set therefore fails if and only if S = m phase modulo 2 pi. S is a
        multiple of 2 pi / n, so m phase should be an odd multiple of pi / n, which is as far as possible from
        all of them. Among these phases, the one closest to k phase = pi + the sum of the angles of the data
        blocks is used, because it minimizes the overshoot of the interpolation between the data blocks.
        """
        if self.k % 2:
            return 0.0
        # Compute k * phase as an integer multiple of pi / (n * degree), which is the same on all machines.
        farthest_from_data = self.degree * (2 * int(self.node_indices[: self.k].sum()) + self.n)
        return (farthest_from_data | 1) * np.pi / (self.n * self.degree * self.k)


class LagrangeDecoder(PseudoInverseDecoder):
    """A least-squares decoder for Lagrange codes.

    It differs from its base class in the amplification, which is the largest factor by which decoding
    multiplies errors. For large codes, it is computed from the rows of the generator matrix that belong to
    missing results, which is faster than computing the decoding weights first.
    """

    @cached_property
    def amplification(self) -> float:
        """The largest factor by which decoding multiplies errors, or inf if decoding is impossible."""
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
    """Evaluate a basis of trigonometric polynomials (sines and cosines) at the given angles.

    The basis spans all functions f(w), where w is a trigonometric polynomial that interpolates k data blocks,
    and f is a polynomial of degree `degree`. The highest frequency is degree * (k - 1) / 2 for odd k, and
    degree * k / 2 for even k. For even k, the basis contains only one wave of the highest frequency.

    Parameters
    ----------
    angles : array (points,)
        Angles in radians.
    k, degree : int
        Number of data blocks, and degree of f.
    phase : float
        Phase of the highest frequency in radians; ignored for odd k.

    Returns
    -------
    array (points, functions)

    Examples
    --------
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
    """Return the number of results from which a Lagrange code can always be decoded.

    It does not matter which tasks return these results.

    Parameters
    ----------
    k, degree : int
        Number of data blocks, and degree of f.
    points : {"circle", "chebyshev"}
        Interpolation points, as for `LagrangeCode`.

    Examples
    --------
    >>> [compute_recovery_threshold(k, 2, "circle") for k in (3, 4, 5)]
    [5, 8, 9]
    >>> compute_recovery_threshold(4, 2, "chebyshev")
    7
    """
    return degree * k if points == "circle" and k % 2 == 0 else degree * (k - 1) + 1


def compute_max_k(n_results: int, degree: int, points: str = "chebyshev") -> int:
    """Return the largest number of data blocks that any `n_results` results suffice to decode, or 0.

    Parameters
    ----------
    n_results : int
        Number of results that may be used.
    degree : int
        Degree of f.
    points : {"circle", "chebyshev"}
        Interpolation points, as for `LagrangeCode`.

    Examples
    --------
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
    """Return the largest number of data blocks for which a Lagrange code decodes accurately, or 0 if none.

    Parameters
    ----------
    n, degree : int
        Number of coded blocks, and degree of f.
    max_amplification : float
        Largest amplification, as for `LagrangeCode.is_well_conditioned`.
    """
    for k in range(compute_max_k(n - 1, degree), 0, -1):
        if LagrangeCode(n, k, degree).is_well_conditioned(max_amplification):
            return k
    return 0
