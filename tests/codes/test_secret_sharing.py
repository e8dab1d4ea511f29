"""Tests of SecretSharingCode: decoding of every pattern, and the bound on leakage to colluding workers."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from polarmap.codes import SecretSharingCode
from polarmap.codes.secret_sharing import make_noise_matrix

SMALL = [(4, 2, 1), (6, 3, 2), (7, 3, 3), (5, 2, 2), (8, 2, 5), (9, 6, 1), (10, 6, 2)]


@pytest.mark.parametrize(("n", "k", "t"), SMALL)
def test_every_pattern_of_k_plus_t_results_decodes(n: int, k: int, t: int) -> None:
    code = SecretSharingCode(n, k, t, noise=10)
    inputs = np.random.default_rng(n).standard_normal((k + t, 5))
    mixed = code.encode_parity(inputs)
    np.testing.assert_allclose(mixed, code.encoding_matrix @ inputs, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(code.encoding_matrix.sum(axis=1), 1)
    for arrived in combinations(range(n), k + t):
        plan = code.make_decoder(np.isin(np.arange(n), arrived), modular=False)
        assert plan.rank_deficit == 0
        decoded = plan.decode({i: mixed[i] for i in arrived}, np.dtype(float))
        np.testing.assert_allclose(decoded, inputs[:k], rtol=0, atol=1e-11)
    for arrived in combinations(range(n), k + t - 1):
        assert code.make_decoder(np.isin(np.arange(n), arrived), modular=False).rank_deficit == 1


@pytest.mark.parametrize(("n", "t"), [(5, 1), (8, 2), (9, 2), (8, 3), (9, 3), (9, 4), (10, 5)])
def test_any_t_rows_of_noise_are_independent(n: int, t: int) -> None:
    noise = make_noise_matrix(n, t)
    np.testing.assert_allclose(np.linalg.norm(noise, axis=1), 1)
    for coalition in combinations(range(n), t):
        assert np.linalg.svd(noise[list(coalition)], compute_uv=False)[-1] > 1e-4


@pytest.mark.parametrize(("n", "k", "t"), SMALL)
@pytest.mark.parametrize("correlated", [False, True])
def test_leakage_is_the_information_of_normal_data(n: int, k: int, t: int, correlated: bool) -> None:
    code = SecretSharingCode(n, k, t, noise=7)
    signal = np.full((k, k), 1.0) if correlated else np.eye(k)
    worst = 0.0
    for coalition in combinations(range(n), t):
        data, noise = np.split(code.encoding_matrix[list(coalition)], [k], axis=1)
        masked = code.noise_std**2 * noise @ noise.T
        both = masked + data @ signal @ data.T
        worst = max(worst, 0.5 * np.log2(np.linalg.det(both) / np.linalg.det(masked)))
    if correlated:  # Equal blocks satisfy the bound for any correlation.
        assert worst <= code.leakage(correlated=True) * (1 + 1e-9)
    else:
        assert code.leakage() == pytest.approx(worst, rel=1e-6)


def test_leakage_falls_with_the_square_of_the_noise() -> None:
    low, high = (SecretSharingCode(12, 8, 2, noise).leakage() for noise in (100, 1000))
    assert high == pytest.approx(low / 100, rel=1e-2)
