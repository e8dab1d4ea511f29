"""Collection of the state that f reaches in the user's modules, which is sent with f."""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from polarmap.errors import CodeError
from polarmap.executors import module_state
from polarmap.executors.module_state import (
    analyze_code,
    collect_module_state,
    is_library_module,
    select_user_objects,
)
from polarmap.worker.module_state import describe_value

NAME = "module_that_is_reached"
SOURCE = """
import functools, threading
import numpy as np
number, unused, array, cache = 2.0, 3.0, np.ones(3), {}
model = None
opened = (item for item in ())
class Base:
    rate = 2.0
class Kind(Base):
    lock = None
    def method(self, b): return b * number
class Client:
    def __init__(self): self.lock, self.address = threading.Lock(), "a"
client = Client()
def helper(b, factor=1.0): return b * number
def f(b): return helper(b) + array[0]
def fills(b):
    global model
    model = cache
def connects(b): return client.address
def reads(b): return opened
def dynamic(b): return globals()[b]
def shadows(b): return max(b)
"""


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    module = types.ModuleType(NAME)
    monkeypatch.setitem(sys.modules, NAME, module)
    exec(SOURCE, vars(module))
    yield module
    for known in (
        module_state._walk_cache,
        module_state._user_module_cache,
        module_state._first_seen_objects,
    ):
        known.clear()


def paths(*reached: Any) -> set[str]:
    return {item.path for item in collect_module_state(reached)}


def test_installed_modules_are_not_user_modules(module: Any) -> None:
    assert (
        is_library_module("numpy")
        and is_library_module("sys")
        and is_library_module("polarmap.errors")
        and is_library_module("_pytest")
    )
    assert not is_library_module(NAME)
    assert select_user_objects([np.sum, functools.partial, np, module, module.f]) == [module, module.f]


def test_only_names_used_by_code_are_reached(module: Any) -> None:
    assert paths(module.f) == {"f", "helper", "number", "array"}
    assert paths(module.Kind) == {"Kind", "Kind.lock", "Kind.method", "number", "Base", "Base.rate"}
    assert {"client", "client.lock", "client.address", "Client.__init__"} <= paths(module.connects)
    assert {"number", "unused", "array"} <= paths(module.dynamic)


def test_names_of_modules_that_a_program_names_are_reached(module: Any) -> None:
    names = {"__name__": "__main__", "m": module}
    program: Any = types.FunctionType(compile("m.number", "program", "eval"), names)
    assert paths(program, module) == {"number"}


def test_function_pickled_by_value_needs_no_module(module: Any) -> None:
    exec("def make(): return lambda b: helper(b) * number * unused", vars(module))
    function = module.make()
    assert paths(function) == set()
    assert paths(function, module.helper) == {"helper", "number"}


def test_absolute_imports_reach_no_package_around_the_function(module: Any) -> None:
    # A function that imports a library and uses `vars` does not depend on its own package.
    namespace = {"__name__": "absent", "__package__": NAME}
    exec("def imports(b):\n    import concurrent.futures, sys\n    return vars(sys)", namespace)
    exec("def relative(b):\n    from . import number\n    return number", namespace)
    assert module_state._ModuleStateWalk([namespace["imports"]], []).items == []
    assert [item.path for item in module_state._ModuleStateWalk([namespace["relative"]], []).items] == [
        "number"
    ]


def test_state_that_functions_modify_is_detected(module: Any) -> None:
    may_differ = {
        item.path: item.may_differ_on_worker for item in collect_module_state([module.fills, module.f])
    }
    assert {path for path, may_be_filled in may_differ.items() if may_be_filled} == {"model", "cache"}


CHANGES: dict[str, Callable[[Any], Any]] = {
    "number": lambda m: setattr(m, "number", 3.0),
    "array": lambda m: m.array.fill(3),
    "function": lambda m: setattr(m, "helper", m.f),
    "code": lambda m: setattr(m.helper, "__code__", (lambda b: b).__code__),
    "defaults": lambda m: setattr(m.helper, "__defaults__", (7.0,)),
    "attribute of a function": lambda m: setattr(m.helper, "build_report_fields", 7),
    "attribute of a base": lambda m: setattr(m.Base, "rate", 3.0),
    "new attribute": lambda m: setattr(m.Kind, "rate", 3.0),
    "name that was a builtin": lambda m: setattr(m, "max", min),
    "attribute of an opaque instance": lambda m: setattr(m.client, "address", "b"),
    "new attribute of an opaque instance": lambda m: setattr(m.client, "other", "b"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_state_is_collected_again_in_each_map(name: str, module: Any) -> None:
    reached = [module.f, module.Kind, module.connects, module.shadows]
    before = collect_module_state(reached)
    assert collect_module_state(reached) is before
    CHANGES[name](module)
    assert collect_module_state(reached) != before
    assert collect_module_state(reached) is collect_module_state(reached)


def test_immutable_state_is_described_only_once(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    reached = [module.helper, module.Kind]
    collect_module_state(reached)
    described = list[str]()

    def describe(module: str, path: str, value: Any) -> Any:
        described.append(path)
        return describe_value(module, path, value)

    monkeypatch.setattr(module_state, "describe_value", describe)
    assert collect_module_state(reached) is collect_module_state(reached)
    assert described == []


def test_another_object_that_cannot_be_sent_is_refused(module: Any) -> None:
    collect_module_state([module.reads])
    module.opened = (item for item in ())
    with pytest.raises(CodeError, match=rf"{NAME}\.opened, a generator that was replaced since"):
        collect_module_state([module.reads])


def test_globals_assigned_by_a_function_are_detected() -> None:
    code = compile("def f():\n    global a, b\n    a = b\n    del c.d", "one.py", "exec")
    assert analyze_code(code).assigned_globals == {"a"}
