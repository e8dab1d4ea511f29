"""Binomial probabilities, for the number of results that arrive or are lost.

`GroupedPolarCode` computes its probability of failure from them, and `polarmap.planning` its forecasts.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from polarmap.dtypes import Floats


@lru_cache(maxsize=64)
def compute_log_binomial_coefficients(n: int) -> Floats:
    """Return the logarithms of the binomial coefficients C(n, 0), ..., C(n, n).

    >>> np.exp(compute_log_binomial_coefficients(4)).round(9).tolist()
    [1.0, 4.0, 6.0, 4.0, 1.0]
    """
    log_factorials = np.append(0.0, np.cumsum(np.log(np.arange(1, n + 1))))
    return np.asarray(log_factorials[n] - log_factorials - log_factorials[::-1])


def compute_binomial_probabilities(n: int, p: float) -> Floats:
    """Return the probabilities of 0, 1, ..., n successes in n independent trials.

    Parameters
    ----------
    n : int
        Number of trials.
    p : float
        Probability of a success, between 0 and 1.

    Examples
    --------
    >>> compute_binomial_probabilities(2, 0.5).round(9).tolist()
    [0.25, 0.5, 0.25]
    """
    counts = np.arange(n + 1)
    if p in (0.0, 1.0):
        return np.asarray(counts == n * p, np.float64)
    log_powers = counts * np.log(p) + (n - counts) * np.log1p(-p)
    return np.asarray(np.exp(compute_log_binomial_coefficients(n) + log_powers))


def compute_binomial_tail(n: int, max_successes: int, p: float) -> float:
    """Return the probability of more than `max_successes` successes in n independent trials.

    The terms are summed directly, so that small probabilities keep their relative accuracy.

    Examples
    --------
    >>> f"{compute_binomial_tail(4, 2, 0.1):.4f}", compute_binomial_tail(1000, 250, 0.05) < 1e-90
    ('0.0037', True)
    """
    return min(1.0, float(compute_binomial_probabilities(n, p)[max_successes + 1 :].sum()))
