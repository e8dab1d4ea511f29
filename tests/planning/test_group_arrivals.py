"""Tests of the number of results that a grouped code needs, against enumeration and simulation."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polarmap.codes import PolarCode
from polarmap.codes.grouped_code import GroupedPolarCode
from polarmap.planning.completion import completion_time
from polarmap.planning.distributions import FailureProne, ShiftedExponential
from polarmap.planning.group_arrivals import compute_group_arrivals_needed


def has_enough(code: GroupedPolarCode, arrived: set[int]) -> bool:
    """Return whether at least k results of every group have arrived."""
    pairs = zip(code.group_blocks, code.group_codes)
    return all(len(arrived.intersection(blocks.tolist())) >= group_code.k for blocks, group_code in pairs)


@settings(max_examples=20)
@given(st.integers(2, 7), st.integers(2, 5), st.data())
def test_it_equals_the_enumeration_of_all_sets_of_results(k: int, n_parity: int, data: st.DataObject) -> None:
    n, n_groups = k + n_parity, data.draw(st.integers(2, min(k, n_parity)))
    code = PolarCode(n, k, groups=n_groups)
    expected = []
    for n_results in range(n + 1):
        sets = list(combinations(range(n), n_results))
        expected.append(sum(has_enough(code, set(arrived)) for arrived in sets) / len(sets))
    needed = compute_group_arrivals_needed(n, k, n_groups)
    np.testing.assert_allclose(needed.decodable_probabilities(n), expected, atol=1e-9)


def test_it_equals_a_simulation_of_thousands_of_tasks() -> None:
    code, rng = PolarCode(6000, 4500, groups=6), np.random.default_rng(0)
    groups = np.empty(code.n, int)
    for group, blocks in enumerate(code.group_blocks):
        groups[blocks] = group
    simulated = []
    for _ in range(300):
        order = rng.permutation(code.n)
        moments = [
            np.flatnonzero(groups[order] == group)[code.group_codes[group].k - 1] for group in range(6)
        ]
        simulated.append(max(moments) + 1)
    needed = compute_group_arrivals_needed(6000, 4500, 6)
    mean = needed.counts @ needed.probabilities
    assert abs(mean - np.mean(simulated)) < 4 * np.std(simulated) / np.sqrt(300) + 3


def test_a_job_fails_as_often_as_a_group_runs_out() -> None:
    run_times = FailureProne(ShiftedExponential(1.0, 0.1), 0.22)
    code = PolarCode(5000, 3750, groups=5)
    expected = code.compute_failure_probability(0.22)
    assert 1e-3 < expected < 0.5
    forecast = completion_time(5000, 3750, "rotation", run_times)
    assert forecast.failure_probability == pytest.approx(expected, rel=0.05)
