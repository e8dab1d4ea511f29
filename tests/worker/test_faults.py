"""Faults come with the call, and change nothing but what they should."""

from __future__ import annotations

import time

import numpy as np
import pytest

from polarmap.worker.faults import Fault, corrupted, faulty
from polarmap.worker.pytree import pack


def test_a_sleep_comes_before_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    assert faulty(pack, Fault("sleep", 0.2))(1) == pack(1)
    assert slept == [0.2]


def test_an_exception_comes_in_the_place_of_the_result() -> None:
    calls: list[object] = []
    with pytest.raises(RuntimeError, match="injected fault"):
        faulty(lambda block: calls.append(block) or pack(block), Fault("raise"))(1)
    assert calls == []


def test_a_result_that_is_corrupted_keeps_its_layout() -> None:
    wrong, right = faulty(pack, Fault("garbage"))(np.arange(5)), pack(np.arange(5))
    assert (wrong.structure, wrong.layout) == (right.structure, right.layout)
    assert all(one != other for one, other in zip(bytes(wrong.data), bytes(right.data)))
    assert corrupted(corrupted(right)) == right
