"""Every arrival pattern of every small code, against the oracles."""

from __future__ import annotations

from functools import cache

import code_oracles as oracles
import numpy as np
import pytest

from polarmap.code.polar import PolarCode
from polarmap.code.recovery import Decoder
from polarmap.errors import NotDecodableError

SIZES = [(n, k) for n in range(2, 9) for k in range(1, n)]
SIZES += [(9, 2), (9, 6), (10, 3), (10, 5), (10, 8)]
by_size = pytest.mark.parametrize(("n", "k"), SIZES)


@cache
def rotation(n: int, k: int) -> PolarCode:
    return PolarCode(n, k)


@cache
def arikan(n: int, k: int, decoder: str = "optimal") -> PolarCode:
    return PolarCode(n, k, "arikan", decoder)


def received(coded: np.ndarray, arrived: np.ndarray) -> dict[int, np.ndarray]:
    return {int(index): coded[index] for index in np.flatnonzero(arrived)}


@by_size
def test_rotation_decodes_what_any_decoder_could(n: int, k: int) -> None:
    code = rotation(n, k)
    for arrived in oracles.patterns(n):
        assert code.decodable(arrived) == oracles.real_rank_decodable(code.parity_check, arrived)


@by_size
def test_rotation_is_mds_at_these_sizes(n: int, k: int) -> None:
    for arrived in oracles.patterns(n):
        assert rotation(n, k).decodable(arrived) == (arrived.sum() >= k)


@by_size
def test_rotation_recovers_what_least_squares_does(n: int, k: int) -> None:
    code = rotation(n, k)
    data = np.random.default_rng(n * k).standard_normal((k, 3))
    coded = code.encode(data)
    noisy = coded + 1e-3 * np.random.default_rng(n + k).standard_normal(coded.shape)
    for arrived in oracles.patterns(n):
        if not code.decodable(arrived):
            with pytest.raises(NotDecodableError):
                code.decode(received(coded, arrived))
            continue
        np.testing.assert_allclose(code.decode(received(coded, arrived)), data, atol=1e-9)
        expected = oracles.least_squares(code.parity_check, arrived, noisy)
        np.testing.assert_allclose(code.decode(received(noisy, arrived)), expected, atol=1e-9)


@by_size
def test_arikan_check_matrix_is_the_frozen_rows_of_the_inverse(n: int, k: int) -> None:
    code = arikan(n, k)
    generator = np.concatenate([np.eye(k, dtype=int), code.coefficients])
    assert not (oracles.polar_check(code) @ generator).any()
    assert not (code.parity_check @ generator).any()


@by_size
def test_arikan_decodes_integers_iff_the_rank_modulo_two_is_full(n: int, k: int) -> None:
    code, check = arikan(n, k), oracles.polar_check(arikan(n, k))
    for arrived in oracles.patterns(n):
        assert code.decodable(arrived) == oracles.gf2_decodable(check, arrived)


@by_size
def test_arikan_decodes_reals_iff_the_rank_is_full(n: int, k: int) -> None:
    code, check = arikan(n, k), oracles.polar_check(arikan(n, k))
    for arrived in oracles.patterns(n):
        expected = oracles.real_rank_decodable(check, arrived)
        assert code.decodable(arrived, exact=False) == expected


@by_size
def test_arikan_integers_are_those_of_rational_arithmetic(n: int, k: int) -> None:
    code, check = arikan(n, k), oracles.polar_check(arikan(n, k))
    data = np.random.default_rng(n * k).integers(-(2**40), 2**40, k)
    coded = code.encode(data)
    for arrived in oracles.patterns(n):
        if not oracles.gf2_decodable(check, arrived):
            with pytest.raises(NotDecodableError):
                code.decode(received(coded, arrived))
            continue
        lost = oracles.fraction_solve(check, arrived, coded)
        expected = [lost.get(j, coded[j]) for j in range(k)]
        assert code.decode(received(coded, arrived)).tolist() == expected == data.tolist()


@by_size
def test_sequential_decodes_iff_the_genie_does(n: int, k: int) -> None:
    code = arikan(n, k, "sequential")
    for arrived in oracles.patterns(n):
        lost_data = not arrived[:k].all()
        assert code.decodable(arrived) == (oracles.sequential_decodable(code, arrived) or not lost_data)


@by_size
def test_sequential_decodes_only_what_optimal_does(n: int, k: int) -> None:
    same = PolarCode(n, k, "arikan", erasure=arikan(n, k, "sequential").erasure)
    for arrived in oracles.patterns(n):
        if arikan(n, k, "sequential").decodable(arrived):
            assert same.decodable(arrived)


@by_size
def test_sequential_recovers_floats_and_integers(n: int, k: int) -> None:
    code = arikan(n, k, "sequential")
    data = np.random.default_rng(n * k).integers(-1000, 1000, (k, 2))
    whole, real = code.encode(data), code.encode(data.astype(float))
    for arrived in filter(code.decodable, oracles.patterns(n)):
        assert code.decode(received(whole, arrived)).tolist() == data.tolist()
        assert code.decode(received(real, arrived)).tolist() == data.tolist()


@by_size
@pytest.mark.parametrize("kind", ["rotation", "arikan", "exact", "sequential"])
def test_arrivals_one_by_one_say_what_a_fresh_look_says(n: int, k: int, kind: str) -> None:
    code = rotation(n, k) if kind == "rotation" else arikan(n, k)
    if kind == "sequential":
        code = arikan(n, k, "sequential")
    exact = kind in ("exact", "sequential")
    stream = np.random.default_rng(n * k)
    for _ in range(10):
        decoder, said = Decoder(code, exact=exact), []
        arrived = np.zeros(n, bool)
        for index in stream.permutation(n).tolist():
            arrived[index] = True
            said.append(decoder.add(index))
            assert said[-1] == code.decodable(arrived, exact=exact)
        assert said == sorted(said), "once ready, ready for ever"
        assert said[-1]
