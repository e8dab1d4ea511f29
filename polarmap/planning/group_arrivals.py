"""Compute the distribution of the number of results that are needed to decode all groups of a grouped code.

    P(m results suffice) = sets of m results with at least k_g results of each group g / all sets of m results

`completion_time` uses this distribution for large maps, whose blocks are divided into groups. It is assumed
that results arrive in random order, and that any k_g results of a group suffice, as for the rotation kernel.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from polarmap.codes.binomial import compute_binomial_probabilities
from polarmap.codes.polar import PolarCode
from polarmap.dtypes import Array, Floats, Indices
from polarmap.planning.decodability import ArrivalsNeeded

# The probability that m results suffice is replaced by 0 if it is below this number, and by 1 if it is above
# 1 minus this number. Rounding errors are about 100 times smaller.
TAIL_PROBABILITY = 1e-9
# The maximum length of the returned distribution. If more numbers of results are possible, they are rounded
# up to at most this many distinct numbers.
MAX_COUNTS = 256
# Probabilities are computed together for a range of numbers of results. The computation uses a binomial
# distribution and is accurate near its mean. The range extends to this many standard deviations from the
# mean, where the binomial probability is still 0.04 of its maximum.
WINDOW_STDS = 2.5


@lru_cache(maxsize=64)
def compute_group_arrivals_needed(n: int, k: int, n_groups: int) -> ArrivalsNeeded:
    """Compute the distribution of the number of results needed to decode all groups.

    The blocks of a large map are divided into groups, each with its own code.

    Parameters
    ----------
    n, k : int
        Number of tasks and of data blocks.
    n_groups : int
        Number of groups, at least 2.

    Returns
    -------
    ArrivalsNeeded
        Exact up to probabilities of 1e-9, except that large numbers are rounded up by at most 0.1 %.

    Examples
    --------
    >>> needed = compute_group_arrivals_needed(4, 2, 2)  # Two groups of two tasks need one result each.
    >>> needed.counts.tolist(), needed.probabilities.round(4).tolist()
    ([2.0, 3.0], [0.6667, 0.3333])
    """
    groups = PolarCode(n, k, groups=n_groups).split_into_groups()
    group_sizes = Counter((code.n, code.k) for code, _ in groups)
    cumulative, start = np.ones(n + 1), k
    cumulative[:k] = 0.0
    while start < n:
        half_width = max(2, int(WINDOW_STDS * np.sqrt(start * (n - start) / n)))
        window = np.arange(start, min(start + 2 * half_width, n))
        cumulative[window] = _compute_sufficiency_probabilities(group_sizes, n, window)
        start = int(window[-1]) + 1
        if cumulative[start - 1] > 1 - TAIL_PROBABILITY:
            break
    first, last = np.searchsorted(np.maximum.accumulate(cumulative), [TAIL_PROBABILITY, 1 - TAIL_PROBABILITY])
    cumulative[last] = 1.0
    step = max(1, math.ceil((last - first + 1) / MAX_COUNTS))
    counts = np.arange(last, first - 1, -step)[::-1]
    probabilities = np.diff(cumulative[counts], prepend=0.0)
    return ArrivalsNeeded(counts.astype(float), np.maximum(probabilities, 0.0), 0)


def _compute_sufficiency_probabilities(
    group_sizes: Mapping[tuple[int, int], int], n_tasks: int, n_results: Indices
) -> Floats:
    """Return the probability that m random results suffice to decode all groups, for each m in `n_results`.

    `group_sizes` maps (n, k) to the number of groups with n tasks and k data blocks.

    Suppose that each result arrives independently with probability p. For each group, take a polynomial whose
    coefficient of x^j is the binomial probability of j results, or 0 if j < k. In the product of these
    polynomials, the coefficient of x^m is the probability that m results arrive and suffice. It is divided by
    the probability that m results arrive. The quotient does not depend on p, but it is accurate only if m is
    likely. So p is chosen for the middle of `n_results`.
    """
    p = float(n_results.mean()) / n_tasks
    # The length of the FFT: a power of 2 that is at least the number of coefficients, n_tasks + 1.
    length = 1 << n_tasks.bit_length()
    transform = np.ones(length // 2 + 1, complex)
    for (n, k), n_groups in group_sizes.items():
        probabilities = compute_binomial_probabilities(n, p)
        probabilities[:k] = 0.0
        group_transform = np.fft.rfft(probabilities, length)
        transform *= _raise_to_power(group_transform, n_groups)
    sufficient = np.fft.irfft(transform, length)[n_results]
    return np.clip(sufficient / compute_binomial_probabilities(n_tasks, p)[n_results], 0.0, 1.0)


def _raise_to_power(values: Array, exponent: int) -> Array:
    """Return values ** exponent by repeated squaring, which is much faster than NumPy's complex power."""
    power = np.ones_like(values)
    while exponent:
        if exponent % 2:
            power *= values
        values = values * values
        exponent //= 2
    return power
