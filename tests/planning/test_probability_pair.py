"""Pairs of a cdf and its complement: conversions in both directions and their accuracy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polarmap.planning import ProbabilityPair


@given(
    small=st.floats(1e-300, 0.5), failure_probability=st.floats(0.0, 0.99), is_survival_small=st.booleans()
)
def test_conversions_are_inverse_to_each_other(
    small: float, failure_probability: float, is_survival_small: bool
) -> None:
    parts = np.array([1 - small, small]) if is_survival_small else np.array([small, 1 - small])
    given_completion = ProbabilityPair(*parts[:, np.newaxis])
    all_tasks = given_completion.of_all_tasks(failure_probability)
    assert all_tasks.cdf + all_tasks.survival == pytest.approx(1)
    assert (all_tasks.cdf <= 1 - failure_probability).all()
    again = all_tasks.given_completion(failure_probability)
    assert again.cdf == pytest.approx(given_completion.cdf, rel=1e-12)
    assert again.survival == pytest.approx(given_completion.survival, rel=1e-12, abs=1e-13)


def test_conversion_without_failures_is_exact() -> None:
    pair = ProbabilityPair(np.array([1e-300, 1.0]), np.array([1.0, 1e-300]))
    for converted in (pair.given_completion(0.0), pair.of_all_tasks(0.0)):
        np.testing.assert_array_equal(converted, pair)


def test_probability_of_completed_tasks_is_exactly_one() -> None:
    for failure_probability in np.linspace(0.01, 0.99, 99).tolist():
        pair = ProbabilityPair.from_cdf(np.array([1 - failure_probability]))
        np.testing.assert_array_equal(pair.given_completion(failure_probability), [[1.0], [0.0]])


def test_tasks_that_never_end_have_no_distribution() -> None:
    pair = ProbabilityPair.from_survival(np.ones(2))
    np.testing.assert_array_equal(pair.given_completion(1.0), [[0.0, 0.0], [1.0, 1.0]])
    np.testing.assert_array_equal(pair.of_all_tasks(1.0), pair)
