"""Tests of calls and their futures, of the calls of a map, and of the key that groups calls by function."""

from __future__ import annotations

from concurrent.futures import Future
from functools import partial
from typing import Any

import numpy as np

from polarmap.driver.calls import SubmittedCall, get_function_key


def test_a_call_is_resolved_once() -> None:
    call = SubmittedCall(Future(), "f", np.zeros(3, np.uint8))
    call.set_exception(0, ValueError("first"))
    call.set_exception(0, ValueError("second"))
    assert str(call.future.exception()) == "first"


class Thing:
    def method(self) -> None: ...

    def __call__(self) -> None: ...


def test_function_keys_are_equal_for_equal_functions_only() -> None:
    functions: list[Any] = [
        lambda: 1,
        lambda: 2,
        Thing().method,
        Thing(),
        min,
        np.sum,
        "".join,
        test_a_call_is_resolved_once,
    ]
    assert len({get_function_key(function) for function in functions}) == len(functions)
    assert get_function_key(Thing().method) == get_function_key(Thing.method)
    assert get_function_key(Thing()) == get_function_key(Thing())
    assert get_function_key(partial(min, 1)) == get_function_key(min)
    # Each function is freed before the next is created.
    keys = {get_function_key(eval(f"lambda: {number}")) for number in range(20)}
    assert len(keys) == 20
