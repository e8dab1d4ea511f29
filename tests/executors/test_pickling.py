"""How functions travel."""

from __future__ import annotations

import pickle
import threading
import traceback

import cloudpickle
import pytest

from polarmap.errors import CodeError
from polarmap.executors.pickling import pickled, pickled_by_value


def test_a_function_comes_back() -> None:
    assert pickle.loads(pickled(lambda block: 2 * block, "a pool"))(3) == 6


def test_a_traceback_names_the_line_of_a_function_that_has_travelled() -> None:
    f = pickle.loads(pickled(lambda block: 1 / block, "a pool"))
    with pytest.raises(ZeroDivisionError) as raised:
        f(0)
    told = "".join(traceback.format_tb(raised.value.__traceback__))
    assert __file__ in told
    assert "lambda block: 1 / block" in told


def test_the_same_function_is_the_same_bytes() -> None:
    def f(block: float) -> float:
        return max(map(lambda one: one + block, [1.0]))  # noqa: C417

    first = pickled(f, "a pool")
    assert all(pickled(f, "a pool") == first for _ in range(3))


def test_one_that_cannot_travel_is_named_with_its_place() -> None:
    lock = threading.Lock()
    with pytest.raises(CodeError, match="f cannot be pickled for a pool: TypeError: cannot pickle"):
        pickled(lambda block: lock, "a pool")


def test_the_last_to_leave_takes_the_entry_out() -> None:
    with pickled_by_value():
        with pickled_by_value():
            pass
        assert "polarmap.worker" in cloudpickle.list_registry_pickle_by_value()
    assert "polarmap.worker" not in cloudpickle.list_registry_pickle_by_value()
