"""Faults come at the right call, and change nothing but what they should."""

from __future__ import annotations

import time

import numpy as np
import pytest

from polarmap.worker.faults import Fault, FaultyCall, corrupted
from polarmap.worker.pytree import pack


def test_a_sleep_is_spread_over_the_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    call = FaultyCall(pack, Fault("sleep", 0.2), count=4)
    assert call(1) == pack(1)
    assert slept == pytest.approx([0.05])
    for _ in range(3):
        call(1)
    assert sum(slept) == pytest.approx(0.2)


@pytest.mark.parametrize(("count", "good"), [(1, 0), (2, 1), (5, 2)])
def test_an_exception_comes_in_the_middle(count: int, good: int) -> None:
    call = FaultyCall(pack, Fault("raise"), count)
    for _ in range(good):
        assert call(1) == pack(1)
    with pytest.raises(RuntimeError, match="injected fault"):
        call(1)
    assert call(1) == pack(1)


def test_every_result_is_corrupted_and_keeps_its_layout() -> None:
    call = FaultyCall(pack, Fault("garbage"), count=2)
    right = pack(np.arange(5))
    for _ in range(2):
        wrong = call(np.arange(5))
        assert (wrong.structure, wrong.layout) == (right.structure, right.layout)
        assert all(one != other for one, other in zip(bytes(wrong.data), bytes(right.data)))
    assert corrupted(corrupted(right)) == right
