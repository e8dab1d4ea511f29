"""Tests of rotation codes: rows of P, the choice of the seed, and decoding of thousands of blocks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polarmap.codes import ArrivalTracker, PolarCode
from polarmap.codes.real_decoders import MAX_DENSE_N, SystematicDecoder, compute_max_amplification
from polarmap.codes.rotation_code import (
    N_SEEDS,
    SyndromeDecoder,
    compute_rotation_parity_matrix,
    normalize_parity_row_sums,
    select_rotation_seed,
)
from polarmap.codes.rotation_network import generate_rotation_butterfly_network
from polarmap.codes.splitmix import sample_subsets
from polarmap.errors import CodeError


def test_k_is_one_copies_the_block() -> None:
    coded = PolarCode(5, 1).encode(np.array([[3.0, 4.0]]))
    np.testing.assert_allclose(coded, [[3.0, 4.0]] * 5)


def test_data_blocks_go_to_the_most_reliable_workers() -> None:
    erasure = np.random.default_rng(0).permutation(np.linspace(0.0, 0.5, 20))
    code = PolarCode(20, 15, erasure=erasure)
    assert erasure[code.worker_indices[:15]].max() < erasure[code.worker_indices[15:]].min()


def test_rotation_refuses_integers() -> None:
    with pytest.raises(CodeError, match=r"int64 blocks\. Use kernel='arikan'"):
        PolarCode(6, 4).encode(np.ones((4, 2), int))


@pytest.mark.parametrize(("n", "k"), [(4, 3), (12, 8), (40, 24), (100, 75)])
def test_rows_sum_to_one_and_deviate_by_one(n: int, k: int) -> None:
    rows = compute_rotation_parity_matrix(
        normalize_parity_row_sums(generate_rotation_butterfly_network(n, k, 0), k), k
    )
    np.testing.assert_allclose(rows.sum(axis=1), 1)
    np.testing.assert_allclose(np.linalg.norm(rows - 1 / k, axis=1), 1)


def test_rows_of_large_codes_sum_to_one_and_deviate_by_about_one() -> None:
    n, k = MAX_DENSE_N, 1500
    code = PolarCode(n, k)
    rows = code.encoding_matrix
    np.testing.assert_allclose(rows.sum(axis=1), 1)
    np.testing.assert_allclose(np.linalg.norm(rows - 1 / k, axis=1), 1, rtol=0.1)
    columns = np.array([3, 1, 1499])
    np.testing.assert_allclose(
        code.compute_encoding_matrix_columns(columns), rows[:, columns], rtol=0, atol=1e-15
    )
    mixed = np.random.default_rng(0).standard_normal((5, n - k))
    np.testing.assert_allclose(code.left_multiply_encoding_matrix(mixed), mixed @ rows, atol=1e-12)


@pytest.mark.parametrize(
    ("n", "k"),
    [(MAX_DENSE_N, 1), (MAX_DENSE_N, 2), (MAX_DENSE_N, 9), (MAX_DENSE_N, MAX_DENSE_N - 3), (5000, 255)],
)
def test_large_codes_with_few_data_or_parity_blocks_are_as_accurate_as_small_ones(n: int, k: int) -> None:
    rows = PolarCode(n, k).encoding_matrix
    np.testing.assert_allclose(rows.sum(axis=1), 1)
    if k > 2:
        np.testing.assert_allclose(np.linalg.norm(rows - 1 / k, axis=1), 1)


def test_no_seed_loses_fewer_digits_than_the_best() -> None:
    patterns = sample_subsets(6, 4, max_subsets=64)
    worst = [
        max(
            compute_max_amplification(PolarCode(6, 4, seed=seed).encoding_matrix, pattern[np.newaxis])
            for pattern in patterns
        )
        for seed in range(N_SEEDS)
    ]
    assert worst[select_rotation_seed(6, 4)] == min(worst)
    assert PolarCode(6, 4).seed == select_rotation_seed(6, 4)


def both(n: int, k: int, arrived: np.ndarray) -> tuple[SystematicDecoder, SyndromeDecoder]:
    code = PolarCode(n, k)
    return SystematicDecoder(code, arrived), SyndromeDecoder(code, arrived)


def patterns(n: int) -> st.SearchStrategy[np.ndarray]:
    return st.lists(st.booleans(), min_size=n, max_size=n).map(np.array)


@settings(max_examples=40)
@given(st.data())
def test_weights_checks_and_rank_deficit_match_those_with_p(data: st.DataObject) -> None:
    k = data.draw(st.integers(1, 40))
    n = data.draw(st.integers(k + 1, 60))
    with_p, without = both(n, k, data.draw(patterns(n)))
    np.testing.assert_allclose(without.system_matrix, with_p.system_matrix, atol=1e-12)
    assert (without.rank_deficit, without.n_redundant_checks) == (
        with_p.rank_deficit,
        with_p.n_redundant_checks,
    )
    if not with_p.rank_deficit and with_p.amplification < 1e4:
        np.testing.assert_allclose(without.weights, with_p.weights, atol=1e-6)
        np.testing.assert_allclose(without.amplification, with_p.amplification, rtol=1e-6, atol=1e-9)
    code = PolarCode(n, k)
    equations = without.compute_parity_check_matrix(8)
    assert len(equations) == max(0, min(8, with_p.n_redundant_checks))
    np.testing.assert_allclose(equations @ code.generator_matrix[without.arrived_indices], 0, atol=1e-9)
    assert np.linalg.matrix_rank(equations) == len(equations)


@pytest.mark.parametrize(
    ("dtype", "rtol"), [("f8", 1e-10), ("f4", 1e-5), ("f2", 1e-1), ("c16", 1e-10), ("c8", 1e-5), ("i8", 0)]
)
def test_every_dtype_is_recovered(dtype: str, rtol: float) -> None:
    n, k = 60, 40
    rng = np.random.default_rng(0)
    arrived = np.ones(n, bool)
    arrived[rng.choice(n, 12, replace=False)] = False
    data = (rng.standard_normal((k, 70)) * 100).astype(dtype)
    if np.dtype(dtype).kind == "c":
        data += 1j * data[::-1]
    wide = data.astype("c16" if np.dtype(dtype).kind == "c" else "f8")
    coded = PolarCode(n, k).encode(wide)
    # This f rounds floats to integers, so its results for parity blocks are also rounded.
    rows = np.rint(coded) if dtype == "i8" else coded
    _, recovery = both(n, k, arrived)
    results = {int(index): rows[index].astype(dtype) for index in np.flatnonzero(arrived)}
    decoded = recovery.decode(results, np.dtype(dtype))
    assert decoded.dtype == dtype
    allowed = (
        {"atol": 0.5 * np.abs(recovery.weights).sum(axis=1).max() + 0.5}
        if dtype == "i8"
        else {"atol": rtol * np.abs(data).max()}
    )
    np.testing.assert_allclose(decoded, data[recovery.missing_indices], rtol=0, **allowed)


def test_wide_blocks_are_decoded_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polarmap.codes.rotation_code.SYNDROME_BYTES", 1)
    n, k = 20, 12
    data = np.random.default_rng(1).standard_normal((k, 200))
    coded = PolarCode(n, k).encode(data)
    arrived = np.arange(n) >= 5
    _, recovery = both(n, k, arrived)
    decoded = recovery.decode({i: coded[i] for i in range(5, n)}, np.dtype("f8"))
    np.testing.assert_allclose(decoded, data[:5], atol=1e-11)


def test_nonfinite_results_propagate_to_decoded_blocks_without_a_warning() -> None:
    n, k = 20, 12
    coded = PolarCode(n, k).encode(np.ones((k, 2)))
    coded[7, 0] = np.inf
    arrived = np.arange(n) >= 3
    _, recovery = both(n, k, arrived)
    decoded = recovery.decode({i: coded[i] for i in range(3, n)}, np.dtype("f8"))
    assert not np.isfinite(decoded[:, 0]).any()
    np.testing.assert_allclose(decoded[:, 1], 1.0)


def test_a_code_of_thousands_decodes_without_p() -> None:
    n, k = MAX_DENSE_N + 52, 1600
    code = PolarCode(n, k)
    rng = np.random.default_rng(2)
    data = rng.standard_normal((k, 3))
    coded = code.encode(data)
    decoder = ArrivalTracker(code)
    for index in rng.permutation(np.setdiff1d(np.arange(n), rng.choice(n, n // 20, replace=False))):
        if decoder.add(int(index)) and decoder.n_redundant_checks:
            break
    recovery = decoder.decoder
    assert isinstance(recovery, SyndromeDecoder) and len(recovery.missing_indices)
    assert recovery.n_redundant_checks == 1
    decoded = recovery.decode({int(i): coded[i] for i in recovery.arrived_indices}, np.dtype("f8"))
    error = np.abs(decoded - data[recovery.missing_indices]).max()
    assert error <= 10 * recovery.amplification * np.finfo(float).eps * np.abs(data).max()
    assert "coefficients" not in vars(code)
    dense = np.linalg.lstsq(
        code.encoding_matrix[np.ix_(recovery.arrived_parity_indices, recovery.missing_indices)],
        np.eye(len(recovery.arrived_parity_indices)),
        rcond=None,
    )[0]
    np.testing.assert_allclose(
        recovery.weights[:, len(recovery.arrived_data_indices) :], dense, rtol=1e-6, atol=1e-6
    )
    # An affine f needs these sums.
    np.testing.assert_allclose(code.encoding_matrix.sum(axis=1), 1.0, atol=1e-12)
