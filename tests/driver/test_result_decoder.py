"""Tests of when the received results determine the missing ones, and of the accuracy of decoding."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from coded_maps import (
    DATA,
    FLOATS,
    LOST_DATA,
    VIRTUAL_SECONDS,
    WHOLE,
    K,
    N,
    coded,
    losing,
    product,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st
from plain import arrivals, arriving, assert_same, cut, plain_map

from polarmap import coded_map
from polarmap.codes import ArrivalTracker, PolarCode
from polarmap.driver.function_properties import VERIFIED_PROPERTIES
from polarmap.testing import ReplayExecutor

FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "twice": lambda block: block + block,
    "sums": lambda block: block.sum(axis=0),
    "two arrays": lambda block: (block[1:], block.T[0]),
    "sum": lambda block: block.sum(),
    "column minus one": lambda block: block[:, :1] - 1,
}


@settings(derandomize=True, max_examples=150)
@given(
    k=st.integers(1, 10),
    parity=st.integers(1, 6),
    lost=st.integers(0, 6),
    dtype=st.sampled_from(["f2", "f4", "f8", "c8", "c16", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"]),
    seed=st.integers(0, 1000),
    kernel=st.sampled_from(["auto", "arikan", "sequential"]),
    name=st.sampled_from(sorted(FUNCTIONS)),
)
@example(k=4, parity=1, lost=1, dtype="f2", seed=279, kernel="auto", name="column minus one")
def test_any_code_order_and_dtype_gives_the_plain_map(
    k: int, parity: int, lost: int, dtype: str, seed: int, kernel: str, name: str
) -> None:
    VERIFIED_PROPERTIES.clear()
    f, stream = FUNCTIONS[name], np.random.default_rng(seed)
    kind = np.dtype(dtype).kind
    low, high = (0, 9) if kind in "fc" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    data = stream.integers(low, high, (2 * k, 3), endpoint=True, dtype=dtype if kind in "iu" else np.int64)
    data = data.astype(dtype)
    n = k + parity
    code = PolarCode(n, k, "arikan", "sequential") if kernel == "sequential" else kernel
    seconds = {task: float(turn) for turn, task in enumerate(stream.permutation(n).tolist())}
    late = dict.fromkeys(stream.permutation(n)[: min(lost, parity)].tolist(), 100.0)
    options = {"blocks": k, "tasks": n, "code": code, "timeout": VIRTUAL_SECONDS}
    result = coded_map(f, data, executor=ReplayExecutor(seconds | late), **options)
    assert_same(result, plain_map(f, data, k), {"f2": 0.2, "f4": 1e-4, "c8": 1e-4}.get(dtype, 1e-9))


@settings(derandomize=True, max_examples=60)
@given(lost=st.sets(st.integers(0, 6), max_size=3), seed=st.integers(0, 99), top=st.sampled_from([8, 60, 64]))
def test_unsigned_products_of_64_bits_are_exact(lost: set[int], seed: int, top: int) -> None:
    stream = np.random.default_rng(seed)
    data = stream.integers(0, 2**top, (6, 3), dtype="u8")
    x = stream.integers(0, 9, 3, dtype="u8")
    if not PolarCode(7, 3, "arikan").is_decodable(~np.isin(np.arange(7), list(lost))):
        return
    result = coded_map(lambda block: block @ x, data, blocks=3, tasks=7, executor=losing(*lost))
    assert_same(result, plain_map(lambda block: block @ x, data, 3))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("dtype", "rtol"), [("f8", 1e-15), ("f8", 5e-15), ("f4", None), ("f4", 2e-6), ("f2", None)]
)
def test_decoding_waits_until_the_amplification_of_errors_is_small_enough(
    seed: int, dtype: str, rtol: float | None
) -> None:
    order = np.random.default_rng(seed).permutation(64).tolist()
    options = {"blocks": 48, "tasks": 64, "executor": arriving(order, 64), "verify": False, "rtol": rtol}
    report = coded(np.copy, DATA.repeat(2, axis=0).astype(dtype), **options).report
    allowed = {"f8": 1e-10, "f4": 1e-4, "f2": 0.1}[dtype] if rtol is None else rtol
    decoder = ArrivalTracker(PolarCode(64, 48), max_amplification=allowed / np.finfo(dtype).eps)
    assert report.needed == needed_by(decoder, order)
    assert report.error_bound <= allowed
    assert report.error_bound == pytest.approx(report.amplification * np.finfo(dtype).eps)


def test_a_pattern_that_was_accurate_enough_stays_accepted() -> None:
    # One more equation can raise the amplification slightly, here above the limit again.
    code, (order, first, second) = PolarCode(6, 4), rising_amplification()
    assert first < second
    options = {"blocks": 4, "tasks": 6, "code": code, "executor": arriving(order, 6)}
    result = coded(np.copy, rtol=first * np.finfo(float).eps * 1.0001, **options)
    assert_same(result, cut(DATA, 4), 1e-11)
    assert result.report.verified == "parity"
    assert result.report.seconds == pytest.approx(1.4)


def rising_amplification() -> tuple[list[int], float, float]:
    """Return five arrivals whose last one raises the amplification, and its value before and after."""
    for seed in range(100):
        order = np.random.default_rng(seed).permutation(6).tolist()[:5]
        first, second = (amplification(PolarCode(6, 4), order[:count]) for count in (4, 5))
        if 0 < 1.01 * first < second:
            return order, first, second
    raise AssertionError("no such order")


def amplification(code: PolarCode, arrived: list[int]) -> float:
    decoder = ArrivalTracker(code)
    for index in arrived:
        decoder.add(index)
    return decoder.amplification


def test_a_result_more_precise_than_its_data_is_as_accurate_as_the_data() -> None:
    report = coded(executor=ReplayExecutor(LOST_DATA), data=DATA.astype("f4"), verify=False).report
    assert report.error_bound == pytest.approx(report.amplification * np.finfo("f4").eps)


def test_integers_have_no_error_but_floats_made_of_them_have() -> None:
    order = arrivals(PolarCode(N, K, "arikan"), N - 2, np.random.default_rng(0), exact=True)
    assert coded(np.copy, WHOLE, executor=arriving(order, N)).report.error_bound == 0
    assert 0 < coded(product, WHOLE, executor=arriving(order, N)).report.error_bound < 1e-12


def test_floats_made_of_integers_need_not_wait_until_integers_could_be_decoded() -> None:
    code = PolarCode(N, K, "arikan", erasure=1 / 12)
    orders = [np.random.default_rng(seed).permutation(N).tolist() for seed in range(20)]
    needed = [
        [needed_by(ArrivalTracker(code, modular=exact), order) for exact in (True, False)] for order in orders
    ]
    assert [1, 1] in [[exact > inexact, inexact < N] for exact, inexact in needed]
    for order, (exact, inexact) in zip(orders, needed):
        options = {"executor": arriving(order, N), "verify": False, "code": code}
        assert coded(np.copy, WHOLE, **options).report.needed == exact
        assert coded(product, WHOLE, **options).report.needed == inexact


def needed_by(decoder: ArrivalTracker, order: list[int]) -> int:
    return next(turn for turn, index in enumerate(order, 1) if decoder.add(index))


def test_floats_in_results_with_integers_have_an_error_bound() -> None:
    data = [(block, float(block[0])) for block in WHOLE[:K]]
    order = arrivals(PolarCode(N, K, "arikan"), N - 2, np.random.default_rng(0), exact=True)
    result = coded(lambda pair: (pair[0], pair[1] / 7), data, executor=arriving(order, N))
    assert_same(result, plain_map(lambda pair: (pair[0], pair[1] / 7), data, K), 1e-11)
    assert 0 < result.report.error_bound < 1e-12


@pytest.mark.parametrize("dtype", ["u1", "i1", "u4", "i4", "u8"])
@pytest.mark.parametrize("f", [np.sum, np.copy, lambda block: block * 3])
def test_integers_keep_their_dtype_when_only_parity_arrives(dtype: str, f: Callable[[Any], Any]) -> None:
    limits = np.iinfo(dtype)
    data = np.random.default_rng(0).integers(limits.min, limits.max, (4, 6), dtype, endpoint=True)
    never = ReplayExecutor(dict.fromkeys(range(2), math.inf))
    result = coded_map(f, data, blocks=2, tasks=6, executor=never, timeout=VIRTUAL_SECONDS)
    assert_same(result, plain_map(f, data, 2))
    assert result.report.recovered == (0, 1)


@settings(derandomize=True, max_examples=40)
@given(lost=st.sets(st.integers(0, 31), min_size=1, max_size=8), scale=st.sampled_from([1e6, 1e9]))
def test_integers_made_of_floats_come_with_a_bound(lost: set[int], scale: float) -> None:
    f = lambda block: np.rint(block * scale).astype(np.int64)  # noqa: E731
    result = coded_map(f, FLOATS, blocks=24, tasks=32, executor=losing(*lost), verify=False)
    off = np.abs(result.concatenate() - f(FLOATS)).max()
    assert off <= result.report.error_bound * np.abs(f(FLOATS)).max()
    assert (result.report.error_bound == 0) == (not result.report.recovered)


def test_integers_made_of_floats_come_with_a_bound_under_the_exact_code_too() -> None:
    f = lambda block: np.rint(block * 1e9).astype(np.int64)  # noqa: E731
    options = {"blocks": 8, "tasks": 12, "code": "arikan", "verify": False}
    result = coded_map(f, FLOATS, executor=losing(0, 8), **options)
    off = np.abs(result.concatenate() - f(FLOATS)).max()
    assert off <= result.report.error_bound * np.abs(f(FLOATS)).max()
    assert result.report.error_bound > 0
