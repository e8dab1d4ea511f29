"""Tests of f that turns 64-bit integers into Python integers or floats: a correct result or a clear error."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import numpy as np
import pytest
from coded_maps import losing
from plain import assert_same, plain_map

from polarmap import coded_map
from polarmap.errors import CodedTimeoutError, CodeError, NotDecodableError, NotLinearError
from polarmap.testing import Fault, FaultyExecutor, ReplayExecutor

LARGE = np.random.default_rng(0).integers(-(2**62), 2**62, (6, 3))


def minus_the_sum(block: np.ndarray) -> int:
    return -int(block.astype(object).sum())


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("lost", [(), (0,), (1, 2)])
def test_python_integers_come_back_with_their_sign(lost: tuple[int, ...], sign: int) -> None:
    data = np.array([[2**62], [2**62 - 1], [3], [4]]) * sign
    f = lambda block: int(block.sum()) + int(block.sum()) // 1  # noqa: E731  beyond int64 for the first
    result = coded_map(f, data[:, 0].reshape(4, 1) // 8, blocks=4, tasks=8, executor=losing(*lost))
    assert list(result) == plain_map(f, data // 8, 4)
    unsigned = np.array([[2**63 + 5], [2**61], [2**61], [2**61]], "u8")
    total = lambda block: int(block.sum())  # noqa: E731
    options = {"blocks": 4, "tasks": 8, "timeout": 100}
    with contextlib.suppress(CodeError):  # raised if parity has wrapped around
        assert list(coded_map(total, unsigned, executor=losing(*lost), **options)) == unsigned[:, 0].tolist()


@pytest.mark.parametrize("lost", [(0,), (1, 2), (0, 1, 2)])
@pytest.mark.parametrize("data", [LARGE, LARGE.astype("u8")], ids=["int64", "uint64"])
@pytest.mark.parametrize("verify", [False, "auto", True])
def test_floats_of_wrapped_integers_are_refused(data: np.ndarray, lost: tuple[int, ...], verify: Any) -> None:
    f, options = (lambda block: block @ np.ones(3)), {"blocks": 3, "tasks": 7, "verify": verify}
    with pytest.raises(CodeError, match=r"missing and cannot be decoded: f turns u?int64 .*astype\(float\)"):
        coded_map(f, data, executor=losing(*lost), **options)
    small = data % 1000
    if data.dtype == np.int64:  # f is accepted for small numbers, and later refused for large ones.
        assert_same(coded_map(f, small, executor=losing(*lost), **options), plain_map(f, small, 3), 1e-9)
        with pytest.raises(CodeError, match="modulo 2"):
            coded_map(f, data, executor=losing(*lost), **options)


@pytest.mark.filterwarnings("ignore:all data tasks reported")
@pytest.mark.parametrize("verify", [False, "auto"])
@pytest.mark.parametrize("late", [(0,), (1, 2), (0, 1, 2)])
@pytest.mark.parametrize("data", [LARGE, LARGE.astype("u8")], ids=["int64", "uint64"])
def test_a_map_waits_for_late_data_tasks_if_wrapped_parity_cannot_replace_them(
    data: np.ndarray, late: tuple[int, ...], verify: Any
) -> None:
    options = {"blocks": 3, "tasks": 7, "verify": verify}
    seconds = {task: 5.0 + task for task in late}
    for faults in ({}, {late[0]: Fault("kill")}):  # A task whose worker was lost is retried.
        executor = FaultyExecutor(ReplayExecutor(seconds), faults)
        for f, blocks in ((lambda block: block @ np.ones(3), data), (minus_the_sum, data // 16)):
            result = coded_map(f, blocks, executor=executor, **options)
            assert_same(result, plain_map(f, blocks, 3))


@pytest.mark.parametrize(
    ("f", "data", "why"),
    [
        (lambda block: block @ np.ones(3), LARGE, "f turns int64 blocks into float64"),
        (minus_the_sum, np.array([[-(2**62)], [5], [-(2**61)], [7]]), "f returns Python integers"),
    ],
)
def test_a_timeout_error_explains_why_a_late_data_task_was_awaited(
    f: Any, data: np.ndarray, why: str
) -> None:
    with pytest.raises(CodeError, match=why):
        coded_map(f, data, blocks=len(data), tasks=2 * len(data), executor=losing(0), timeout=9)


def test_floats_of_wrapped_integers_cause_a_warning_without_losses() -> None:
    f, options = (lambda block: block @ np.ones(3)), {"blocks": 3, "tasks": 7}
    with pytest.warns(RuntimeWarning, match=r"those of a plain map, but a lost one .*f turns int64"):
        result = coded_map(f, LARGE, executor=losing(), **options)
    assert_same(result, plain_map(f, LARGE, 3))
    with pytest.raises(CodeError, match="f turns int64 blocks into float64"):
        coded_map(f, LARGE, executor=losing(), verify=True, **options)


def added_up(block: np.ndarray) -> int:
    return sum(block.ravel().tolist())


INTO_PYTHON = {
    "sum": lambda block: int(block.sum()),
    "minus the sum": lambda block: -int(block.sum()),
    "Python sum": added_up,
    "difference": lambda block: block.ravel().tolist()[0] - block.ravel().tolist()[-1],
    "sum as uint64": lambda block: int(block.astype(np.uint64).sum()),
    "object sum": lambda block: block.astype(object).sum(),
    "float of the sum": lambda block: float(block.sum()),
}


def draw_integers(stream: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Draw 64-bit integers: small, of the whole range, or near its upper end."""
    dtype = np.dtype(stream.choice(["i8", "u8"]))
    limits, bits = np.iinfo(dtype), int(stream.integers(3, 65))
    high = min(int(limits.max), 1 << bits)
    low = stream.choice([max(int(limits.min), -high), high // 2]) if bits < 63 else int(limits.min)
    return stream.integers(int(low), high, shape, dtype, endpoint=True)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", INTO_PYTHON)
def test_python_integers_and_floats_of_64_bits_are_correct_or_refused(name: str) -> None:
    f, exact = INTO_PYTHON[name], 0
    for seed in range(150):
        stream = np.random.default_rng(seed)
        k, spare, rows = (int(stream.integers(1, top)) for top in (8, 6, 40))
        data = draw_integers(stream, (k * rows, 2))
        seconds = dict(enumerate((1 + stream.random(k + spare)).tolist()))
        lost = dict.fromkeys(
            stream.permutation(k + spare)[: stream.integers(1, spare + 1)].tolist(), math.inf
        )
        # The timeout bounds the number of polls, because lost tasks never report anything.
        options = {"blocks": k, "tasks": k + spare, "timeout": 60}
        options["verify"] = stream.choice([True, False]).item()
        try:
            result = coded_map(f, data, executor=ReplayExecutor(seconds | lost), **options)
        except (CodeError, CodedTimeoutError, NotDecodableError, NotLinearError):
            continue
        except TypeError as error:  # More tasks than may be missing can fail, including data tasks.
            fit = all(-(2**63) <= value < 2**64 for value in plain_map(f, data, k))
            if fit or "numpy's have 64" not in str(error):
                raise
            continue
        exact += 1
        assert_same(result, plain_map(f, data, k), 1e-10 if name.startswith("float") else 0.0)
    assert exact > 20


def test_the_error_explains_why_a_python_integer_is_refused() -> None:
    data = np.array([[-(2**62)], [5], [-(2**61)], [7]])
    options = {"blocks": 4, "tasks": 8, "executor": losing(0)}
    with pytest.raises(CodeError, match=r"may be off by 2\^64, .* return numpy integers"):
        coded_map(lambda block: int(block.sum()), data, **options)
    result = coded_map(lambda block: block.sum(), data, **options)
    assert list(result) == data[:, 0].tolist()
    assert list(coded_map(lambda block: int(block.sum()), data // 2**50, **options)) == [
        -(2**12),
        0,
        -(2**11),
        0,
    ]
