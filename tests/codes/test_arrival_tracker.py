"""Tests of when arrivals can be decoded, and of the states and errors before that."""

from __future__ import annotations

import numpy as np
import pytest
from polar_codes import arikan, arrive, by_size, rotation

from polarmap.codes.arrival_tracker import ArrivalTracker, DecodingState
from polarmap.codes.polar import PolarCode
from polarmap.errors import CodeError, NotDecodableError


def test_counts_each_arrival_once() -> None:
    decoder = ArrivalTracker(PolarCode(6, 4))
    assert [decoder.add(i) for i in (0, 0, 5, 5, 1, 2)] == [False] * 5 + [True]
    assert (decoder.n_arrived, decoder.n_redundant_checks) == (4, 0)
    assert decoder.missing_indices.tolist() == [3]
    assert decoder.add(4)
    assert decoder.n_redundant_checks == 1


def test_ready_without_a_recovery_when_all_data_arrived() -> None:
    decoder = arrive(PolarCode(6, 4), np.arange(6))
    assert decoder.is_ready
    assert decoder.n_arrived == 4
    assert decoder.amplification == 0
    assert decoder.decoder.decode({i: np.zeros(2) for i in range(4)}, np.dtype(float)).shape == (0, 2)


@pytest.mark.parametrize("index", [-1, 6])
def test_refuses_positions_out_of_range(index: int) -> None:
    with pytest.raises(CodeError, match=f"must be an integer from 0 to 5, not {index}"):
        ArrivalTracker(PolarCode(6, 4)).add(index)


@pytest.mark.parametrize("n", [64, 256])
def test_rotation_is_ready_at_exactly_k_random_arrivals(n: int) -> None:
    code, stream = PolarCode(n, 3 * n // 4), np.random.default_rng(n)
    for _ in range(200):
        assert arrive(code, stream.permutation(n)).n_arrived == code.k


def test_rotation_is_accurate_at_exactly_k_random_arrivals() -> None:
    code, stream = PolarCode(64, 48), np.random.default_rng(64)
    worst = [arrive(code, stream.permutation(64)).amplification for _ in range(200)]
    assert np.median(worst) < 100
    assert np.quantile(worst, 0.95) < 2000


def test_the_sequential_arikan_decoder_needs_more_arrivals_than_the_optimal_one() -> None:
    stream = np.random.default_rng(0)
    orders = [stream.permutation(64) for _ in range(100)]

    def beyond(decoder: str) -> float:
        code = PolarCode(64, 48, "arikan", decoder)
        return np.mean([arrive(code, order, modular=True).n_arrived - 48 for order in orders])

    assert 0 < beyond("optimal") < beyond("sequential") < 8


def test_amplification_is_infinite_until_determined() -> None:
    for code in (PolarCode(8, 4), PolarCode(8, 4, "arikan", "sequential")):
        decoder = ArrivalTracker(code)
        for index in np.arange(7, -1, -1).tolist():
            assert decoder.is_ready == np.isfinite(decoder.amplification)
            decoder.add(index)
        assert decoder.is_ready


def test_waits_while_the_amplification_is_too_large() -> None:
    code, stream = PolarCode(64, 48), np.random.default_rng(5)
    waited = 0
    for _ in range(50):
        order = stream.permutation(64)
        decoder = ArrivalTracker(code, max_amplification=20)
        for index in order.tolist():
            ready = decoder.add(index)
            assert ready == (decoder.amplification <= 20)
            if ready:
                break
        waited += decoder.n_arrived - 48
    assert waited > 0


def test_states_follow_each_other_in_one_order() -> None:
    states = list(DecodingState)
    for seed in range(20):
        tracker = ArrivalTracker(PolarCode(32, 24), max_amplification=5)
        seen = [tracker.state]
        for index in np.random.default_rng(seed).permutation(32).tolist():
            is_ready = tracker.add(index)
            seen.append(tracker.state)
            assert is_ready == tracker.is_ready == (tracker.state is DecodingState.DECODABLE)
            assert (tracker.amplification == np.inf) == (tracker.state is DecodingState.UNDECODABLE)
        assert [states.index(state) for state in seen] == sorted(states.index(state) for state in seen)
        assert seen[-1] is DecodingState.DECODABLE and DecodingState.ILL_CONDITIONED in seen


def test_accepts_inaccurate_results_and_never_too_few() -> None:
    tracker = ArrivalTracker(PolarCode(32, 24), max_amplification=1e-9)
    assert not tracker.accept_ill_conditioned() and tracker.state is DecodingState.UNDECODABLE
    tracker = ArrivalTracker(PolarCode(32, 24), max_amplification=1e-9)
    for index in range(31, 7, -1):
        assert not tracker.add(index)
    assert tracker.state is DecodingState.ILL_CONDITIONED
    assert tracker.accept_ill_conditioned() and tracker.state is DecodingState.DECODABLE


def test_all_arrivals_are_accepted_at_any_amplification() -> None:
    assert arrive(PolarCode(64, 48), np.arange(63, -1, -1), max_amplification=1e-9).is_ready


@pytest.mark.parametrize("exact", [True, False])
def test_the_rank_is_checked_for_few_patterns(exact: bool) -> None:
    # A code designed at capacity needs many rank checks.
    code, stream = PolarCode(2000, 1500, "arikan", erasure=0.25), np.random.default_rng(0)
    decoder, looks = ArrivalTracker(code, modular=exact), 0
    for index in stream.permutation(2000).tolist():
        looks += decoder.n_arrived == decoder._next_rank_check
        if decoder.add(index):
            break
    assert decoder.n_arrived - code.k > 80
    assert looks < 0.7 * (decoder.n_arrived - code.k)


@by_size
@pytest.mark.parametrize("kind", ["rotation", "arikan", "exact", "sequential"])
def test_incremental_arrivals_match_a_new_tracker(n: int, k: int, kind: str) -> None:
    code = rotation(n, k) if kind == "rotation" else arikan(n, k)
    if kind == "sequential":
        code = arikan(n, k, "sequential")
    exact = kind in ("exact", "sequential")
    stream = np.random.default_rng(n * k)
    for _ in range(10):
        decoder, readiness = ArrivalTracker(code, modular=exact), []
        arrived = np.zeros(n, bool)
        for index in stream.permutation(n).tolist():
            arrived[index] = True
            readiness.append(decoder.add(index))
            assert readiness[-1] == code.is_decodable(arrived, modular=exact)
        assert readiness == sorted(readiness), "a ready tracker stays ready"
        assert readiness[-1]


# --- validation of arguments -----------------------------------------------------------


def test_blocks_may_be_strided_read_only_listed_or_byte_swapped() -> None:
    code = PolarCode(40, 30)
    for dtype in ("f8", "c16"):
        data = np.random.default_rng(0).standard_normal((30, 8)).astype(dtype)
        expected = code.encode_parity(data)
        strided = np.repeat(data, 2, axis=1)[:, ::2]
        strided.flags.writeable = False
        assert code.encode_parity(strided).tobytes() == expected.tobytes()
        swapped = data.astype(data.dtype.newbyteorder())
        assert code.encode_parity(swapped).tobytes() == expected.tobytes()
        assert code.encode(swapped)[30:].tobytes() == expected.tobytes()
        np.testing.assert_allclose(code.encode_parity(list(strided)), expected)
        np.testing.assert_allclose(code.encode_parity(np.asfortranarray(data)), expected)


def test_decode_refuses_blocks_that_do_not_match() -> None:
    code = PolarCode(6, 4, "arikan")
    rows = {i: np.zeros(3, "i2") for i in range(4)}
    for index in (-1, 6, "a", 1.0):
        with pytest.raises(CodeError, match=f"must be an integer from 0 to 5, not {index!r}"):
            code.decode({index: np.zeros(3)})
    with pytest.raises(CodeError, match=r"block 3 is int16 of shape \(2,\), but block 0 is int16"):
        code.decode(rows | {3: np.zeros(2, "i2")})
    with pytest.raises(CodeError, match="block 3 is int32"):
        code.decode(rows | {3: np.zeros(3, "i4")})
    with pytest.raises(CodeError, match="block 4 is float64"):
        code.decode(rows | {4: np.zeros(3)})
    with pytest.raises(NotDecodableError, match="blocks is empty, but decoding needs at least 4"):
        code.decode({})
    with pytest.raises(NotDecodableError, match=r"2 of 6 blocks .* at least 2 more"):
        code.decode({0: rows[0], 1: rows[1]})
