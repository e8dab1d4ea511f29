"""Tests of codes of independent groups, against dense algebra with their matrices."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polarmap.codes import ArrivalTracker, PolarCode
from polarmap.codes.error_detection import (
    bound_undetected_error,
    compute_checked_blocks_mask,
    compute_max_blocks_per_parity_check,
    evaluate_parity_checks,
    locate_erroneous_blocks,
)
from polarmap.codes.grouped_code import GroupedDecoder, GroupedPolarCode
from polarmap.codes.polar import choose_n_groups
from polarmap.codes.real_decoders import SystematicDecoder
from polarmap.errors import CodeError

KERNELS = "rotation", "arikan"
FLOAT64, INT64 = np.dtype(np.float64), np.dtype(np.int64)


def make_data(code: PolarCode, seed: int, width: int = 3) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if code.supports_integers:
        return rng.integers(-(2**62), 2**62, (code.k, width))
    return rng.standard_normal((code.k, width))


def let_arrive(code: PolarCode, seed: int, n_further: int = 0) -> ArrivalTracker:
    """Return a tracker to which random blocks have arrived until they sufficed, and `n_further` more."""
    tracker = ArrivalTracker(code, modular=code.supports_integers)
    for block_index in np.random.default_rng(seed).permutation(code.n).tolist():
        n_further -= tracker.is_ready
        if n_further < 0:
            break
        tracker.add(block_index)
    return tracker


@st.composite
def grouped_codes(draw: st.DrawFn) -> PolarCode:
    k, n_parity = draw(st.integers(2, 60)), draw(st.integers(2, 30))
    n_groups = draw(st.integers(2, min(k, n_parity, 6)))
    return PolarCode(k + n_parity, k, draw(st.sampled_from(KERNELS)), groups=n_groups)


@given(grouped_codes())
def test_each_block_is_in_one_group_and_groups_are_of_equal_size(code: GroupedPolarCode) -> None:
    assert sorted(np.concatenate(code.group_blocks).tolist()) == list(range(code.n))
    for indices in ([blocks[blocks < code.k] for blocks in code.group_blocks], code.group_blocks):
        sizes = [len(blocks) for blocks in indices]
        assert max(sizes) - min(sizes) <= (1 if indices is not code.group_blocks else 2)
    for blocks, group_code in zip(code.group_blocks, code.group_codes):
        assert blocks[: group_code.k].tolist() == sorted(blocks[blocks < code.k].tolist())


@given(grouped_codes(), st.integers(0, 99))
def test_matrices_and_encoding_agree(code: GroupedPolarCode, seed: int) -> None:
    matrix, data, rng = code.encoding_matrix, make_data(code, seed), np.random.default_rng(seed)
    parity = code.encode(data)[code.k :]
    if code.supports_integers:
        assert (parity == matrix @ data).all()
    else:
        np.testing.assert_allclose(parity, matrix @ data, atol=1e-9)
    # The parity of separate blocks is summed in another order.
    np.testing.assert_allclose(code.encode_parity(list(data)), parity, atol=1e-9)
    rows = rng.permutation(code.n - code.k)[:3]
    np.testing.assert_allclose(code.compute_encoding_matrix_rows(rows), matrix[rows], atol=1e-12)
    columns = rng.permutation(code.k)[:3]
    np.testing.assert_allclose(code.compute_encoding_matrix_columns(columns), matrix[:, columns], atol=1e-12)
    weights = rng.standard_normal((2, code.n - code.k))
    np.testing.assert_allclose(code.left_multiply_encoding_matrix(weights), weights @ matrix, atol=1e-9)
    assert (code.count_blocks_per_parity_block() == np.count_nonzero(matrix, axis=1)).all()
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-9)  # f may be affine


@given(grouped_codes(), st.integers(0, 99))
def test_arrivals_are_decided_and_decoded_as_by_dense_algebra(code: GroupedPolarCode, seed: int) -> None:
    data, tracker = make_data(code, seed), ArrivalTracker(code, modular=code.supports_integers)
    coded = code.encode(data)
    for block_index in np.random.default_rng(seed).permutation(code.n).tolist():
        is_ready = tracker.add(block_index)
        if not code.supports_integers:
            rank = np.linalg.matrix_rank(code.generator_matrix[tracker.arrived_mask], tol=1e-10)
            assert is_ready == (rank == code.k)
        if is_ready:
            break
    decoder = tracker.decoder
    received = {block_index: coded[block_index] for block_index in decoder.arrived_indices.tolist()}
    decoded = decoder.decode(received, data.dtype)
    if code.supports_integers:
        assert (decoded == data[decoder.missing_indices]).all()
    else:
        scale = max(1.0, decoder.amplification)
        np.testing.assert_allclose(decoded, data[decoder.missing_indices], atol=1e-12 * scale)
        np.testing.assert_allclose(
            decoder.weights @ coded[decoder.arrived_indices], decoded, atol=1e-12 * scale
        )


@given(grouped_codes(), st.integers(0, 99), st.integers(0, 8))
def test_blocks_of_weights_and_checks_make_up_the_whole_matrices(
    code: GroupedPolarCode, seed: int, n_further: int
) -> None:
    decoder, dtype = let_arrive(code, seed, n_further).decoder, INT64 if code.supports_integers else FLOAT64
    assert isinstance(decoder, GroupedDecoder)
    data = make_data(code, seed)
    received = code.encode(data)[decoder.arrived_indices]
    checks = decoder.check_matrix
    if code.supports_integers:
        assert not (checks.view(np.int64) @ received).any()
        unit_mask = decoder.weights % 2 == 1
        assert (compute_checked_blocks_mask(decoder, dtype) == (checks % 2 == 1).any(axis=0)).all()
    else:
        assert np.abs(checks @ received).max(initial=0) < 1e-9
        unit_mask = np.abs(decoder.weights) > 1e-12
        magnitudes = decoder.weight_magnitudes
        np.testing.assert_allclose(decoder.max_weight_magnitudes, magnitudes.max(axis=0, initial=0))
        np.testing.assert_allclose(decoder.max_weight_sum, magnitudes.sum(axis=1).max(initial=0))
        for row in range(min(3, len(magnitudes))):
            np.testing.assert_allclose(decoder.get_weight_magnitudes_of_target(row), magnitudes[row])
    n_per_check = np.count_nonzero(np.abs(checks.astype(float)) > 1e-12, axis=1)
    assert compute_max_blocks_per_parity_check(decoder, dtype) == n_per_check.max(initial=0)
    masks, rng = decoder.get_weight_masks(dtype), np.random.default_rng(seed)
    some_arrived, some_missing = (rng.random(size) < 0.5 for size in unit_mask.T.shape)
    assert (masks.count_invertible_weights(some_arrived) == unit_mask[:, some_arrived].sum(axis=1)).all()
    assert (masks.compute_influential_arrivals(some_missing) == unit_mask[some_missing].any(axis=0)).all()


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_wrong_block_is_found_in_its_group_and_two_groups_have_no_single_culprit(kernel: str) -> None:
    code = PolarCode(96, 64, kernel, groups=3)
    data, dtype = make_data(code, 0), INT64 if kernel == "arikan" else FLOAT64
    decoder = let_arrive(code, 1, n_further=12).decoder
    coded = code.encode(data)
    received = {block_index: coded[block_index].copy() for block_index in decoder.arrived_indices.tolist()}
    assert not len(evaluate_parity_checks(decoder, received, dtype).violations)
    culprits = [
        int(blocks[group_decoder.arrived_indices[0]])
        for blocks, group_decoder in zip(code.group_blocks, decoder.group_decoders)
        if group_decoder.n_redundant_checks > 1
    ]
    assert len(culprits) >= 2
    for n_wrong, expected in ((1, culprits[:1]), (2, [])):
        received[culprits[n_wrong - 1]] += 7
        residual = evaluate_parity_checks(decoder, received, dtype)
        assert len(residual.violated_check_blocks) == n_wrong
        located = locate_erroneous_blocks(
            decoder, received, residual.violations, dtype, None, residual.violated_check_blocks
        )
        assert located == expected


def test_the_bound_of_undetected_errors_is_that_of_one_large_decoder() -> None:
    code = PolarCode(60, 40, groups=2)
    decoder = let_arrive(code, 3, n_further=5).decoder
    [block_index, *_] = decoder.missing_indices.tolist()
    errors = {block_index: 1e-9}
    bound = bound_undetected_error(decoder, None, errors, code.k)
    dense = SystematicDecoder(code, decoder.arrived_mask)
    weights = np.abs(decoder.weights)
    row = weights[list(decoder.missing_indices).index(block_index)]
    gains = np.maximum(weights.max(axis=0), decoder.arrived_indices < code.k)
    expected = max(gain * 1e-9 / weight for gain, weight in zip(gains, row) if weight > 1e-12)
    assert bound == pytest.approx(expected)
    np.testing.assert_allclose(dense.weights @ code.generator_matrix[dense.arrived_indices], np.eye(code.k)[
        dense.missing_indices
    ], atol=1e-9)  # fmt: skip


def test_decoders_of_groups_without_new_arrivals_are_reused() -> None:
    code = PolarCode(64, 48, groups=4)
    tracker = let_arrive(code, 5)
    earlier = tracker.decoder
    new_block = int(np.flatnonzero(~tracker.arrived_mask)[0])
    tracker.add(new_block)
    later, [new_group] = tracker.decoder, [
        group for group, blocks in enumerate(code.group_blocks) if new_block in blocks
    ]  # fmt: skip
    for group in range(4):
        assert (later.group_decoders[group] is earlier.group_decoders[group]) == (group != new_group)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_group_survives_losses_of_regularly_spaced_tasks(kernel: str) -> None:
    """Workers that take every w-th task each: the loss of one of them is spread over all groups."""
    code = PolarCode(4096, 3072, kernel, groups=4)
    for n_workers in (*range(3, 40), 4, 8, 16, 64):
        lost = set(range(0, code.n, n_workers))
        shares = [len(lost.intersection(blocks.tolist())) / len(blocks) for blocks in code.group_blocks]
        assert max(shares) < 1.2 / n_workers + 0.02


@pytest.mark.parametrize("kernel", KERNELS)
def test_it_is_pickled_resized_and_shown(kernel: str) -> None:
    code = PolarCode(40, 30, kernel, seed=3, groups=4)
    copy = pickle.loads(pickle.dumps(code))
    assert (copy.encoding_matrix == code.encoding_matrix).all()
    assert repr(copy) == f"PolarCode(40, 30, kernel='{kernel}', decoder='optimal', groups=4)"
    assert code.with_sizes(40, 30) is code
    assert repr(code.with_sizes(20, 17)) == (
        f"PolarCode(20, 17, kernel='{kernel}', decoder='optimal', groups=3)"
    )
    assert sorted(code.codeword_positions.tolist()) == sorted(set(code.codeword_positions.tolist()))
    assert len(code.frozen_set) == 10
    assert isinstance(PolarCode(40, 30, kernel, groups=1), type(PolarCode(40, 30, kernel)))


BAD_GROUPS = [
    ((40, 30, "rotation"), r"groups must be an integer from 1 to 10, not 11: each group needs"),
    (((1 << 20) + 1, 3, "rotation"), r"groups require 1 <= k < n <= 1048576, not n = 1048577, k = 3"),
    ((200_000, 150_000, "arikan", "greedy"), "decoder must be 'optimal' or 'sequential', not 'greedy'"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_GROUPS)
def test_bad_groups_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(CodeError, match=message):
        PolarCode(*arguments, groups=11)


def test_one_erasure_probability_per_worker_is_refused() -> None:
    with pytest.raises(CodeError, match=r"one probability per worker, which groups=2 does not support"):
        PolarCode(4, 2, "arikan", erasure=[0.1] * 4, groups=2)


def test_the_probability_that_a_group_runs_out_equals_a_simulation() -> None:
    code, loss_rate = PolarCode(60, 42, groups=3), 0.25
    lost = np.random.default_rng(0).random((20_000, code.n)) < loss_rate
    runs_out = np.zeros(len(lost), bool)
    for blocks, group_code in zip(code.group_blocks, code.group_codes):
        runs_out |= lost[:, blocks].sum(axis=1) > group_code.n - group_code.k
    assert code.compute_failure_probability(loss_rate) == pytest.approx(runs_out.mean(), rel=0.05)
    assert [code.compute_failure_probability(rate) for rate in (0.0, 1.0)] == [0.0, 1.0]
    guarantee = code.get_group_guarantee(0.05)
    assert (guarantee.n_groups, guarantee.max_losses) == (3, 6)
    assert PolarCode(60, 42).get_group_guarantee(0.05) is None


def test_default_codes_of_many_tasks_run_out_with_a_probability_below_one_in_a_billion() -> None:
    for n in (5_000, 20_000, 100_000):
        code = PolarCode(n, 3 * n // 4, groups=choose_n_groups(n, 3 * n // 4))
        assert code.compute_failure_probability(0.05) < 1e-90
        assert code.compute_failure_probability(0.15) < 1e-9
