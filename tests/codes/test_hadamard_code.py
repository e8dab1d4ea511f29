"""Tests of the Hadamard kernel. The oracle is dense algebra with Kronecker powers of [[1, 1], [1, -1]]."""

from __future__ import annotations

from functools import reduce
from itertools import combinations

import numpy as np
import pytest
from polar_codes import SIZES, arrive, by_size

from polarmap import coded_map
from polarmap.codes import PolarCode
from polarmap.codes.hadamard_code import MAX_HADAMARD_N, HadamardCode, choose_random_frozen_set
from polarmap.errors import CodeError
from polarmap.testing import ReplayExecutor

LARGER_SIZES = [(12, 9), (33, 20), (64, 48), (70, 69), (130, 3)]


def hadamard_power(n: int) -> np.ndarray:
    """Return the Kronecker power of the kernel with n rows or more."""
    n_levels = (n - 1).bit_length()
    return reduce(np.kron, [np.array([[1, 1], [1, -1]])] * n_levels, np.ones((1, 1), int))


def hadamard(n: int, k: int, **options: int) -> PolarCode:
    return PolarCode(n, k, "hadamard", **options)


@pytest.mark.parametrize(("n", "k"), [*SIZES, *LARGER_SIZES])
def test_codewords_are_transforms_of_free_inputs(n: int, k: int) -> None:
    code = hadamard(n, k)
    transform = hadamard_power(n)
    free_inputs = np.setdiff1d(np.arange(n), code.frozen_set)  # Inputs from n on are also zero.
    assert len(free_inputs) == k and free_inputs[0] == 0
    generator = transform[:, free_inputs][code.codeword_positions]  # Leaves from n on are not transmitted.
    assert sorted(code.codeword_positions) == list(range(n))
    expected = generator[k:] @ np.linalg.inv(generator[:k])
    np.testing.assert_allclose(code.encoding_matrix, expected, atol=1e-9)
    np.testing.assert_allclose(code.parity_check_matrix @ generator, 0, atol=1e-9)


@pytest.mark.parametrize(("n", "k"), [*SIZES, *LARGER_SIZES])
def test_rows_sum_to_one(n: int, k: int) -> None:
    np.testing.assert_allclose(hadamard(n, k).encoding_matrix.sum(axis=1), 1)


@by_size
def test_decodes_exactly_the_patterns_of_full_rank(n: int, k: int) -> None:
    code = hadamard(n, k)
    free_inputs = np.setdiff1d(np.arange(n), code.frozen_set)
    generator = hadamard_power(n)[:, free_inputs][code.codeword_positions]
    data = np.random.default_rng(0).standard_normal((k, 2))
    coded = code.encode(data)
    for arrived in list(combinations(range(n), k))[:60]:
        mask = np.isin(np.arange(n), arrived)
        is_full_rank = np.linalg.matrix_rank(generator[mask]) == k
        assert code.is_decodable(mask) == is_full_rank
        if is_full_rank:
            np.testing.assert_allclose(code.decode({i: coded[i] for i in arrived}), data, atol=1e-9)


def test_some_patterns_of_k_results_do_not_decode() -> None:
    code = hadamard(8, 6)
    decodable = [code.is_decodable(~np.isin(np.arange(8), lost)) for lost in combinations(range(8), 2)]
    assert 0 < sum(decodable) < len(decodable)
    assert not code.is_mds


@pytest.mark.parametrize(("n", "k", "mean_excess"), [(32, 24, 1.25), (64, 48, 2.05)])
def test_needs_as_many_results_beyond_k_as_the_page_says(n: int, k: int, mean_excess: float) -> None:
    rng, code = np.random.default_rng(1), hadamard(n, k)
    excess = [arrive(code, rng.permutation(n)).n_arrived - k for _ in range(200)]
    assert abs(np.mean(excess) - mean_excess) < 0.4  # The bound is at least 4 standard errors.


def test_parity_blocks_are_of_the_size_of_data_blocks() -> None:
    for n, k in ((32, 24), (64, 48), (256, 192)):
        assert np.linalg.norm(hadamard(n, k).encoding_matrix, axis=1).max() < 8


def test_frozen_sets_depend_on_the_seed_alone() -> None:
    assert hadamard(64, 48, seed=3).frozen_set.tolist() == choose_random_frozen_set(64, 48, 3).tolist()
    assert hadamard(64, 48, seed=3).frozen_set.tolist() != hadamard(64, 48, seed=4).frozen_set.tolist()
    assert hadamard(100, 75).seed == 0


def test_the_default_seed_decodes_more_patterns_than_the_first() -> None:
    rng = np.random.default_rng(7)
    masks = [np.isin(np.arange(20), rng.permutation(20)[:15]) for _ in range(200)]
    n_decodable = [
        sum(map(code.is_decodable, masks)) for code in (hadamard(20, 15), hadamard(20, 15, seed=0))
    ]
    assert n_decodable[0] >= n_decodable[1]


@pytest.mark.parametrize("dtype", ["f4", "f8", "c16"])
def test_coded_map_decodes_floats(dtype: str) -> None:
    A = np.random.default_rng(0).standard_normal((60, 4)).astype(dtype)
    late = ReplayExecutor({0: 9.0, 5: 9.0})  # Tasks 0 and 5 take 9 s.
    result = coded_map(lambda block: 2 * block + 1, A, code=hadamard(16, 12), executor=late)
    np.testing.assert_allclose(result.concatenate(), 2 * A + 1, rtol=1e-4, atol=1e-4)
    assert result.report.recovered == (0, 5)


def test_refuses_integers() -> None:
    with pytest.raises(
        CodeError, match=r"hadamard kernel does not support int64 blocks.* Use kernel='arikan'"
    ):
        coded_map(np.negative, np.arange(24).reshape(12, 2), code=hadamard(8, 6))


@pytest.mark.parametrize(
    ("n", "options", "message"),
    [
        (8, {"decoder": "sequential"}, "needs kernel='arikan'"),
        (8, {"levels": 2}, "levels=2 needs kernel='arikan', because the hadamard kernel always"),
        (MAX_HADAMARD_N + 1, {}, "k < n <= 1024, not n = 1025, k = 6. Use kernel='rotation'"),
    ],
)
def test_refuses_options(n: int, options: dict, message: str) -> None:
    with pytest.raises(CodeError, match=message):
        hadamard(n, 6, **options)


def test_data_blocks_go_to_the_most_reliable_workers() -> None:
    erasure = np.random.default_rng(0).permutation(np.linspace(0.0, 0.5, 20))
    code = PolarCode(20, 15, "hadamard", erasure=erasure)
    assert erasure[code.worker_indices[:15]].max() < erasure[code.worker_indices[15:]].min()
    assert isinstance(code, HadamardCode)
