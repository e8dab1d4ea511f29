"""Rotation codes: parity rows sum to one, deviate alike, and come from the best of the seeds."""

from __future__ import annotations

import numpy as np
import pytest

from polarmap.code.design import rotations, subsets
from polarmap.code.polar import PolarCode
from polarmap.code.recovery import LARGE, worst_amplification
from polarmap.code.rotations import (
    SEEDS,
    best_seed,
    normalized,
    rotation_coefficients,
    transposed_coefficients,
)


@pytest.mark.parametrize(("n", "k"), [(4, 3), (12, 8), (40, 24), (100, 75)])
def test_rows_sum_to_one_and_deviate_by_one(n: int, k: int) -> None:
    rows = rotation_coefficients(normalized(rotations(n, k, 0), k), k)
    np.testing.assert_allclose(rows.sum(axis=1), 1)
    np.testing.assert_allclose(np.linalg.norm(rows - 1 / k, axis=1), 1)


def test_rows_of_large_codes_sum_to_one_and_deviate_by_about_one() -> None:
    n, k = LARGE, 1500
    plan = normalized(rotations(n, k, 0), k)
    rows = rotation_coefficients(plan, k)
    np.testing.assert_allclose(rows.sum(axis=1), 1)
    np.testing.assert_allclose(np.linalg.norm(rows - 1 / k, axis=1), 1, rtol=0.1)
    some = np.array([3, 1, 1499])
    np.testing.assert_array_equal(rotation_coefficients(plan, k, some), rows[:, some])
    mixed = np.random.default_rng(0).standard_normal((5, n - k))
    np.testing.assert_allclose(transposed_coefficients(plan, k, mixed), mixed @ rows, atol=1e-12)


@pytest.mark.parametrize(("n", "k"), [(LARGE, 1), (LARGE, 2), (LARGE, 9), (LARGE, LARGE - 3), (5000, 255)])
def test_large_codes_of_few_blocks_of_a_kind_are_as_accurate_as_small_ones(n: int, k: int) -> None:
    rows = PolarCode(n, k).coefficients
    np.testing.assert_allclose(rows.sum(axis=1), 1)
    if k > 2:
        np.testing.assert_allclose(np.linalg.norm(rows - 1 / k, axis=1), 1)


def test_no_seed_loses_fewer_digits_than_the_best() -> None:
    patterns = subsets(6, 4, most=64)
    worst = [
        max(worst_amplification(PolarCode(6, 4, seed=seed).coefficients, one) for one in patterns)
        for seed in range(SEEDS)
    ]
    assert worst[best_seed(6, 4)] == min(worst)
    assert PolarCode(6, 4).seed == best_seed(6, 4)
