"""What tells calls of one function from others, and when they are late."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from functools import partial
from math import inf
from typing import Any

import numpy as np
import pytest

from polarmap.run.call import LEAST_SECONDS, Call, LateCalls, function_of


class Thing:
    def method(self) -> None: ...

    def __call__(self) -> None: ...


def test_a_function_is_the_same_whoever_calls_it() -> None:
    functions: list[Any] = [
        lambda: 1,
        lambda: 2,
        Thing().method,
        Thing(),
        min,
        np.sum,
        "".join,
        test_a_call_is_told_once,
    ]
    assert len({function_of(one) for one in functions}) == len(functions)
    assert function_of(Thing().method) == function_of(Thing.method)
    assert function_of(Thing()) == function_of(Thing())
    assert function_of(partial(min, 1)) == function_of(min)


def test_a_call_is_told_once() -> None:
    call = Call(Future(), "f", np.zeros(3, np.uint8))
    assert call.take_block().shape == (3,)
    with pytest.raises(AssertionError):
        call.take_block()
    call.return_(1)
    call.fail(ValueError())
    call.return_(2)
    assert call.future.result() == 1


def test_lateness_is_learned_from_call_to_call() -> None:
    durations: deque[float] = deque(maxlen=16)
    late = LateCalls(durations)
    assert late.next_moment() == inf
    for number in range(40):
        late.begin((number, 0), 0.0)
        late.end((number, 0))
        late.learn(1.0)
    late.begin((40, 0), 100.0)
    assert late.late_at(101.0) == set()
    assert late.late_at(101.2) == {(40, 0)}
    assert list(durations) == [1.0] * 16
    again = LateCalls(durations)
    again.begin((0, 0), 0.0)
    assert 1.0 < again.next_moment() < 1.2


def test_no_call_is_late_at_once() -> None:
    late = LateCalls(deque([1e-6] * 20))
    late.begin((0, 0), 0.0)
    assert late.next_moment() == LEAST_SECONDS
