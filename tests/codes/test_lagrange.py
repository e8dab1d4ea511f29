"""Tests that LagrangeCode decodes every pattern of enough results, as accurately as least squares."""

from __future__ import annotations

from itertools import combinations, combinations_with_replacement
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polarmap.blocks.code_choice import get_default_n_tasks
from polarmap.codes import LagrangeCode
from polarmap.codes.lagrange import compute_max_k, compute_recovery_threshold
from polarmap.errors import CodeError


def coded_blocks(code: LagrangeCode, data: np.ndarray) -> np.ndarray:
    return np.concatenate([data, code.encode_parity(data)])


def polynomial(blocks: np.ndarray, degree: int, rng: np.random.Generator) -> np.ndarray:
    """Return a polynomial with all monomials in three entries, including the constant."""
    powers = [p for p in np.ndindex(*(degree + 1,) * 3) if sum(p) <= degree]
    weights = rng.standard_normal(len(powers))
    return sum(w * np.prod(blocks ** np.array(p), axis=1) for w, p in zip(weights, powers))[:, None]


POINTS = st.sampled_from(["circle", "chebyshev"])

SMALL = [(6, 2, 2), (8, 3, 2), (9, 4, 2), (8, 4, 2), (11, 4, 3), (12, 5, 2), (10, 3, 4), (7, 5, 1), (4, 1, 3)]


@pytest.mark.parametrize(
    ("n", "k", "degree", "points"),
    [
        (n, k, degree, points)
        for points in ("circle", "chebyshev")
        for n, k, degree in SMALL
        if n > compute_recovery_threshold(k, degree, points)
    ],
)
def test_every_pattern_of_enough_arrivals_gives_every_result(
    n: int, k: int, degree: int, points: str
) -> None:
    code = LagrangeCode(n, k, degree, points)
    rng = np.random.default_rng(n)
    results = polynomial(coded_blocks(code, rng.standard_normal((k, 3))), degree, rng)
    scale = np.abs(results).max()
    for arrived in combinations(range(n), code.recovery_threshold):
        plan = code.make_decoder(np.isin(np.arange(n), arrived), modular=False)
        assert plan.rank_deficit == 0
        decoded = plan.decode({i: results[i] for i in arrived}, np.dtype(float))
        error = np.abs(decoded - results[plan.missing_indices]).max(initial=0)
        assert error <= 64 * np.finfo(float).eps * max(plan.amplification, 1) * scale


@pytest.mark.parametrize(("n", "k", "degree"), SMALL)
def test_amplification_matches_dense_least_squares(n: int, k: int, degree: int) -> None:
    code = LagrangeCode(n, k, degree)
    patterns = [*combinations(range(n), n - code.recovery_threshold)]
    worst = 0.0
    for lost in patterns:
        arrived = np.setdiff1d(np.arange(n), lost)
        missing = [i for i in lost if i < k]
        weights = code.generator_matrix[missing] @ np.linalg.pinv(code.generator_matrix[arrived])
        dense = np.linalg.norm(weights, axis=1).max(initial=0)
        assert code.make_decoder(np.isin(np.arange(n), arrived), False).amplification == pytest.approx(
            dense, rel=1e-6
        )
        worst = max(worst, dense)
    summary = code.summarize_amplification(n - code.recovery_threshold)
    assert summary.median <= summary.p90 <= summary.max <= worst * (1 + 1e-6)
    if len(patterns) <= 64:
        assert summary.max == pytest.approx(worst, rel=1e-6)
    else:  # Losing neighbours is the worst pattern, or nearly the worst.
        assert summary.max >= 0.5 * worst


DEFAULT_SIZES = [
    (get_default_n_tasks(compute_recovery_threshold(k, degree, "circle")), k, degree)
    for degree in range(2, 8)
    for k in range(2, 9)
    if get_default_n_tasks(compute_recovery_threshold(k, degree, "circle")) <= 20
]


def all_monomials(coded: np.ndarray, degree: int) -> np.ndarray:
    """Return the products of `degree` entries of each row, one column for each choice of entries."""
    choices = combinations_with_replacement(range(coded.shape[1]), degree)
    return np.stack([coded[:, list(choice)].prod(axis=1) for choice in choices], axis=1)


@pytest.mark.parametrize(("n", "k", "degree"), DEFAULT_SIZES)
def test_any_degree_times_k_results_determine_all_of_the_default_sizes(n: int, k: int, degree: int) -> None:
    code = LagrangeCode(n, k, degree, "circle")
    # Rows sum to one, so these include lower degrees.
    products = all_monomials(coded_blocks(code, np.eye(k)), degree)
    left, values, _ = np.linalg.svd(products, full_matrices=False)
    rank = int((values > 1e-12 * values[0]).sum())
    assert rank == (degree + 1 if k == 2 else code.recovery_threshold)
    results = left[np.array([*combinations(range(n), code.recovery_threshold)]), :rank]
    assert np.linalg.svd(results, compute_uv=False)[:, -1].min() > 1e-4
    amplifications = np.linalg.norm(left[:k, :rank] @ np.linalg.pinv(results), axis=2).max(axis=1)
    assert np.quantile(amplifications, 0.95) < 100


@pytest.mark.parametrize("n", [7, 8, 33, 64, 96, 255, 512])
@pytest.mark.parametrize(("k", "degree"), [(2, 3), (4, 1), (6, 2), (16, 3)])
def test_sums_of_angles_are_far_from_those_of_singular_sets(n: int, k: int, degree: int) -> None:
    if n <= degree * k:
        pytest.skip("n is too small for k and degree")
    code = LagrangeCode(n, k, degree, "circle")
    # In these units the sum of a set is an integer.
    steps = degree * k * code._top_frequency_phase * n / (2 * np.pi)
    assert steps % 1 == pytest.approx(0.5)
    data = np.linalg.cond(code._evaluate_basis(1)[:k])
    assert data < 4


@given(
    k=st.integers(1, 9),
    degree=st.integers(1, 4),
    spare=st.integers(1, 6),
    points=st.sampled_from(["circle", "chebyshev"]),
)
@settings(max_examples=60)
def test_parity_sums_to_one_and_results_satisfy_the_equations(
    k: int, degree: int, spare: int, points: str
) -> None:
    n = max(compute_recovery_threshold(k, degree, points), k) + spare
    code = LagrangeCode(n, k, degree, points)
    rng = np.random.default_rng(n)
    assert np.allclose(code.encoding_matrix.sum(axis=1), 1)
    assert sorted(code.node_indices.tolist()) == list(range(n))
    assert code.norm_inf < 3.5 * np.log2(k + 2)
    results = polynomial(coded_blocks(code, rng.standard_normal((k, 3))), degree, rng)
    equations = code.make_decoder(np.ones(n, bool), False).compute_parity_check_matrix(8)
    assert len(equations) == min(n - code.recovery_threshold, 8)
    assert np.allclose(equations @ equations.T, np.eye(len(equations)))
    assert np.abs(equations @ results).max() <= 1e-11 * np.abs(results).max()


@given(results=st.integers(0, 40), degree=st.integers(1, 5), points=POINTS)
def test_the_largest_k_cannot_be_exceeded(results: int, degree: int, points: str) -> None:
    fits = [k for k in range(1, 42) if compute_recovery_threshold(k, degree, points) <= results]
    assert compute_max_k(results, degree, points) == max(fits, default=0)


def test_the_amplification_of_large_codes_matches_their_decoder() -> None:
    code = LagrangeCode(90, 30, 2)
    for seed in range(8):
        arrived = np.ones(90, bool)
        arrived[np.random.default_rng(seed).permutation(90)[: 20 + seed]] = False
        plan = code.make_decoder(arrived, modular=False)
        assert plan.rank_deficit == 0
        assert plan.amplification == pytest.approx(np.linalg.norm(plan.weights, axis=1).max(), rel=1e-3)
    assert code.make_decoder(np.arange(90) >= 31, modular=False).rank_deficit == 1


def test_the_circle_is_more_accurate_than_chebyshev_points_for_equal_thresholds() -> None:
    circle, chebyshev = (LagrangeCode(24, 9, 2, points) for points in ("circle", "chebyshev"))
    assert circle.recovery_threshold == chebyshev.recovery_threshold == 17
    for losses in range(2, 8):
        assert circle.summarize_amplification(losses).max < chebyshev.summarize_amplification(losses).max / 2


def test_complex_blocks_and_float32_keep_their_dtype() -> None:
    code = LagrangeCode(12, 4, 2)
    rng = np.random.default_rng(3)
    data = (rng.standard_normal((4, 5)) + 1j * rng.standard_normal((4, 5))).astype("c8")
    coded = coded_blocks(code, data)
    assert coded.dtype == np.complex64
    results = np.abs(coded) ** 2  # |z|^2 has degree 2 in real and imaginary parts.
    plan = code.make_decoder(np.arange(12) >= 3, False)
    decoded = plan.decode(dict(enumerate(results)), results.dtype)
    assert decoded.dtype == np.float32
    np.testing.assert_allclose(decoded, results[:3], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((8, 4, 0), "degree must be a positive integer"),
        ((8, 0, 2), "k must be a positive integer"),
        ((8, 8, 2), "with k = 8 use n > 15, or with n = 8 use k <= 4"),
        ((3, 2, 5), "use n > 6, or with n = 3 use k <= 1"),
        ((1, 1, 2), "use n > 1"),
        ((8, 3, 2, "legendre"), "points must be"),
        ((8, 3, True), "degree must be"),
        ((4096, 3, 2), "at most 2048"),
    ],
)
def test_invalid_sizes_are_refused(arguments: tuple[Any, ...], words: str) -> None:
    with pytest.raises(CodeError, match=words):
        LagrangeCode(*arguments)
