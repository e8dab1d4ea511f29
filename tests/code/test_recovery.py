from __future__ import annotations

import numpy as np
import pytest

from polarmap.code.polar import PolarCode
from polarmap.code.recovery import Decoder, left_inverse, worst_amplification
from polarmap.errors import CodeError


def arrive(code: PolarCode, order: np.ndarray, **options: float) -> Decoder:
    """A decoder that was told of arrivals in `order` until it was ready."""
    decoder = Decoder(code, **options)
    for index in order.tolist():
        if decoder.add(index):
            break
    return decoder


def test_counts_each_arrival_once() -> None:
    decoder = Decoder(PolarCode(6, 4))
    assert [decoder.add(i) for i in (0, 0, 5, 5, 1, 2)] == [False] * 5 + [True]
    assert (decoder.count, decoder.surplus) == (4, 0)
    assert decoder.missing.tolist() == [3]
    assert decoder.add(4)
    assert decoder.surplus == 1


def test_ready_without_a_plan_when_all_data_arrived() -> None:
    decoder = arrive(PolarCode(6, 4), np.arange(6))
    assert decoder.ready
    assert decoder.count == 4
    assert decoder.amplification == 0
    assert decoder.plan.recover({i: np.zeros(2) for i in range(4)}, np.dtype(float)).shape == (0, 2)


@pytest.mark.parametrize("index", [-1, 6])
def test_refuses_positions_out_of_range(index: int) -> None:
    with pytest.raises(CodeError, match=f"positions run from 0 to 5, not {index}"):
        Decoder(PolarCode(6, 4)).add(index)


@pytest.mark.parametrize("n", [64, 256])
def test_rotation_is_ready_at_exactly_k_random_arrivals(n: int) -> None:
    code, stream = PolarCode(n, 3 * n // 4), np.random.default_rng(n)
    for _ in range(200):
        assert arrive(code, stream.permutation(n)).count == code.k


def test_rotation_is_accurate_at_exactly_k_random_arrivals() -> None:
    code, stream = PolarCode(64, 48), np.random.default_rng(64)
    worst = [arrive(code, stream.permutation(64)).amplification for _ in range(200)]
    assert np.median(worst) < 100
    assert np.quantile(worst, 0.95) < 2000


def test_arikan_needs_more_arrivals_one_by_one_than_at_once() -> None:
    stream = np.random.default_rng(0)
    orders = [stream.permutation(64) for _ in range(100)]

    def beyond(decoder: str) -> float:
        code = PolarCode(64, 48, "arikan", decoder)
        return np.mean([arrive(code, order, exact=True).count - 48 for order in orders])

    assert 0 < beyond("optimal") < beyond("sequential") < 8


@pytest.mark.parametrize(
    "code",
    [PolarCode(24, 16), PolarCode(24, 16, "arikan"), PolarCode(24, 16, "arikan", "sequential")],
    ids=["rotation", "arikan", "sequential"],
)
def test_errors_grow_by_the_amplification_and_no_more(code: PolarCode) -> None:
    stream = np.random.default_rng(3)
    for _ in range(20):
        decoder = arrive(code, stream.permutation(24))
        if not len(decoder.missing):
            continue
        plan = decoder.plan
        noise = stream.standard_normal((decoder.count, 50))
        noise[:, 0] = plan.weights[np.argmax(np.linalg.norm(plan.weights, axis=1))]
        noise /= np.linalg.norm(noise, axis=0)
        errors = plan.recover(dict(zip(plan.arrived.tolist(), noise, strict=True)), np.dtype(float))
        assert np.abs(errors).max() == pytest.approx(decoder.amplification)


def test_amplification_is_infinite_until_determined() -> None:
    for code in (PolarCode(8, 4), PolarCode(8, 4, "arikan", "sequential")):
        decoder = Decoder(code)
        for index in np.arange(7, -1, -1).tolist():
            assert decoder.ready == np.isfinite(decoder.amplification)
            decoder.add(index)
        assert decoder.ready


def test_waits_while_the_amplification_is_too_large() -> None:
    code, stream = PolarCode(64, 48), np.random.default_rng(5)
    waited = 0
    for _ in range(50):
        order = stream.permutation(64)
        decoder = Decoder(code, max_amplification=20)
        for index in order.tolist():
            ready = decoder.add(index)
            assert ready == (decoder.amplification <= 20)
            if ready:
                break
        waited += decoder.count - 48
    assert waited > 0


def test_exact_plans_amplify_nothing() -> None:
    code = PolarCode(16, 8, "arikan")
    guarded = arrive(code, np.arange(15, -1, -1), exact=True, max_amplification=1e-300)
    plain = arrive(code, np.arange(15, -1, -1), exact=True)
    assert guarded.count == plain.count
    assert len(guarded.missing)
    assert guarded.amplification == 0


def test_all_arrivals_are_accepted_at_any_amplification() -> None:
    assert arrive(PolarCode(64, 48), np.arange(63, -1, -1), max_amplification=1e-9).ready


def test_recover_rounds_integers_of_an_inexact_plan() -> None:
    code = PolarCode(6, 4)
    data = np.arange(12.0).reshape(4, 3)
    coded = code.encode(data)
    decoder = arrive(code, np.arange(5, -1, -1))
    rows = {i: coded[i] for i in range(2, 6)}
    recovered = decoder.plan.recover(rows, np.dtype("i4"))
    assert recovered.dtype == np.int32
    assert recovered.tolist() == data[:2].astype(int).tolist()


def test_recover_takes_strided_rows() -> None:
    code = PolarCode(6, 4)
    for dtype in (float, complex):
        coded = code.encode(np.arange(24).reshape(4, 6).astype(dtype))
        decoder = arrive(code, np.arange(5, -1, -1))
        rows = {i: np.repeat(coded[i], 2)[::2] for i in range(2, 6)}
        recovered = decoder.plan.recover(rows, np.dtype(dtype))
        np.testing.assert_allclose(recovered, coded[:2], atol=1e-12)


def test_left_inverse_is_infinite_when_the_rank_is_short() -> None:
    assert np.isinf(left_inverse(np.ones((3, 2)))).all()
    assert np.isinf(left_inverse(np.ones((1, 2)))).all()


def test_worst_amplification_is_the_decoders() -> None:
    code = PolarCode(12, 8)
    for seed in range(20):
        arrived = np.sort(np.random.default_rng(seed).permutation(12)[:8])
        decoder = arrive(code, arrived)
        expected = worst_amplification(code.coefficients, arrived)
        assert decoder.amplification == pytest.approx(expected)


@pytest.mark.parametrize("exact", [True, False])
def test_looks_at_few_patterns_on_the_way(exact: bool) -> None:
    # designed at capacity, which leaves much to look at
    code, stream = PolarCode(2000, 1500, "arikan", erasure=0.25), np.random.default_rng(0)
    decoder, looks = Decoder(code, exact=exact), 0
    for index in stream.permutation(2000).tolist():
        looks += decoder.count == decoder._look_again_at
        if decoder.add(index):
            break
    assert decoder.count - code.k > 80
    assert looks < 0.7 * (decoder.count - code.k)
