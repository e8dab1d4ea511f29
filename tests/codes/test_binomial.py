"""Tests of binomial probabilities against exact fractions."""

from __future__ import annotations

from fractions import Fraction
from math import comb

import numpy as np
import pytest

from polarmap.codes.binomial import (
    compute_binomial_probabilities,
    compute_binomial_tail,
    compute_log_binomial_coefficients,
)


@pytest.mark.parametrize("n", [0, 1, 7, 60])
@pytest.mark.parametrize("p", [Fraction(0), Fraction(1, 20), Fraction(1, 2), Fraction(1)])
def test_probabilities_and_tails_equal_exact_ones(n: int, p: Fraction) -> None:
    exact = [comb(n, count) * p**count * (1 - p) ** (n - count) for count in range(n + 1)]
    np.testing.assert_allclose(compute_binomial_probabilities(n, float(p)), [*map(float, exact)], rtol=1e-12)
    for max_successes in range(n + 1):
        tail = float(sum(exact[max_successes + 1 :]))
        assert compute_binomial_tail(n, max_successes, float(p)) == pytest.approx(tail, rel=1e-12)


def test_coefficients_of_many_trials_keep_their_digits() -> None:
    n = 1000
    expected = [float(np.log(float(Fraction(comb(n, count), 10**150)))) for count in (200, 500, 900)]
    logs = compute_log_binomial_coefficients(n)[[200, 500, 900]] - 150 * np.log(10)
    np.testing.assert_allclose(logs, expected, rtol=1e-12, atol=1e-10)
