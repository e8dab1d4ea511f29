"""Tests of decoding floating-point results. The oracle is dense least squares."""

from __future__ import annotations

import code_oracles as oracles
import numpy as np
import pytest
from polar_codes import arikan, arrive, by_size, received, rotation

from polarmap.codes import real_decoders
from polarmap.codes.arrival_tracker import ArrivalTracker
from polarmap.codes.polar import PolarCode
from polarmap.codes.real_decoders import compute_left_inverse, compute_max_amplification
from polarmap.errors import NotDecodableError


@pytest.mark.parametrize(
    "code",
    [PolarCode(24, 16), PolarCode(24, 16, "arikan"), PolarCode(24, 16, "arikan", "sequential")],
    ids=["rotation", "arikan", "sequential"],
)
def test_errors_grow_by_the_amplification_and_no_more(code: PolarCode) -> None:
    stream = np.random.default_rng(3)
    for _ in range(20):
        decoder = arrive(code, stream.permutation(24))
        if not len(decoder.missing_indices):
            continue
        recovery = decoder.decoder
        noise = stream.standard_normal((decoder.n_arrived, 50))
        noise[:, 0] = recovery.weights[np.argmax(np.linalg.norm(recovery.weights, axis=1))]
        noise /= np.linalg.norm(noise, axis=0)
        errors = recovery.decode(
            dict(zip(recovery.arrived_indices.tolist(), noise, strict=True)), np.dtype(float)
        )
        assert np.abs(errors).max() == pytest.approx(decoder.amplification)


def test_exact_recoveries_amplify_nothing() -> None:
    code = PolarCode(16, 8, "arikan")
    guarded = arrive(code, np.arange(15, -1, -1), modular=True, max_amplification=1e-300)
    plain = arrive(code, np.arange(15, -1, -1), modular=True)
    assert guarded.n_arrived == plain.n_arrived
    assert len(guarded.missing_indices)
    assert guarded.amplification == 0


def test_recover_rounds_integers_of_an_inexact_recovery() -> None:
    code = PolarCode(6, 4)
    data = np.arange(12.0).reshape(4, 3)
    coded = code.encode(data)
    decoder = arrive(code, np.arange(5, -1, -1))
    rows = {i: coded[i] for i in range(2, 6)}
    recovered = decoder.decoder.decode(rows, np.dtype("i4"))
    assert recovered.dtype == np.int32
    assert recovered.tolist() == data[:2].astype(int).tolist()


def test_recover_takes_strided_rows() -> None:
    code = PolarCode(6, 4)
    for dtype in (float, complex):
        coded = code.encode(np.arange(24).reshape(4, 6).astype(dtype))
        decoder = arrive(code, np.arange(5, -1, -1))
        rows = {i: np.repeat(coded[i], 2)[::2] for i in range(2, 6)}
        recovered = decoder.decoder.decode(rows, np.dtype(dtype))
        np.testing.assert_allclose(recovered, coded[:2], atol=1e-12)


def test_left_inverse_is_infinite_when_the_rank_is_short() -> None:
    assert np.isinf(compute_left_inverse(np.ones((3, 2)))).all()
    assert np.isinf(compute_left_inverse(np.ones((1, 2)))).all()


def test_the_worst_amplification_matches_the_decoder() -> None:
    code = PolarCode(12, 8)
    for seed in range(20):
        arrived = np.sort(np.random.default_rng(seed).permutation(12)[:8])
        decoder = arrive(code, arrived)
        expected = compute_max_amplification(code.encoding_matrix, arrived[np.newaxis])
        assert decoder.amplification == pytest.approx(expected)


@by_size
def test_rotation_decoding_matches_least_squares(n: int, k: int) -> None:
    code = rotation(n, k)
    data = np.random.default_rng(n * k).standard_normal((k, 3))
    coded = code.encode(data)
    noisy = coded + 1e-3 * np.random.default_rng(n + k).standard_normal(coded.shape)
    for arrived in oracles.patterns(n):
        if not code.is_decodable(arrived):
            with pytest.raises(NotDecodableError):
                code.decode(received(coded, arrived))
            continue
        expected = oracles.least_squares(code.parity_check_matrix, arrived, noisy)
        decoded = code.decode(received(np.hstack([coded, noisy]), arrived))
        np.testing.assert_allclose(decoded, np.hstack([data, expected]), atol=1e-9)


@by_size
def test_arikan_decodes_reals_iff_the_rank_is_full(n: int, k: int) -> None:
    code, check = arikan(n, k), oracles.polar_check(arikan(n, k))
    for arrived in oracles.patterns(n):
        expected = oracles.real_rank_decodable(check, arrived)
        assert code.is_decodable(arrived, modular=False) == expected


@pytest.mark.parametrize(
    "code", [PolarCode(40, 30), PolarCode(40, 30, "arikan"), PolarCode(2304, 2048)], ids=repr
)
def test_an_updated_decoder_is_as_accurate_as_a_new_one(
    code: PolarCode, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(3):
        decoder, order = ArrivalTracker(code), np.random.default_rng(seed).permutation(code.n).tolist()
        count = next(count for count, index in enumerate(order, 1) if decoder.add(index))
        first = decoder.decoder
        for more in (1, 3):
            for index in order[count : count + more]:
                decoder.add(index)
            count += more
            anew = code.make_decoder(decoder.arrived_mask.copy(), modular=False)
            expected = anew.weights, anew.compute_parity_check_matrix(8)
            with monkeypatch.context() as patched:
                patched.setattr(
                    real_decoders, "compute_left_inverse", lambda _: pytest.fail("factorized again")
                )
                actual = decoder.decoder.weights, decoder.decoder.compute_parity_check_matrix(8)
            np.testing.assert_allclose(actual[0], expected[0], atol=1e-10)
            np.testing.assert_allclose(actual[1] @ code.generator_matrix[anew.arrived_indices], 0, atol=1e-12)
            assert actual[1].shape == expected[1].shape
        assert decoder.decoder is not first


def test_an_inaccurate_decoder_is_not_updated() -> None:
    code, decoder = PolarCode(40, 30), ArrivalTracker(PolarCode(40, 30))
    for index in range(39, 9, -1):
        decoder.add(index)
    decoder.decoder._pseudo_inverse[:] += 1e-3
    decoder.add(3)
    assert (
        decoder.decoder.weights == code.make_decoder(decoder.arrived_mask.copy(), modular=False).weights
    ).all()
