"""How functions travel."""

from __future__ import annotations

import pickle
import sys
import traceback
from types import ModuleType

import cloudpickle
import pytest

from polarmap.executors.pickling import modules_named, pickled, pickled_by_value


def test_a_function_comes_back_and_a_traceback_names_its_line() -> None:
    f = pickle.loads(pickled(lambda block: 1 / block, "a pool"))
    assert f(2) == 0.5
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


def test_only_modules_that_are_there_below_these_roots_are_named() -> None:
    several = ["polarmap.errors", "polarmap.nowhere", "polarmap_not", "os.path", "scipy", 1.5, "a polarmap"]
    assert modules_named(pickled(several, "a pool"), ["polarmap", "scipy"]) <= {"polarmap.errors", "scipy"}
    assert "polarmap.errors" in modules_named(pickled(several, "a pool"), ["polarmap"])
    large = [b"\x8c" * 10_000, [float(number) for number in range(10_000)], pickled]
    assert modules_named(pickled(large, "a pool"), ["polarmap"]) == {"polarmap.executors.pickling"}


def test_names_of_modules_may_have_any_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("päckchen", "päckchen.tür", "päckchen.ДД"):  # with a byte that ends others
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
        found = modules_named(pickled([name, 1], "a pool"), ["päckchen"])
        assert found == {name}


def test_the_last_to_leave_takes_the_entry_out() -> None:
    with pickled_by_value():
        with pickled_by_value():
            pass
        assert "polarmap.worker" in cloudpickle.list_registry_pickle_by_value()
    assert "polarmap.worker" not in cloudpickle.list_registry_pickle_by_value()
